//! `decontaminate`: rows that hold what evaluations ask (Llama 3, section 5.1.4, after Singh et al.
//! 2024).

pub mod index;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use halter_core::train::progress::Unit;
use halter_core::{Error, Result};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Map, json};

use super::dialogue::{Dialogue, Part};
use super::options::{Checked, share, wrong};
use super::words::words;
use crate::row::Row;
use crate::step::{Outcome, Removed, Run, Step};
use index::Index;

/// Rows of a data set that are looked at between two looks at the interrupt.
const CHUNK: usize = 4096;

/// When a row holds an evaluation's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Enough of the evaluation row's words are part of n-grams that the row has as well.
    #[default]
    Overlap,
    /// They share an n-gram.
    Exact,
}

/// Removes rows that overlap with rows of evaluation sets.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Decontaminate {
    /// Files of evaluation rows: JSON Lines, JSON, Parquet.
    pub against: Vec<PathBuf>,
    /// Columns of these that make up what is asked; else the prompt, or the first of the usual names.
    pub columns: Vec<String>,
    /// `overlap` or `exact`.
    pub method: Method,
    /// Words of an n-gram; 8 for `overlap`, 13 for `exact`.
    pub ngram: Option<usize>,
    /// The share of an evaluation row's words, for `overlap`.
    pub threshold: f64,
    /// Evaluation rows of fewer words than `ngram` are looked for as a whole, if they have so many.
    pub min_words: usize,
    /// What is looked at: `all`, `prompt` or `answer`.
    pub of: Part,
}

impl Default for Decontaminate {
    fn default() -> Self {
        Self {
            against: Vec::new(),
            columns: Vec::new(),
            method: Method::Overlap,
            ngram: None,
            threshold: 0.5,
            min_words: 5,
            of: Part::All,
        }
    }
}

impl Checked for Decontaminate {
    fn check(&self) -> Result<()> {
        share("threshold", self.threshold)?;
        if self.ngram == Some(0) {
            return Err(wrong("ngram", "a number from 1", 0));
        }
        match self.against.is_empty() {
            true => Err(Error::config("`against`: expected files of evaluation rows, got none")),
            false => Ok(()),
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        self.against.clone()
    }
}

impl Decontaminate {
    fn words_of_ngram(&self) -> usize {
        self.ngram.unwrap_or(match self.method {
            Method::Overlap => 8,
            Method::Exact => 13,
        })
    }

    /// The share of an evaluation row's words from which on a row goes.
    fn bar(&self) -> f64 {
        match self.method {
            Method::Overlap => self.threshold,
            Method::Exact => 0.0,
        }
    }
}

impl Step for Decontaminate {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        run.interrupt.check()?;
        let index =
            Index::open(&self.against, &self.columns, self.words_of_ngram(), self.min_words)?;
        let mut hits = Vec::with_capacity(rows.len());
        run.progress.begin("decontaminating", rows.len() as u64, Unit::Rows);
        for chunk in rows.chunks(CHUNK) {
            run.interrupt.check()?;
            hits.par_extend(chunk.par_iter().map(|row| {
                let text = Dialogue::of(row).map(|said| said.text(self.of)).unwrap_or_default();
                index.hits(&words(&text), self.bar())
            }));
            run.progress.advance(hits.len() as u64, "");
        }
        run.progress.finish();
        let mut outcome = Outcome::default();
        let mut touched: BTreeMap<usize, BTreeSet<u32>> = BTreeMap::new();
        let mut removed: BTreeMap<usize, usize> = BTreeMap::new();
        for (row, hits) in rows.into_iter().zip(hits) {
            let Some(worst) = hits.first() else {
                outcome.rows.push(row);
                continue;
            };
            for hit in &hits {
                touched.entry(index.file_of(hit.row)).or_default().insert(hit.row);
            }
            *removed.entry(index.file_of(worst.row)).or_default() += 1;
            let told =
                format!("{}, {:.0} % of its words", index.place(worst.row), 100.0 * worst.share);
            let detail = match hits.len() {
                1 => told,
                several => format!("{told}, and {} more", several - 1),
            };
            outcome.removed.push(Removed { row, reason: "contaminated", detail });
        }
        outcome.figures = Map::from_iter(index.files().enumerate().map(|(at, (name, rows))| {
            let figures = json!({
                "evaluation_rows": rows,
                "evaluation_rows_found": touched.get(&at).map_or(0, BTreeSet::len),
                "removed": removed.get(&at).copied().unwrap_or(0),
            });
            (name, figures)
        }));
        if index.too_short() > 0 {
            outcome.figures.insert("evaluation_rows_too_short".into(), json!(index.too_short()));
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use crate::curate::testing::{chat, prompts, removed, try_run};

    const EVAL: &str = r#"{"question": "A farmer has seventeen sheep and all but nine of them run away over the hill. How many sheep are left with the farmer?"}
{"prompt": "Name the capital of the country that lies to the north of Spain and south of Belgium, between two seas."}
{"question": "Two plus two?"}
{"question": "Who wrote the old play?"}
"#;

    fn against(file: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eval.jsonl");
        std::fs::write(&path, file).unwrap();
        let options = format!("against = ['{}']", path.display());
        (folder, options)
    }

    fn rows() -> Vec<crate::Row> {
        vec![
            chat("a", "Something else entirely, about a farmer and his sheep on the hill."),
            chat(
                "b: a FARMER has seventeen sheep and all but nine of them run away over the hill, so?",
                "9",
            ),
            chat("c: the old play is long", "It is asked: who wrote the old play? Nobody knows."),
            chat("d: two plus two? four", "name the capital of the country that lies far away"),
        ]
    }

    #[test]
    fn rows_that_hold_most_of_an_evaluation_row_go_and_it_is_named() {
        let (_folder, options) = against(EVAL);
        let outcome = try_run("decontaminate", &options, rows(), vec![]).unwrap();
        assert_eq!(outcome.rows.len(), 1 + 1, "{:?}", removed(&outcome));
        let told = removed(&outcome);
        assert!(told[0].2.ends_with("eval.jsonl:1, 67 % of its words"), "{told:?}");
        assert!(told[1].2.ends_with("eval.jsonl:4, 100 % of its words"), "{told:?}");
        let name = outcome.figures.keys().next().unwrap();
        let figures = &outcome.figures[name];
        assert_eq!((&figures["evaluation_rows"], &figures["removed"]), (&4.into(), &2.into()));
        assert_eq!(outcome.figures["evaluation_rows_too_short"], 1);
    }

    #[test]
    fn a_higher_threshold_lets_more_stay_and_a_shared_run_of_words_is_enough_for_exact() {
        let (_folder, options) = against(EVAL);
        let high = format!("{options}\nthreshold = 0.7");
        assert_eq!(try_run("decontaminate", &high, rows(), vec![]).unwrap().rows.len(), 3);
        let exact = format!("{options}\nmethod = 'exact'");
        let outcome = try_run("decontaminate", &exact, rows(), vec![]).unwrap();
        assert!(!prompts(&outcome.rows).iter().any(|prompt| prompt.starts_with('b')));
        let eight = format!("{options}\nmethod = 'exact'\nngram = 8");
        let outcome = try_run("decontaminate", &eight, rows(), vec![]).unwrap();
        assert_eq!(prompts(&outcome.rows), ["a"], "eight words of the second are in d");
    }

    #[test]
    fn evaluation_files_that_cannot_be_used_are_refused_with_their_place() {
        let told = |file: &str, more: &str| {
            let (_folder, options) = against(file);
            let options = format!("{options}\n{more}");
            try_run("decontaminate", &options, rows(), vec![]).unwrap_err().to_string()
        };
        assert!(told("{\"x\": 1}", "").contains("eval.jsonl:1: "));
        assert!(told("{\"question\": 1}", "columns = ['question']").contains("`question`"));
        assert!(told("", "").contains("eval.jsonl: "));
        let none = try_run("decontaminate", "against = ['none.jsonl']", rows(), vec![]);
        assert!(none.unwrap_err().to_string().contains("none.jsonl"));
    }
}
