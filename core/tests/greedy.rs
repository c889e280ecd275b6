//! Greedy decoding: with a cache as without one, and as transformers decodes SmolLM2; and sampling by
//! SmolLM2.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use candle_core::Device;
use halter_core::data::batch::PackedBatch;
use halter_core::generate::engine::{Engine, EngineOptions, Event, Request};
use halter_core::generate::sampling::Sampling;
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

/// SmolLM2, and what transformers makes of fifty prompts.
fn smollm2() -> Option<(Decoder, Vec<Case>)> {
    let path = asset("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")?;
    let config = Gguf::open(&path).unwrap().model_config().unwrap();
    let weights = WeightFiles::open(&path).unwrap();
    let model =
        Decoder::load(config, &weights, Base::Trainable, Context::new(&Device::Cpu)).unwrap();
    let text = std::fs::read_to_string(golden("smollm2/greedy.json")).unwrap();
    let cases: Golden = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.rows.len(), 50);
    Some((model, cases.rows))
}

#[derive(serde::Deserialize)]
struct Golden {
    rows: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    prompt_ids: Vec<u32>,
    new_ids: Vec<u32>,
    /// The step from which on another order of summation may continue otherwise.
    tie: Option<usize>,
}

#[test]
fn smollm2_continues_fifty_prompts_as_transformers_does_together_and_one_by_one() {
    let Some((model, cases)) = smollm2() else { return };
    let prompts: Vec<Vec<u32>> = cases.iter().map(|case| case.prompt_ids.clone()).collect();
    let limits = Limits { max_new_tokens: 16, stop_tokens: &[2] };
    let together = greedy(&model, &prompts, limits, |_| Ok(())).unwrap();
    let mut compared = 0;
    for (row, case) in cases.iter().enumerate() {
        let decided = case.tie.unwrap_or(case.new_ids.len());
        assert_eq!(together[row][..decided], case.new_ids[..decided], "row {row}");
        compared += decided;
        let alone = greedy(&model, &prompts[row..=row], limits, |_| Ok(())).unwrap();
        assert_eq!(alone[0], together[row], "row {row}");
    }
    assert!(compared > 700, "{compared}");
}

/// What each request got.
fn sampled(model: &Decoder, requests: &[Request]) -> BTreeMap<u64, Vec<Event>> {
    let mut engine = Engine::new(model, EngineOptions::default());
    requests.iter().for_each(|request| engine.submit(request.clone()).unwrap());
    let mut got: BTreeMap<u64, Vec<Event>> = BTreeMap::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            got.entry(event.request).or_default().push(event);
        }
    }
    got
}

#[test]
fn smollm2_samples_fifty_prompts_the_same_together_and_alone_to_the_bit() {
    let Some((model, cases)) = smollm2() else { return };
    let requests: Vec<Request> = (0..)
        .zip(cases)
        .map(|(row, case)| Request {
            id: row,
            prompt: case.prompt_ids,
            completions: 1,
            max_new_tokens: 8,
            stop_tokens: vec![2],
            sampling: Sampling { top_p: 0.95, ..Sampling::default() },
            seed: 7,
            row,
            top_logprobs: 0,
        })
        .collect();
    let together = sampled(&model, &requests);
    assert_eq!(together.len(), 50);
    for request in &requests {
        let alone = sampled(&model, std::slice::from_ref(request));
        assert_eq!(alone[&request.id], together[&request.id], "row {}", request.row);
    }
}
