//! Ten steps of a reward model from SmolLM2-135M-Instruct against TRL's RewardTrainer
//! (`oracle/smollm2_reward.py`). Needs the fetched weights; says so where they are missing.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use candle_core::{Device, Tensor};
use halter_core::data::dataset::{DataOptions, Dataset};
use halter_core::device;
use halter_core::model::Base;
use halter_core::train::method::{Method, StepOptions};
use halter_core::train::optimizer::{AdamW, AdamWConfig};
use halter_core::train::schedule::{Decay, Schedule};
use halter_core::train::source::{Source, SourceSpec};
use halter_rejection_sampling::Reward;
use halter_rejection_sampling::reward::config::{RewardConfig, RewardOptions};
use halter_rejection_sampling::reward::rows::RankedRow;
use halter_testkit::{asset, golden};
use serde_json::Value;

const TOLERANCE: f64 = 1e-3;
const PAIRS_PER_STEP: usize = 2;

fn rows(config: &RewardConfig, source: &Source, has_margin: bool) -> Vec<RankedRow> {
    let path = golden("smollm2/dpo_rows.jsonl");
    let set = Dataset::open(path.to_str().unwrap(), &DataOptions::default()).unwrap();
    let encode = Reward::encoder(config, source);
    let row = |at: usize| {
        let (origin, record) = (set.origin(at), set.record(at).unwrap());
        let mut row = encode(&origin, &record).unwrap().into_kept().unwrap().remove(0);
        if has_margin {
            row.margin = 0.25 * (at % 4) as f64;
        }
        row
    };
    (0..set.len()).map(row).collect()
}

/// The value head that the oracle begins with.
fn score(hidden: usize) -> Tensor {
    let weight = |i: usize| ((7919 * i % 2001) as f64 - 1000.0) / 40000.0;
    let weights: Vec<f32> = (0..hidden).map(|i| weight(i) as f32).collect();
    Tensor::from_vec(weights, (1, hidden), &Device::Cpu).unwrap()
}

#[test]
fn the_steps_of_trl() {
    let Some(path) = asset("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let golden: Value =
        serde_json::from_slice(&std::fs::read(golden("smollm2/reward_curves.json")).unwrap())
            .unwrap();
    for (run, center, has_margin) in [("plain", 0.0, false), ("margin-centred", 0.01, true)] {
        let method =
            RewardOptions { center_rewards_coefficient: center, ..RewardOptions::default() };
        let config = RewardConfig { method, ..RewardConfig::default() };
        let name = path.to_str().unwrap().to_string();
        let spec = SourceSpec { model: Some(name), ..SourceSpec::default() };
        let mut source = Source::open(&spec).unwrap();
        let device = device::open("cpu").unwrap();
        let mut model = source.decoder(Base::Trainable, &device, 0).unwrap();
        model.train_where(|_| true).unwrap();
        model.set_score(score(model.config.hidden_size)).unwrap();
        let rows = rows(&config, &source, has_margin);
        let mut reward = Reward::new(&config, &source, &mut model).unwrap();
        let mut optimizer = AdamW::new(AdamWConfig::default(), model.trained()).unwrap();
        let mut grads = model.grads().unwrap();
        let schedule =
            Schedule { peak: 2e-5, decay: Decay::Linear, warmup_steps: 0, total_steps: 10 };
        let mut worst = 0f64;
        for (step, pairs) in rows.chunks(PAIRS_PER_STEP).enumerate() {
            grads.clear().unwrap();
            let options = StepOptions {
                microbatch_tokens: 4096,
                keep_blocks: 30,
                seed: 0,
                learning_rate: 0.0,
            };
            let figures = reward
                .each_pass(&model, pairs, options, &grads, &mut |pass, loss| {
                    pass.backward(loss, &grads)
                })
                .unwrap();
            let norm = grads.norm().unwrap();
            let clip = (1.0 / (norm + 1e-6)).min(1.0);
            optimizer.update(&model.trained(), &grads, schedule.at(step as u64), clip).unwrap();
            let want = &golden["runs"][run]["steps"][step];
            let own = figures.own().map(|(key, value)| (key.to_string(), value));
            let mut compared = 0;
            for (key, got) in
                own.chain([("loss".into(), figures.loss()), ("grad_norm".into(), norm)])
            {
                let want = want[&key].as_f64().unwrap();
                // A score is a sum of 576 products: what is near zero has no more digits than these
                // leave it.
                let floor = if ["loss", "grad_norm"].contains(&&*key) { 0.0 } else { 0.1 };
                let error = (got - want).abs() / want.abs().max(floor);
                println!("{run} step {step}: {key} {got:.6} (want {want:.6})");
                assert!(error < TOLERANCE, "{run} step {step}, {key}: {got} (want {want})");
                worst = worst.max(error);
                compared += 1;
            }
            assert_eq!(compared, 7);
        }
        println!("{run}: worst relative error {worst:e}");
    }
}
