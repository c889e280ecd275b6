//! Untrusted programs, contained.
