//! Evaluation: loss and token accuracy of held-out rows, and answers that can be verified.

use std::collections::BTreeMap;

use crate::data::dataset::DataSpec;
use crate::data::encoded::TokenCount;
use crate::data::record::{Origin, Record};
use crate::generate::{Limits, cached_tokens, greedy};
use crate::memory::plan::EvaluationInput;
use crate::model::Decoder;
use crate::text::encode::{Prompt, completion_prompt};
use crate::train::config::TrainConfig;
use crate::train::interrupt::Interrupt;
use crate::train::method::RowEncoder;
use crate::train::progress::{Progress, Unit};
use crate::train::source::Source;
use crate::verify;
use crate::{Error, Result};

use super::data::Data;

/// Held-out rows, encoded once.
#[derive(Debug)]
pub struct Evaluation<R> {
    rows: Vec<R>,
    prompts: Vec<Prompt>,
    left_out: usize,
    contents: BTreeMap<String, String>,
}

/// What the model said to the prompts.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// One completion per prompt.
    pub completions: Vec<String>,
    /// Whether each is right, where its reference has a final answer.
    pub correct: Vec<Option<bool>>,
}

impl Answers {
    /// Right ones and those that could be verified.
    pub fn score(&self) -> (usize, usize) {
        let verified = self.correct.iter().flatten();
        (verified.clone().filter(|&&correct| correct).count(), verified.count())
    }

    /// Share of right answers; `None` where none could be verified.
    pub fn accuracy(&self) -> Option<f64> {
        let (right, verified) = self.score();
        (verified > 0).then(|| right as f64 / verified as f64)
    }
}

impl<R> Default for Evaluation<R> {
    fn default() -> Self {
        let (rows, prompts, contents) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { rows, prompts, left_out: 0, contents }
    }
}

impl<R: TokenCount> Evaluation<R> {
    /// Encodes the evaluation data.
    ///
    /// # Errors
    /// A row that cannot be used, or none at all: held-out rows are never dropped silently.
    pub fn open(config: &TrainConfig, source: &Source, encoder: &RowEncoder<R>) -> Result<Self> {
        let mut evaluation = Self::default();
        if config.eval_data.is_empty() {
            return Ok(evaluation);
        }
        for text in &config.eval_data {
            let DataSpec { path, weight } = text.parse()?;
            if weight != 1.0 {
                return Err(Error::config(format!("`eval-data` has a weight: `{text}`"))
                    .hint(format!("every held-out row is used once: give `{path}`")));
            }
        }
        let data = Data::open(&config.eval_data, config, false)?;
        evaluation.contents = data.contents()?;
        for record in data.records() {
            let (origin, record) = record?;
            if evaluation.prompts.len() < config.eval_generate {
                evaluation.prompts.extend(prompt(source, &origin, &record)?);
            }
            match encoder(&origin, &record)?.into_kept() {
                Some(rows) => evaluation.rows.extend(rows),
                None => evaluation.left_out += 1,
            }
        }
        if config.eval_generate > 0 && evaluation.prompts.is_empty() {
            return Err(Error::data("`eval-generate` is given, but no held-out row has a prompt")
                .hint("texts and rows of tokens are not answered: leave out `--eval-generate`"));
        }
        if evaluation.rows.is_empty() {
            return Err(Error::data(format!(
                "no row to evaluate: all `{}` of `eval-data` were dropped",
                evaluation.left_out
            ))
            .hint("raise `--max-seq-len`, or choose another policy with `--overlong`"));
        }
        Ok(evaluation)
    }

    /// Records that the policy for over-long rows dropped.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// The fingerprint of each data set, by its name.
    pub fn contents(&self) -> &BTreeMap<String, String> {
        &self.contents
    }

    /// Whether there is nothing to evaluate.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Rows of the evaluation.
    pub fn rows(&self) -> &[R] {
        &self.rows
    }

    /// Prompts that are answered.
    pub fn prompts(&self) -> &[Prompt] {
        &self.prompts
    }

    /// What the planner must know; `None` where there is nothing to evaluate.
    pub fn for_plan(&self, max_new_tokens: usize) -> Option<EvaluationInput> {
        let prompts = self.prompts.iter().map(|prompt| prompt.input_ids.len());
        Some(EvaluationInput {
            tokens: self.rows.tokens(),
            longest_row: self.rows.iter().map(R::tokens).max()?,
            cached_tokens: cached_tokens(prompts, max_new_tokens),
        })
    }

    /// Greedy answers to the prompts.
    ///
    /// # Errors
    /// A prompt that the model cannot read, or an interruption.
    pub fn answers(
        &self,
        model: &Decoder,
        source: &Source,
        config: &TrainConfig,
        progress: &mut dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<Answers> {
        let tokenizer = &source.tokenizer;
        let prompts: Vec<Vec<u32>> = self.prompts.iter().map(|p| p.input_ids.clone()).collect();
        let stop_tokens: Vec<u32> =
            tokenizer.end_of_turn_tokens().into_iter().map(|(_, id)| id).collect();
        let limits = Limits { max_new_tokens: config.max_new_tokens, stop_tokens: &stop_tokens };
        progress.begin("answering", prompts.len() as u64, Unit::Rows);
        let completions = greedy(model, &prompts, limits, |done| {
            progress.advance(done as u64, "");
            interrupt.check()
        });
        progress.finish();
        // Steps have other sizes and would not use it.
        model.context().pool().release();
        let completions = completions?
            .iter()
            .map(|ids| tokenizer.decode(ids, true))
            .collect::<Result<Vec<String>>>()?;
        let correct = self
            .prompts
            .iter()
            .zip(&completions)
            .map(|(prompt, completion)| {
                let reference = prompt.reference.as_deref()?;
                verify::final_answer(reference)?;
                Some(verify::is_correct(completion, reference))
            })
            .collect();
        Ok(Answers { completions, correct })
    }
}

/// The prompt of a record, for generation; `None` where it has none.
fn prompt(source: &Source, origin: &Origin, record: &Record) -> Result<Option<Prompt>> {
    completion_prompt(record, &source.tokenizer, source.template.as_deref())
        .map_err(|error| error.at(&*origin.path, origin.line))
}
