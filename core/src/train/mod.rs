//! The training run: pass, optimizer, schedule, checkpoint, metrics, run directory.
