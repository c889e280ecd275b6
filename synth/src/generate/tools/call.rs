//! Calls in what an assistant says.

use halter_core::data::record::Message;
use serde_json::{Map, Value, json};

use super::declared::Call;
use crate::asking::after_thinking;
use crate::generate::reply;

/// Calls that one reply may make.
const CALLS: usize = 16;

/// What an assistant says.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    /// Calls, and what was said beside them.
    Calls(Vec<Call>, String),
    /// An answer to the user.
    Answer(String),
    /// What should be a call, and is none.
    Fault(String),
}

/// Reads a reply: native `tool_calls`, or a text that is nothing but calls as JSON, alone or each
/// between `<tool_call>` and `</tool_call>`.
pub(super) fn read(message: &Message) -> Said {
    let text = message.content().unwrap_or_default();
    if let Some(calls) = message.0.get("tool_calls").and_then(Value::as_array) {
        let calls = calls.iter().map(|call| self::call(&call["function"])).collect();
        return of(calls, text.trim());
    }
    let said = after_thinking(text);
    if let Some((before, rest)) = said.split_once("<tool_call>") {
        let calls = rest.split("<tool_call>").map(|part| {
            let part =
                part.trim().strip_suffix("</tool_call>").ok_or("no `</tool_call>` after it")?;
            call(&serde_json::from_str(part).map_err(|error| format!("not JSON: {error}"))?)
        });
        return of(calls.collect(), before.trim());
    }
    match reply::json(said) {
        Some(Value::Array(list)) if list.iter().any(is_like_a_call) => {
            of(list.iter().map(call).collect(), "")
        }
        Some(one) if is_like_a_call(&one) => of(call(&one).map(|call| vec![call]), ""),
        None if said.starts_with('{') && said.contains("\"arguments\"") => {
            Said::Fault("expected JSON alone".into())
        }
        _ => Said::Answer(text.trim().to_string()),
    }
}

fn is_like_a_call(value: &Value) -> bool {
    value.get("name").is_some() || value.get("arguments").is_some()
}

fn of(calls: Result<Vec<Call>, String>, beside: &str) -> Said {
    match calls {
        Ok(calls) if (1..=CALLS).contains(&calls.len()) => Said::Calls(calls, beside.into()),
        Ok(calls) => Said::Fault(format!("expected 1 to {CALLS} calls, got {}", calls.len())),
        Err(why) => Said::Fault(why),
    }
}

/// `{"name": …, "arguments": {…}}`; the arguments may be JSON in a string.
fn call(value: &Value) -> Result<Call, String> {
    let name = value.get("name").and_then(Value::as_str).ok_or("expected a `name`")?.to_string();
    let arguments = match value.get("arguments") {
        Some(Value::Object(arguments)) => Some(arguments.clone()),
        Some(Value::String(text)) if text.trim().is_empty() => Some(Map::new()),
        Some(Value::String(text)) => serde_json::from_str(text).ok(),
        _ => None,
    };
    let arguments = arguments.ok_or(format!("`{name}`: expected `arguments`, an object"))?;
    Ok(Call { name, arguments })
}

impl Call {
    /// As OpenAI's API has it.
    pub fn native(&self, id: &str) -> Value {
        let arguments = self.text();
        json!({"id": id, "type": "function",
               "function": {"name": self.name, "arguments": arguments}})
    }

    /// The arguments as JSON.
    pub fn text(&self) -> String {
        json!(self.arguments).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Said {
        read(&Message::new("assistant", text))
    }

    #[test]
    fn calls_are_told_from_answers() {
        let one = Call { name: "f".into(), arguments: Map::from_iter([("a".into(), json!(1))]) };
        let calls =
            |count: usize, beside: &str| Said::Calls(vec![one.clone(); count], beside.into());
        let text = r#"{"name": "f", "arguments": {"a": 1}}"#;
        assert_eq!(said(text), calls(1, ""));
        assert_eq!(said(&format!("<think>a</think>```json\n[{text}, {text}]\n```")), calls(2, ""));
        let marked =
            format!("Wait. <tool_call>\n{text}\n</tool_call>\n<tool_call>{text}</tool_call>");
        assert_eq!(said(&marked), calls(2, "Wait."));
        let mut native = Message::new("assistant", "");
        native.0.insert("tool_calls".into(), json!([one.native("1")]));
        assert_eq!(read(&native), calls(1, ""));
        for answer in ["It is 3.", "{\"a\": 1}", "[1, 2]", "{ or }"] {
            assert_eq!(said(answer), Said::Answer(answer.into()));
        }
        for fault in [
            r#"{"name": "f"}"#,
            r#"{"name": "f", "arguments": [1]}"#,
            r#"{"arguments": {}}"#,
            r#"{"name": "f", "arguments": {}} and more"#,
            r#"[{"name": "f", "arguments": {}}, 3]"#,
            "<tool_call>{}</tool_call>",
            "<tool_call>",
        ] {
            assert!(matches!(said(fault), Said::Fault(_)), "{fault}");
        }
    }
}
