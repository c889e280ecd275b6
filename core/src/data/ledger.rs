//! The ledger: a line for every row that was not simply used, and the sums over all rows.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::encoded::{Encoded, TokenCount};
use super::record::Origin;
use crate::train::progress::counted;
use crate::{Error, Result};

/// What became of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// Used in part.
    Cut,
    /// Left out by a policy.
    Dropped,
    /// Left out because it was wrong.
    Refused,
}

/// One line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerLine {
    /// File or data set.
    pub path: String,
    /// Line or row, from one.
    pub line: usize,
    /// What became of the row.
    pub fate: Fate,
    /// Why.
    pub reason: String,
    /// Tokens that the row had; 0 where it was refused before it had any.
    pub tokens: usize,
    /// Tokens that were used.
    pub kept_tokens: usize,
}

/// Sums over the rows of a run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerTotals {
    /// All rows, a row counting each time that it was read.
    pub rows: u64,
    /// Rows used whole.
    pub kept: u64,
    /// Rows used in part, by reason.
    pub cut: BTreeMap<String, u64>,
    /// Rows left out by a policy, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Rows left out because they were wrong, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Tokens used.
    pub tokens: u64,
    /// Tokens of these that were trained.
    pub trained_tokens: u64,
    /// Tokens left out, by cutting and dropping.
    pub lost_tokens: u64,
    /// Rows used that have a trained part after a context that generation would not be given.
    pub unlike_generation: u64,
}

impl fmt::Display for LedgerTotals {
    /// The last lines on screen.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |by: &BTreeMap<String, u64>| by.values().sum::<u64>();
        write!(
            f,
            "{}: {} kept, {} cut, {} dropped, {} refused; {}, {} trained",
            counted(self.rows as usize, "row"),
            self.kept,
            sum(&self.cut),
            sum(&self.dropped),
            sum(&self.refused),
            counted(self.tokens as usize, "token"),
            self.trained_tokens
        )?;
        if self.lost_tokens > 0 {
            write!(f, ", {} left out", self.lost_tokens)?;
        }
        for (fate, by) in
            [("cut", &self.cut), ("dropped", &self.dropped), ("refused", &self.refused)]
        {
            for (reason, count) in by {
                write!(f, "\n  {fate} {count}: {reason}")?;
            }
        }
        if self.unlike_generation > 0 {
            let count = self.unlike_generation;
            write!(
                f,
                "\n  used {count}: trained after a context that generation would not be given"
            )?;
        }
        Ok(())
    }
}

/// The most reasons that are counted apart: messages of wrong rows may all differ.
const MAX_REASONS: usize = 64;

fn count(by: &mut BTreeMap<String, u64>, reason: &str) {
    let known = by.contains_key(reason) || by.len() < MAX_REASONS;
    *by.entry(if known { reason } else { "other reasons" }.to_string()).or_insert(0) += 1;
}

/// What a checkpoint keeps of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerState {
    /// Length of the file.
    pub bytes: u64,
    /// Its lines.
    pub lines: u64,
    /// The sums.
    pub totals: LedgerTotals,
}

/// Writes `ledger.jsonl` of a run directory.
///
/// Rows are noted when they are used, not when they are read ahead, so that the ledger agrees with
/// the cursor of a checkpoint. What is noted is on disk after [`checkpoint`](Self::checkpoint).
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: BufWriter<File>,
    state: LedgerState,
}

impl Ledger {
    /// Starts an empty ledger, over whatever is there.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::create(path).map_err(|error| Error::io("create", path, error))?;
        let state = LedgerState::default();
        Ok(Self { path: path.to_path_buf(), file: BufWriter::new(file), state })
    }

    /// Goes on where a checkpoint stands: lines that were written after it are taken off again,
    /// as their rows will be read again.
    ///
    /// # Errors
    /// If the file is not there, is shorter than the checkpoint says, or cannot be written.
    pub fn resume(path: impl AsRef<Path>, state: LedgerState) -> Result<Self> {
        let path = path.as_ref();
        let failed = |error| Error::io("open", path, error);
        let mut options = OpenOptions::new();
        // An empty ledger that was lost has lost nothing.
        let mut file = options
            .write(true)
            .create(state.bytes == 0)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        if length < state.bytes {
            return Err(Error::data(format!(
                "the ledger has `{length}` bytes, but the checkpoint was made when it had `{}`",
                state.bytes
            ))
            .in_file(path)
            .hint("the run directory is damaged; resume from another checkpoint"));
        }
        file.set_len(state.bytes).map_err(|error| Error::io("shorten", path, error))?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), file: BufWriter::new(file), state })
    }

    /// Notes what became of a row.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn note<T: TokenCount>(&mut self, origin: &Origin, outcome: &Encoded<T>) -> Result<()> {
        let totals = &mut self.state.totals;
        totals.rows += 1;
        if let Some(kept) = outcome.kept() {
            totals.tokens += kept.tokens() as u64;
            totals.trained_tokens += kept.trained_tokens() as u64;
            totals.unlike_generation += u64::from(!kept.prompt_is_prefix());
        }
        let (fate, reason, tokens, kept_tokens) = match outcome {
            Encoded::Kept(_) => {
                totals.kept += 1;
                return Ok(());
            }
            Encoded::Cut { kept, reason, tokens } => (Fate::Cut, reason, *tokens, kept.tokens()),
            Encoded::Dropped { reason, tokens } => (Fate::Dropped, reason, *tokens, 0),
        };
        count(if fate == Fate::Cut { &mut totals.cut } else { &mut totals.dropped }, reason);
        totals.lost_tokens += tokens.saturating_sub(kept_tokens) as u64;
        self.write(origin, fate, reason, tokens, kept_tokens)
    }

    /// Notes a row that was wrong and that a policy lets the run go on without.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn refuse(&mut self, origin: &Origin, error: &Error) -> Result<()> {
        self.state.totals.rows += 1;
        let reason = error.message().to_string();
        count(&mut self.state.totals.refused, &reason);
        self.write(origin, Fate::Refused, &reason, 0, 0)
    }

    fn write(
        &mut self,
        origin: &Origin,
        fate: Fate,
        reason: &str,
        tokens: usize,
        kept_tokens: usize,
    ) -> Result<()> {
        let line = LedgerLine {
            path: origin.path.to_string_lossy().into_owned(),
            line: origin.line,
            fate,
            reason: reason.to_string(),
            tokens,
            kept_tokens,
        };
        let mut text = serde_json::to_vec(&line)
            .map_err(|error| Error::io("write", &self.path, error.into()))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(|error| Error::io("write", &self.path, error))?;
        self.state.bytes += text.len() as u64;
        self.state.lines += 1;
        Ok(())
    }

    /// The sums so far.
    pub fn totals(&self) -> &LedgerTotals {
        &self.state.totals
    }

    /// Where the ledger stands; not all of it need be on disk.
    pub fn state(&self) -> &LedgerState {
        &self.state
    }

    /// Puts everything noted so far on disk and gives what the checkpoint keeps.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn checkpoint(&mut self) -> Result<LedgerState> {
        self.file.flush().map_err(|error| Error::io("write", &self.path, error))?;
        self.file.get_ref().sync_data().map_err(|error| Error::io("sync", &self.path, error))?;
        Ok(self.state.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::record::Row;
    use std::sync::Arc;

    fn origin(line: usize) -> Origin {
        Origin { path: Arc::new(PathBuf::from("rows.jsonl")), line }
    }

    fn row(len: usize) -> Row {
        let completion_mask = vec![true; len];
        Row {
            origin: origin(1),
            input_ids: vec![0; len],
            completion_mask,
            prompt_is_prefix: len != 5,
        }
    }

    fn feed(ledger: &mut Ledger, lines: std::ops::Range<usize>) {
        for line in lines {
            let reason = || "longer than max_seq_len".to_string();
            let outcome = match line % 4 {
                0 => Encoded::Cut { kept: row(5), reason: reason(), tokens: 9 },
                1 => Encoded::Dropped { reason: reason(), tokens: 30 },
                2 => {
                    ledger.refuse(&origin(line), &Error::data("`messages` is empty")).unwrap();
                    continue;
                }
                _ => Encoded::Kept(row(4)),
            };
            ledger.note(&origin(line), &outcome).unwrap();
        }
    }

    #[test]
    fn every_row_that_was_not_simply_used_has_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        let mut ledger = Ledger::create(&path).unwrap();
        feed(&mut ledger, 0..6);
        ledger.checkpoint().unwrap();
        insta::assert_snapshot!(std::fs::read_to_string(&path).unwrap());
        insta::assert_snapshot!(ledger.totals());
    }

    #[test]
    fn resuming_takes_off_what_came_after_the_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let (path, whole) = (folder.path().join("a"), folder.path().join("b"));
        let mut ledger = Ledger::create(&whole).unwrap();
        feed(&mut ledger, 0..40);
        let end = ledger.checkpoint().unwrap();
        for stop in 0..40 {
            let mut ledger = Ledger::create(&path).unwrap();
            feed(&mut ledger, 0..stop);
            let stored = serde_json::to_string(&ledger.checkpoint().unwrap()).unwrap();
            // The run goes on and is killed in the middle of a line.
            feed(&mut ledger, stop..39);
            drop(ledger);
            let length = std::fs::metadata(&path).unwrap().len();
            let state: LedgerState = serde_json::from_str(&stored).unwrap();
            let torn = File::options().write(true).open(&path).unwrap();
            torn.set_len((length - 3).max(state.bytes)).unwrap();
            let mut ledger = Ledger::resume(&path, state).unwrap();
            feed(&mut ledger, stop..40);
            assert_eq!(ledger.checkpoint().unwrap(), end);
            assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&whole).unwrap());
        }
    }

    #[test]
    fn a_ledger_shorter_than_its_checkpoint_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        let state = LedgerState { bytes: 10, ..LedgerState::default() };
        assert!(Ledger::resume(&path, state.clone()).is_err());
        std::fs::write(&path, "short").unwrap();
        let error = Ledger::resume(&path, state).unwrap_err();
        assert_eq!(
            error.message(),
            "the ledger has `5` bytes, but the checkpoint was made when it had `10`"
        );
        assert_eq!(std::fs::read(&path).unwrap(), b"short");
        Ledger::resume(folder.path().join("new.jsonl"), LedgerState::default()).unwrap();
    }
}
