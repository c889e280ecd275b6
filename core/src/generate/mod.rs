//! Completions of prompts: continuous batching over a paged cache of keys and values.

mod complete;
pub mod engine;
mod forward;
pub mod generator;
pub mod logprobs;
pub mod output;
mod pages;
pub mod sampling;
pub mod score;
pub mod session;
pub mod text;

pub use complete::{Limits, Tokens, cached_tokens, complete, greedy};
pub(crate) use complete::{PREFILL_TOKENS, SEQUENCES};
pub use generator::Generator;
