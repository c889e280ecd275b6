//! What a server's answer says, or what is wrong with it.

use serde_json::{Map, Value, json};

use super::{Answer, Usage};
use crate::data::record::Message;

/// Characters of an answer in an error.
const EXCERPT: usize = 120;

/// The two ways to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `/chat/completions`: a conversation.
    Chat,
    /// `/completions`: a text that is to go on.
    Text,
}

impl Api {
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Chat => "chat/completions",
            Self::Text => "completions",
        }
    }
}

/// Why an answer cannot be used.
#[derive(Debug, PartialEq)]
pub(super) enum Unusable {
    /// Another one may be better.
    Wrong(String),
    /// Another one would be the same.
    Final(String),
}

/// The answer in a body, and whether it says what it took.
pub(super) fn read(api: Api, body: &str, logprobs: bool) -> Result<(Answer, bool), Unusable> {
    let wanted = match api {
        Api::Chat => "choices[0].message.content",
        Api::Text => "choices[0].text",
    };
    let wrong = |what: &str| {
        let body = shortened(body);
        Unusable::Wrong(format!("expected JSON with `{wanted}`{what}, got `{body}`"))
    };
    let answer: Value = serde_json::from_str(body).map_err(|_| wrong(""))?;
    let choice = answer.pointer("/choices/0").ok_or_else(|| wrong(""))?;
    let message = match api {
        Api::Chat => message(choice).map_err(|fault| match fault {
            Fault::Missing(what) => wrong(what),
            Fault::Refusal(why) => Unusable::Final(format!("the model refused: `{why}`")),
        })?,
        Api::Text => {
            let text = choice["text"].as_str().ok_or_else(|| wrong(""))?;
            Message::new("assistant", text)
        }
    };
    let told = choice.get("logprobs").filter(|told| !told.is_null()).cloned();
    if logprobs && told.is_none() {
        let reason = "log-probs were asked for, and the server gave none";
        return Err(Unusable::Final(reason.into()));
    }
    let usage = usage(&answer["usage"]);
    let answer = Answer {
        message,
        finish: choice["finish_reason"].as_str().unwrap_or("stop").to_string(),
        logprobs: told,
        usage: usage.unwrap_or_default(),
        model: answer["model"].as_str().unwrap_or_default().to_string(),
    };
    Ok((answer, usage.is_some()))
}

enum Fault {
    Missing(&'static str),
    Refusal(String),
}

/// What the exchange took, where the body says so, be it that nothing else in it can be used.
pub(super) fn usage_in(body: &str) -> Option<Usage> {
    usage(serde_json::from_str::<Value>(body).ok()?.get("usage")?)
}

/// The message as a conversation may have it: `content`, and what else belongs to it.
fn message(choice: &Value) -> Result<Message, Fault> {
    let said = choice.get("message").and_then(Value::as_object).ok_or(Fault::Missing(""))?;
    let calls = match said.get("tool_calls") {
        None | Some(Value::Null) => None,
        Some(Value::Array(calls)) if calls.is_empty() => None,
        Some(Value::Array(calls)) if calls.iter().all(is_call) => Some(calls.clone()),
        Some(_) => return Err(Fault::Missing(" and `tool_calls` of functions with arguments")),
    };
    let text = |key: &str| said.get(key).and_then(Value::as_str);
    let thoughts = ["reasoning_content", "reasoning"].into_iter().find_map(text);
    let thoughts = thoughts.filter(|thoughts| !thoughts.is_empty());
    let content = match (said.get("content"), &calls) {
        (Some(Value::String(text)), _) => json!(text),
        (None | Some(Value::Null), Some(_)) => Value::Null,
        (None | Some(Value::Null), None) => match text("refusal") {
            Some(why) if !why.is_empty() => return Err(Fault::Refusal(shortened(why))),
            // It came to an end in its thinking, and would again.
            _ if choice["finish_reason"] == "length" || thoughts.is_some() => json!(""),
            _ => return Err(Fault::Missing(" or `tool_calls`")),
        },
        _ => return Err(Fault::Missing(" as a text")),
    };
    let mut message = Map::new();
    message.insert("role".into(), "assistant".into());
    message.insert("content".into(), content);
    message.extend(calls.map(|calls| ("tool_calls".to_string(), Value::Array(calls))));
    message.extend(thoughts.map(|thoughts| ("reasoning_content".to_string(), thoughts.into())));
    Ok(Message(message))
}

fn is_call(call: &Value) -> bool {
    let function = &call["function"];
    function["name"].is_string() && function["arguments"].is_string()
}

fn usage(usage: &Value) -> Option<Usage> {
    let count = |key: &str| usage.get(key)?.as_u64();
    // A completion without tokens is told without them by some servers.
    let completion_tokens = count("completion_tokens").unwrap_or_default();
    Some(Usage { prompt_tokens: count("prompt_tokens")?, completion_tokens })
}

/// The beginning of a text.
pub(super) fn shortened(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(EXCERPT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(message: Value) -> Result<Answer, Unusable> {
        let body = json!({"model": "m-1", "choices": [{"message": message}]}).to_string();
        read(Api::Chat, &body, false).map(|(answer, _)| answer)
    }

    #[test]
    fn a_chat_answer_is_read_with_what_it_took() {
        let logprobs = json!({"content": [{"token": "a", "logprob": -0.5}]});
        let body = json!({
            "model": "m-1", "id": "x",
            "choices": [{"finish_reason": "length", "logprobs": logprobs, "message": {
                "role": "assistant", "content": "a", "refusal": null, "tool_calls": [],
            }}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
        });
        let (answer, has_usage) = read(Api::Chat, &body.to_string(), true).unwrap();
        assert!(has_usage && !answer.is_whole());
        assert_eq!(
            answer,
            Answer {
                message: Message::new("assistant", "a"),
                finish: "length".into(),
                logprobs: Some(logprobs),
                usage: Usage { prompt_tokens: 5, completion_tokens: 1 },
                model: "m-1".into(),
            }
        );
    }

    #[test]
    fn calls_need_no_content_and_everything_else_does() {
        let call = json!({"id": "1", "type": "function",
            "function": {"name": "f", "arguments": "{}"}});
        let answer = chat(json!({"content": null, "tool_calls": [call]})).unwrap();
        assert_eq!(answer.message.0["tool_calls"], json!([call]));
        assert_eq!((answer.text(), answer.message.content()), ("", None));
        assert_eq!(chat(json!({"content": ""})).unwrap().message.content(), Some(""));
        for message in [
            json!({}),
            json!(5),
            json!(null),
            json!({"content": null}),
            json!({"content": null, "tool_calls": []}),
            json!({"content": null, "tool_calls": [{"function": {"name": "f"}}]}),
            json!({"content": 5}),
            json!({"content": ["x"]}),
        ] {
            let outcome = chat(message.clone());
            let Err(Unusable::Wrong(reason)) = outcome else { panic!("{message}: {outcome:?}") };
            assert!(reason.contains("choices[0].message.content"), "{reason}");
        }
        let refusal = chat(json!({"content": null, "refusal": "I will not"}));
        assert_eq!(refusal, Err(Unusable::Final("the model refused: `I will not`".into())));
    }

    #[test]
    fn garbage_is_told_in_short() {
        let long = format!("\"{}\"", "x".repeat(1000));
        let deep = "[".repeat(100_000);
        for body in ["", "{", "<html>", "{}", "[]", "5", r#"{"choices":[]}"#, &long, &deep] {
            for api in [Api::Chat, Api::Text] {
                let outcome = read(api, body, false);
                let Err(Unusable::Wrong(reason)) = outcome else { panic!("{body}") };
                assert!(reason.len() < 300, "{reason}");
            }
        }
    }

    #[test]
    fn a_text_goes_on_and_missing_log_probs_are_final() {
        let body = r#"{"choices":[{"text":" two","finish_reason":"stop","logprobs":null}]}"#;
        let (answer, has_usage) = read(Api::Text, body, false).unwrap();
        assert_eq!((answer.text(), answer.finish.as_str(), has_usage), (" two", "stop", false));
        assert!(matches!(read(Api::Text, body, true), Err(Unusable::Final(_))));
    }
}
