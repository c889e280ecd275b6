//! Chat templates against what transformers rendered (`oracle/chat_templates.py`), byte for byte.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use halter_core::data::record::Message;
use halter_core::text::template::{ChatTemplate, RenderOptions};
use serde_json::{Map, Value};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn golden() -> Value {
    let path = root().join("oracle/golden/chat_templates.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn messages(case: &Value) -> Vec<Message> {
    let list = case["messages"].as_array().unwrap();
    list.iter().map(|message| Message(message.as_object().unwrap().clone())).collect()
}

fn list<'a>(case: &'a Value, key: &str) -> Option<&'a [Value]> {
    case.get(key).and_then(Value::as_array).map(Vec::as_slice)
}

fn build(source: &str, golden: &Value, case: &Value) -> Result<ChatTemplate, halter_core::Error> {
    let kwargs = case.get("kwargs").and_then(Value::as_object).cloned().unwrap_or_else(Map::new);
    ChatTemplate::new(source)?
        .with_special_tokens(golden["special_tokens"].as_object().unwrap().clone())
        .with_args(kwargs)?
        .with_now(golden["now"].as_i64().unwrap())
}

/// What went wrong, if the rendering is not the golden one.
fn difference(source: &str, golden: &Value, case: &Value, expected: &Value) -> Option<String> {
    let flag = |key: &str| case.get(key).and_then(Value::as_bool).unwrap_or(false);
    let options = RenderOptions {
        tools: list(case, "tools"),
        documents: list(case, "documents"),
        add_generation_prompt: flag("add_generation_prompt"),
        continue_final_message: flag("continue_final_message"),
    };
    let rendered =
        build(source, golden, case).and_then(|template| template.render(&messages(case), &options));
    match (rendered, expected.get("text").and_then(Value::as_str)) {
        (Ok(text), Some(expected)) if text == expected => None,
        (Ok(text), Some(expected)) => Some(format!("got\n{text:?}\nexpected\n{expected:?}")),
        (Ok(text), None) => Some(format!("rendered {text:?}, expected {expected}")),
        (Err(error), Some(_)) => Some(format!("failed: {error}, expected {expected}")),
        (Err(error), None) => match expected.get("raised").and_then(Value::as_str) {
            Some(raised) if !error.message().contains(raised) => {
                Some(format!("error `{error}` does not say {raised:?}"))
            }
            _ => None,
        },
    }
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let golden = golden();
    let (mut count, mut failures) = (0, Vec::new());
    for (name, cases) in golden["rendered"].as_object().unwrap() {
        let path = root().join(format!("core/tests/templates/{name}.jinja"));
        let source = std::fs::read_to_string(path).unwrap();
        for (case_name, expected) in cases.as_object().unwrap() {
            count += 1;
            let case = &golden["cases"][case_name];
            if let Some(text) = difference(&source, &golden, case, expected) {
                failures.push(format!("{name}/{case_name}: {text}"));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {count}:\n{}", failures.len(), failures.join("\n\n"));
    assert!(count >= 300, "only {count} renderings were compared");
}

#[test]
fn expressions_have_the_value_they_have_on_python() {
    let golden = golden();
    let mut failures = Vec::new();
    let list = golden["expressions"].as_array().unwrap();
    for expected in list {
        let source = expected["template"].as_str().unwrap();
        if let Some(text) = difference(source, &golden, &golden["cases"]["multi_turn"], expected) {
            failures.push(format!("{source}\n{text}"));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {}:\n{}",
        failures.len(),
        list.len(),
        failures.join("\n\n")
    );
    assert!(list.len() >= 40);
}
