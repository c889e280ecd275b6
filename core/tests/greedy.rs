//! Greedy decoding: with a cache as without one, and as transformers decodes SmolLM2.
#![allow(clippy::unwrap_used, clippy::panic)]

use candle_core::Device;
use halter_core::data::batch::PackedBatch;
use halter_core::generate::{Limits, greedy};
use halter_core::model::config::ModelConfig;
use halter_core::model::weights::WeightFiles;
use halter_core::model::weights::gguf::Gguf;
use halter_core::model::{Base, Decoder};
use halter_core::ops::Context;
use halter_core::{Error, ErrorKind};
use halter_testkit::{asset, golden};

fn load(dir: &std::path::Path) -> Decoder {
    let config = ModelConfig::from_file(dir.join("config.json")).unwrap();
    let weights = WeightFiles::open(dir).unwrap();
    Decoder::load(config, &weights, Base::Trainable, Context::new(&Device::Cpu)).unwrap()
}

#[test]
fn the_cache_changes_nothing() {
    let mut checked = 0;
    for case in ["llama-tied", "mistral-window", "qwen3", "llama-bias"] {
        let model = load(&golden("tiny").join(case));
        let prompts: Vec<Vec<u32>> =
            (1..6).map(|n| (0..3 * n).map(|i| (i * 7 + n) % 48).collect()).collect();
        let limits = Limits { max_new_tokens: 12, stop_tokens: &[2] };
        let completions = greedy(&model, &prompts, limits, |_| Ok(())).unwrap();
        for (prompt, completion) in prompts.iter().zip(&completions) {
            let mut tokens = prompt.clone();
            for &token in completion {
                let mut builder = PackedBatch::builder();
                builder.row(&tokens);
                let logits = model.logits(&builder.build().unwrap()).unwrap();
                let last = logits.get(tokens.len() - 1).unwrap();
                assert_eq!(last.argmax(0).unwrap().to_scalar::<u32>().unwrap(), token, "{case}");
                tokens.push(token);
                checked += 1;
            }
        }
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn decoding_ends_where_it_is_told_to() {
    let model = load(&golden("tiny").join("llama-tied"));
    let limits = Limits { max_new_tokens: 12, stop_tokens: &[] };
    let mut calls = 0;
    let stopped = greedy(&model, &[vec![1, 2], vec![3]], limits, |_| {
        calls += 1;
        if calls == 3 { Err(Error::new(ErrorKind::Interrupted, "enough")) } else { Ok(()) }
    });
    assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Interrupted);
    assert_eq!(calls, 3);
}

#[test]
fn smollm2_continues_ten_prompts_as_transformers_does() {
    let Some(path) = asset("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let config = Gguf::open(&path).unwrap().model_config().unwrap();
    let weights = WeightFiles::open(&path).unwrap();
    let ctx = Context::new(&Device::Cpu);
    let model = Decoder::load(config, &weights, Base::Trainable, ctx).unwrap();
    let text = std::fs::read_to_string(golden("smollm2/greedy.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let cases = expected["rows"].as_array().unwrap();
    assert_eq!(cases.len(), 10);
    let prompts: Vec<Vec<u32>> = cases.iter().map(|case| ids(&case["prompt_ids"])).collect();
    let limits = Limits { max_new_tokens: 32, stop_tokens: &[2] };
    let completions = greedy(&model, &prompts, limits, |_| Ok(())).unwrap();
    for (case, completion) in cases.iter().zip(&completions) {
        assert_eq!(*completion, ids(&case["new_ids"]));
    }
}
