//! Records, readers, mixtures, packing and the ledger.

pub mod batch;
pub mod format;
pub mod pack;
pub mod parse;
pub mod reader;
pub mod record;
