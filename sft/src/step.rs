//! The gradients of one optimizer step.

use halter_core::data::batch::PackedBatch;
use halter_core::data::pack::packed;
use halter_core::data::record::Row;
use halter_core::model::Decoder;
use halter_core::model::linear::PassMode;
use halter_core::model::param::Grads;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::method::{Backward, Figures, StepOptions};
use halter_core::{Error, Result};

use crate::loss::cross_entropy;

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
    each_pass(model, rows, options, grads, &mut |pass, loss| pass.backward(loss, grads))
}

/// Each microbatch of `rows` forward, and its loss with it to `backward`. The head's part of the
/// gradients is added to `grads` already.
///
/// # Errors
/// As [`accumulate`], and those of `backward`.
pub fn each_pass(
    model: &Decoder,
    rows: &[Row],
    options: StepOptions,
    grads: &Grads,
    backward: Backward,
) -> Result<Figures> {
    let batches = packed(rows, options.microbatch_tokens).collect::<Result<Vec<_>>>()?;
    let supervised: usize = batches.iter().map(|batch| batch.targets.len()).sum();
    if supervised == 0 {
        return Err(nothing_trained());
    }
    let mut figures = Figures::default();
    for (index, batch) in batches.iter().enumerate() {
        let dlogps = vec![-1.0 / supervised as f64; batch.targets.len()];
        let pass = model.forward_with_dlogps(batch, options.pass(index), &dlogps, grads)?;
        let loss = cross_entropy(pass.per_token_logps(), supervised)?;
        let value = halter_core::train::pass::scalar(&loss)?;
        add(&mut figures, batch, value * supervised as f64, &pass.is_best());
        backward(pass, &loss)?;
    }
    Ok(figures)
}

fn add(figures: &mut Figures, batch: &PackedBatch, loss_sum: f64, is_best: &[bool]) {
    figures.loss_sum += loss_sum;
    figures.loss_count += batch.targets.len();
    figures.supervised_tokens += batch.targets.len();
    figures.correct += is_best.iter().filter(|&&best| best).count();
    figures.tokens += batch.len();
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
    for batch in packed(rows, microbatch_tokens) {
        let batch = batch?;
        interrupt.check()?;
        let (logps, is_best) = model.evaluate(&batch, PassMode::EVALUATE)?;
        let loss = halter_core::train::pass::scalar(&cross_entropy(&logps, 1)?)?;
        add(&mut figures, &batch, loss, &is_best);
    }
    if figures.supervised_tokens == 0 {
        return Err(nothing_trained());
    }
    Ok(figures)
}

fn nothing_trained() -> Error {
    Error::data("no trained token in any row of the step")
}
