//! A model that answers, from weights as files hold them.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device};
use halter_core::generate::Generator;
use halter_core::generate::engine::{EngineOptions, Request};
use halter_core::generate::sampling::Sampling;
use halter_core::generate::session::{Completion, Job, complete_rows};
use halter_core::generate::text::TextStream;
use halter_core::model::Decoder;
use halter_core::model::config::ModelConfig;
use halter_core::model::param::Value;
use halter_core::model::weights::{StoredKind, StoredTensor};
use halter_core::ops::Context;
use halter_core::text::tokenizer::Tokenizer;

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny_chatml/tokenizer.json")
}

fn config(vocab_size: usize) -> ModelConfig {
    let json = serde_json::json!({
        "model_type": "qwen3", "vocab_size": vocab_size, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu",
        "initializer_range": 0.3,
    });
    ModelConfig::from_json(&json, "config.json").unwrap()
}

/// Matrices of the kind, with the values that the type leaves of the same random ones.
fn generator(kind: StoredKind, vocab_size: usize) -> Generator {
    let config = config(vocab_size);
    let plain = Decoder::fresh(config.clone(), 5, Context::new(&Device::Cpu)).unwrap();
    let all = plain.params();
    let model = Decoder::new(config, Context::new(&Device::Cpu), |name, shape| {
        let value = all.iter().find(|param| param.name() == name).unwrap().to_f32()?;
        if shape.len() == 1 {
            return Ok(Value::Dense(value));
        }
        let stored = match kind {
            StoredKind::Ggml(dtype) => {
                let bytes = QTensor::quantize(&value, dtype)?.data()?.to_vec();
                StoredTensor::from_bytes(name, shape, kind, bytes)
            }
            _ => StoredTensor::from_tensor(name, &value.to_dtype(DType::BF16)?),
        };
        Ok(Value::Stored(stored?))
    });
    Generator {
        model: model.unwrap(),
        tokenizer: Tokenizer::from_file(fixture(), &[]).unwrap(),
        template: None,
        name: "tiny".into(),
        stop_tokens: vec![9],
        allow_special_text: false,
    }
}

fn completions(
    generator: &Generator,
    options: EngineOptions,
    rows: std::ops::Range<u64>,
    sampling: Sampling,
) -> Vec<Vec<Completion>> {
    let job = |row: u64| {
        let text = format!("There were {row} llamas. ").repeat(1 + row as usize % 5);
        let request = Request {
            id: 0,
            prompt: generator.text_prompt(&text)?,
            completions: 1 + row as usize % 3,
            max_new_tokens: 20 + row as usize,
            stop_tokens: Vec::new(),
            sampling,
            seed: 3,
            row,
            top_logprobs: 1,
        };
        Ok(Job { request, stop: Vec::new(), is_text: true })
    };
    let mut all = Vec::new();
    let done = |(), completions: halter_core::Result<Vec<Completion>>| {
        all.push(completions?);
        Ok(())
    };
    complete_rows(generator, options, rows.map(|row| ((), job(row))), done, |_| Ok(())).unwrap();
    all
}

#[test]
fn stored_weights_say_the_same_in_any_company_to_the_bit() {
    let warm = Sampling { temperature: 0.8, top_p: 0.95, ..Sampling::default() };
    for kind in
        [StoredKind::BF16, StoredKind::Ggml(GgmlDType::Q8_0), StoredKind::Ggml(GgmlDType::Q4_0)]
    {
        let generator = generator(kind, 512);
        for sampling in [Sampling::GREEDY, warm] {
            let options = generator.engine_options(64, None);
            let together = completions(&generator, options, 0..10, sampling);
            let alone = (0..10)
                .flat_map(|row| completions(&generator, options, row..row + 1, sampling))
                .collect::<Vec<_>>();
            assert_eq!(together, alone, "{kind}");
            let tight = EngineOptions { cache_tokens: 256, completions: 5, prefill_tokens: 20 };
            assert_eq!(completions(&generator, tight, 0..10, sampling), alone, "{kind}");
            assert!(alone.iter().flatten().all(|one| !one.tokens.is_empty()));
        }
    }
}

#[test]
fn a_fingerprint_tells_of_tokenizers_with_as_many_tokens() {
    let mut generator = generator(StoredKind::BF16, 512);
    let before = generator.fingerprint().unwrap();
    let text = std::fs::read_to_string(fixture()).unwrap();
    let tokenizer = |json: serde_json::Value| {
        Tokenizer::new(json.to_string().parse().unwrap(), None, &[]).unwrap()
    };
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut merged = json.clone();
    let merges = merged["model"]["merges"].as_array_mut().unwrap();
    let last = merges.len() - 1;
    merges.swap(last, last - 1);
    let prints = [json.clone(), json, merged].map(|json| {
        generator.tokenizer = tokenizer(json);
        generator.fingerprint().unwrap()
    });
    assert_eq!(prints[0], prints[1]);
    assert_ne!(prints[1], prints[2], "other merges");
    let named = serde_json::json!({ "bos_token": "<|im_start|>" });
    let with_bos = Tokenizer::new(text.parse().unwrap(), Some(&named), &[]).unwrap();
    generator.tokenizer = with_bos;
    assert_ne!(generator.fingerprint().unwrap(), prints[0], "templates are told of BOS");
    assert_eq!(before.len(), 32);
}

/// A tokenizer like Llama 2's: words begin with `▁`, which a text loses where it begins.
fn of_words() -> Tokenizer {
    let spelled: Vec<String> = ["<s>", "▁Hello", "▁world", ",", "▁wide"].map(String::from).into();
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..).zip(spelled).map(|(id, token): (u32, _)| (token, id.into())).collect();
    let bytes = (0..256).map(|byte| (format!("<0x{byte:02X}>"), (5 + byte).into()));
    let vocab: serde_json::Map<_, _> = vocab.into_iter().chain(bytes).collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null,
        "post_processor": null,
        "added_tokens": [{
            "id": 0, "content": "<s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        }],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ] },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": { "type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true },
    });
    Tokenizer::new(json.to_string().parse().unwrap(), None, &[]).unwrap()
}

#[test]
fn a_text_that_goes_on_keeps_its_first_space() {
    let tokenizer = of_words();
    let text = |mut stream: TextStream, tokens: &[u32]| {
        let mut text = String::new();
        for &token in tokens {
            text += &stream.push(&tokenizer, token).unwrap();
        }
        text + &stream.finish(&tokenizer).unwrap()
    };
    let after = |prompt: &[u32], tokens: &[u32]| {
        text(TextStream::after(prompt, &tokenizer, Vec::new()).unwrap(), tokens)
    };
    let world = [2, 3, 4, 2];
    assert_eq!(after(&[0, 1], &world), " world, wide world");
    assert_eq!(after(&[1; 40], &world), " world, wide world");
    assert_eq!(after(&[0], &world), "world, wide world", "nothing stands before");
    assert_eq!(text(TextStream::new(Vec::new()), &world), "world, wide world");
    // A character of which the prompt has a part.
    let llama = "🦙".bytes().map(|byte| 5 + u32::from(byte)).collect::<Vec<_>>();
    assert_eq!(after(&llama, &world), " world, wide world");
    assert_eq!(after(&[0, 1], &llama), "🦙");
    assert!(after(&llama[..2], &llama[2..]).contains('\u{fffd}'));
}

#[test]
fn completions_of_texts_keep_their_first_space_and_answers_have_none() {
    // Its tokens are those that are spelled.
    let mut generator = generator(StoredKind::BF16, 5);
    generator.tokenizer = of_words();
    let tokenizer = &generator.tokenizer;
    let mut spaces = 0;
    for seed in 0..40 {
        let text = |is_text| {
            let request = Request {
                id: 0,
                prompt: vec![0, 1],
                completions: 1,
                max_new_tokens: 3,
                stop_tokens: Vec::new(),
                sampling: Sampling { temperature: 3.0, ..Sampling::default() },
                seed,
                row: 0,
                top_logprobs: 0,
            };
            let rows = [((), Ok(Job { request, stop: Vec::new(), is_text }))];
            let mut got = Completion::default();
            let done = |(), completions: halter_core::Result<Vec<Completion>>| {
                got = completions?.remove(0);
                Ok(())
            };
            let options = generator.engine_options(1, None);
            complete_rows(&generator, options, rows, done, |_| Ok(())).unwrap();
            got
        };
        let (whole, answer) = (text(true), text(false));
        assert_eq!(whole.tokens, answer.tokens);
        assert_eq!(whole.text.strip_prefix(' ').unwrap_or(&whole.text), answer.text);
        spaces += usize::from(whole.text.starts_with(' '));
        let all = tokenizer.decode(&[&[0, 1], &whole.tokens[..]].concat(), true).unwrap();
        assert_eq!(all, format!("Hello{}", whole.text));
    }
    assert!(spaces > 0, "no completion begins with a word");
}
