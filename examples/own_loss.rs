//! A loss of one's own: unlikely tokens count more (a focal loss, Lin et al. 2017). The loss is five
//! lines of candle on per-token log-probs; the engine does the rest.
//!
//! `cargo run --release --example own_loss`

#![allow(clippy::print_stdout)]

use halter::core::device;
use halter::core::model::lora::is_lora;
use halter::core::train::pass::scalar;
use halter::{AdamW, AdamWConfig, Base, PackedBatch, PassOptions, Source, SourceSpec};

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

    let mut optimizer = AdamW::new(AdamWConfig::default(), model.trained())?;
    let mut grads = model.grads()?;
    for step in 1..=10 {
        grads.clear()?;
        let pass = model.forward(&batch, PassOptions::default())?;
        // −(1 − p)² log p, averaged over the tokens.
        let logps = pass.per_token_logps();
        let weight = (1.0 - logps.exp()?)?.sqr()?;
        let loss = (weight * logps)?.mean_all()?.neg()?;
        println!("step {step:2}  loss {:.4}", scalar(&loss)?);
        pass.backward(&loss, &grads)?;
        optimizer.update(&model.trained(), &grads, 1e-3, 1.0)?;
    }
    Ok(())
}
