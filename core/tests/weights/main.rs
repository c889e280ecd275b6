//! The model's files, in and out, through the public interface.

#![allow(missing_docs)]

mod adapters;
mod bad_input;
mod config;
mod export;
mod fixtures;
pub mod gguf;
mod mutations;
mod reading;
mod smollm2;
