//! Ten steps of SmolLM2-135M without every third block, taught by the whole of it, against TRL's
//! GKDTrainer (`oracle/smollm2_distill.py`). Needs the fetched weights; says so where they are missing.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use halter_core::data::dataset::{DataOptions, Dataset};
use halter_core::device;
use halter_core::model::{Base, Decoder};
use halter_core::train::method::{Method, StepOptions};
use halter_core::train::optimizer::{AdamW, AdamWConfig};
use halter_core::train::schedule::{Decay, Schedule};
use halter_core::train::source::{Source, SourceSpec};
use halter_distill::Distill;
use halter_distill::config::{DistillConfig, DistillOptions, DivergenceKind};
use halter_distill::row::TaughtRow;
use halter_testkit::{asset, golden};
use serde_json::Value;

const TOLERANCE: f64 = 1e-3;
const STEPS: usize = 10;
const ROWS_PER_STEP: usize = 2;

fn rows(config: &DistillConfig, source: &Source) -> Vec<TaughtRow> {
    let path = golden("smollm2/sft_rows.jsonl");
    let set = Dataset::open(path.to_str().unwrap(), &DataOptions::default()).unwrap();
    let encode = Distill::encoder(config, source);
    let row = |at: usize| {
        let (origin, record) = (set.origin(at), set.record(at).unwrap());
        encode(&origin, &record).unwrap().into_kept().unwrap().remove(0)
    };
    (0..STEPS * ROWS_PER_STEP).map(row).collect()
}

/// The model without blocks 2, 5, 8, …
fn student(source: &mut Source) -> Decoder {
    let mut model = source.decoder(Base::Trainable, &device::open("cpu").unwrap(), 0).unwrap();
    let mut at = 0;
    model.blocks.retain(|_| {
        at += 1;
        at % 3 != 0
    });
    model.config.num_hidden_layers = model.blocks.len();
    model.train_where(|_| true).unwrap();
    model
}

#[test]
fn ten_steps_are_those_of_trl() {
    let Some(path) = asset("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let text = std::fs::read(golden("smollm2/distill_curves.json")).unwrap();
    let golden: Value = serde_json::from_slice(&text).unwrap();
    let name = path.to_str().unwrap().to_string();
    for (run, divergence) in [
        ("forward_kl", DivergenceKind::ForwardKl),
        ("jsd", DivergenceKind::Jsd),
        ("reverse_kl", DivergenceKind::ReverseKl),
    ] {
        let method =
            DistillOptions { teacher: Some(name.clone()), divergence, ..DistillOptions::default() };
        let config = DistillConfig { method, ..DistillConfig::default() };
        let spec = SourceSpec { model: Some(name.clone()), ..SourceSpec::default() };
        let mut source = Source::open(&spec).unwrap();
        let mut model = student(&mut source);
        let rows = rows(&config, &source);
        let mut distill = Distill::new(&config, &source, &mut model).unwrap();
        let mut optimizer = AdamW::new(AdamWConfig::default(), model.trained()).unwrap();
        let mut grads = model.grads().unwrap();
        let schedule =
            Schedule { peak: 2e-5, decay: Decay::Linear, warmup_steps: 0, total_steps: 10 };
        let mut worst = 0f64;
        for (step, rows) in rows.chunks(ROWS_PER_STEP).enumerate() {
            grads.clear().unwrap();
            let options = StepOptions {
                microbatch_tokens: 4096,
                keep_blocks: 20,
                seed: 0,
                learning_rate: 0.0,
            };
            let figures = distill
                .each_pass(&model, rows, options, &grads, &mut |pass, loss| {
                    pass.backward(loss, &grads)
                })
                .unwrap();
            let norm = grads.norm().unwrap();
            let clip = (1.0 / (norm + 1e-6)).min(1.0);
            optimizer.update(&model.trained(), &grads, schedule.at(step as u64), clip).unwrap();
            let want = &golden["runs"][run]["steps"][step];
            for (what, got) in [("loss", figures.loss()), ("grad_norm", norm)] {
                let want = want[what].as_f64().unwrap();
                let error = (got - want).abs() / want.abs();
                assert!(error < TOLERANCE, "{run}, step {step}, {what}: {got}, TRL {want}");
                worst = worst.max(error);
            }
        }
        println!("{run}: at most {worst:.1e} from TRL");
    }
}
