//! Buffers that are used again, and how much memory a run will need.

pub mod copying;
pub mod generation;
pub mod layered;
pub(crate) mod pages;
pub mod plan;
mod pool;
pub mod system;

pub use pool::{Buffer, Pool};
