//! Takes down what a teacher says of the rows of data sets, for any number of students.

#[cfg(feature = "endpoint")]
mod endpoint;
mod local;
#[cfg(feature = "endpoint")]
mod reply;

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use halter_core::Result;
use halter_core::data::batch::PackedBatch;
use halter_core::data::dataset::Dataset;
use halter_core::data::encoded::TokenCount;
use halter_core::data::record::Row;
use halter_core::data::view::Encoder;
use halter_core::ops::divergence::TopLogps;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::{Progress, Unit};
use serde::Serialize;

use crate::store::{Header, Key, Store, StoreWriter, sequences};

#[cfg(feature = "endpoint")]
pub use endpoint::{EndpointOptions, PromptAs, capture_endpoint, failed_path};
pub use local::{CaptureOptions, capture};

/// What was taken down.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Captured {
    /// Rows in the file.
    pub rows: usize,
    /// Of these, taken now.
    pub taken: usize,
    /// Records that make no row.
    pub left_out: usize,
    /// Rows of which the teacher said nothing.
    pub failed: usize,
    /// Positions taken now.
    pub positions: usize,
    /// Bytes of a position.
    pub bytes_per_position: usize,
    /// Mean of KL(teacher ‖ file) over those positions, both over the likeliest tokens and all others
    /// together: what rounding costs.
    pub rounding_kl: f64,
    /// Mean mass of the tokens that are not told apart.
    pub rest_mass: f64,
    /// Tokens that an endpoint told apart at a position, in the mean; it may tell fewer than it is
    /// asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub told_per_position: Option<f64>,
}

/// A teacher that is asked about many rows at once.
trait Speaker {
    /// Whether rows of so many tokens are to be asked about before one of `more` tokens joins them.
    fn is_full(&self, rows: usize, tokens: usize, more: usize) -> bool;

    /// Has what it says of `rows` kept.
    fn say(&mut self, rows: &[Row], kept: &mut Kept, watch: &mut Watch<'_>) -> Result<()>;
}

/// Who watches.
struct Watch<'a> {
    /// Records that were seen.
    records: u64,
    progress: &'a mut dyn Progress,
    interrupt: &'a Interrupt,
}

/// The file, and what was taken down.
struct Kept {
    writer: StoreWriter,
    header: Header,
    found: Captured,
}

impl Kept {
    /// Keeps rows `range` of `told` as what was said of the row of `key`.
    fn keep(&mut self, key: Key, told: &TopLogps, range: Range<usize>) -> Result<()> {
        self.writer.append(key, told, range.clone())?;
        self.found.taken += 1;
        self.found.rows += 1;
        self.found.positions += range.len();
        self.measure(&told.rows(range));
        Ok(())
    }

    fn measure(&mut self, told: &TopLogps) {
        let read = self.header.rounded(told);
        let kl = |p: f32, q: f32| f64::from(p).exp() * (f64::from(p) - f64::from(q));
        let logps = told.logps.iter().zip(&read.logps);
        let rest = told.rest.iter().zip(&read.rest).filter(|(p, _)| **p > -RANGE_OF_MASS);
        self.found.rounding_kl += logps.chain(rest).map(|(&p, &q)| kl(p, q)).sum::<f64>();
        self.found.rest_mass += told.rest.iter().map(|&logp| f64::from(logp).exp()).sum::<f64>();
    }
}

/// Log-probs below its negative have no mass that counts.
const RANGE_OF_MASS: f32 = 80.0;

/// Takes down what `speaker` says of the rows of `sets` that the file at `path` has not yet; what was
/// taken stays when it fails.
fn take_down(
    speaker: &mut dyn Speaker,
    header: Header,
    encoder: &Encoder,
    sets: &[Dataset],
    path: &Path,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Captured> {
    let (writer, known) = StoreWriter::open(path, &header)?;
    if let Some(damaged) = known.as_ref().map(Store::damaged_bytes).filter(|&bytes| bytes > 0) {
        progress.note(&format!("{}: {damaged} damaged bytes cut off its end", path.display()));
    }
    let found = Captured {
        rows: known.as_ref().map_or(0, Store::len),
        bytes_per_position: header.position_bytes(),
        ..Captured::default()
    };
    let records: usize = sets.iter().map(Dataset::len).sum();
    progress.begin("captured", records as u64, Unit::Rows);
    let mut taker = Taker {
        speaker,
        kept: Kept { writer, header, found },
        watch: Watch { records: 0, progress, interrupt },
        known,
        waiting: Vec::new(),
        tokens: 0,
        seen: HashSet::new(),
    };
    let taken = taker.take_all(encoder, sets);
    taker.watch.progress.finish();
    let Kept { writer, mut found, .. } = taker.kept;
    writer.close(found.rows)?;
    taken?;
    if found.positions > 0 {
        found.rounding_kl /= found.positions as f64;
        found.rest_mass /= found.positions as f64;
    }
    Ok(found)
}

/// Gathers rows until the speaker is to be asked about them.
struct Taker<'a> {
    speaker: &'a mut dyn Speaker,
    kept: Kept,
    watch: Watch<'a>,
    known: Option<Store>,
    waiting: Vec<Row>,
    tokens: usize,
    /// What is in `waiting`, or was asked about now.
    seen: HashSet<Key>,
}

impl Taker<'_> {
    fn take_all(&mut self, encoder: &Encoder, sets: &[Dataset]) -> Result<()> {
        for set in sets {
            for at in 0..set.len() {
                self.watch.interrupt.check()?;
                let rows = encoder.rows(&set.origin(at), &set.record(at)?)?.into_kept();
                if rows.is_none() {
                    self.kept.found.left_out += 1;
                }
                for row in rows.unwrap_or_default() {
                    self.take(row)?;
                }
                self.watch.records += 1;
                self.watch.progress.advance(self.watch.records, "");
            }
        }
        self.flush()
    }

    fn take(&mut self, row: Row) -> Result<()> {
        if row.trained_tokens() == 0 {
            self.kept.found.left_out += 1;
            return Ok(());
        }
        let batch = PackedBatch::from_rows([&row])?;
        let is_new = |(key, _): &(Key, usize)| {
            let known = self.known.as_ref().is_some_and(|known| known.has(*key));
            !known && self.seen.insert(*key)
        };
        if !sequences(&batch).iter().any(is_new) {
            return Ok(());
        }
        if self.speaker.is_full(self.waiting.len(), self.tokens, row.tokens()) {
            self.flush()?;
        }
        self.tokens += row.tokens();
        self.waiting.push(row);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.waiting);
        self.tokens = 0;
        if rows.is_empty() {
            return Ok(());
        }
        self.speaker.say(&rows, &mut self.kept, &mut self.watch)
    }
}
