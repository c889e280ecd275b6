//! What is refused in a conversation before a template sees it.

use serde_json::Value;

use super::tokenizer::Tokenizer;
use crate::data::record::Message;
use crate::{Error, Result};

/// What every template takes for granted, and some would pass over in silence.
pub fn check_messages(messages: &[Message]) -> Result<()> {
    if messages.is_empty() {
        return Err(Error::data("conversation has no messages"));
    }
    for (number, message) in (1..).zip(messages) {
        match message.0.get("role") {
            Some(Value::String(role)) if !role.is_empty() => {}
            Some(other) => {
                return Err(Error::data(format!(
                    "message `{number}` has role `{other}`, expected a name"
                )));
            }
            None => return Err(Error::data(format!("message `{number}` has no `role`"))),
        }
        match message.0.get("content") {
            Some(Value::String(_) | Value::Array(_) | Value::Object(_)) => {}
            // a tool call or a thought may stand for the content
            None | Some(Value::Null)
                if ["tool_calls", "reasoning_content", "thinking"]
                    .iter()
                    .any(|key| message.0.get(*key).is_some_and(|value| !value.is_null())) => {}
            None | Some(Value::Null) => {
                return Err(Error::data(format!("message `{number}` has no `content`")));
            }
            Some(other) => {
                return Err(Error::data(format!(
                    "message `{number}` has content `{other}`, expected text"
                )));
            }
        }
        check_training(message, number)?;
    }
    Ok(())
}

/// A turn is trained or not, and only an assistant's can be.
fn check_training(message: &Message, number: usize) -> Result<()> {
    let Some((key, value)) = message.training() else { return Ok(()) };
    let (said, role) = (format!("message `{number}` has `{key}` `{value}`"), message.role());
    match message.is_trained() {
        None => Err(Error::data(format!("{said}, expected 0 or 1"))),
        Some(true) if role != "assistant" => {
            let message = format!("{said}, but its role is `{role}`");
            Err(Error::data(message).hint("only assistant turns are trained"))
        }
        Some(_) => Ok(()),
    }
}

/// Special tokens must not stand as text in a conversation: `<|im_end|>` in a question would end
/// the turn.
pub fn check_special_text(
    messages: &[Message],
    tools: Option<&[Value]>,
    tokenizer: &Tokenizer,
) -> Result<()> {
    for (number, message) in (1..).zip(messages) {
        for value in message.0.values() {
            check_special(value, tokenizer, &format!("message `{number}`"), 0)?;
        }
    }
    let mut tools = tools.unwrap_or_default().iter();
    tools.try_for_each(|tool| check_special(tool, tokenizer, "a tool declaration", 0))
}

fn check_special(value: &Value, tokenizer: &Tokenizer, place: &str, depth: usize) -> Result<()> {
    match value {
        Value::String(text) => match tokenizer.special_in(text) {
            None => Ok(()),
            Some(token) => Err(special_text(place, token)),
        },
        Value::Array(items) if depth < 128 => {
            items.iter().try_for_each(|item| check_special(item, tokenizer, place, depth + 1))
        }
        Value::Object(map) if depth < 128 => {
            map.values().try_for_each(|item| check_special(item, tokenizer, place, depth + 1))
        }
        _ => Ok(()),
    }
}

fn special_text(place: &str, token: &str) -> Error {
    Error::data(format!("{place} holds the special token `{token}` as text"))
        .hint("take it out of the data, or allow it with `--allow-special-text`")
}
