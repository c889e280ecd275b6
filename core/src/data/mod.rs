//! Records, readers, mixtures, packing and the ledger.

pub mod record;
