//! What the text tests share: fixtures, messages, and the trained text of a row.
#![allow(dead_code, missing_docs)]

use std::path::PathBuf;

use halter_core::data::record::{Message, Record};
use halter_core::text::encode::{EncodeOptions, Encoded, Outcome, encode_sft, segments};
use halter_core::text::template::ChatTemplate;
use halter_core::text::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub fn golden(name: &str) -> Value {
    let path = root().join("oracle/golden").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub fn tokenizer(name: &str) -> Tokenizer {
    let folder = root().join("core/tests/fixtures").join(name);
    Tokenizer::from_file(folder.join("tokenizer.json"), &[]).unwrap()
}

/// The tiny tokenizer with `<s>` and `</s>`, as Llama 2 and Mistral have them.
pub fn tokenizer_s() -> Tokenizer {
    let path = root().join("core/tests/fixtures/tiny_chatml/tokenizer.json");
    let inner = tokenizers::Tokenizer::from_file(path).unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}});
    Tokenizer::new(inner, Some(&config), &[]).unwrap()
}

pub fn source(name: &str) -> String {
    let path = root().join(format!("core/tests/templates/{name}.jinja"));
    std::fs::read_to_string(path).unwrap()
}

pub fn template(source: &str, tokenizer: &Tokenizer) -> ChatTemplate {
    let template = ChatTemplate::new(source).unwrap();
    template.with_special_tokens(tokenizer.special_tokens_map()).with_now(1_721_995_199).unwrap()
}

pub fn with_args(template: ChatTemplate, args: Value) -> ChatTemplate {
    template.with_args(args.as_object().cloned().unwrap_or_else(Map::new)).unwrap()
}

pub fn messages(list: &Value) -> Vec<Message> {
    let list = list.as_array().unwrap();
    list.iter().map(|message| Message(message.as_object().unwrap().clone())).collect()
}

pub fn chat(list: &Value, tools: Option<&Value>) -> Record {
    let tools = tools.map(|tools| tools.as_array().unwrap().clone());
    Record::Chat { messages: messages(list), tools }
}

pub fn kept(outcome: Outcome) -> Encoded {
    match outcome {
        Outcome::Kept(encoded) => encoded,
        other => panic!("not kept: {other:?}"),
    }
}

pub fn encode(
    record: &Record,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    options: &EncodeOptions,
) -> Encoded {
    kept(encode_sft(record, tokenizer, Some(template), options).unwrap())
}

/// The trained parts of a row as text, one per run of trained tokens.
pub fn trained(tokenizer: &Tokenizer, row: &Encoded) -> Vec<String> {
    let mut runs: Vec<String> = Vec::new();
    let mut before = false;
    for segment in segments(tokenizer, row).unwrap() {
        if segment.trained && !before {
            runs.push(String::new());
        }
        if segment.trained {
            runs.last_mut().unwrap().push_str(&segment.text);
        }
        before = segment.trained;
    }
    runs
}
