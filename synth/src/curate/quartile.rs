//! `quartile`: the rows that score highest (Llama 3, section 4.2.3, quality scoring).

use std::collections::BTreeMap;

use halter_core::Result;
use serde::Deserialize;
use serde_json::{Map, json};

use super::options::{self, Checked, group, number};
use crate::row::Row;
use crate::step::{Outcome, Removed, Run, Step};

/// Keeps the share of the rows with the highest numbers in a column. A mark of another kind can keep
/// a row as well: the paper takes what the reward model's top quartile or the judge's best mark
/// holds.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quartile {
    /// The column: a reward model's score.
    pub column: String,
    /// The share that stays: ⌈share × rows that have a number⌉.
    pub share: f64,
    /// Rows are compared within groups of equal values of this column.
    pub group: Option<String>,
    /// What keeps a row whatever its score.
    pub or: Option<Or>,
}

/// Another mark.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Or {
    /// Its column: `quality`, as the step `judge` writes it.
    pub column: String,
    /// The least number that keeps a row.
    pub at_least: f64,
}

impl Default for Quartile {
    fn default() -> Self {
        Self { column: "score".into(), share: 0.25, group: None, or: None }
    }
}

impl Checked for Quartile {
    fn check(&self) -> Result<()> {
        options::column("column", &self.column)?;
        if let Some(or) = &self.or {
            options::column("or.column", &or.column)?;
        }
        options::share("share", self.share)
    }
}

impl Quartile {
    /// For each row whether it is of the top share, and the least score that is, by group. Of equal
    /// scores the earlier row is ahead.
    fn top(&self, rows: &[Row]) -> (Vec<bool>, BTreeMap<String, f64>) {
        let mut groups: BTreeMap<String, Vec<(f64, usize)>> = BTreeMap::new();
        for (at, row) in rows.iter().enumerate() {
            if let Some(score) = number(row, &self.column) {
                let name = self.group.as_ref().map_or("all".into(), |column| group(row, column));
                groups.entry(name).or_default().push((score, at));
            }
        }
        let mut top = vec![false; rows.len()];
        let mut bars = BTreeMap::new();
        for (name, mut scores) in groups {
            scores.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            // What rounding adds to a share like 0.1 must not keep a row more.
            let kept = (self.share * scores.len() as f64 - 1e-9).ceil() as usize;
            scores.truncate(kept);
            scores.iter().for_each(|(_, at)| top[*at] = true);
            if let Some((least, _)) = scores.last() {
                bars.insert(name, *least);
            }
        }
        (top, bars)
    }
}

impl Step for Quartile {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        run.interrupt.check()?;
        let (top, bars) = self.top(&rows);
        let mut outcome = Outcome::default();
        let (mut by_score, mut by_other) = (0usize, 0usize);
        for (row, top) in rows.into_iter().zip(top) {
            let other = self
                .or
                .as_ref()
                .is_some_and(|or| number(&row, &or.column).is_some_and(|mark| mark >= or.at_least));
            by_score += usize::from(top);
            by_other += usize::from(other && !top);
            if top || other {
                outcome.rows.push(row);
                continue;
            }
            let score = number(&row, &self.column);
            let (reason, detail) = match score {
                Some(score) => ("below the top share", format!("{}: {score}", self.column)),
                None => ("no score", format!("no number in `{}`", self.column)),
            };
            outcome.removed.push(Removed { row, reason, detail });
        }
        outcome.figures = Map::from_iter([
            ("thresholds".to_string(), json!(bars)),
            ("kept_by_score".to_string(), json!(by_score)),
            ("kept_by_other_mark".to_string(), json!(by_other)),
        ]);
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use crate::curate::testing::{chat, prompts, refused, removed, run, with};

    fn scored(scores: &[f64]) -> Vec<crate::Row> {
        let row = |(at, score): (usize, &f64)| with(chat(&at.to_string(), "x"), "score", *score);
        scores.iter().enumerate().map(row).collect()
    }

    #[test]
    fn the_top_quarter_stays_in_its_order() {
        let outcome = run("quartile", "", scored(&[1.0, 8.0, 3.0, 4.0, 5.0, 6.0, 7.0, 2.0]));
        assert_eq!(prompts(&outcome.rows), ["1", "6"]);
        assert_eq!(outcome.figures["thresholds"]["all"], 7.0);
        assert_eq!(removed(&outcome)[0], ("0".into(), "below the top share", "score: 1".into()));
    }

    #[test]
    fn shares_round_up_and_of_equals_the_earlier_stays() {
        let outcome = run("quartile", "share = 0.5", scored(&[1.0, 1.0, 1.0]));
        assert_eq!(prompts(&outcome.rows), ["0", "1"]);
        assert_eq!(run("quartile", "share = 0.1", scored(&[0.0; 10])).rows.len(), 1);
    }

    #[test]
    fn groups_are_compared_within() {
        let mut rows = scored(&[1.0, 2.0, 30.0, 40.0]);
        for (row, topic) in rows.iter_mut().zip(["a", "a", "b", "b"]) {
            row.set("topic", topic);
        }
        let outcome = run("quartile", "share = 0.5\ngroup = 'topic'", rows);
        assert_eq!(prompts(&outcome.rows), ["1", "3"]);
    }

    #[test]
    fn either_mark_keeps_a_row_and_rows_without_any_go() {
        let mut rows = scored(&[1.0, 2.0, 3.0, 4.0]);
        rows[0].set("quality", 1.0);
        rows[1].set("quality", 0.5);
        rows.push(chat("none", "x"));
        let options = "or = { column = 'quality', at_least = 1.0 }";
        let outcome = run("quartile", options, rows);
        assert_eq!(prompts(&outcome.rows), ["0", "3"]);
        assert_eq!(outcome.figures["kept_by_other_mark"], 1);
        assert_eq!(removed(&outcome)[2].1, "no score");
    }

    #[test]
    fn a_share_of_nothing_is_refused() {
        let error = refused("quartile", "share = 0.0");
        assert!(error.starts_with("quartile: `share`: expected a share"), "{error}");
    }
}
