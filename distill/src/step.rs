//! The gradients of one optimizer step.

use halter_core::data::batch::PackedBatch;
use halter_core::data::pack::packed;
use halter_core::data::record::Row;
use halter_core::model::Decoder;
use halter_core::model::linear::PassMode;
use halter_core::model::param::Grads;
use halter_core::ops::divergence::{Charge, Distance};
use halter_core::train::interrupt::Interrupt;
use halter_core::train::method::{Backward, Figures, StepOptions};
use halter_core::train::pass::{PassOptions, scalar};
use halter_core::{Error, Result};

use crate::config::DistillOptions;
use crate::teacher::Teacher;

/// Each microbatch of `rows` forward, and its loss with it to `backward`: weighted divergence and
/// cross-entropy, means over the trained tokens of the whole step. The head's part of the gradients is
/// added to `grads` already.
///
/// # Errors
/// No trained token in the whole step, or a loss that is not finite.
pub fn each_pass(
    student: &Decoder,
    teacher: &Teacher,
    rows: &[Row],
    distill: &DistillOptions,
    options: StepOptions,
    grads: &Grads,
    backward: Backward,
) -> Result<Figures> {
    let batches = packed(rows, options.microbatch_tokens).collect::<Result<Vec<_>>>()?;
    let supervised: usize = batches.iter().map(|batch| batch.targets.len()).sum();
    if supervised == 0 {
        return Err(nothing_trained());
    }
    let share = 1.0 / supervised as f64;
    let charge = Charge {
        divergence: distill.divergence_weight * share,
        cross_entropy: distill.ce_weight * share,
    };
    let mut figures = Figures::default();
    for (index, batch) in batches.iter().enumerate() {
        let dropout_seed = options.dropout_seed.map(|seed| seed.wrapping_add(index as u64));
        let mode = PassMode { dropout_seed, ..PassMode::EVALUATE };
        let pass_options = PassOptions { keep_blocks: options.keep_blocks, mode };
        let reading = teacher.read(batch)?;
        let pass = student.forward_distilled(
            batch,
            pass_options,
            distill.comparison(),
            &vec![charge; batch.targets.len()],
            &mut |rows| reading.rows(rows),
            grads,
        )?;
        drop(reading);
        let loss = pass.charged().sum_all()?;
        note(&mut figures, batch, scalar(&loss)? * supervised as f64, pass.distances());
        backward(pass, &loss)?;
    }
    Ok(figures)
}

/// Loss and figures of `rows`; nothing is trained.
///
/// # Errors
/// No trained token at all, or an interruption between microbatches.
pub fn evaluate(
    student: &Decoder,
    teacher: &Teacher,
    rows: &[Row],
    distill: &DistillOptions,
    microbatch_tokens: usize,
    interrupt: &Interrupt,
) -> Result<Figures> {
    let charge = Charge { divergence: distill.divergence_weight, cross_entropy: distill.ce_weight };
    let mut figures = Figures::default();
    for batch in packed(rows, microbatch_tokens) {
        let batch = batch?;
        interrupt.check()?;
        let reading = teacher.read(&batch)?;
        let ask = &mut |rows| reading.rows(rows);
        let found =
            student.evaluate_distilled(&batch, PassMode::EVALUATE, distill.comparison(), ask)?;
        let loss = found.iter().map(|found| charge.of(found)).sum();
        note(&mut figures, &batch, loss, &found);
    }
    match figures.supervised_tokens {
        0 => Err(nothing_trained()),
        _ => Ok(figures),
    }
}

fn note(figures: &mut Figures, batch: &PackedBatch, loss_sum: f64, found: &[Distance]) {
    figures.loss_sum += loss_sum;
    figures.loss_count += found.len();
    figures.supervised_tokens += found.len();
    figures.correct += found.iter().filter(|found| found.is_best).count();
    figures.tokens += batch.len();
    let all = |of: fn(&Distance) -> f64| -> Vec<f64> { found.iter().map(of).collect() };
    figures.note("divergence", &all(|found| found.divergence));
    figures.note("cross_entropy", &all(|found| -found.logp));
}

fn nothing_trained() -> Error {
    Error::data("no trained token in any row of the step")
}
