//! `sample` and `shuffle`: some of the rows, or all of them in another order.

use halter_core::{Error, Result};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use super::options::{self, Checked, wrong};
use super::words::mix;
use crate::row::Row;
use crate::step::{Outcome, Removed, Run, Step};

/// Keeps so many rows, drawn by the pipeline's seed, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sample {
    /// How many; all where there are fewer.
    pub rows: Option<usize>,
    /// Which share, rounded up; instead of `rows`.
    pub share: Option<f64>,
}

impl Checked for Sample {
    fn check(&self) -> Result<()> {
        match (self.rows, self.share) {
            (Some(0), None) => Err(wrong("rows", "a number from 1", 0)),
            (Some(_), None) => Ok(()),
            (None, Some(share)) => options::share("share", share),
            _ => Err(Error::config("expected either `rows` or `share`")),
        }
    }
}

impl Step for Sample {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        run.interrupt.check()?;
        let share = self.share.map(|share| (share * rows.len() as f64 - 1e-9).ceil() as usize);
        let wanted = self.rows.or(share).unwrap_or(rows.len());
        let all: Vec<usize> = (0..rows.len()).collect();
        let mut stays = vec![false; rows.len()];
        drawn(&all, wanted, run.seed).into_iter().for_each(|at| stays[at] = true);
        let mut outcome = Outcome::default();
        let detail = format!("{} of {}", wanted.min(rows.len()), rows.len());
        for (row, stays) in rows.into_iter().zip(stays) {
            match stays {
                true => outcome.rows.push(row),
                false => {
                    let detail = detail.clone();
                    outcome.removed.push(Removed { row, reason: "not drawn", detail });
                }
            }
        }
        Ok(outcome)
    }
}

/// `wanted` of the members, or all of them: those of the smallest hashes with the seed. A larger
/// sample holds every smaller one.
pub(crate) fn drawn(members: &[usize], wanted: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<_> = members.iter().map(|&at| (mix(seed ^ mix(at as u64)), at)).collect();
    order.sort_unstable();
    order.into_iter().take(wanted).map(|(_, at)| at).collect()
}

/// Puts the rows in an order drawn by the pipeline's seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shuffle {}

impl Checked for Shuffle {
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

impl Step for Shuffle {
    fn run(&self, mut rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        rows.shuffle(&mut ChaCha8Rng::seed_from_u64(run.seed));
        Ok(Outcome { rows, ..Outcome::default() })
    }
}

#[cfg(test)]
mod tests {
    use crate::curate::testing::{chat, prompts, refused, run};

    fn rows() -> Vec<crate::Row> {
        (0..20).map(|at| chat(&format!("{at:02}"), "x")).collect()
    }

    #[test]
    fn a_sample_has_the_stated_size_and_keeps_the_order() {
        for (options, size) in [("rows = 7", 7), ("share = 0.1", 2), ("rows = 99", 20)] {
            let outcome = run("sample", options, rows());
            assert_eq!(outcome.rows.len(), size, "{options}");
            assert_eq!(outcome.removed.len(), 20 - size);
            assert!(prompts(&outcome.rows).is_sorted());
        }
        let (small, large) = (run("sample", "rows = 5", rows()), run("sample", "rows = 9", rows()));
        assert!(small.rows.iter().all(|row| large.rows.contains(row)));
    }

    #[test]
    fn shuffled_rows_are_the_same_rows_in_another_order() {
        let outcome = run("shuffle", "", rows());
        let mut shuffled = prompts(&outcome.rows);
        assert_ne!(shuffled, prompts(&rows()));
        shuffled.sort();
        assert_eq!(shuffled, prompts(&rows()));
        assert_eq!(outcome, run("shuffle", "", rows()));
    }

    #[test]
    fn a_sample_needs_one_size() {
        for options in ["", "rows = 1\nshare = 0.5", "rows = 0", "share = 1.5"] {
            refused("sample", options);
        }
    }
}
