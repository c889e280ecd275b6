//! `score`: the number that a scorer of rejection sampling gives an answer: a verifier, a judge, or a
//! reward model (Llama 3, section 4.2.3, quality scoring).

use std::path::PathBuf;

use halter_core::data::record::Turn;
use halter_core::train::progress::Unit;
use halter_core::{Error, Result};
use halter_rejection_sampling::scorer::{Item, Scorer, ScorerSpec, WeightedSum};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::options::{self, Checked};
use super::words::words;
use crate::generate::reply;
use crate::row::Row;
use crate::step::{Outcome, Removed, Run, Step};

/// Rows that are scored together.
const TOGETHER: usize = 64;

/// Writes the score of each row's last answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Score {
    /// A scorer, or several whose scores are added: `reward:runs/reward`, `numeric`,
    /// `0.5*length:200`. Without a tokenizer, lengths are in words.
    pub scorer: Scorers,
    /// Where the score is written.
    pub column: String,
    /// Rows below it are removed; none where it is not set.
    pub min_score: Option<f64>,
    /// Rows stay, without a number, where there is no score.
    pub keep_unscored: bool,
}

/// One or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Scorers {
    /// One.
    One(ScorerSpec),
    /// A sum.
    Several(Vec<ScorerSpec>),
}

impl Scorers {
    fn specs(&self) -> &[ScorerSpec] {
        match self {
            Self::One(spec) => std::slice::from_ref(spec),
            Self::Several(specs) => specs,
        }
    }
}

impl Default for Score {
    fn default() -> Self {
        Self {
            scorer: Scorers::Several(Vec::new()),
            column: "score".into(),
            min_score: None,
            keep_unscored: false,
        }
    }
}

impl Checked for Score {
    fn check(&self) -> Result<()> {
        options::column("column", &self.column)?;
        match self.scorer.specs() {
            [] => Err(Error::config("`scorer`: expected a scorer, got none")
                .hint("as in `reward:runs/reward` (docs/reference/scorers.md)")),
            _ => Ok(()),
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        self.scorer.specs().iter().filter_map(ScorerSpec::file).map(PathBuf::from).collect()
    }
}

/// A row that can be scored.
struct Answered {
    prompt: Turn,
    answer: String,
    ended: bool,
    row: Row,
    /// The row without what is scored: else a verifier would take that for the right answer.
    others: Map<String, Value>,
}

impl Answered {
    fn of(row: Row) -> Result<Self, Row> {
        let (Some(prompt), Some(answer)) = (reply::prompt(&row), reply::answer(&row)) else {
            return Err(row);
        };
        let finish = row.text("finish").or(row.text("finish_reason"));
        let ended = finish != Some("length");
        let prompt = Turn::Messages(prompt);
        let mut others = row.0.clone();
        others.retain(|column, _| !["messages", "completion", "output"].contains(&column.as_str()));
        Ok(Self { prompt, answer, ended, row, others })
    }

    fn item(&self) -> Item<'_> {
        Item {
            prompt: &self.prompt,
            completion: &self.answer,
            num_tokens: words(&self.answer).len(),
            ended: self.ended,
            row: &self.others,
        }
    }
}

impl Step for Score {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let scorer = WeightedSum::from_specs(self.scorer.specs())?;
        let mut outcome = Outcome::default();
        run.progress.begin("scoring", rows.len() as u64, Unit::Rows);
        let (mut done, mut sum, mut scored) = (0, 0.0, 0usize);
        let mut rows = rows.into_iter().peekable();
        while rows.peek().is_some() {
            run.interrupt.check()?;
            let mut answered = Vec::with_capacity(TOGETHER);
            for row in rows.by_ref().take(TOGETHER) {
                done += 1;
                match Answered::of(row) {
                    Ok(row) => answered.push(row),
                    Err(row) => self.unscored(row, "expected a prompt and an answer", &mut outcome),
                }
            }
            let items: Vec<Item> = answered.iter().map(Answered::item).collect();
            let scores = scorer.score_all(&items);
            drop(items);
            for (Answered { mut row, .. }, score) in answered.into_iter().zip(scores) {
                match score {
                    Err(error) => self.unscored(row, &error.to_string(), &mut outcome),
                    Ok(score) => {
                        scored += 1;
                        sum += score.value;
                        row.set(&self.column, score.value);
                        match self.min_score.filter(|least| score.value < *least) {
                            None => outcome.rows.push(row),
                            Some(_) => {
                                let detail = score.detail.unwrap_or_default();
                                let reason = "below the least score";
                                outcome.removed.push(Removed { row, reason, detail });
                            }
                        }
                    }
                }
            }
            run.progress.advance(done, "");
        }
        run.progress.finish();
        outcome.figures.insert("scored".into(), json!(scored));
        if scored > 0 {
            outcome.figures.insert("mean_score".into(), json!(sum / scored as f64));
        }
        Ok(outcome)
    }
}

impl Score {
    fn unscored(&self, row: Row, why: &str, outcome: &mut Outcome) {
        match self.keep_unscored {
            true => outcome.rows.push(row),
            false => {
                outcome.removed.push(Removed { row, reason: "no score", detail: why.to_string() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::curate::testing::{chat, prompts, removed, run, try_run, with};

    fn rows() -> Vec<crate::Row> {
        let right = with(chat("2 + 2?", "It is 4."), "answer", "4");
        let wrong = with(chat("2 + 3?", "It is 6."), "answer", "5");
        vec![right, wrong, chat("Say.", "No number.")]
    }

    #[test]
    fn answers_are_scored_and_what_has_no_score_is_told() {
        let outcome = run("score", "scorer = 'numeric'", rows());
        assert_eq!(prompts(&outcome.rows), ["2 + 2?", "2 + 3?"]);
        assert_eq!(
            [&outcome.rows[0], &outcome.rows[1]].map(|r| r.0["score"].as_f64()),
            [Some(1.0), Some(0.0)]
        );
        assert_eq!(removed(&outcome)[0].1, "no score");
        assert_eq!(
            (outcome.figures["scored"].as_u64(), &outcome.figures["mean_score"]),
            (Some(2), &serde_json::json!(0.5))
        );
    }

    #[test]
    fn a_least_score_and_a_sum() {
        let options = "scorer = ['numeric', '-1*repetition']\nmin_score = 0.5\ncolumn = 'sum'";
        let outcome = run("score", options, rows());
        assert_eq!(prompts(&outcome.rows), ["2 + 2?"]);
        assert_eq!(outcome.rows[0].0["sum"], 1.0);
        assert_eq!(removed(&outcome)[0].1, "below the least score");
        let kept = run("score", "scorer = 'numeric'\nkeep_unscored = true", rows());
        assert_eq!(kept.rows.len(), 3);
    }

    #[test]
    fn scorers_that_there_are_not_are_refused() {
        for options in ["", "scorer = 'no-such'", "scorer = 'numeric'\ncolumn = ''"] {
            assert!(try_run("score", options, rows(), vec![]).is_err(), "{options}");
        }
    }
}
