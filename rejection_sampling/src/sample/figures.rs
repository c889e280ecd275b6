//! What scored completions say of the model and of the scorer.

use std::path::Path;

use halter_core::Result;
use serde::Serialize;

use super::keep::{Keep, answers};
use super::line::{Line, Scored, read_lines};
use crate::statistics::{
    Histogram, MAX_SUBSETS, bootstrap_interval, clustered_mean, majority_at_k, pass_at_k,
};

const BINS: usize = 20;
const POINTS: usize = 2000;
const EXAMPLES: usize = 5;
const SEED: u64 = 0;
/// Subsets of completions that maj@k looks at, over all prompts.
const SUBSETS: u64 = 2_000_000;
/// Of each prompt at least as many: all of ten completions.
const LEAST_SUBSETS: u64 = 256;

/// A rate with its interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rate {
    /// `k` of pass@k and maj@k.
    pub k: usize,
    /// Mean over prompts.
    pub mean: f64,
    /// 95 % interval of the bootstrap over prompts.
    pub interval: (f64, f64),
}

/// A completion to look at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Example {
    /// The last thing that was asked.
    pub prompt: String,
    /// The completion.
    pub text: String,
    /// Its score.
    pub score: f64,
    /// What the scorer says of it.
    pub detail: String,
}

/// Figures of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Prompts that were completed.
    pub prompts: usize,
    /// Prompts that could not be.
    pub failed_prompts: usize,
    /// Of those that were, some of whose ways failed.
    pub partial_prompts: usize,
    /// Completions.
    pub completions: usize,
    /// Of these, cut off at their longest.
    pub cut_off: usize,
    /// Of these, without a score.
    pub unscored: usize,
    /// Mean number of tokens.
    pub mean_tokens: f64,
    /// Share of completions of at least the least score, and its standard error (clustered by
    /// prompt); `None` without a least score.
    pub acceptance: Option<(f64, f64)>,
    /// At least one of `k` is accepted.
    pub pass_at: Vec<Rate>,
    /// The majority of `k` is accepted; of answers that are compared.
    pub majority_at: Vec<Rate>,
    /// Mean score.
    pub mean_score: Option<f64>,
    /// Lowest score, highest score, and how many are in each of equal bins between them.
    pub histogram: Option<(f64, f64, Vec<usize>)>,
    /// Tokens and score of some completions, evenly chosen.
    pub lengths: Vec<(usize, f64)>,
    /// The best of the first prompts' completions.
    pub best: Vec<Example>,
    /// The worst.
    pub worst: Vec<Example>,
}

/// What is remembered of a prompt.
struct Prompt {
    accepted: Vec<f64>,
    /// Where answers vote.
    groups: Option<Vec<Option<usize>>>,
}

impl Figures {
    /// The figures of the completions in `path`; `accepted` is the least score of a good one, and
    /// with `votes` their final answers vote.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read(path: &Path, accepted: Option<f64>, votes: bool) -> Result<Self> {
        let mut figures = Self::default();
        let (mut prompts, mut scores, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        let mut tokens = 0;
        read_lines(path, |line| {
            if line.completions.is_empty() {
                figures.failed_prompts += 1;
                return Ok(());
            }
            figures.prompts += 1;
            figures.partial_prompts += usize::from(line.error.is_some());
            figures.completions += line.completions.len();
            for completion in &line.completions {
                tokens += completion.num_tokens;
                figures.cut_off += usize::from(!completion.has_ended());
                figures.unscored += usize::from(completion.score.is_none());
                if let Some(score) = completion.score {
                    scores.push(score);
                    lengths.push((completion.num_tokens, score));
                }
            }
            figures.keep_examples(&line);
            if let Some(least) = accepted {
                let is_good = |c: &Scored| f64::from(u8::from(c.value() >= least));
                prompts.push(Prompt {
                    accepted: line.completions.iter().map(is_good).collect(),
                    groups: votes.then(|| answers(&line.completions)),
                });
            }
            Ok(())
        })?;
        figures.mean_tokens = tokens as f64 / figures.completions.max(1) as f64;
        if !scores.is_empty() {
            figures.mean_score = Some(scores.iter().sum::<f64>() / scores.len() as f64);
            let Histogram { low, high, counts, .. } = Histogram::new(&scores, BINS);
            figures.histogram = Some((low, high, counts));
        }
        figures.lengths = lengths.into_iter().step_by(scores.len() / POINTS + 1).collect();
        figures.rates(&prompts)?;
        Ok(figures)
    }

    fn rates(&mut self, prompts: &[Prompt]) -> Result<()> {
        let estimate = clustered_mean(prompts.iter().map(|prompt| &prompt.accepted[..]));
        self.acceptance = estimate.map(|estimate| (estimate.mean, estimate.standard_error));
        let most = prompts.iter().map(|prompt| prompt.accepted.len()).max().unwrap_or(0);
        let mut ks: Vec<usize> = (0..).map(|i| 1 << i).take_while(|&k| k < most).collect();
        ks.push(most);
        let subsets = SUBSETS / prompts.len().max(1) as u64;
        let subsets = subsets.clamp(LEAST_SUBSETS, MAX_SUBSETS);
        for k in ks.into_iter().filter(|&k| k > 0) {
            let (mut pass, mut majority) = (Vec::new(), Vec::new());
            for prompt in prompts.iter().filter(|prompt| prompt.accepted.len() >= k) {
                let right = prompt.accepted.iter().filter(|a| **a > 0.0).count();
                pass.push([pass_at_k(prompt.accepted.len(), right, k)?]);
                if let Some(groups) = &prompt.groups {
                    let is_right = |group| {
                        let mut both = groups.iter().zip(&prompt.accepted);
                        both.any(|(of, a)| *of == Some(group) && *a > 0.0)
                    };
                    majority.push([majority_at_k(groups, is_right, k, subsets, SEED)?]);
                }
            }
            self.pass_at.extend(rate(k, &pass));
            self.majority_at.extend(rate(k, &majority));
        }
        Ok(())
    }

    fn keep_examples(&mut self, line: &Line) {
        let scores = Keep::scores(&line.completions);
        let by = |better: fn(&f64, &f64) -> bool| {
            let places = (0..scores.len()).filter(|at| !scores[*at].is_nan());
            places.reduce(|a, b| if better(&scores[b], &scores[a]) { b } else { a })
        };
        let example = |at: usize| Example {
            prompt: asked(line),
            text: line.completions[at].text.clone(),
            score: scores[at],
            detail: line.completions[at].detail.clone().unwrap_or_default(),
        };
        let (best, worst) = (by(|a, b| a > b).map(example), by(|a, b| a < b).map(example));
        self.best.extend(best);
        self.best.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.best.truncate(EXAMPLES);
        self.worst.extend(worst);
        self.worst.sort_by(|a, b| a.score.total_cmp(&b.score));
        self.worst.truncate(EXAMPLES);
    }
}

fn rate(k: usize, prompts: &[[f64; 1]]) -> Option<Rate> {
    let mean = clustered_mean(prompts.iter().map(|value| &value[..]))?.mean;
    let interval = bootstrap_interval(prompts.iter().map(|value| &value[..]), 0.95, SEED)?;
    Some(Rate { k, mean, interval })
}

/// The last thing that was asked, as text.
fn asked(line: &Line) -> String {
    let last = line.prompt.as_array().and_then(|messages| messages.last());
    match last.map_or(&line.prompt, |message| &message["content"]) {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
