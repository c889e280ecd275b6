//! halter for research programs: the crates under one name.

pub use halter_core as core;
pub use halter_sft as sft;
