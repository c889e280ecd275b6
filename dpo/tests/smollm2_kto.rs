//! Ten steps of SmolLM2-135M-Instruct on judged completions against TRL's KTOTrainer
//! (`oracle/smollm2_kto.py`). Needs the fetched weights; says so where they are missing.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use halter_core::data::dataset::{DataOptions, Dataset};
use halter_core::device;
use halter_core::model::Base;
use halter_core::train::method::{Method, StepOptions};
use halter_core::train::optimizer::{AdamW, AdamWConfig};
use halter_core::train::schedule::{Decay, Schedule};
use halter_core::train::source::{Source, SourceSpec};
use halter_dpo::Kto;
use halter_dpo::config::{DpoConfig, DpoOptions};
use halter_dpo::kto::JudgedRow;
use halter_testkit::{asset, golden};
use serde_json::Value;

const TOLERANCE: f64 = 1e-3;
const ROWS_PER_STEP: usize = 3;

fn rows(config: &DpoConfig, source: &Source) -> Vec<JudgedRow> {
    let path = golden("smollm2/kto_rows.jsonl");
    let set = Dataset::open(path.to_str().unwrap(), &DataOptions::default()).unwrap();
    let encode = Kto::encoder(config, source);
    let row = |at: usize| {
        let (origin, record) = (set.origin(at), set.record(at).unwrap());
        encode(&origin, &record).unwrap().into_kept().unwrap().remove(0)
    };
    (0..set.len()).map(row).collect()
}

fn check(run: &str) {
    let Some(path) = asset("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let golden: Value =
        serde_json::from_slice(&std::fs::read(golden("smollm2/kto_curves.json")).unwrap()).unwrap();
    let method = DpoOptions {
        loss: run.parse().unwrap(),
        undesirable_weight: 1.2,
        nll_weight: Some(0.0),
        mask_formatting: false,
        train_on_trailing: true,
        ..DpoOptions::default()
    };
    let mut config = DpoConfig { method, ..DpoConfig::default() };
    config.train.batch_size = ROWS_PER_STEP;
    let name = path.to_str().unwrap().to_string();
    let spec = SourceSpec { model: Some(name), ..SourceSpec::default() };
    let mut source = Source::open(&spec).unwrap();
    let device = device::open("cpu").unwrap();
    let mut model = source.decoder(Base::Trainable, &device, 0).unwrap();
    model.train_where(|_| true).unwrap();
    let rows = rows(&config, &source);
    let mut kto = Kto::new(&config, &source, &mut model).unwrap();
    let mut optimizer = AdamW::new(AdamWConfig::default(), model.trained()).unwrap();
    let mut grads = model.grads().unwrap();
    let schedule = Schedule { peak: 2e-5, decay: Decay::Linear, warmup_steps: 0, total_steps: 10 };
    let (mut worst, mut compared, mut estimated) = (0f64, 0, 0);
    for (step, rows) in rows.chunks(ROWS_PER_STEP).enumerate() {
        grads.clear().unwrap();
        // Microbatches of a row or two, where TRL has one of three.
        let options =
            StepOptions { microbatch_tokens: 256, keep_blocks: 30, seed: 0, learning_rate: 0.0 };
        let figures = kto
            .each_pass(&model, rows, options, &grads, &mut |pass, loss| pass.backward(loss, &grads))
            .unwrap();
        let norm = grads.norm().unwrap();
        let clip = (1.0 / (norm + 1e-6)).min(1.0);
        optimizer.update(&model.trained(), &grads, schedule.at(step as u64), clip).unwrap();
        let want = golden["runs"][run]["steps"][step].as_object().unwrap();
        let own = figures.own().map(|(key, value)| (key.to_string(), value));
        let got: Vec<_> =
            own.chain([("loss".into(), figures.loss()), ("grad_norm".into(), norm)]).collect();
        assert_eq!(got.len(), want.len(), "{got:?} {want:?}");
        for (key, got) in got {
            let want = want[&key].as_f64().unwrap();
            // Differences of log-probs of some hundred: what is near zero has no more digits than
            // these leave it.
            let floor = if key.starts_with("rewards/") {
                0.02
            } else if key == "kl" {
                0.2
            } else {
                0.0
            };
            let error = (got - want).abs() / want.abs().max(floor).max(1e-12);
            println!("{run} step {step}: {key} {got:.6} (want {want:.6})");
            assert!(error < TOLERANCE, "{run} step {step}, {key}: {got} (want {want})");
            worst = worst.max(error);
            compared += 1;
            estimated += usize::from(key == "kl" && want > 0.0);
        }
    }
    assert!(compared >= 60 && (run != "kto" || estimated >= 2), "{compared} {estimated}");
    println!("{run}: {compared} figures, worst relative error {worst:e}");
}

#[test]
fn the_steps_of_trl() {
    check("kto");
    check("apo_zero_unpaired");
}
