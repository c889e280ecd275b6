//! Tiny models, comparisons and gradient checks for halter's tests.
