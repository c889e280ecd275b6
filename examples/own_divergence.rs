//! A distillation loss of one's own: KL of the teacher from a mixture of both models (skew KL,
//! DistiLLM, Ko et al. 2024). The loss sees logits, a few rows at a time: there is never a buffer of
//! (tokens, vocabulary), for either model.
//!
//! `cargo run --release --example own_divergence`

#![allow(clippy::print_stdout)]

use halter::candle::{D, Tensor};
use halter::core::device;
use halter::core::model::linear::PassMode;
use halter::core::model::lora::is_lora;
use halter::core::ops::divergence::TeacherRows;
use halter::core::train::pass::scalar;
use halter::{
    AdamW, AdamWConfig, Base, Error, Logits, PackedBatch, PassOptions, Result, Source, SourceSpec,
};

/// The teacher's share in the mixture.
const SKEW: f64 = 0.1;

fn probabilities(logits: &Tensor) -> Result<Tensor> {
    let exp = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?.exp()?;
    Ok(exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?)
}

/// Σ p log(p / (λ p + (1 − λ) q)), summed over the rows.
fn skew_kl(teacher: &Tensor, student: &Tensor) -> Result<Tensor> {
    let p = probabilities(teacher)?;
    let mixture = ((&p * SKEW)? + (probabilities(student)? * (1.0 - SKEW))?)?;
    Ok((&p * ((&p + 1e-20)?.log()? - mixture.log()?)?)?.sum_all()?)
}

fn main() -> anyhow::Result<()> {
    let spec = SourceSpec { model: Some("bundled".into()), ..SourceSpec::default() };
    let mut source = Source::open(&spec)?;
    let device = device::open("cpu")?;
    let teacher = source.decoder(Base::Frozen, &device, 0)?;
    let mut student = source.decoder(Base::Trainable, &device, 0)?;
    // All of the teacher but its last block.
    student.blocks.pop();
    student.train_where(|param| !is_lora(param.name()))?;

    let text = "Tom has 3 apples and buys 4 more. He has 3 + 4 = 7 apples.";
    let ids = source.tokenizer.encode(text, false)?.ids;
    let mut builder = PackedBatch::builder();
    builder.masked_row(&ids, &vec![true; ids.len()]);
    let batch = builder.build()?;

    let head = teacher.widened_head()?;
    let hidden = teacher.evaluate_hidden(&batch, &batch.target_rows()?, PassMode::EVALUATE)?;
    let mut optimizer = AdamW::new(AdamWConfig::default(), student.trained())?;
    let mut grads = student.grads()?;
    for step in 1..=10 {
        grads.clear()?;
        let divergence = |chunk: Logits| match teacher.teacher_rows(&hidden, &head, chunk.rows)? {
            TeacherRows::Logits(teacher) => skew_kl(&teacher, chunk.logits),
            TeacherRows::Top(_) => Err(Error::config("all logits are needed")),
        };
        let pass = student.forward_on_logits(&batch, PassOptions::default(), divergence, &grads)?;
        let loss = pass.charged().sum_all()?;
        println!("step {step:2}  divergence {:.4}", scalar(&loss)?);
        pass.backward(&loss, &grads)?;
        optimizer.update(&student.trained(), &grads, 1e-3, 1.0)?;
    }
    Ok(())
}
