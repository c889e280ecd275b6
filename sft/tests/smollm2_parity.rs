//! Twenty steps of SmolLM2-135M-Instruct against a plain torch loop and TRL
//! (`oracle/smollm2_sft.py`). Needs the fetched weights; says so where they are missing.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::sync::Arc;

use candle_core::Device;
use halter_core::data::record::{Origin, Row};
use halter_core::model::weights::WeightFiles;
use halter_core::model::weights::adapter::AdapterConfig;
use halter_core::model::weights::gguf::Gguf;
use halter_core::model::{Base, Decoder};
use halter_core::ops::Context;
use halter_core::train::method::StepOptions;
use halter_core::train::optimizer::{AdamW, AdamWConfig};
use halter_core::train::schedule::{Decay, Schedule};
use halter_sft::step::accumulate;
use halter_testkit::{asset, golden};
use serde_json::Value;

const TOLERANCE: f64 = 1e-3;

fn rows() -> Vec<Row> {
    let text = std::fs::read_to_string(golden("smollm2/sft_rows.jsonl")).unwrap();
    let path = Arc::new("sft_rows.jsonl".into());
    let row = |(line, text): (usize, &str)| {
        let row: Value = serde_json::from_str(text).unwrap();
        let list = |key: &str| row[key].as_array().unwrap().clone();
        Row {
            origin: Origin { path: Arc::clone(&path), line: line + 1 },
            input_ids: list("input_ids").iter().map(|id| id.as_u64().unwrap() as u32).collect(),
            completion_mask: list("completion_mask")
                .iter()
                .map(|m| m.as_u64() == Some(1))
                .collect(),
            prompt_is_prefix: true,
        }
    };
    text.lines().enumerate().map(row).collect()
}

fn curves() -> Value {
    let text = std::fs::read_to_string(golden("smollm2/sft_curves.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn check(runs: &[&str], base: Base, peak: f64, prepare: impl Fn(&mut Decoder, &Value)) {
    let Some(path) = asset("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let golden = curves();
    let config = Gguf::open(&path).unwrap().model_config().unwrap();
    let weights = WeightFiles::open(&path).unwrap();
    let mut model = Decoder::load(config, &weights, base, Context::new(&Device::Cpu)).unwrap();
    prepare(&mut model, &golden);
    let mut optimizer = AdamW::new(AdamWConfig::default(), model.trained()).unwrap();
    let mut grads = model.grads().unwrap();
    let schedule = Schedule { peak, decay: Decay::Linear, warmup_steps: 0, total_steps: 20 };
    let rows = rows();
    let mut worst = 0f64;
    for step in 0..20 {
        let started = std::time::Instant::now();
        grads.clear().unwrap();
        let options =
            StepOptions { microbatch_tokens: 1024, keep_blocks: 30, seed: 0, learning_rate: 0.0 };
        let figures = accumulate(&model, &rows[4 * step..4 * step + 4], options, &grads).unwrap();
        let norm = grads.norm().unwrap();
        let clip = (1.0 / (norm + 1e-6)).min(1.0);
        optimizer.update(&model.trained(), &grads, schedule.at(step as u64), clip).unwrap();
        let seconds = started.elapsed().as_secs_f64();
        for run in runs {
            let want = &golden["runs"][run]["steps"][step];
            let want_loss = want["loss"].as_f64().unwrap();
            let error = (figures.loss() - want_loss).abs() / want_loss;
            println!(
                "{run} step {step}: loss {:.6} (want {want_loss:.6}), grad norm {norm:.5} (want \
                 {}), {:.0} tokens/s",
                figures.loss(),
                want["grad_norm"],
                figures.tokens as f64 / seconds
            );
            assert!(error < TOLERANCE, "{run} step {step}: {error:e}");
            worst = worst.max(error);
        }
    }
    println!("worst relative error of the loss: {worst:e}");
}

#[test]
fn full_fine_tuning_has_the_losses_of_torch_and_trl() {
    check(&["plain-full", "trl-full"], Base::Trainable, 2e-5, |model, _| {
        model.train_where(|_| true).unwrap()
    });
}

#[test]
fn lora_has_the_losses_of_torch_and_trl() {
    check(&["plain-lora", "trl-lora"], Base::Frozen, 2e-4, |model, golden| {
        let seed = golden["settings"]["lora"]["seed"].as_u64().unwrap();
        model.add_lora(&AdapterConfig::default(), seed).unwrap();
    });
}
