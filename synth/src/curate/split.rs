//! `split`: rows marked as of one part or another, e.g. for training and for testing.

use std::collections::BTreeMap;

use halter_core::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, json};

use super::dialogue::{Dialogue, Part};
use super::options::{self, Checked, group, wrong};
use super::words::{hash, mix, normalised};
use crate::row::Row;
use crate::step::{Outcome, Run, Step};

/// Writes the name of a part into a column of each row. Rows with the same prompt, or the same value
/// of `by`, are of the same part, whatever other rows there are.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Split {
    /// Parts and their relative sizes.
    pub parts: BTreeMap<String, f64>,
    /// Where the part's name is written.
    pub column: String,
    /// Rows with equal values of this column stay together; else those with equal prompts.
    pub by: Option<String>,
}

impl Default for Split {
    fn default() -> Self {
        let parts = [("train", 0.9), ("test", 0.1)].map(|(name, size)| (name.to_string(), size));
        Self { parts: parts.into(), column: "split".into(), by: None }
    }
}

impl Checked for Split {
    fn check(&self) -> Result<()> {
        options::column("column", &self.column)?;
        if self.parts.len() < 2 {
            return Err(Error::config("`parts`: expected two or more"));
        }
        match self.parts.iter().find(|(_, size)| !(size.is_finite() && **size > 0.0)) {
            Some((name, size)) => Err(wrong(&format!("parts.{name}"), "a number above 0", size)),
            None => Ok(()),
        }
    }
}

impl Split {
    fn part(&self, row: &Row, seed: u64) -> &str {
        let key = match &self.by {
            Some(column) => group(row, column),
            None => Dialogue::of(row)
                .map(|said| normalised(&said.text(Part::Prompt)))
                .ok()
                .filter(|prompt| !prompt.is_empty())
                .unwrap_or_else(|| row.id()),
        };
        let whole: f64 = self.parts.values().sum();
        // 53 bits: every value is a number below one.
        let drawn = (mix(seed ^ hash(key.as_bytes())) >> 11) as f64 / (1u64 << 53) as f64 * whole;
        let mut end = 0.0;
        let mut names = self.parts.iter().filter(|(_, size)| {
            end += **size;
            drawn < end
        });
        let last = self.parts.keys().next_back();
        names.next().map(|(name, _)| name).or(last).map_or("", String::as_str)
    }
}

impl Step for Split {
    fn run(&self, mut rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
        for row in &mut rows {
            run.interrupt.check()?;
            let part = self.part(row, run.seed);
            *sizes.entry(part).or_default() += 1;
            row.set(&self.column, part);
        }
        let figures = Map::from_iter([("rows".to_string(), json!(sizes))]);
        Ok(Outcome { rows, figures, ..Outcome::default() })
    }
}

#[cfg(test)]
mod tests {
    use crate::curate::testing::{chat, refused, run};

    #[test]
    fn parts_have_about_their_size_and_equal_prompts_stay_together() {
        let rows: Vec<_> =
            (0..2000).map(|at| chat(&format!("q{}", at / 2), &at.to_string())).collect();
        let outcome = run("split", "", rows);
        let test = |row: &crate::Row| row.text("split") == Some("test");
        let share = outcome.rows.iter().filter(|row| test(row)).count() as f64 / 2000.0;
        assert!((share - 0.1).abs() < 0.03, "{share}");
        assert!(outcome.rows.chunks(2).all(|pair| test(&pair[0]) == test(&pair[1])));
        // What is of a part remains so when rows are added.
        let fewer: Vec<_> = (0..100).map(|at| chat(&format!("q{at}"), "x")).collect();
        let again = run("split", "", fewer);
        for (at, row) in again.rows.iter().enumerate() {
            assert_eq!(row.text("split"), outcome.rows[2 * at].text("split"));
        }
    }

    #[test]
    fn parts_are_checked() {
        for options in ["parts = { a = 1 }", "parts = { a = 1, b = 0 }", "column = ''"] {
            refused("split", options);
        }
    }
}
