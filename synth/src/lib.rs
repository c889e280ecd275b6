//! Synthetic data from a teacher: pipelines of small typed steps that generate rows and curate them.

pub mod curate;
pub mod profile;
pub mod row;
pub mod step;

pub use row::Row;
pub use step::{Outcome, Removed, Run, Step};
