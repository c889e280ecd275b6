//! `balance`: groups brought to equal or stated sizes by leaving rows out.

use std::collections::{BTreeMap, BTreeSet};

use halter_core::Result;
use serde::Deserialize;
use serde_json::{Map, json};

use super::options::{self, Checked, group, wrong};
use super::sample::drawn;
use crate::row::Row;
use crate::step::{Outcome, Removed, Run, Step};

/// Down-samples the groups of a column. Without `cap` and `weights` every group is brought to the
/// size of the smallest; with `cap` alone each is only held to it; with `weights` the groups are
/// brought into these proportions, as large as the rows allow.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Balance {
    /// The column whose values are the groups.
    pub column: String,
    /// Most rows of a group.
    pub cap: Option<usize>,
    /// Relative sizes by group; 0: the group is left out.
    pub weights: BTreeMap<String, f64>,
    /// That of groups which `weights` does not name.
    pub other_weight: f64,
}

impl Default for Balance {
    fn default() -> Self {
        Self { column: "topic".into(), cap: None, weights: BTreeMap::new(), other_weight: 1.0 }
    }
}

impl Checked for Balance {
    fn check(&self) -> Result<()> {
        options::column("column", &self.column)?;
        if self.cap == Some(0) {
            return Err(wrong("cap", "a number from 1", 0));
        }
        let weights = self.weights.iter().map(|(name, weight)| (name.as_str(), *weight));
        for (name, weight) in weights.chain([("other_weight", self.other_weight)]) {
            if !(weight.is_finite() && weight >= 0.0) {
                return Err(wrong(&format!("weights.{name}"), "a number from 0", weight));
            }
        }
        Ok(())
    }
}

impl Balance {
    fn weight(&self, name: &str) -> f64 {
        self.weights.get(name).copied().unwrap_or(self.other_weight)
    }

    /// How many rows of each group stay.
    fn sizes(&self, groups: &BTreeMap<String, Vec<usize>>) -> BTreeMap<String, usize> {
        let cap = self.cap.unwrap_or(usize::MAX);
        let only_capped = self.cap.is_some() && self.weights.is_empty();
        let there = |(name, rows): (&String, &Vec<usize>)| {
            let weight = self.weight(name);
            (weight > 0.0).then(|| rows.len().min(cap) as f64 / weight)
        };
        let unit = groups.iter().filter_map(there).fold(f64::INFINITY, f64::min);
        let size = |(name, rows): (&String, &Vec<usize>)| {
            let size = match only_capped {
                true => rows.len().min(cap),
                // A weight of 0.1 must not lose a row to rounding.
                false if self.weight(name) > 0.0 => (unit * self.weight(name) + 1e-9) as usize,
                false => 0,
            };
            (name.clone(), size.min(rows.len()))
        };
        groups.iter().map(size).collect()
    }
}

impl Step for Balance {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        run.interrupt.check()?;
        let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (at, row) in rows.iter().enumerate() {
            groups.entry(group(row, &self.column)).or_default().push(at);
        }
        let sizes = self.sizes(&groups);
        let mut stay = BTreeSet::new();
        let mut figures = Map::new();
        for (name, members) in &groups {
            stay.extend(drawn(members, sizes[name], run.seed));
            figures.insert(name.clone(), json!({"rows": members.len(), "kept": sizes[name]}));
        }
        // Names of groups come from the rows: they stand apart from those of figures.
        let figures = Map::from_iter([("groups".to_string(), figures.into())]);
        let mut outcome = Outcome { figures, ..Outcome::default() };
        for (at, row) in rows.into_iter().enumerate() {
            if stay.contains(&at) {
                outcome.rows.push(row);
                continue;
            }
            let name = group(&row, &self.column);
            let detail =
                format!("{}: {name}, {} of {}", self.column, sizes[&name], groups[&name].len());
            outcome.removed.push(Removed { row, reason: "balanced", detail });
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use crate::curate::testing::{chat, refused, run, with};
    use crate::step::Outcome;

    fn rows() -> Vec<crate::Row> {
        let row = |at: usize| {
            let topic = if at < 60 {
                "math"
            } else if at < 90 {
                "code"
            } else {
                "art"
            };
            with(chat(&at.to_string(), "x"), "topic", topic)
        };
        (0..100).map(row).collect()
    }

    fn sizes(outcome: &Outcome) -> [usize; 3] {
        let of = |topic| outcome.rows.iter().filter(|row| row.text("topic") == Some(topic)).count();
        ["math", "code", "art"].map(of)
    }

    #[test]
    fn groups_get_equal_capped_or_weighted_sizes() {
        for (options, expected) in [
            ("", [10, 10, 10]),
            ("cap = 20", [20, 20, 10]),
            ("weights = { math = 3, code = 2 }", [30, 20, 10]),
            ("weights = { math = 3, code = 2 }\nother_weight = 0", [45, 30, 0]),
            ("weights = { math = 2 }\ncap = 8", [8, 4, 4]),
        ] {
            let outcome = run("balance", options, rows());
            assert_eq!(sizes(&outcome), expected, "{options}");
            assert_eq!(outcome.rows.len() + outcome.removed.len(), 100);
        }
    }

    #[test]
    fn which_rows_stay_is_drawn_the_same_way_each_time_and_the_order_is_kept() {
        let (once, again) = (run("balance", "", rows()), run("balance", "", rows()));
        assert_eq!(once, again);
        let all = rows();
        let at = |row| all.iter().position(|other| other == row).unwrap();
        assert!(once.rows.is_sorted_by_key(at));
        assert_ne!(once.rows[..10], all[..10], "drawn, not the first");
        assert_eq!(once.removed[0].reason, "balanced");
    }

    #[test]
    fn rows_without_the_column_are_a_group_of_their_own() {
        let mut rows = rows();
        rows.push(chat("none", "x"));
        let outcome = run("balance", "", rows);
        assert_eq!(outcome.figures["groups"]["null"]["kept"], 1);
        assert_eq!(sizes(&outcome), [1, 1, 1]);
    }

    #[test]
    fn weights_below_zero_are_refused() {
        let error = refused("balance", "weights = { math = -1 }");
        assert!(error.starts_with("balance: `weights.math`"), "{error}");
    }
}
