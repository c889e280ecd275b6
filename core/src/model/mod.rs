//! The decoder: configuration, weights in and out, blocks, head and LoRA.

pub mod block;
pub mod config;
mod decoder;
pub mod importance;
pub mod init;
pub mod linear;
mod load;
pub mod lora;
pub mod merge;
pub mod param;
pub mod weights;

pub use decoder::Decoder;
pub use load::Base;
