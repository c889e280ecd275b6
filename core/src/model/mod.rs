//! The decoder: configuration, weights in and out, blocks, head and LoRA.

pub mod config;
pub mod weights;
