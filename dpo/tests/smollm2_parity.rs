//! Ten steps of SmolLM2-135M-Instruct on preference pairs against TRL's DPOTrainer
//! (`oracle/smollm2_dpo.py`). Needs the fetched weights; says so where they are missing.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use halter_core::data::branched::BranchedRow;
use halter_core::data::dataset::{DataOptions, Dataset};
use halter_core::device;
use halter_core::model::Base;
use halter_core::train::method::{Method, StepOptions};
use halter_core::train::optimizer::{AdamW, AdamWConfig};
use halter_core::train::schedule::{Decay, Schedule};
use halter_core::train::source::{Source, SourceSpec};
use halter_dpo::Dpo;
use halter_dpo::config::{DpoConfig, DpoOptions};
use halter_testkit::{asset, golden};
use serde_json::Value;

const TOLERANCE: f64 = 1e-3;
const PAIRS_PER_STEP: usize = 2;

fn rows(config: &DpoConfig, source: &Source) -> Vec<BranchedRow> {
    let path = golden("smollm2/dpo_rows.jsonl");
    let set = Dataset::open(path.to_str().unwrap(), &DataOptions::default()).unwrap();
    let encode = Dpo::encoder(config, source);
    let row = |at: usize| {
        let (origin, record) = (set.origin(at), set.record(at).unwrap());
        encode(&origin, &record).unwrap().into_kept().unwrap().remove(0)
    };
    (0..set.len()).map(row).collect()
}

/// TRL's losses as they are.
fn options(loss: &str) -> DpoOptions {
    let loss = loss.parse().unwrap();
    DpoOptions { loss, nll_weight: Some(0.0), mask_formatting: false, ..DpoOptions::default() }
}

#[test]
fn a_reference_that_follows_as_trls_does() {
    let sync = DpoOptions {
        sync_ref_model: true,
        ref_model_mixup_alpha: 0.6,
        ref_model_sync_steps: 3,
        ..options("sigmoid")
    };
    check("sync", &sync);
}

fn check(run: &str, method: &DpoOptions) {
    let Some(path) = asset("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let golden: Value =
        serde_json::from_slice(&std::fs::read(golden("smollm2/dpo_curves.json")).unwrap()).unwrap();
    let config = DpoConfig { method: method.clone(), ..DpoConfig::default() };
    let name = path.to_str().unwrap().to_string();
    let spec = SourceSpec { model: Some(name), ..SourceSpec::default() };
    let mut source = Source::open(&spec).unwrap();
    let device = device::open("cpu").unwrap();
    let mut model = source.decoder(Base::Trainable, &device, 0).unwrap();
    model.train_where(|_| true).unwrap();
    let rows = rows(&config, &source);
    let mut dpo = Dpo::new(&config, &source, &mut model).unwrap();
    let mut optimizer = AdamW::new(AdamWConfig::default(), model.trained()).unwrap();
    let mut grads = model.grads().unwrap();
    let schedule = Schedule { peak: 2e-5, decay: Decay::Linear, warmup_steps: 0, total_steps: 10 };
    let mut worst = 0f64;
    for (step, pairs) in rows.chunks(PAIRS_PER_STEP).enumerate() {
        grads.clear().unwrap();
        let options =
            StepOptions { microbatch_tokens: 4096, keep_blocks: 30, seed: 0, learning_rate: 0.0 };
        let figures = dpo
            .each_pass(&model, pairs, options, &grads, &mut |pass, loss| {
                pass.backward(loss, &grads)
            })
            .unwrap();
        let norm = grads.norm().unwrap();
        let clip = (1.0 / (norm + 1e-6)).min(1.0);
        optimizer.update(&model.trained(), &grads, schedule.at(step as u64), clip).unwrap();
        dpo.after_update(&model, step as u64 + 1).unwrap();
        let want = &golden["runs"][run]["steps"][step];
        let own = figures.own().map(|(key, value)| (key.to_string(), value));
        let mut compared = 0;
        for (key, got) in own.chain([("loss".into(), figures.loss()), ("grad_norm".into(), norm)]) {
            let want = want[&key].as_f64().unwrap();
            // Rewards are differences of log-probs of some hundred: what is near zero has no more
            // digits than these leave it.
            let floor = if key.starts_with("rewards/") { 0.02 } else { 0.0 };
            let error = (got - want).abs() / want.abs().max(floor).max(1e-12);
            println!("{run} step {step}: {key} {got:.6} (want {want:.6})");
            assert!(error < TOLERANCE, "{run} step {step}, {key}: {got} (want {want})");
            worst = worst.max(error);
            compared += 1;
        }
        assert_eq!(compared, 8);
        if step == 0 && run == "sigmoid" {
            assert_eq!(figures.loss() as f32, std::f32::consts::LN_2, "the first loss is ln 2");
        }
    }
    println!("{run}: worst relative error {worst:e}");
}

#[test]
fn the_losses_of_trl() {
    for (run, loss) in [
        ("sigmoid", "sigmoid"),
        ("ipo", "ipo"),
        ("hinge", "hinge"),
        ("sigmoid-sft", "sigmoid,sft:0.2"),
    ] {
        check(run, &options(loss));
    }
}
