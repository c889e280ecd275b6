//! What gives a completion its score.

mod options;
mod spec;
#[cfg(test)]
mod tests;

use halter_core::Result;
use halter_core::data::record::Turn;
use rayon::prelude::*;
use serde_json::{Map, Value};

pub use spec::ScorerSpec;

/// A completion with all that a scorer may look at.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// What was asked.
    pub prompt: &'a Turn,
    /// The completion's text, without its stop token.
    pub completion: &'a str,
    /// Tokens of the completion.
    pub num_tokens: usize,
    /// Whether a stop token ended it; otherwise it was cut off.
    pub ended: bool,
    /// The data row as it was read.
    pub row: &'a Map<String, Value>,
}

/// What scorers see that look at no prompt.
#[cfg(test)]
pub(crate) static NO_PROMPT: Turn = Turn::Messages(Vec::new());

/// A score; higher is better.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// The score. Verifiers give 0 to 1, penalties −1 to 0.
    pub value: f64,
    /// A short reason, for the report.
    pub detail: Option<String>,
}

impl Score {
    /// A score without a reason.
    pub fn new(value: f64) -> Self {
        Self { value, detail: None }
    }

    /// A score with its reason.
    pub fn because(value: f64, detail: impl Into<String>) -> Self {
        Self { value, detail: Some(detail.into()) }
    }
}

/// Gives completions their scores. The same item always gets the same one, except from a judge.
pub trait Scorer: Send + Sync {
    /// What the scorer is called on the command line and in reports.
    fn name(&self) -> &str;

    /// The score of `item`. An error costs this row only.
    fn score(&self, item: &Item) -> Result<Score>;

    /// What its scores follow from beside the item and the scorer's own text, hashed: a file, a model.
    /// `None` where there is nothing else.
    ///
    /// # Errors
    /// When a model's tensor cannot be read.
    fn fingerprint(&self) -> Result<Option<String>> {
        Ok(None)
    }

    /// The score of each item, in their order; on all threads, unless a scorer has a better way to
    /// score several at once.
    fn score_all(&self, items: &[Item]) -> Vec<Result<Score>> {
        items.par_iter().map(|item| self.score(item)).collect()
    }
}

/// Several scorers, each with its weight: the sum of weight times score. A completion that one
/// cannot score is not shown to those after it.
pub struct WeightedSum {
    name: String,
    parts: Vec<(f64, Box<dyn Scorer>)>,
}

impl WeightedSum {
    /// The sum of `parts`, weight first.
    pub fn new(parts: Vec<(f64, Box<dyn Scorer>)>) -> Self {
        let names: Vec<_> = parts.iter().map(|(weight, part)| weighted(*weight, &**part)).collect();
        Self { name: names.join(" + "), parts }
    }

    /// The sum that `specs` describe; files that they name are read.
    pub fn from_specs(specs: &[ScorerSpec]) -> Result<Self> {
        let parts = specs.iter().map(|spec| Ok((spec.weight(), spec.build()?)));
        Ok(Self::new(parts.collect::<Result<_>>()?))
    }

    /// The [`fingerprint`](Scorer::fingerprint) of each part.
    ///
    /// # Errors
    /// As there.
    pub fn fingerprints(&self) -> Result<Vec<Option<String>>> {
        self.parts.iter().map(|(_, part)| part.fingerprint()).collect()
    }
}

/// The hash of what a scorer reads.
pub(crate) fn hashed(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..32].to_string()
}

/// `name`, or `weight*name` where the weight is not one.
fn weighted(weight: f64, part: &dyn Scorer) -> String {
    if weight == 1.0 { part.name().to_string() } else { format!("{weight}*{}", part.name()) }
}

/// A sum on the way.
#[derive(Default)]
struct Sum {
    value: f64,
    details: Vec<String>,
}

impl Sum {
    fn add(&mut self, weight: f64, part: &dyn Scorer, score: Score) {
        self.value += weight * score.value;
        let reason = score.detail.map(|detail| format!(" ({detail})")).unwrap_or_default();
        self.details.push(format!("{} {:.3}{reason}", part.name(), score.value));
    }

    fn score(self) -> Score {
        Score::because(self.value, self.details.join("; "))
    }
}

impl Scorer for WeightedSum {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, item: &Item) -> Result<Score> {
        let mut sum = Sum::default();
        for (weight, part) in &self.parts {
            sum.add(*weight, &**part, part.score(item)?);
        }
        Ok(sum.score())
    }

    fn score_all(&self, items: &[Item]) -> Vec<Result<Score>> {
        let mut sums: Vec<Result<Sum>> = items.iter().map(|_| Ok(Sum::default())).collect();
        for (weight, part) in &self.parts {
            let (places, open): (Vec<usize>, Vec<Item>) =
                items.iter().copied().enumerate().filter(|(at, _)| sums[*at].is_ok()).unzip();
            for (at, score) in places.into_iter().zip(part.score_all(&open)) {
                match (&mut sums[at], score) {
                    (Ok(sum), Ok(score)) => sum.add(*weight, &**part, score),
                    (sum, Err(error)) => *sum = Err(error),
                    (Err(_), Ok(_)) => {}
                }
            }
        }
        sums.into_iter().map(|sum| sum.map(Sum::score)).collect()
    }
}
