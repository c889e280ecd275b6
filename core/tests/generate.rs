//! The engine: a completion is the same whatever else is in the batch, and what the model says.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use halter_core::data::batch::PackedBatch;
use halter_core::generate::engine::{Engine, EngineOptions, Event, Finish, Request};
use halter_core::generate::sampling::Sampling;
use halter_core::generate::score::score;
use halter_core::model::Decoder;
use halter_core::model::config::ModelConfig;
use halter_core::model::param::Value;
use halter_core::ops::Context;

fn model(window: Option<usize>) -> Decoder {
    let json = serde_json::json!({
        "model_type": if window.is_some() { "mistral" } else { "llama" },
        "vocab_size": 211, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": 8, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu",
        "initializer_range": 0.3, "sliding_window": window,
    });
    let config = ModelConfig::from_json(&json, "config.json").unwrap();
    Decoder::fresh(config, 5, Context::new(&Device::Cpu)).unwrap()
}

fn prompt(row: usize) -> Vec<u32> {
    // Several begin alike, over more than a page.
    let shared = (0..40).map(|i| (i * 31 % 211) as u32);
    let own = (0..(row * 7) % 23 + 1).map(|i| ((i + 1) * (row + 3) * 7919 % 211) as u32);
    if row.is_multiple_of(3) { shared.chain(own).collect() } else { own.collect() }
}

fn request(row: usize, completions: usize, sampling: Sampling) -> Request {
    Request {
        id: row as u64,
        prompt: prompt(row),
        completions,
        max_new_tokens: 5 + row % 30,
        stop_tokens: vec![7, 100],
        sampling,
        seed: 11,
        row: row as u64,
        top_logprobs: 3,
    }
}

const WARM: Sampling =
    Sampling { repetition_penalty: 1.1, temperature: 0.8, top_k: 50, top_p: 0.95, min_p: 0.01 };

/// What every completion got, by request and completion.
fn run(
    model: &Decoder,
    options: EngineOptions,
    requests: Vec<Request>,
) -> BTreeMap<(u64, usize), Vec<Event>> {
    let mut engine = Engine::new(model, options);
    requests.into_iter().for_each(|request| engine.submit(request).unwrap());
    let mut got: BTreeMap<_, Vec<Event>> = BTreeMap::new();
    let mut steps = 0;
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            got.entry((event.request, event.completion)).or_default().push(event);
        }
        steps += 1;
        assert!(steps < 10_000, "no end");
    }
    got
}

#[test]
fn a_completion_is_the_same_in_any_company_to_the_bit() {
    for (window, sampling) in [(None, WARM), (None, Sampling::GREEDY), (Some(20), WARM)] {
        let model = model(window);
        let all = || (0..30).map(|row| request(row, 1 + row % 4, sampling)).collect::<Vec<_>>();
        let together = run(&model, EngineOptions::default(), all());
        assert_eq!(together.len(), (0..30).map(|row| 1 + row % 4).sum::<usize>());
        for request in all() {
            let id = request.id;
            for (key, events) in run(&model, EngineOptions::default(), vec![request]) {
                assert_eq!(together[&key], events, "request {id}");
            }
        }
        // A cache that lets few in at once, and prompts in chunks that fit no page.
        let tight = EngineOptions { cache_tokens: 120, completions: 3, prefill_tokens: 5 };
        assert_eq!(run(&model, tight, all()), together);
        let threads = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(threads.install(|| run(&model, EngineOptions::default(), all())), together);
    }
}

#[test]
fn where_no_page_is_left_the_oldest_goes_on_and_nothing_changes() {
    let model = model(None);
    // The longest fill the cache: at most one of them is in it at a time.
    let options = EngineOptions { cache_tokens: 160, completions: 16, prefill_tokens: 24 };
    for sampling in [WARM, Sampling::GREEDY] {
        let long = |row| Request {
            max_new_tokens: 80,
            stop_tokens: Vec::new(),
            ..request(row, 1 + row % 4, sampling)
        };
        let mut engine = Engine::new(&model, options);
        (0..8).for_each(|row| engine.submit(long(row)).unwrap());
        let mut got: BTreeMap<(u64, usize), Vec<Event>> = BTreeMap::new();
        let (mut steps, mut set_back, mut most) = (0, 0, 0);
        while !engine.is_idle() {
            let events = engine.step().unwrap();
            let heard: Vec<_> = events.iter().map(|one| (one.request, one.completion)).collect();
            let goes_on = |events: &[Event]| events[events.len() - 1].finish.is_none();
            set_back +=
                got.iter().filter(|(key, all)| goes_on(all) && !heard.contains(key)).count();
            // Nothing overtakes the first one.
            assert!(!got.get(&(0, 0)).is_some_and(|all| goes_on(all)) || heard.contains(&(0, 0)));
            most = most.max(heard.len());
            for event in events {
                got.entry((event.request, event.completion)).or_default().push(event);
            }
            steps += 1;
            assert!(steps < 20 * 80, "no faster than one after the other");
        }
        assert!(set_back > 100 && most > 3, "{set_back} {most}");
        for row in 0..8 {
            for (key, events) in run(&model, EngineOptions::default(), vec![long(row)]) {
                assert_eq!(events.len(), 80);
                assert_eq!(got[&key], events, "{key:?}");
            }
        }
    }
}

#[test]
fn a_prompt_that_begins_as_one_before_is_not_computed_again() {
    let model = model(None);
    let mut engine =
        Engine::new(&model, EngineOptions { prefill_tokens: 16, ..EngineOptions::default() });
    // A step computes a page: so many until the first token tell how much was new.
    let mut steps = |id: u64, prompt: &[u32], completions: usize| {
        let request = Request { id, prompt: prompt.to_vec(), ..request(0, completions, WARM) };
        engine.submit(request).unwrap();
        let mut steps = 1;
        while engine.step().unwrap().is_empty() {
            steps += 1;
        }
        while !engine.is_idle() {
            engine.step().unwrap();
        }
        steps
    };
    let prompt: Vec<u32> = (0..160).map(|i| i * 31 % 211).collect();
    assert_eq!(steps(0, &prompt, 5), 10, "once for all completions");
    assert_eq!(steps(1, &prompt, 1), 1, "the last page, for its logits");
    let longer: Vec<u32> = prompt.iter().copied().chain(7..40).collect();
    assert_eq!(steps(2, &longer, 1), 3);
    let mut other = longer.clone();
    other[70] += 1;
    assert_eq!(steps(3, &other, 1), 13 - 4);
}

#[test]
fn weights_of_another_type_say_the_same() {
    let plain = model(None);
    let values: BTreeMap<String, Value> = plain
        .params()
        .into_iter()
        .map(|param| {
            let value = param.to_f32().unwrap().to_dtype(DType::F64).unwrap();
            (param.name().to_string(), Value::Dense(value))
        })
        .collect();
    let ctx = Context::new(&Device::Cpu);
    let wide = Decoder::new(plain.config.clone(), ctx, |name, _| Ok(values[name].clone())).unwrap();
    let requests = || (0..6).map(|row| request(row, 1, Sampling::GREEDY)).collect();
    let expected = run(&plain, EngineOptions::default(), requests());
    for (key, events) in run(&wide, EngineOptions::default(), requests()) {
        for (event, expected) in events.iter().zip(&expected[&key]) {
            assert_eq!((event.token, event.finish), (expected.token, expected.finish));
            assert!((event.logprob - expected.logprob).abs() < 1e-4, "{event:?} {expected:?}");
        }
        let tokens = prompt(key.0 as usize);
        for (one, other) in
            score(&wide, &tokens, 0).unwrap().iter().zip(score(&plain, &tokens, 0).unwrap())
        {
            assert!((one.logprob - other.logprob).abs() < 1e-4, "{one:?} {other:?}");
        }
    }
}

#[test]
fn tokens_and_log_probs_are_those_of_the_whole_sequence() {
    for window in [None, Some(20)] {
        let model = model(window);
        let requests = (0..12).map(|row| request(row, 1, Sampling::GREEDY)).collect();
        for ((row, _), events) in run(&model, EngineOptions::default(), requests) {
            let mut tokens = prompt(row as usize);
            let last = events.len() - 1;
            for (at, event) in events.iter().enumerate() {
                let mut builder = PackedBatch::builder();
                builder.row(&tokens);
                let logits = model.logits(&builder.build().unwrap()).unwrap();
                let logits = logits.get(tokens.len() - 1).unwrap().to_vec1::<f32>().unwrap();
                let largest = logits.iter().copied().fold(f32::MIN, f32::max);
                let lse = logits.iter().map(|x| (x - largest).exp()).sum::<f32>().ln() + largest;
                assert!(logits[event.token as usize] > largest - 1e-4, "row {row}, token {at}");
                assert!((event.logprob - (logits[event.token as usize] - lse)).abs() < 1e-4);
                assert_eq!(event.top.len(), 3);
                assert_eq!(event.top[0], (event.token, event.logprob));
                assert!(event.top[1].1 >= event.top[2].1);
                let stops = event.token == 7 || event.token == 100;
                let finish = match at {
                    _ if stops => Some(Finish::Stop),
                    _ if at + 1 == 5 + row as usize % 30 => Some(Finish::Length),
                    _ => None,
                };
                assert_eq!(event.finish, finish);
                assert_eq!(finish.is_some(), at == last);
                tokens.push(event.token);
            }
        }
    }
}

#[test]
fn completions_of_a_prompt_differ_and_follow_the_seed() {
    let model = model(None);
    let tokens = |seed: u64| -> Vec<Vec<u32>> {
        let request = Request { seed, ..request(9, 6, Sampling::default()) };
        let got = run(&model, EngineOptions::default(), vec![request]);
        got.values().map(|events| events.iter().map(|event| event.token).collect()).collect()
    };
    let first = tokens(1);
    assert_eq!(first, tokens(1));
    assert_ne!(first, tokens(2));
    assert!(first.windows(2).any(|pair| pair[0] != pair[1]));
}

#[test]
fn what_is_cancelled_is_not_heard_of_again_and_gives_its_room_back() {
    let model = model(None);
    let options = EngineOptions { cache_tokens: 160, completions: 4, prefill_tokens: 16 };
    let alone = run(&model, options, vec![request(5, 2, WARM)]);
    let mut engine = Engine::new(&model, options);
    for row in 0..9 {
        engine.submit(Request { max_new_tokens: 30, ..request(row, 3, WARM) }).unwrap();
    }
    for _ in 0..6 {
        engine.step().unwrap();
    }
    (0..9).for_each(|row| engine.cancel(row));
    assert!(engine.is_idle());
    engine.submit(request(5, 2, WARM)).unwrap();
    let mut got: BTreeMap<_, Vec<Event>> = BTreeMap::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            got.entry((event.request, event.completion)).or_default().push(event);
        }
    }
    assert_eq!(got, alone);
}

#[test]
fn requests_without_a_meaning_are_refused() {
    let model = model(None);
    let mut engine =
        Engine::new(&model, EngineOptions { cache_tokens: 64, ..EngineOptions::default() });
    let good = request(1, 1, WARM);
    for (request, message) in [
        (Request { prompt: vec![], ..good.clone() }, "an empty prompt"),
        (
            Request { prompt: vec![1, 211], ..good.clone() },
            "token `211` is beyond the vocabulary of `211`",
        ),
        (
            Request { completions: 0, ..good.clone() },
            "no token is wanted: expected at least one completion of one",
        ),
        (
            Request { prompt: vec![1; 40], max_new_tokens: 30, ..good.clone() },
            "prompt and completion may have `70` tokens, more than the cache of `64` holds",
        ),
    ] {
        assert_eq!(engine.submit(request).unwrap_err().message(), message);
    }
    engine.submit(good).unwrap();
}

#[test]
fn scores_of_tokens_are_what_they_were_generated_with_to_the_bit() {
    for window in [None, Some(20)] {
        let model = model(window);
        let requests = (0..6).map(|row| request(row, 1, WARM)).collect();
        for ((row, _), events) in run(&model, EngineOptions::default(), requests) {
            let mut tokens = prompt(row as usize);
            let begin = tokens.len() - 1;
            tokens.extend(events.iter().map(|event| event.token));
            let scores = score(&model, &tokens, 3).unwrap();
            assert_eq!(scores.len(), tokens.len() - 1);
            for (score, event) in scores[begin..].iter().zip(&events) {
                assert_eq!((score.logprob, &score.top), (event.logprob, &event.top));
            }
        }
    }
    let model = model(None);
    assert!(score(&model, &[3], 0).unwrap().is_empty());
    assert!(score(&model, &[3, 211], 0).is_err(), "beyond the vocabulary");
}
