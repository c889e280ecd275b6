//! Conversations: OpenAI's messages, ShareGPT, Alpaca, and tools.

use serde_json::{Map, Value, json};

use super::value::{excerpt, expected, kind, optional_string, present, required, string};
use crate::data::format::Format;
use crate::data::record::{Message, Record};
use crate::{Error, Result};

/// A row of `messages` or `conversations`.
pub(super) fn conversation(row: &Map<String, Value>, format: Format) -> Result<Record> {
    let column = conversation_column(row).unwrap_or(match format {
        Format::ShareGpt => "conversations",
        _ => "messages",
    });
    let turns = messages(required(row, column)?, column)?;
    let messages = with_system(row, turns)?;
    Ok(Record::Chat { messages, tools: tools(row, format == Format::ShareGpt)? })
}

/// The column that holds a conversation, if there is one.
pub(super) fn conversation_column(row: &Map<String, Value>) -> Option<&'static str> {
    ["messages", "conversations", "conversation"]
        .into_iter()
        .find(|column| present(row, column).is_some())
}

/// A row of `instruction`, `input`, `output`, `system`, `history`.
pub(super) fn alpaca(row: &Map<String, Value>) -> Result<Record> {
    let mut messages = alpaca_prompt(row)?;
    messages.push(Message::new("assistant", string(row, "output")?));
    Ok(Record::Chat { messages, tools: tools(row, true)? })
}

/// Everything of an Alpaca row before its `output`.
pub(super) fn alpaca_prompt(row: &Map<String, Value>) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    match present(row, "history") {
        None => {}
        Some(Value::Array(rounds)) => {
            for (index, round) in rounds.iter().enumerate() {
                let [Value::String(asked), Value::String(answered)] =
                    round.as_array().map(Vec::as_slice).unwrap_or_default()
                else {
                    let what = format!("round {} of `history`", index + 1);
                    return Err(expected(&what, "two strings", round));
                };
                messages.push(Message::new("user", asked));
                messages.push(Message::new("assistant", answered));
            }
        }
        Some(other) => return Err(expected("`history`", "an array of pairs", other)),
    }
    let instruction = string(row, "instruction")?;
    let question = match optional_string(row, "input")? {
        Some(input) if instruction.is_empty() => input.to_string(),
        Some(input) => format!("{instruction}\n{input}"),
        None => instruction.to_string(),
    };
    messages.push(Message::new("user", &question));
    with_system(row, messages)
}

/// Puts the `system` column before the conversation.
pub(super) fn with_system(
    row: &Map<String, Value>,
    mut messages: Vec<Message>,
) -> Result<Vec<Message>> {
    let Some(system) = optional_string(row, "system")? else { return Ok(messages) };
    match messages.first() {
        Some(first) if first.role() == "system" => {
            if first.content() != Some(system) {
                return Err(Error::data(
                    "the `system` column and the conversation's system message differ",
                )
                .hint("keep one of the two"));
            }
        }
        _ => messages.insert(0, Message::new("system", system)),
    }
    Ok(messages)
}

/// The messages in `value`, which `column` named: an array of at least one, or one message.
pub(super) fn messages(value: &Value, column: &str) -> Result<Vec<Message>> {
    let turns = match value {
        Value::Array(turns) => turns.as_slice(),
        Value::Object(_) => std::slice::from_ref(value),
        other => return Err(expected(&format!("`{column}`"), "an array of messages", other)),
    };
    if turns.is_empty() {
        return Err(Error::data(format!("`{column}` is empty: expected at least one message")));
    }
    turns
        .iter()
        .enumerate()
        .map(|(index, turn)| {
            let what = format!("message {} of `{column}`", index + 1);
            let turn = turn.as_object().ok_or_else(|| expected(&what, "an object", turn))?;
            message(turn, &what)
        })
        .collect()
}

/// One message of either spelling, made OpenAI's.
fn message(turn: &Map<String, Value>, what: &str) -> Result<Message> {
    let (role_key, content_key) =
        if present(turn, "role").is_some() { ("role", "content") } else { ("from", "value") };
    let role = match present(turn, role_key) {
        Some(Value::String(role)) if !role.is_empty() => role.as_str(),
        Some(other) => {
            return Err(expected(&format!("the `{role_key}` of {what}"), "a name", other));
        }
        None => return Err(Error::data(format!("{what} has no `role` (or `from`)"))),
    };
    if role_key == "from" {
        return speaker(turn, role, what);
    }
    let mut out = Map::new();
    out.insert("role".into(), role.into());
    out.insert("content".into(), Value::String(String::new()));
    for (key, value) in turn {
        if !value.is_null() && !matches!(key.as_str(), "role" | "content" | "tool_calls") {
            out.insert(key.clone(), value.clone());
        }
    }
    let mut calls = match present(turn, "tool_calls") {
        None => Vec::new(),
        Some(Value::Array(calls)) => {
            calls.iter().map(|call| tool_call(call, what)).collect::<Result<_>>()?
        }
        Some(other) => {
            return Err(expected(&format!("`tool_calls` of {what}"), "an array", other));
        }
    };
    let content = match present(turn, content_key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => content_parts(parts, &mut out, &mut calls, what)?,
        Some(other) => return Err(expected(&format!("the content of {what}"), "a string", other)),
        // With calls there need be none. Empty rather than null: a template that prints it would
        // otherwise train the word `None`.
        None if !calls.is_empty() => String::new(),
        None => return Err(Error::data(format!("{what} (`{}`) has no content", excerpt(role)))),
    };
    out.insert("content".into(), content.into());
    if !calls.is_empty() {
        out.insert("tool_calls".into(), calls.into());
    }
    Ok(Message(out))
}

/// Joins content given as parts; LLaMA-Factory's `reasoning` and `tool_call` parts go where
/// templates look for them.
fn content_parts(
    parts: &[Value],
    out: &mut Map<String, Value>,
    calls: &mut Vec<Value>,
    what: &str,
) -> Result<String> {
    let (mut text, mut reasoning) = (String::new(), String::new());
    for part in parts {
        let part_text = part.get("text").or_else(|| part.get("value")).and_then(Value::as_str);
        match (part.get("type").and_then(Value::as_str), part_text, part) {
            (None, None, Value::String(part)) => text.push_str(part),
            (Some("text") | None, Some(part), _) => text.push_str(part),
            (Some("reasoning"), Some(part), _) => reasoning.push_str(part),
            (Some("tool_call"), Some(part), _) => calls.extend(function_calls(part, what)?),
            (Some(other), _, _) if other != "text" => {
                return Err(Error::data(format!(
                    "{what} has a part of type `{}`, expected text only",
                    excerpt(other)
                )));
            }
            _ => {
                return Err(Error::data(format!(
                    "{what} has a part without text, got {}",
                    kind(part)
                )));
            }
        }
    }
    if !reasoning.is_empty() {
        out.insert("reasoning_content".into(), reasoning.into());
    }
    Ok(text)
}

/// One message of ShareGPT.
fn speaker(turn: &Map<String, Value>, from: &str, what: &str) -> Result<Message> {
    let text = match present(turn, "value") {
        Some(Value::String(text)) => text.as_str(),
        Some(other) => return Err(expected(&format!("the `value` of {what}"), "a string", other)),
        None => return Err(Error::data(format!("{what} (`{}`) has no `value`", excerpt(from)))),
    };
    let mut message = match from {
        "human" | "user" => Message::new("user", text),
        "gpt" | "assistant" | "chatgpt" | "model" | "bing" | "bard" => {
            Message::new("assistant", text)
        }
        "system" => Message::new("system", text),
        "observation" | "tool" | "function_response" | "function" => Message::new("tool", text),
        "function_call" => {
            let mut message = Message::new("assistant", "");
            message.0.insert("tool_calls".into(), function_calls(text, what)?.into());
            message
        }
        other => {
            return Err(Error::data(format!("{what} is from `{}`", excerpt(other))).hint(
                "expected `human`, `gpt`, `system`, `function_call`, `observation` or `tool`",
            ));
        }
    };
    for (key, value) in turn {
        if !value.is_null() && !matches!(key.as_str(), "from" | "value" | "role" | "content") {
            message.0.insert(key.clone(), value.clone());
        }
    }
    Ok(message)
}

/// The calls in a text: a JSON object `{"name", "arguments"}`, or an array of them.
fn function_calls(text: &str, what: &str) -> Result<Vec<Value>> {
    let wrong = |got: String| {
        Error::data(format!("the function call of {what} is not a call: {got}"))
            .hint("expected JSON such as `{\"name\": \"search\", \"arguments\": {\"q\": \"x\"}}`")
    };
    let parsed: Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let calls = match parsed {
        Value::Array(calls) if !calls.is_empty() => calls,
        Value::Object(_) => vec![parsed],
        other => return Err(wrong(format!("got {}", kind(&other)))),
    };
    calls
        .iter()
        .map(|call| {
            if call.get("name").is_none() && call.get("function").is_none() {
                return Err(wrong("no `name`".into()));
            }
            tool_call(call, what)
        })
        .collect()
}

/// One call in OpenAI's shape, its arguments an object where they can be one.
fn tool_call(call: &Value, what: &str) -> Result<Value> {
    let what = format!("a tool call of {what}");
    let outer = call.as_object().ok_or_else(|| expected(&what, "an object", call))?;
    // A bare `{"name", "arguments"}` is wrapped.
    let mut outer = outer.clone();
    if !outer.contains_key("function") {
        outer = Map::from_iter([
            ("type".to_string(), json!("function")),
            ("function".to_string(), Value::Object(outer)),
        ]);
    }
    outer.retain(|_, value| !value.is_null());
    let function = match outer.get_mut("function") {
        Some(Value::Object(function)) => function,
        Some(other) => return Err(expected(&format!("`function` of {what}"), "an object", other)),
        None => return Err(Error::data(format!("{what} has no `function`"))),
    };
    match function.get("name") {
        Some(Value::String(name)) if !name.is_empty() => {}
        Some(other) => return Err(expected(&format!("the `name` of {what}"), "a name", other)),
        None => return Err(Error::data(format!("{what} has no `name`"))),
    }
    if let Some(Value::String(text)) = function.get("arguments") {
        let object = serde_json::from_str::<Value>(text).ok().filter(Value::is_object);
        if let Some(object) = object {
            function.insert("arguments".into(), object);
        }
    }
    Ok(Value::Object(outer))
}

/// The `tools` column: an array of declarations, or the same as JSON in a string. With `wrap`, a
/// bare declaration (ShareGPT's habit) gets OpenAI's `{"type": "function", "function": …}`.
pub(super) fn tools(row: &Map<String, Value>, wrap: bool) -> Result<Option<Vec<Value>>> {
    let tools = match present(row, "tools") {
        None => return Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Value::String(text)) => serde_json::from_str::<Value>(text).map_err(|error| {
            Error::data(format!("`tools` is a string that is not JSON: {error}"))
        })?,
        Some(other) => other.clone(),
    };
    let Value::Array(tools) = tools else {
        return Err(expected("`tools`", "an array or a string of JSON", &tools));
    };
    let mut declarations = Vec::with_capacity(tools.len());
    for tool in tools {
        let Value::Object(declaration) = &tool else {
            return Err(expected("a tool of `tools`", "an object", &tool));
        };
        let bare = declaration.contains_key("name") && !declaration.contains_key("function");
        declarations.push(if wrap && bare {
            json!({ "type": "function", "function": tool })
        } else {
            tool
        });
    }
    Ok(Some(declarations).filter(|tools| !tools.is_empty()))
}
