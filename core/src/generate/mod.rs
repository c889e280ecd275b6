//! Completions of prompts: continuous batching over a paged cache of keys and values.

pub mod engine;
mod forward;
pub mod generator;
mod greedy;
pub mod output;
mod pages;
pub mod sampling;
pub mod score;
pub mod session;
pub mod text;

pub use generator::Generator;
pub use greedy::{Limits, cached_tokens, greedy};
pub(crate) use greedy::{PREFILL_TOKENS, SEQUENCES};
