//! A row that is taught.

use std::sync::Arc;

use halter_core::data::encoded::TokenCount;
use halter_core::data::record::{Origin, Record, Row};
use halter_core::train::method::TrainRow;

/// A row as the student reads it, and where its teacher reads other tokens, what it was made of.
#[derive(Debug, Clone, PartialEq)]
pub struct TaughtRow {
    /// The student's tokens.
    pub row: Row,
    /// What the teacher reads.
    pub record: Option<Arc<Record>>,
}

impl TaughtRow {
    /// The rows alone.
    pub fn rows(rows: &[Self]) -> Vec<Row> {
        rows.iter().map(|taught| taught.row.clone()).collect()
    }
}

impl TokenCount for TaughtRow {
    fn tokens(&self) -> usize {
        self.row.tokens()
    }

    fn trained_tokens(&self) -> usize {
        self.row.trained_tokens()
    }

    fn prompt_is_prefix(&self) -> bool {
        self.row.prompt_is_prefix
    }
}

impl TrainRow for TaughtRow {
    fn origin(&self) -> &Origin {
        &self.row.origin
    }

    fn trained_ids(&self) -> impl Iterator<Item = u32> {
        self.row.trained_ids()
    }
}
