//! Real tokenizers, where they were fetched (`tokenizers/NAME/tokenizer.json` under
//! `HALTER_ASSETS`): the tokens that transformers gives (`oracle/real_tokenizers.py`).
#![allow(clippy::unwrap_used, clippy::panic)]

mod text_support;

use halter_core::model::weights::gguf::Gguf;
use halter_core::text::encode::EncodeOptions;
use halter_core::text::gguf_tokenizer;
use halter_core::text::tokenizer::Tokenizer;
use serde_json::Value;
use text_support::*;

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|n| u32::try_from(n.as_u64().unwrap()).unwrap()).collect()
}

#[test]
#[allow(clippy::print_stdout)]
fn real_tokenizers_give_the_tokens_of_transformers() {
    let assets =
        std::env::var_os("HALTER_ASSETS").map_or_else(|| root().join("assets"), Into::into);
    let golden = golden("real_tokenizers.json");
    let mut count = 0;
    for row in golden["rows"].as_array().unwrap() {
        let name = row["name"].as_str().unwrap();
        let path = assets.join("tokenizers").join(name).join("tokenizer.json");
        if !path.exists() {
            println!("skipped: no tokenizers/{name}/tokenizer.json under HALTER_ASSETS");
            continue;
        }
        let inner = tokenizers::Tokenizer::from_file(path).unwrap();
        let tokenizer = Tokenizer::new(inner, Some(&row["special"]), &[]).unwrap();
        let template = template(&source(row["template"].as_str().unwrap()), &tokenizer);
        let record = chat(&golden["messages"], None);
        let encoded = encode(&record, &tokenizer, &template, &EncodeOptions::default());
        assert_eq!(encoded.input_ids, numbers(&row["chat"]), "{name}");
        assert!(encoded.prompt_is_prefix, "{name}");
        let end = tokenizer.special_token("eos_token").unwrap();
        let parts = trained(&tokenizer, &encoded);
        assert_eq!(parts.len(), 2, "{name}");
        assert!(parts[0].contains("Paris.\n\nIt's 12,345 km² away"), "{name}: {parts:?}");
        assert!(parts[1].contains("Yes"), "{name}: {parts:?}");
        assert!(parts.iter().all(|part| part.ends_with(end)), "{name}: {parts:?}");
        let text = golden["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, true).unwrap().ids, numbers(&row["text"]), "{name}");
        count += 1;
    }
    println!("{count} tokenizers compared");
}

/// Vocabularies of llama.cpp, with its own tokens of texts that are hard to split.
#[test]
#[allow(clippy::print_stdout)]
fn tokenizers_rebuilt_from_gguf_give_the_tokens_of_llama_cpp() {
    let Some(dir) = halter_testkit::asset("gguf-vocabularies") else { return };
    for name in ["llama-bpe", "llama-spm", "qwen2", "gpt-2"] {
        let path = dir.join(format!("ggml-vocab-{name}.gguf"));
        let rebuilt = gguf_tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
        let read =
            |end: &str| std::fs::read_to_string(format!("{}.{end}", path.display())).unwrap();
        let (texts, tokens) = (read("inp"), read("out"));
        const END: &str = "\n__ggml_vocab_test__\n";
        let texts: Vec<&str> = texts.strip_suffix(END).unwrap_or(&texts).split(END).collect();
        assert_eq!(texts.len(), tokens.lines().count());
        let mut wrong = Vec::new();
        for (text, want) in texts.iter().zip(tokens.lines()) {
            let want: Vec<u32> = want.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let got = rebuilt.tokenizer.encode(*text, false).unwrap().get_ids().to_vec();
            if got != want {
                wrong.push(format!("{text:?}: {got:?}, llama.cpp has {want:?}"));
            }
        }
        assert!(
            wrong.is_empty(),
            "{name}: {} of {}\n{}",
            wrong.len(),
            texts.len(),
            wrong.join("\n")
        );
        println!("{name}: {} texts compared", texts.len());
    }
}
