//! Log-likelihoods of choices: the context is computed once for all of them, and many rows at once.

use candle_core::DType;
use halter_core::data::batch::PackedBatch;
use halter_core::data::pack::microbatches;
use halter_core::generate::Generator;
use halter_core::generate::output::ResultFile;
use halter_core::model::Decoder;
use halter_core::model::linear::PassMode;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::{Progress, Unit};
use halter_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::encode::Encoded;

/// Tokens that go through the model at once.
const BATCH_TOKENS: usize = 4096;

/// What is written of a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Number of the row.
    pub row: u64,
    /// What the choices continue, examples included.
    pub context: String,
    /// The choices, in their order.
    pub choices: Vec<Scored>,
    /// The right one.
    pub gold: usize,
    /// The likeliest one.
    pub prediction: usize,
    /// The likeliest one for its length.
    pub prediction_norm: usize,
    /// Whether the likeliest one is right.
    pub correct: bool,
    /// Whether the likeliest one for its length is right.
    pub correct_norm: bool,
    /// Whether the context was cut from the left to fit the model's.
    pub was_cut: bool,
}

/// A choice with its log-likelihood.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// The choice.
    pub text: String,
    /// Log-prob of all its tokens after the context.
    pub logps: f64,
}

impl Line {
    fn new(row: usize, encoded: &Encoded, logps: &[f64]) -> Self {
        let choice = encoded.question;
        // As in the harness, a length is one in characters.
        let per_character =
            logps.iter().zip(&choice.choices).map(|(x, text)| x / text.chars().count() as f64);
        let (prediction, prediction_norm) =
            (likeliest(logps), likeliest(&per_character.collect::<Vec<_>>()));
        let scored = choice.choices.iter().zip(logps);
        Self {
            row: row as u64,
            context: choice.context.clone(),
            choices: scored.map(|(text, &logps)| Scored { text: text.clone(), logps }).collect(),
            gold: choice.gold,
            prediction,
            prediction_norm,
            correct: prediction == choice.gold,
            correct_norm: prediction_norm == choice.gold,
            was_cut: encoded.was_cut,
        }
    }
}

/// The first of the greatest.
fn likeliest(values: &[f64]) -> usize {
    (1..values.len()).fold(0, |best, at| if values[at] > values[best] { at } else { best })
}

/// Appends a line of each row to `file`, after those that are there.
///
/// # Errors
/// When the model cannot be computed, the file not be written, or `interrupt` is set; the lines
/// written so far stay.
pub fn run(
    generator: &Generator,
    rows: &[Encoded],
    file: &mut ResultFile,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<()> {
    let first = file.rows() as usize;
    progress.begin("scoring", rows.len() as u64, Unit::Rows);
    let mut run = || {
        // A run that goes on packs as one that was never stopped: its sums round alike.
        for members in microbatches(rows.iter().map(Encoded::tokens), BATCH_TOKENS) {
            if members.last().is_none_or(|&last| last < first) {
                continue;
            }
            interrupt.check()?;
            let packed: Vec<&Encoded> = members.iter().map(|&at| &rows[at]).collect();
            for (&at, logps) in members.iter().zip(log_likelihoods(&generator.model, &packed)?) {
                if at >= first {
                    file.append(&Line::new(at, &rows[at], &logps))?;
                }
            }
            progress.advance(file.rows(), "");
        }
        Ok(())
    };
    let outcome = run();
    progress.finish();
    outcome
}

/// For each row the log-prob of each choice's tokens, all in one pass.
///
/// # Errors
/// A token beyond the vocabulary, or logits that are not finite.
pub fn log_likelihoods(model: &Decoder, rows: &[&Encoded]) -> Result<Vec<Vec<f64>>> {
    let mut builder = PackedBatch::builder();
    let mut spans = Vec::new();
    for group in rows.iter().flat_map(|row| row.pairs.chunk_by(|a, b| a.0 == b.0)) {
        let context = builder.row(&group[0].0);
        for (_, continuation) in group {
            let mask = vec![true; continuation.len()];
            spans.push(builder.masked_branch(context, continuation, &mask));
        }
    }
    let batch = builder.build()?;
    let (logps, _) = model.evaluate(&batch, PassMode::EVALUATE)?;
    let logps = logps.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let mut sums = spans.iter().map(|span| logps[batch.targets_of(span.index())].iter().sum());
    let of_row = |row: &&Encoded| -> Result<Vec<f64>> {
        let sums: Vec<f64> = sums.by_ref().take(row.pairs.len()).collect();
        match sums.iter().all(|sum| sum.is_finite()) {
            true => Ok(sums),
            false => Err(Error::model("the model's logits are not finite numbers")
                .hint("a weight may be NaN or infinite, or training diverged")),
        }
    };
    rows.iter().map(of_row).collect()
}
