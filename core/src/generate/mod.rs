//! Greedy decoding with a key and value cache.

mod cache;
mod greedy;

pub use greedy::{Limits, greedy};
