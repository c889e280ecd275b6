//! Supervised fine-tuning.

pub mod config;
pub mod data;
pub mod evaluation;
pub mod finish;
pub mod loss;
mod messages;
pub mod prepare;
pub mod recipe;
mod rows;
pub mod state;
pub mod step;
