//! Greedy decoding.
