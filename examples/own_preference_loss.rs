//! A preference loss of one's own: the better completion should be likelier than the worse by a
//! margin (SLiC's hinge, Zhao et al. 2023). Both completions branch off one prompt, which is computed
//! once.
//!
//! `cargo run --release --example own_preference_loss`

#![allow(clippy::print_stdout)]

use halter::core::device;
use halter::core::model::lora::is_lora;
use halter::core::train::pass::scalar;
use halter::{AdamW, AdamWConfig, Base, PackedBatch, PassOptions, Source, SourceSpec};

const MARGIN: f64 = 4.0;

fn main() -> anyhow::Result<()> {
    let spec = SourceSpec { model: Some("bundled".into()), ..SourceSpec::default() };
    let mut source = Source::open(&spec)?;
    let mut model = source.decoder(Base::Trainable, &device::open("cpu")?, 0)?;
    model.train_where(|param| !is_lora(param.name()))?;

    let ids = |text| anyhow::Ok(source.tokenizer.encode(text, false)?.ids);
    let mut builder = PackedBatch::builder();
    let prompt = builder.row(&ids("Tom has 3 apples and buys 4 more. How many has he?")?);
    let (chosen, rejected) = (ids(" He has 3 + 4 = 7 apples.")?, ids(" He has 3 + 4 = 8 apples.")?);
    let chosen = builder.masked_branch(prompt, &chosen, &vec![true; chosen.len()]);
    let rejected = builder.masked_branch(prompt, &rejected, &vec![true; rejected.len()]);
    let batch = builder.build()?;
    let targets = [chosen, rejected].map(|branch| batch.targets_of(branch.index()));

    let mut optimizer = AdamW::new(AdamWConfig::default(), model.trained())?;
    let mut grads = model.grads()?;
    for step in 1..=10 {
        grads.clear()?;
        let pass = model.forward(&batch, PassOptions::default())?;
        let logps = pass.per_token_logps();
        let [chosen, rejected] = &targets;
        let chosen = logps.narrow(0, chosen.start, chosen.len())?.sum_all()?;
        let rejected = logps.narrow(0, rejected.start, rejected.len())?.sum_all()?;
        let ahead = (chosen - rejected)?;
        let loss = (MARGIN - &ahead)?.relu()?;
        println!("step {step:2}  loss {:.4}  ahead by {:.4}", scalar(&loss)?, scalar(&ahead)?);
        pass.backward(&loss, &grads)?;
        optimizer.update(&model.trained(), &grads, 1e-4, 1.0)?;
    }
    Ok(())
}
