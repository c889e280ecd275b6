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

use crate::config::{DistillOptions, DivergenceKind};
use crate::inside::Inside;
use crate::lesson::Lesson;
use crate::teacher::{Reading, Teacher};

/// What the student is told.
#[derive(Debug, Clone, Copy)]
pub struct Objective<'o> {
    /// Who is learned from.
    pub teacher: &'o Teacher,
    /// How they are compared.
    pub options: &'o DistillOptions,
    /// Values inside that are compared as well; nowhere but in training.
    pub inside: Option<&'o Inside>,
}

/// Each microbatch of `lesson` forward, and its loss with it to `backward`: weighted divergence and
/// cross-entropy, means over the trained tokens of the whole step. The head's part of the gradients is
/// added to `grads` already.
///
/// # Errors
/// No trained token in the whole step, or a loss that is not finite.
pub fn each_pass(
    student: &Decoder,
    objective: Objective,
    lesson: &Lesson,
    options: StepOptions,
    grads: &Grads,
    backward: Backward,
) -> Result<Figures> {
    let batches = packed(&lesson.rows, options.microbatch_tokens).collect::<Result<Vec<_>>>()?;
    let supervised: usize = batches.iter().map(|batch| batch.targets.len()).sum();
    if supervised == 0 {
        return Err(nothing_trained());
    }
    let Objective { teacher, options: distill, inside } = objective;
    let student_taps = inside.map(Inside::student_taps).unwrap_or_default();
    let teacher_taps = inside.map(Inside::teacher_taps).unwrap_or_default();
    let step_tokens = batches.iter().map(PackedBatch::len).sum();
    let mut figures = Figures::default();
    let mut written = lesson.written_targets();
    for (index, batch) in batches.iter().enumerate() {
        let mut reading = teacher.read(batch, &teacher_taps)?;
        let written: Vec<Option<f32>> = written.by_ref().take(batch.targets.len()).collect();
        let charges = charges(batch, &written, &reading, distill, supervised)?;
        let pass = student.forward_distilled(
            batch,
            PassOptions { taps: &student_taps, ..options.pass(index) },
            distill.comparison(),
            &charges,
            &mut |rows| reading.rows(rows),
            grads,
        )?;
        let of_teacher = reading.take_tapped();
        drop(reading);
        let mut loss = pass.charged().sum_all()?;
        let mut projections = Vec::new();
        if let Some(inside) = inside {
            let (part, own) = inside.loss(&pass, &of_teacher, step_tokens, &mut figures)?;
            loss = (loss + part)?;
            projections = own;
        }
        note(&mut figures, batch, scalar(&loss)? * supervised as f64, pass.distances());
        let found = backward(pass, &loss)?;
        if let Some(inside) = inside {
            inside.accumulate(&projections, &found)?;
        }
    }
    Ok(figures)
}

/// What the targets of `batch` are charged. `written` has the student's log-probs of those that it
/// wrote itself; there, the cross-entropy of a token is no sign of quality, and `minillm` weighs it
/// by what the token led to (Gu et al. 2024, equations 3 and 5, the long part).
fn charges(
    batch: &PackedBatch,
    written: &[Option<f32>],
    reading: &Reading,
    distill: &DistillOptions,
    supervised: usize,
) -> Result<Vec<Charge>> {
    let share = 1.0 / supervised as f64;
    let divergence = distill.divergence_weight * share;
    let of_token = |written: &Option<f32>| match written {
        Some(_) => Charge { divergence, cross_entropy: 0.0 },
        None => Charge { divergence, cross_entropy: distill.ce_weight * share },
    };
    let mut charges: Vec<Charge> = written.iter().map(of_token).collect();
    if distill.divergence == DivergenceKind::Minillm {
        let of_teacher = reading.target_logps(batch)?;
        let reward = |(teacher, own): (&f64, &Option<f32>)| Some(teacher - f64::from((*own)?));
        let rewards: Vec<Option<f64>> = of_teacher.iter().zip(written).map(reward).collect();
        for span in 0..batch.spans.len() {
            let targets = batch.targets_of(span);
            for (charge, led_to) in
                charges[targets.clone()].iter_mut().zip(what_followed(&rewards[targets]))
            {
                charge.cross_entropy += divergence * led_to;
            }
        }
    }
    Ok(charges)
}

/// For each token, the mean reward of those after it; nothing where it was not written.
fn what_followed(rewards: &[Option<f64>]) -> Vec<f64> {
    let (mut sum, mut count) = (0.0, 0);
    let mut followed: Vec<f64> = rewards
        .iter()
        .rev()
        .map(|reward| {
            let mean = sum / f64::max(1.0, f64::from(count));
            let Some(reward) = reward else { return 0.0 };
            sum += reward;
            count += 1;
            mean
        })
        .collect();
    followed.reverse();
    followed
}

/// Loss and figures of `rows`; nothing is trained.
///
/// # Errors
/// No trained token at all, or an interruption between microbatches.
pub fn evaluate(
    student: &Decoder,
    objective: Objective,
    rows: &[Row],
    microbatch_tokens: usize,
    interrupt: &Interrupt,
) -> Result<Figures> {
    let Objective { teacher, options: distill, .. } = objective;
    let charge = Charge { divergence: distill.divergence_weight, cross_entropy: distill.ce_weight };
    let mut figures = Figures::default();
    for batch in packed(rows, microbatch_tokens) {
        let batch = batch?;
        interrupt.check()?;
        let reading = teacher.read(&batch, &[])?;
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

pub(crate) fn nothing_trained() -> Error {
    Error::data("no trained token in any row of the step")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use super::*;
    use crate::teacher::ModelTeacher;
    use candle_core::{Device, Tensor};
    use halter_core::model::config::ModelConfig;
    use halter_core::ops::Context;
    use halter_testkit::values;

    const TOKENS: usize = 5;

    fn model(seed: u64) -> Decoder {
        let json = serde_json::json!({
            "model_type": "llama", "vocab_size": TOKENS, "hidden_size": 16,
            "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "max_position_embeddings": 8, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu",
            "initializer_range": 0.3,
        });
        let config = ModelConfig::from_json(&json, "config.json").unwrap();
        let mut model = Decoder::fresh(config, seed, Context::new(&Device::Cpu)).unwrap();
        model.train_where(|_| true).unwrap();
        model
    }

    /// All completions of two tokens of the prompt 0.
    fn all_completions() -> PackedBatch {
        let mut builder = PackedBatch::builder();
        for first in 0..TOKENS as u32 {
            for second in 0..TOKENS as u32 {
                builder.masked_row(&[0, first, second], &[false, true, true]);
            }
        }
        builder.build().unwrap()
    }

    fn logps(model: &Decoder, batch: &PackedBatch) -> Vec<f64> {
        values(&model.evaluate(batch, PassMode::EVALUATE).unwrap().0)
    }

    /// KL of the student's completions from the teacher's, over all of them.
    fn divergence(student: &Decoder, teacher: &[f64], batch: &PackedBatch) -> f64 {
        let own = logps(student, batch);
        let of_pair = |(q, p): (&[f64], &[f64])| {
            let (q, p) = (q[0] + q[1], p[0] + p[1]);
            q.exp() * (q - p)
        };
        own.chunks(2).zip(teacher.chunks(2)).map(of_pair).sum()
    }

    #[test]
    fn minillm_expects_the_gradient_of_the_divergence_of_whole_completions() {
        let (student, batch) = (model(1), all_completions());
        let teacher = Teacher::Model(Box::new(ModelTeacher::new(model(2), None, 1.0)));
        let of_teacher = logps(&model(2), &batch);
        let own = logps(&student, &batch);

        // Every completion, charged by how likely the student draws it.
        let options =
            DistillOptions { divergence: DivergenceKind::Minillm, ..DistillOptions::default() };
        let reading = teacher.read(&batch, &[]).unwrap();
        let written: Vec<Option<f32>> = own.iter().map(|&logp| Some(logp as f32)).collect();
        let mut charges = charges(&batch, &written, &reading, &options, 1).unwrap();
        for (charges, own) in charges.chunks_mut(2).zip(own.chunks(2)) {
            let drawn = (own[0] + own[1]).exp();
            for charge in charges {
                charge.divergence *= drawn;
                charge.cross_entropy *= drawn;
            }
        }
        let grads = student.grads().unwrap();
        let pass = student
            .forward_distilled(
                &batch,
                PassOptions::default(),
                options.comparison(),
                &charges,
                &mut |rows| reading.rows(rows),
                &grads,
            )
            .unwrap();
        let loss = pass.charged().sum_all().unwrap();
        pass.backward(&loss, &grads).unwrap();

        // Along the gradient, the divergence grows by the gradient's square.
        let steep = grads.norm().unwrap();
        let moved = |by: f64| {
            let moved = model(1);
            for (param, grad) in moved.trained().iter().zip(grads.buffers()) {
                let weight: &Tensor = param.dense().unwrap();
                let sum = (weight + (grad * (by / steep)).unwrap()).unwrap();
                weight.slice_set(&sum.contiguous().unwrap(), 0, 0).unwrap();
            }
            divergence(&moved, &of_teacher, &batch)
        };
        let slope = (moved(0.01) - moved(-0.01)) / 0.02;
        assert!((slope / steep - 1.0).abs() < 1e-2, "{slope} {steep}");
    }

    #[test]
    fn a_token_is_told_the_mean_of_what_followed() {
        let rewards = [None, Some(1.0), Some(4.0), Some(-2.0)];
        assert_eq!(what_followed(&rewards), [0.0, 1.0, -2.0, 0.0]);
        assert!(what_followed(&[]).is_empty());
    }
}
