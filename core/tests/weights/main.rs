//! The model's files, in and out, through the public interface.

// The helpers are outside of test functions, where clippy would otherwise forbid what tests may do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod adapters;
mod bad_input;
mod config;
mod export;
mod fixtures;
pub mod gguf;
mod mutations;
mod reading;
mod smollm2;
