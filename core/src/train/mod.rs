//! The training run: pass, optimizer, schedule, checkpoint, metrics, run directory.

pub mod optimizer;
pub mod pass;
pub mod schedule;
