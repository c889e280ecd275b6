//! A loss on values inside the model: the stream behind a block is kept close to where it was, while
//! the tokens are learned (feature regularisation against forgetting).
//!
//! `cargo run --release --example own_hidden_loss`

#![allow(clippy::print_stdout)]

use halter::core::device;
use halter::core::model::linear::PassMode;
use halter::core::model::lora::is_lora;
use halter::core::train::pass::scalar;
use halter::{AdamW, AdamWConfig, Base, PackedBatch, PassOptions, Source, SourceSpec, Tap};

const WEIGHT: f64 = 10.0;
const TAP: Tap = Tap::Hidden(2);

fn main() -> anyhow::Result<()> {
    let spec = SourceSpec { model: Some("bundled".into()), ..SourceSpec::default() };
    let mut source = Source::open(&spec)?;
    let mut model = source.decoder(Base::Trainable, &device::open("cpu")?, 0)?;
    model.train_where(|param| !is_lora(param.name()))?;

    let text = "Tom has 3 apples and buys 4 more. He has 3 + 4 = 7 apples.";
    let ids = source.tokenizer.encode(text, false)?.ids;
    let mut builder = PackedBatch::builder();
    builder.masked_row(&ids, &vec![true; ids.len()]);
    let batch = builder.build()?;
    let (_, before) = model.evaluate_tapped(&batch, &[0], PassMode::EVALUATE, &[TAP])?;
    let (_, before) = &before[0];

    let mut optimizer = AdamW::new(AdamWConfig::default(), model.trained())?;
    let mut grads = model.grads()?;
    for step in 1..=10 {
        grads.clear()?;
        let options = PassOptions { taps: &[TAP], ..PassOptions::default() };
        let pass = model.forward(&batch, options)?;
        let moved = (pass.tapped(TAP)? - before)?.sqr()?.mean_all()?;
        let cross_entropy = pass.per_token_logps().mean_all()?.neg()?;
        let loss = (&cross_entropy + (&moved * WEIGHT)?)?;
        let (cross_entropy, moved) = (scalar(&cross_entropy)?, scalar(&moved)?);
        println!("step {step:2}  cross-entropy {cross_entropy:.4}  moved {moved:.6}");
        pass.backward(&loss, &grads)?;
        optimizer.update(&model.trained(), &grads, 1e-3, 1.0)?;
    }
    Ok(())
}
