//! What is kept of scored completions: rows for fine-tuning, and preference pairs.

use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::str::FromStr;

use halter_core::generate::output;
use halter_core::train::files::{sync_parent, temporary_beside};
use halter_core::{Error, Result};
use serde_json::{Map, Value, json};

use super::line::{Line, Scored, read_lines};
use crate::selection::{above, best, best_and_worst, groups, majority, top_fraction};
use crate::verifier::{answer, math};

/// Which completions of a prompt become rows for fine-tuning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Selection {
    /// The best one.
    Best,
    /// All of at least this score.
    Above(f64),
    /// The best ones, as many as this fraction of all.
    Top(f64),
    /// The best of those that give the answer that most give.
    Majority,
    /// None: preference pairs alone are wanted.
    None,
}

impl FromStr for Selection {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |number: &str| number.trim().parse::<f64>().ok().filter(|x| x.is_finite());
        let read = match text.split_once('=') {
            None => match text {
                "best" => Some(Self::Best),
                "majority" => Some(Self::Majority),
                "none" => Some(Self::None),
                _ => None,
            },
            Some(("above", score)) => number(score).map(Self::Above),
            Some(("top", fraction)) => {
                number(fraction).filter(|f| *f > 0.0 && *f <= 1.0).map(Self::Top)
            }
            Some(_) => None,
        };
        read.ok_or_else(|| {
            Error::config(format!("`select` is `{text}`")).hint(
                "expected `best`, `above=SCORE`, `top=FRACTION` (above 0, at most 1), `majority` or \
                 `none`",
            )
        })
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Best => f.write_str("best"),
            Self::Above(score) => write!(f, "above={score}"),
            Self::Top(fraction) => write!(f, "top={fraction}"),
            Self::Majority => f.write_str("majority"),
            Self::None => f.write_str("none"),
        }
    }
}

/// What is kept. A completion that was cut off, or has no score, is never kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Keep {
    /// Rows for fine-tuning.
    pub selection: Selection,
    /// Least score of such a row, and of the better one of a pair.
    pub min_score: Option<f64>,
    /// Least difference of the scores of a pair; `None`: no pairs.
    pub min_margin: Option<f64>,
    /// Said in every row of where it comes from.
    pub provenance: Map<String, Value>,
}

/// How much was kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Rows for fine-tuning.
    pub rows: usize,
    /// Preference pairs.
    pub pairs: usize,
}

impl Keep {
    /// Scores to choose by: none of what is never kept.
    pub(super) fn scores(completions: &[Scored]) -> Vec<f64> {
        let is_whole = |c: &Scored| c.has_ended() && !c.text.trim().is_empty();
        let score = |c: &Scored| if is_whole(c) { c.value() } else { f64::NAN };
        completions.iter().map(score).collect()
    }

    /// The completions that become rows, best first; of several with one text the first.
    pub fn rows(&self, completions: &[Scored]) -> Vec<usize> {
        let scores = Self::scores(completions);
        let mut kept = match self.selection {
            Selection::Best => best(&scores, None).into_iter().collect(),
            Selection::Above(threshold) => above(&scores, threshold, None),
            Selection::Top(fraction) => top_fraction(&scores, fraction),
            Selection::Majority => majority(&answers(completions), &scores)
                .map(|found| found.representative)
                .into_iter()
                .collect(),
            Selection::None => Vec::new(),
        };
        kept.retain(|&at| self.is_good(scores[at]));
        let mut texts = Vec::new();
        kept.retain(|&at| {
            let text = completions[at].text.trim();
            let is_new = !texts.contains(&text);
            texts.push(text);
            is_new
        });
        kept
    }

    fn is_good(&self, score: f64) -> bool {
        !score.is_nan() && self.min_score.is_none_or(|least| score >= least)
    }

    /// The better and the worse completion of the pair.
    pub fn pair(&self, completions: &[Scored]) -> Option<(usize, usize)> {
        let texts: Vec<&str> = completions.iter().map(|c| c.text.as_str()).collect();
        let scores = Self::scores(completions);
        let pair = best_and_worst(&scores, &texts, self.min_margin?)?;
        self.is_good(scores[pair.chosen]).then_some((pair.chosen, pair.rejected))
    }

    fn provenance(&self, line: &Line, at: usize) -> Value {
        let scores = Self::scores(&line.completions);
        let rank = 1 + scores.iter().filter(|score| **score > scores[at]).count();
        let mut said = self.provenance.clone();
        let completion = &line.completions[at];
        said.extend([
            ("row".to_string(), json!(line.row)),
            ("completion".to_string(), json!(at)),
            ("temperature".to_string(), json!(completion.temperature)),
            ("score".to_string(), json!(completion.score)),
            ("rank".to_string(), json!(rank)),
        ]);
        if let Some(system) = &completion.system {
            said.insert("system".into(), json!(system));
        }
        Value::Object(said)
    }

    /// A row for fine-tuning.
    fn row(&self, line: &Line, at: usize) -> Value {
        let text = &line.completions[at].text;
        let mut row = match &line.prompt {
            Value::Array(messages) => {
                let mut messages = messages.clone();
                messages.push(assistant(text));
                json!({ "messages": messages })
            }
            prompt => json!({ "prompt": prompt, "completion": text }),
        };
        self.finish(&mut row, line, json!(self.provenance(line, at)));
        row
    }

    fn pair_row(&self, line: &Line, (chosen, rejected): (usize, usize)) -> Value {
        let completion = |at: usize| {
            let text = &line.completions[at].text;
            if line.prompt.is_array() { json!([assistant(text)]) } else { json!(text) }
        };
        let mut row = json!({
            "prompt": line.prompt, "chosen": completion(chosen), "rejected": completion(rejected),
        });
        let both = [chosen, rejected].map(|at| self.provenance(line, at));
        self.finish(&mut row, line, json!({ "chosen": both[0], "rejected": both[1] }));
        row
    }

    fn finish(&self, row: &mut Value, line: &Line, provenance: Value) {
        if let Some(id) = &line.id {
            row["id"] = id.clone();
        }
        if let Some(tools) = &line.tools {
            row["tools"] = json!(tools);
        }
        row["provenance"] = provenance;
    }
}

fn assistant(text: &str) -> Value {
    json!({ "role": "assistant", "content": text })
}

/// The group of each completion's final answer.
pub(super) fn answers(completions: &[Scored]) -> Vec<Option<usize>> {
    let answers: Vec<Option<&str>> =
        completions.iter().map(|c| answer::find(&c.text).map(|found| found.text)).collect();
    groups(&answers, |a, b| math::equivalent(a, b))
}

/// Writes what is kept of the completions in `from`: rows to `rows`, and pairs to `pairs`. Either
/// file is whole or as it was.
///
/// # Errors
/// A file that cannot be read or written.
pub fn write_kept(keep: &Keep, from: &Path, rows: &Path, pairs: &Path) -> Result<Kept> {
    let mut kept = Kept::default();
    let mut rows = Whole::create(rows)?;
    let mut pairs = Whole::create(pairs)?;
    read_lines(from, |line| {
        for at in keep.rows(&line.completions) {
            rows.append(&output::line(&keep.row(&line, at))?)?;
            kept.rows += 1;
        }
        if let Some(pair) = keep.pair(&line.completions) {
            pairs.append(&output::line(&keep.pair_row(&line, pair))?)?;
            kept.pairs += 1;
        }
        Ok(())
    })?;
    rows.finish()?;
    pairs.finish()?;
    Ok(kept)
}

/// A file that takes its name when it is complete.
pub(super) struct Whole<'a> {
    path: &'a Path,
    temporary: std::path::PathBuf,
    file: BufWriter<File>,
}

impl<'a> Whole<'a> {
    pub fn create(path: &'a Path) -> Result<Self> {
        let temporary = temporary_beside(path);
        let file = File::create(&temporary).map_err(|e| Error::io("create", path, e))?;
        Ok(Self { path, temporary, file: BufWriter::new(file) })
    }

    /// Adds a line, with its end.
    pub fn append(&mut self, line: &[u8]) -> Result<()> {
        self.file.write_all(line).map_err(|error| Error::io("write", self.path, error))
    }

    pub fn finish(mut self) -> Result<()> {
        let written = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        written
            .and_then(|()| std::fs::rename(&self.temporary, self.path))
            .map_err(|error| Error::io("write", self.path, error))?;
        sync_parent(self.path)
    }
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        // There is none under this name once the file is complete.
        let _ = std::fs::remove_file(&self.temporary);
    }
}
