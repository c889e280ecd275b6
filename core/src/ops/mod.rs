//! One file per operation: forward and backward.
