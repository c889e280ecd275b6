//! The rows of the steps, taken from the stream, with the ledger kept.

use std::collections::VecDeque;

use crate::Result;
use crate::data::encoded::Encoded;
use crate::data::ledger::{Ledger, LedgerTotals};
use crate::data::mixture::Cursor;
use crate::data::stream::RowStream;
use crate::train::method::TrainRow;

use super::state::State;

/// Hands out rows in order and knows where a checkpoint would go on.
pub struct RowFeed<R> {
    stream: RowStream<Encoded<Vec<R>>>,
    ledger: Ledger,
    /// Rows of the record at `cursor` that are still to be used.
    waiting: VecDeque<R>,
    /// The record that `waiting` comes from, or the next one.
    cursor: Cursor,
    /// The record after it.
    next: Cursor,
    /// Rows of the record at `cursor` that were used.
    used: usize,
    /// Where the newest record that gave a row ended.
    fruitful: Cursor,
    /// Rows to pass over of the first record: they were used before the checkpoint.
    skip: usize,
}

impl<R: TrainRow> RowFeed<R> {
    /// Goes on at `cursor`, after `used` rows of its record.
    pub fn new(
        stream: RowStream<Encoded<Vec<R>>>,
        ledger: Ledger,
        cursor: Cursor,
        used: usize,
    ) -> Self {
        let waiting = VecDeque::new();
        let (next, fruitful) = (cursor, cursor);
        Self { stream, ledger, waiting, cursor, next, used: 0, fruitful, skip: used }
    }

    /// The next `count` rows; fewer where the data ends, or where a whole epoch gave none.
    ///
    /// # Errors
    /// A record that would train wrongly.
    pub fn next_rows(&mut self, count: usize) -> Result<Vec<R>> {
        let mut rows = Vec::with_capacity(count);
        while rows.len() < count {
            if let Some(row) = self.waiting.pop_front() {
                rows.push(row);
                self.used += 1;
                continue;
            }
            let Some(streamed) = self.stream.next() else { break };
            let streamed = streamed?;
            // A record of which rows were used before the checkpoint was noted then.
            if self.skip == 0 {
                self.ledger.note(&streamed.origin, &streamed.value)?;
            }
            (self.cursor, self.next) = (streamed.at, streamed.next);
            self.used = self.skip;
            self.waiting = streamed.value.into_kept().unwrap_or_default().into();
            self.waiting.drain(..self.skip.min(self.waiting.len()));
            self.skip = 0;
            if !self.waiting.is_empty() {
                self.fruitful = self.next;
            } else if self.next.epoch > self.fruitful.epoch + 1 {
                break;
            }
        }
        Ok(rows)
    }

    /// Epochs that are through.
    pub fn epochs(&self, rows_per_epoch: u64) -> f64 {
        self.next.epoch as f64 + self.next.position as f64 / rows_per_epoch.max(1) as f64
    }

    /// What became of the rows so far.
    pub fn totals(&self) -> &LedgerTotals {
        self.ledger.totals()
    }

    /// Notes in `state` where to go on.
    pub fn note_position(&self, state: &mut State) {
        (state.cursor, state.rows_into_record) = match self.waiting.is_empty() {
            // Nothing was taken yet since the checkpoint before, which may stand inside a record.
            _ if self.skip > 0 => (self.cursor, self.skip),
            true => (self.next, 0),
            false => (self.cursor, self.used),
        };
        state.ledger = self.ledger.state().clone();
    }

    /// Puts the ledger on disk, as a checkpoint needs it.
    ///
    /// # Errors
    /// A full disk.
    pub fn sync(&mut self) -> Result<()> {
        self.ledger.checkpoint().map(drop)
    }
}
