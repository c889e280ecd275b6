//! Synthetic data from a teacher: pipelines of small typed steps that generate rows and curate them.

mod asking;
pub mod curate;
pub mod generate;
pub mod pipeline;
pub mod profile;
pub mod row;
pub mod step;
mod template;

pub use pipeline::Pipeline;
pub use row::Row;
pub use step::{Made, Outcome, Questions, Removed, Run, Step};
