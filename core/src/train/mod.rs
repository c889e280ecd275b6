//! The training run: pass, optimizer, schedule, checkpoint, metrics, run directory.

pub mod card;
pub mod checkpoint;
pub mod config;
pub mod files;
pub mod interrupt;
pub mod method;
pub mod metrics;
pub mod optimizer;
pub mod pass;
pub mod progress;
pub mod report;
pub mod run;
pub mod run_dir;
pub mod schedule;
pub mod source;
pub mod stable;
pub mod step;
pub mod summary;
mod tensor_file;
pub mod tensorboard;
