//! Greedy decoding with a key and value cache.

mod cache;
mod greedy;

pub use greedy::{Limits, cached_tokens, greedy};
pub(crate) use greedy::{PREFILL_TOKENS, SEQUENCES};
