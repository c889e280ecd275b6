//! Logits, log-probs, loss and every gradient of tiny models of each family, against transformers
//! and PEFT (`oracle/tiny_models.py`).
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use halter_core::data::batch::PackedBatch;
use halter_core::model::config::ModelConfig;
use halter_core::model::param::Param;
use halter_core::model::weights::WeightFiles;
use halter_core::model::weights::adapter::Adapter;
use halter_core::model::{Base, Decoder};
use halter_core::ops::Context;
use halter_core::train::pass::PassOptions;
use halter_testkit::{assert_close, assert_relative, golden, tensors};

const FAMILIES: [&str; 10] = [
    "llama-bias",
    "llama-head-dim",
    "llama-linear-rope",
    "llama-tied",
    "llama-untied-mha",
    "llama3-rope",
    "mistral-window",
    "qwen2",
    "qwen2-window",
    "qwen3",
];

const LOGITS: f64 = 1e-5;
const GRADIENTS: f64 = 1e-4;

fn load(case: &str, base: Base, ctx: Context) -> Decoder {
    let dir = golden("tiny").join(case);
    let config = ModelConfig::from_file(dir.join("config.json")).unwrap();
    Decoder::load(config, &WeightFiles::open(&dir).unwrap(), base, ctx).unwrap()
}

fn sequence(expected: &HashMap<String, Tensor>, n: usize) -> (Vec<u32>, Vec<bool>) {
    let ids = expected[&format!("input_ids.{n}")].to_vec1::<i64>().unwrap();
    let mask = expected[&format!("completion_mask.{n}")].to_vec1::<u8>().unwrap();
    (ids.into_iter().map(|id| id as u32).collect(), mask.into_iter().map(|m| m == 1).collect())
}

fn packed(expected: &HashMap<String, Tensor>) -> PackedBatch {
    let mut builder = PackedBatch::builder();
    for n in 0..2 {
        let (ids, mask) = sequence(expected, n);
        builder.masked_row(&ids, &mask);
    }
    builder.build().unwrap()
}

/// Everything that the golden file has, for a model of which `prefix + name` is trained.
fn check(case: &str, model: &Decoder, prefix: &str, keep_blocks: usize) -> usize {
    let expected = tensors(golden("tiny").join(case).join("golden.safetensors"));
    let batch = packed(&expected);
    let logits = model.logits(&batch).unwrap();
    let mut start = 0;
    for n in 0..2 {
        let want = &expected[&format!("logits.{n}")];
        let got = logits.narrow(0, start, want.dim(0).unwrap()).unwrap();
        assert_close(&format!("{case}: logits of sequence {n}"), &got, want, LOGITS);
        start += want.dim(0).unwrap();
    }
    let pass = model.forward(&batch, PassOptions { keep_blocks, ..Default::default() }).unwrap();
    let logps = pass.per_token_logps().clone();
    let want: Vec<f32> = (0..2)
        .flat_map(|n| {
            let (_, mask) = sequence(&expected, n);
            let all = expected[&format!("per_token_logps.{n}")].to_vec1::<f32>().unwrap();
            all.into_iter().zip(mask).filter_map(|(logp, trained)| trained.then_some(logp))
        })
        .collect();
    let want = Tensor::from_vec(want, logps.dims(), &Device::Cpu).unwrap();
    assert_close(&format!("{case}: log-probs"), &logps, &want, LOGITS);
    let loss = (logps.sum_all().unwrap().neg().unwrap() / batch.targets.len() as f64).unwrap();
    assert_close(&format!("{case}: loss"), &loss, &expected["loss"], LOGITS);
    let grads = model.grads().unwrap();
    pass.backward(&loss, &grads).unwrap();
    let trained = model.trained();
    for (param, grad) in trained.iter().zip(grads.buffers()) {
        let name = format!("grad.{prefix}{}", param.name());
        let want = expected.get(&name).unwrap_or_else(|| panic!("{case}: no `{name}`"));
        assert_relative(&format!("{case}: {name}"), grad, want, GRADIENTS);
    }
    let golden_gradients = expected.keys().filter(|name| name.starts_with("grad.")).count();
    assert_eq!(trained.len(), golden_gradients, "{case}");
    trained.len()
}

fn all(_: &Param) -> bool {
    true
}

#[test]
fn every_family_has_the_logits_and_gradients_of_transformers() {
    let mut gradients = 0;
    for case in FAMILIES {
        for keep_blocks in [0, 1, 2] {
            let mut model = load(case, Base::Trainable, Context::new(&Device::Cpu));
            model.train_where(all).unwrap();
            gradients += check(case, &model, "", keep_blocks);
        }
    }
    assert!(gradients > 500, "{gradients}");
}

#[test]
fn composed_operations_have_the_same_logits_and_gradients() {
    for case in FAMILIES {
        let mut model = load(case, Base::Trainable, Context::composed(&Device::Cpu));
        model.train_where(all).unwrap();
        check(case, &model, "", 1);
    }
}

#[test]
fn adapters_have_the_gradients_of_peft_and_merge_to_the_same_model() {
    for case in ["lora", "lora-rslora"] {
        let dir = golden("tiny").join(case);
        for base in [Base::Trainable, Base::Frozen] {
            let mut model = load("llama-tied", base, Context::new(&Device::Cpu));
            model.load_lora(&Adapter::open(&dir, &model.config).unwrap()).unwrap();
            assert_eq!(check(case, &model, "base_model.model.", 0), 28);
            model.merge_lora().unwrap();
            let expected = tensors(dir.join("golden.safetensors"));
            let logits = model.logits(&packed(&expected)).unwrap();
            let want = [&expected["merged_logits.0"], &expected["merged_logits.1"]];
            let want = Tensor::cat(&want, 0).unwrap();
            assert_close(&format!("{case}: merged logits"), &logits, &want, LOGITS);
        }
    }
}
