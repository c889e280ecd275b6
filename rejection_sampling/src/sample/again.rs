//! Scores for completions that no scorer could score before.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use halter_core::data::record::Turn;
use halter_core::generate::output;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::{Progress, Unit};
use halter_core::{Error, Result};

use super::keep::Whole;
use super::line::{Line, read_lines};
use super::run::{Asked, Sampler};

impl Sampler<'_> {
    /// Scores again what could not be scored in `path`, which is made of whole lines: a judge may answer
    /// by now. The file is put in the place of the old one, all else in it as it was; where `interrupt`
    /// is set, with the scores that there are.
    ///
    /// # Errors
    /// A file that cannot be read or written, or `interrupt`.
    pub fn score_again(
        &self,
        path: &Path,
        progress: &mut dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let mut open = 0;
        read_lines(path, |line| {
            open += u64::from(has_unscored(&line));
            Ok(())
        })?;
        if open == 0 {
            return Ok(());
        }
        progress.begin("scoring again", open, Unit::Rows);
        let mut done = 0;
        let mut whole = Whole::create(path)?;
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        for text in BufReader::new(file).split(b'\n') {
            let mut text = text.map_err(|error| Error::io("read", path, error))?;
            text.push(b'\n');
            let line: Line = serde_json::from_slice(&text).unwrap_or_default();
            if has_unscored(&line) && !interrupt.is_set() {
                let mut asked = self.asked(line)?;
                asked.score(self.scorer);
                text = output::line(&asked.line)?;
                done += 1;
                progress.advance(done, "");
            }
            whole.append(&text)?;
        }
        progress.finish();
        whole.finish()?;
        interrupt.check()
    }

    /// A row as it was when it was scored.
    fn asked(&self, line: Line) -> Result<Asked> {
        let found = self.rows.find(line.row);
        let (set, row) = found.ok_or_else(|| Error::data(format!("no row `{}`", line.row)))?;
        Ok(Asked { row: set.row(row)?, turn: Turn::from_json(&line.prompt), line })
    }
}

fn has_unscored(line: &Line) -> bool {
    line.completions.iter().any(|completion| completion.score.is_none())
}
