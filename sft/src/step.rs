//! The gradients of one optimizer step.

use std::collections::HashMap;

use candle_core::Tensor;
use halter_core::data::batch::PackedBatch;
use halter_core::data::pack::microbatches;
use halter_core::data::record::Row;
use halter_core::model::Decoder;
use halter_core::model::linear::PassMode;
use halter_core::model::param::{Grads, Param};
use halter_core::train::interrupt::Interrupt;
use halter_core::train::optimizer::AdamW;
use halter_core::train::pass::{Pass, PassOptions};
use halter_core::{Error, ErrorKind, Result};

use crate::loss::cross_entropy;

/// How the rows of a step go through the model.
#[derive(Debug, Clone, Copy)]
pub struct StepOptions {
    /// A microbatch holds at most this many tokens (one row may be longer).
    pub microbatch_tokens: usize,
    /// Blocks that keep their activations; see [`PassOptions`].
    pub keep_blocks: usize,
    /// Seed of the step's dropout.
    pub dropout_seed: Option<u64>,
}

/// What a step or an evaluation saw.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Figures {
    /// −Σ log-probs of the trained tokens.
    pub loss_sum: f64,
    /// Trained tokens.
    pub supervised_tokens: usize,
    /// Trained tokens that were the likeliest.
    pub correct: usize,
    /// All tokens.
    pub tokens: usize,
}

impl Figures {
    /// Mean loss per trained token.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.supervised_tokens as f64
    }

    /// Share of trained tokens that were the likeliest.
    pub fn token_accuracy(&self) -> f64 {
        self.correct as f64 / self.supervised_tokens as f64
    }

    fn add(&mut self, batch: &PackedBatch, loss_sum: f64, is_best: &[bool]) {
        self.loss_sum += loss_sum;
        self.supervised_tokens += batch.targets.len();
        self.correct += is_best.iter().filter(|&&best| best).count();
        self.tokens += batch.len();
    }
}

/// Adds the gradient of the mean loss over all trained tokens of `rows` to `grads`.
///
/// The loss is normalised over the whole step, so microbatches change nothing but rounding.
///
/// # Errors
/// No trained token in the whole step, or a loss that is not finite.
pub fn accumulate(
    model: &Decoder,
    rows: &[Row],
    options: StepOptions,
    grads: &Grads,
) -> Result<Figures> {
    let batches = pack_all(rows, options.microbatch_tokens)?;
    each_pass(model, &batches, options, grads, |pass, loss| pass.backward(loss, grads))
}

/// A whole step of the optimizer in one microbatch: every parameter is updated, and its gradient
/// forgotten, as soon as backward has completed it. Also returns the sum of squares of each trained
/// parameter's gradient. `grads` are those of [`Decoder::rolling_grads`].
///
/// # Errors
/// As [`accumulate`], and a gradient that is not finite: some parameters are updated by then.
pub fn update_in_backward(
    model: &Decoder,
    rows: &[Row],
    options: StepOptions,
    grads: &Grads,
    optimizer: &mut AdamW,
    learning_rate: f64,
) -> Result<(Figures, Vec<f64>)> {
    let batches = pack_all(rows, usize::MAX)?;
    let mut squared_norms = HashMap::new();
    let figures = each_pass(model, &batches, options, grads, |pass, loss| {
        optimizer.begin_step();
        pass.backward_each(loss, grads, |params| {
            for param in params {
                let squared_norm = grads.squared_norm_of(param)?;
                if !squared_norm.is_finite() {
                    let message = format!("the gradient of `{}` is not finite", param.name());
                    return Err(Error::new(ErrorKind::Numeric, message));
                }
                squared_norms.insert(param.name().to_string(), squared_norm);
            }
            optimizer.update_some(params, grads, learning_rate, 1.0)?;
            grads.clear_of(params)
        })
    })?;
    let norm_of = |param: &Param| squared_norms.get(param.name()).copied().unwrap_or_default();
    Ok((figures, model.trained().into_iter().map(norm_of).collect()))
}

fn pack_all(rows: &[Row], microbatch_tokens: usize) -> Result<Vec<PackedBatch>> {
    let batches = pack(rows, microbatch_tokens).collect::<Result<Vec<_>>>()?;
    if batches.is_empty() {
        return Err(nothing_trained());
    }
    Ok(batches)
}

/// Each microbatch forward, and its loss with it to `backward`.
fn each_pass(
    model: &Decoder,
    batches: &[PackedBatch],
    options: StepOptions,
    grads: &Grads,
    mut backward: impl FnMut(Pass<'_>, &Tensor) -> Result<()>,
) -> Result<Figures> {
    let supervised: usize = batches.iter().map(|batch| batch.targets.len()).sum();
    let mut figures = Figures::default();
    for (index, batch) in batches.iter().enumerate() {
        let dropout_seed = options.dropout_seed.map(|seed| seed.wrapping_add(index as u64));
        let mode = PassMode { dropout_seed, ..PassMode::EVALUATE };
        let pass_options = PassOptions { keep_blocks: options.keep_blocks, mode };
        let dlogps = vec![-1.0 / supervised as f64; batch.targets.len()];
        let pass = model.forward_with_dlogps(batch, pass_options, &dlogps, grads)?;
        let loss = cross_entropy(pass.per_token_logps(), supervised)?;
        let value = halter_core::train::pass::scalar(&loss)?;
        figures.add(batch, value * supervised as f64, &pass.is_best());
        backward(pass, &loss)?;
    }
    Ok(figures)
}

/// Loss and accuracy of `rows`; nothing is trained.
///
/// # Errors
/// No trained token at all, or an interruption between microbatches.
pub fn evaluate(
    model: &Decoder,
    rows: &[Row],
    microbatch_tokens: usize,
    interrupt: &Interrupt,
) -> Result<Figures> {
    let mut figures = Figures::default();
    for batch in pack(rows, microbatch_tokens) {
        let batch = batch?;
        interrupt.check()?;
        let (logps, is_best) = model.evaluate(&batch, PassMode::EVALUATE)?;
        let loss = halter_core::train::pass::scalar(&cross_entropy(&logps, 1)?)?;
        figures.add(&batch, loss, &is_best);
    }
    if figures.supervised_tokens == 0 {
        return Err(nothing_trained());
    }
    Ok(figures)
}

/// Microbatches of `rows`, packed one at a time; those without a trained token are left out.
fn pack(rows: &[Row], microbatch_tokens: usize) -> impl Iterator<Item = Result<PackedBatch>> {
    let lengths = rows.iter().map(|row| row.input_ids.len());
    let packed =
        |members: Vec<usize>| PackedBatch::from_rows(members.iter().map(|&index| &rows[index]));
    let is_empty = |batch: &PackedBatch| batch.targets.is_empty();
    microbatches(lengths, microbatch_tokens)
        .into_iter()
        .map(packed)
        .filter(move |batch| !batch.as_ref().is_ok_and(is_empty))
}

fn nothing_trained() -> Error {
    Error::data("no trained token in any row of the step")
}
