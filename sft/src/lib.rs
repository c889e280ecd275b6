//! Supervised fine-tuning.

pub mod loss;
pub mod step;
