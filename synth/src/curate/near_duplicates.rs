//! `near-duplicates`: rows whose words are almost those of another.

use std::collections::{BTreeMap, HashMap};

use halter_core::Result;
use halter_core::train::progress::Unit;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Map, json};

use super::dialogue::{Dialogue, Part};
use super::minhash::{Lsh, jaccard, set};
use super::options::{Checked, number, share, wrong};
use super::words::{ngrams, normalised, words};
use crate::row::Row;
use crate::step::{Outcome, Removed, Run, Step};

/// Keeps one row of each group of duplicates: of rows with the same words (exact duplicates but for
/// case, spacing and punctuation), then of rows that share most of their word n-grams. Groups are
/// found by MinHash and verified by the Jaccard similarity itself.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NearDuplicates {
    /// What is compared: `all`, `prompt` or `answer`.
    pub of: Part,
    /// Words of an n-gram.
    pub ngram: usize,
    /// Least Jaccard similarity of duplicates; 1: only rows with the same n-grams.
    pub threshold: f64,
    /// Minima of a signature.
    pub permutations: usize,
    /// Parts of a signature of which one must be equal; must divide `permutations`.
    pub bands: usize,
    /// The row with the highest number in this column stays; else, and of equals, the first.
    pub best_by: Option<String>,
}

impl Default for NearDuplicates {
    fn default() -> Self {
        Self {
            of: Part::All,
            ngram: 5,
            threshold: 0.7,
            permutations: 128,
            bands: 32,
            best_by: None,
        }
    }
}

impl Checked for NearDuplicates {
    fn check(&self) -> Result<()> {
        share("threshold", self.threshold)?;
        if self.ngram == 0 {
            return Err(wrong("ngram", "a number from 1", 0));
        }
        if !(1..=4096).contains(&self.permutations) {
            return Err(wrong("permutations", "a number from 1 to 4096", self.permutations));
        }
        if self.bands == 0 || !self.permutations.is_multiple_of(self.bands) {
            let expected = format!("a divisor of `permutations`, {}", self.permutations);
            return Err(wrong("bands", &expected, self.bands));
        }
        Ok(())
    }
}

/// Why a row goes, and the row that stays in its place.
struct Fate {
    reason: &'static str,
    kept: usize,
    similarity: f64,
}

impl NearDuplicates {
    fn fates(&self, rows: &[Row], run: &mut Run) -> Result<BTreeMap<usize, Fate>> {
        let texts: Vec<String> = rows
            .par_iter()
            .map(|row| Dialogue::of(row).map(|said| said.text(self.of)).unwrap_or_default())
            .collect();
        let mut fates = BTreeMap::new();
        let mut exact: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, text) in texts.iter().enumerate() {
            let text = normalised(text);
            if !text.is_empty() {
                exact.entry(text).or_default().push(at);
            }
        }
        for group in exact.into_values() {
            let kept = self.best(rows, &group);
            for at in group.into_iter().filter(|&at| at != kept) {
                fates.insert(at, Fate { reason: "duplicate", kept, similarity: 1.0 });
            }
        }
        let left: Vec<usize> = (0..rows.len()).filter(|at| !fates.contains_key(at)).collect();
        let shingles = |&at: &usize| set(ngrams(&words(&texts[at]), self.ngram));
        let sets: Vec<Vec<u64>> = left.par_iter().map(shingles).collect();
        let lsh = Lsh { bands: self.bands, rows: self.permutations / self.bands };
        run.progress.begin("looking for near-duplicates", self.bands as u64, Unit::Items);
        let (progress, interrupt) = (&mut *run.progress, run.interrupt);
        let groups = lsh.groups(&sets, self.threshold, |band| {
            progress.advance(band as u64, "");
            interrupt.check()
        });
        run.progress.finish();
        for group in groups? {
            let members: Vec<usize> = group.iter().map(|&place| left[place]).collect();
            let kept = self.best(rows, &members);
            let kept_set = group.iter().find(|&&place| left[place] == kept);
            for &place in group.iter().filter(|&&place| left[place] != kept) {
                let similarity = kept_set.map_or(0.0, |&own| jaccard(&sets[place], &sets[own]));
                let fate = Fate { reason: "near-duplicate", kept, similarity };
                fates.insert(left[place], fate);
            }
        }
        Ok(fates)
    }

    fn best(&self, rows: &[Row], group: &[usize]) -> usize {
        let score = |at: usize| {
            let column = self.best_by.as_ref()?;
            number(&rows[at], column)
        };
        let mut best = group[0];
        for &at in group {
            if score(at).unwrap_or(f64::NEG_INFINITY) > score(best).unwrap_or(f64::NEG_INFINITY) {
                best = at;
            }
        }
        best
    }
}

impl Step for NearDuplicates {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        run.interrupt.check()?;
        let fates = self.fates(&rows, run)?;
        let ids: BTreeMap<usize, String> =
            fates.values().map(|fate| (fate.kept, rows[fate.kept].id())).collect();
        let mut outcome = Outcome::default();
        let mut counts = BTreeMap::from([("duplicate", 0usize), ("near-duplicate", 0)]);
        for (at, row) in rows.into_iter().enumerate() {
            let Some(fate) = fates.get(&at) else {
                outcome.rows.push(row);
                continue;
            };
            *counts.entry(fate.reason).or_default() += 1;
            let detail = format!("of {}, similarity {:.2}", ids[&fate.kept], fate.similarity);
            outcome.removed.push(Removed { row, reason: fate.reason, detail });
        }
        outcome.figures = Map::from_iter([
            ("groups".to_string(), json!(ids.len())),
            ("removed".to_string(), json!(counts)),
        ]);
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use crate::curate::testing::{chat, prompts, refused, removed, run, with};

    fn story(words: std::ops::Range<usize>) -> String {
        words.map(|at| format!("word{at}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn exact_and_near_duplicates_go_and_the_first_stays() {
        let rows = vec![
            chat("q", &story(0..100)),
            chat("Q!", &story(0..100).to_uppercase()),
            chat("q", &format!("{} more", story(0..100))),
            chat("q", &story(50..150)),
            chat("q", ""),
        ];
        let outcome = run("near-duplicates", "", rows.clone());
        assert_eq!(outcome.rows, [rows[0].clone(), rows[3].clone(), rows[4].clone()]);
        let told = removed(&outcome);
        let first = rows[0].id();
        assert_eq!(told[0].1, "duplicate");
        assert_eq!(told[0].2, format!("of {first}, similarity 1.00"));
        assert_eq!(
            (told[1].1, told[1].2.clone()),
            ("near-duplicate", format!("of {first}, similarity 0.99"))
        );
        assert_eq!(outcome.figures["removed"]["duplicate"], 1);
        assert_eq!(outcome.figures["groups"], 1);
    }

    #[test]
    fn the_best_of_a_group_can_stay_instead() {
        let row = |score: f64| with(chat("q", &story(0..50)), "score", score);
        let rows = vec![row(0.1), row(0.9), row(0.9), chat("q", &story(0..50))];
        let outcome = run("near-duplicates", "best_by = 'score'", rows.clone());
        assert_eq!(outcome.rows, rows[1..2]);
    }

    #[test]
    fn prompts_alone_can_be_compared() {
        let rows = vec![chat("What is it?", "One."), chat("what is it", "Two.")];
        assert_eq!(run("near-duplicates", "", rows.clone()).rows.len(), 2);
        assert_eq!(prompts(&run("near-duplicates", "of = 'prompt'", rows).rows), ["What is it?"]);
    }

    #[test]
    fn a_second_run_finds_nothing_and_two_runs_agree() {
        let rows: Vec<_> = (0..60).map(|at| chat("q", &story(at * 3..at * 3 + 60))).collect();
        let once = run("near-duplicates", "threshold = 0.8", rows.clone());
        assert!(once.rows.len() < 60, "{}", once.rows.len());
        assert_eq!(once, run("near-duplicates", "threshold = 0.8", rows));
        let again = run("near-duplicates", "threshold = 0.8", once.rows.clone());
        assert_eq!(again.rows, once.rows);
    }

    #[test]
    fn options_that_do_not_go_together_are_refused() {
        for options in ["bands = 5", "permutations = 0", "threshold = 0", "ngram = 0"] {
            refused("near-duplicates", options);
        }
    }
}
