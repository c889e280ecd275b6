//! Records, readers, mixtures, packing and the ledger.

pub mod batch;
pub mod pack;
pub mod record;
