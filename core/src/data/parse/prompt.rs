//! Prompts and completions: text, messages, or one of each.

use serde_json::{Map, Value};

use super::chat;
use super::value::{expected, optional_string, present, required};
use crate::data::record::{Message, Record, Turn};
use crate::{Error, Result};

/// A row of `prompt` and `completion`.
pub(super) fn prompt_completion(row: &Map<String, Value>) -> Result<Record> {
    let prompt = prompt(row, "prompt")?;
    let completion = completion(required(row, "completion")?, "completion")?;
    let (prompt, [completion]) = agree(prompt, [completion]);
    Ok(Record::PromptCompletion { prompt, completion, tools: chat::tools(row, false)? })
}

/// A row of a `prompt` alone.
pub(super) fn alone(row: &Map<String, Value>) -> Result<Record> {
    Ok(Record::Prompt { prompt: prompt(row, "prompt")?, tools: chat::tools(row, false)? })
}

/// The prompt in `column`, with the `system` column before it; a system prompt makes a text prompt
/// a user's message.
pub(super) fn prompt(row: &Map<String, Value>, column: &str) -> Result<Turn> {
    let system = optional_string(row, "system")?;
    Ok(match required(row, column)? {
        Value::String(text) if system.is_none() => Turn::Text(text.clone()),
        Value::String(text) => {
            Turn::Messages(chat::with_system(row, vec![Message::new("user", text)])?)
        }
        value @ (Value::Array(_) | Value::Object(_)) => {
            Turn::Messages(chat::with_system(row, chat::messages(value, column)?)?)
        }
        other => {
            return Err(expected(&format!("`{column}`"), "a string or messages", other));
        }
    })
}

/// The completion in `value`: a string, a message, or messages.
pub(super) fn completion(value: &Value, column: &str) -> Result<Turn> {
    match value {
        Value::String(text) => Ok(Turn::Text(text.clone())),
        Value::Array(_) | Value::Object(_) => Ok(Turn::Messages(chat::messages(value, column)?)),
        other => Err(expected(&format!("`{column}`"), "a string or messages", other)),
    }
}

/// Where some are text and some messages, makes all of them messages: a text prompt is a user's,
/// a text completion the assistant's.
pub(super) fn agree<const N: usize>(prompt: Turn, completions: [Turn; N]) -> (Turn, [Turn; N]) {
    let is_chat = |turn: &Turn| matches!(turn, Turn::Messages(_));
    if !is_chat(&prompt) && !completions.iter().any(is_chat) {
        return (prompt, completions);
    }
    (as_messages(prompt, "user"), completions.map(|turn| as_messages(turn, "assistant")))
}

pub(super) fn as_messages(turn: Turn, role: &str) -> Turn {
    match turn {
        Turn::Text(text) => Turn::Messages(vec![Message::new(role, &text)]),
        messages => messages,
    }
}

/// The prompt of a row, in whichever column it is: `prompt`, a conversation, or Alpaca's.
pub(super) fn any_prompt(row: &Map<String, Value>) -> Result<Option<Turn>> {
    if present(row, "prompt").is_some() {
        return prompt(row, "prompt").map(Some);
    }
    if let Some(column) = chat::conversation_column(row) {
        return prompt(row, column).map(Some);
    }
    if present(row, "instruction").is_some() {
        return Ok(Some(Turn::Messages(chat::alpaca_prompt(row)?)));
    }
    match optional_string(row, "system")? {
        None => Ok(None),
        Some(_) => Err(Error::data("a `system` column needs a `prompt` beside it")
            .hint("name the prompt's column with `--column prompt=question`")),
    }
}
