//! A row that is taught.

use halter_core::data::encoded::TokenCount;
use halter_core::data::record::{Origin, Row};
use halter_core::train::method::TrainRow;

/// A row as the student reads it, and as a teacher does that reads other tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TaughtRow {
    /// The student's tokens.
    pub row: Row,
    /// The teacher's, where they are others.
    pub theirs: Option<Row>,
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
