//! Records, readers, mixtures, packing and the ledger.

pub mod batch;
pub mod branched;
pub mod dataset;
pub mod encoded;
pub mod explain;
pub mod files;
pub mod format;
pub mod hub;
pub mod inspect;
pub mod ledger;
pub mod mixture;
pub mod pack;
pub mod parse;
pub mod reader;
pub mod record;
pub mod rows;
pub mod stream;
pub mod view;

#[cfg(test)]
mod tests;
