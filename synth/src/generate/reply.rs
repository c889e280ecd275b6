//! What rows ask, and what replies hold.

use halter_core::data::record::Message;
use serde_json::Value;

use crate::row::Row;

/// The conversation that is to be answered: the prompt, or the messages before the last answer.
pub(crate) fn prompt(row: &Row) -> Option<Vec<Message>> {
    let turns = |value: &Value| match value {
        Value::String(text) => Some(vec![Message::new("user", text)]),
        Value::Array(turns) => {
            turns.iter().map(|turn| Some(Message(turn.as_object()?.clone()))).collect()
        }
        _ => None,
    };
    let found = match row.0.get("prompt") {
        Some(value) => turns(value)?,
        None => {
            let mut turns = match row.messages() {
                Some(turns) => turns,
                None => vec![Message::new("user", &alpaca(row)?)],
            };
            let last = turns.iter().rposition(|turn| turn.role() == "user")?;
            turns.truncate(last + 1);
            turns
        }
    };
    let says = found.last().and_then(Message::content).is_some_and(|text| !text.trim().is_empty());
    says.then_some(found)
}

fn alpaca(row: &Row) -> Option<String> {
    let instruction = ["instruction", "question"].iter().find_map(|name| row.text(name))?;
    match row.text("input").filter(|input| !input.trim().is_empty()) {
        Some(input) => Some(format!("{instruction}\n\n{input}")),
        None => Some(instruction.to_string()),
    }
}

/// The last message of the user.
pub(crate) fn instruction(row: &Row) -> Option<String> {
    let turns = prompt(row)?;
    let last = turns.iter().rev().find(|turn| turn.role() == "user")?;
    last.content().map(|text| text.trim().to_string())
}

/// What was answered: the completion, the last answer, or the text.
pub(crate) fn answer(row: &Row) -> Option<String> {
    let said = match row.0.get("completion").or(row.0.get("output")) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(turns)) => turns.last()?.get("content")?.as_str().map(str::to_string),
        _ => None,
    };
    let spoken = || {
        let turns = row.messages()?;
        let last = turns.iter().rev().find(|turn| turn.role() == "assistant")?;
        last.content().map(str::to_string)
    };
    said.or_else(spoken)
        .or_else(|| row.text("text").map(str::to_string))
        .map(|text| text.trim().to_string())
        .filter(|text| !text.is_empty())
}

/// The number from `least` to `most` that a reply ends with, after `mark`: `Score: 4`.
pub(crate) fn score(reply: &str, mark: &str, least: f64, most: f64) -> Option<f64> {
    let lower = reply.to_ascii_lowercase();
    let (_, after) = lower.rsplit_once(&mark.to_ascii_lowercase())?;
    let after = after.trim_start_matches(|c: char| c.is_whitespace() || "*:".contains(c));
    let end = after.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-'));
    let number = after[..end.unwrap_or(after.len())].trim_end_matches('.');
    let number: f64 = number.parse().ok()?;
    (least..=most).contains(&number).then_some(number)
}

/// The JSON that a reply is, after its thinking and without a fence around all of it.
pub(crate) fn json(reply: &str) -> Option<Value> {
    let text = super::asking::after_thinking(reply);
    let fenced = text.strip_prefix("```").and_then(|text| text.strip_suffix("```"));
    let text = fenced.map_or(text, |text| text.strip_prefix("json").unwrap_or(text));
    serde_json::from_str(text.trim()).ok()
}

/// A text without the quotes or fence around it.
pub(crate) fn bare(text: &str) -> &str {
    let text = text.trim();
    let inside = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    inside.filter(|inside| !inside.contains('"')).unwrap_or(text).trim()
}
