//! Completions of prompts: continuous batching over a paged cache of keys and values.

pub mod engine;
mod forward;
mod greedy;
mod pages;
pub mod sampling;

pub use greedy::{Limits, cached_tokens, greedy};
pub(crate) use greedy::{PREFILL_TOKENS, SEQUENCES};
