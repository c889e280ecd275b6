//! Pipelines: steps in a TOML file, each of which reads the files of others and writes its own.

mod config;
mod files;
mod options;
mod report;
mod run;
mod set;

pub use config::{Input, Pipeline, Stage};
pub use files::{Made, Spending};
pub use options::Options;
pub use run::{Planned, Runner, Summary, Told};
