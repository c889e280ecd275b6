//! Rows that compare or judge completions.

use serde_json::{Map, Value};

use super::chat;
use super::prompt::{agree, any_prompt, as_messages, completion, prompt};
use super::value::{expected, present, required};
use crate::data::record::{Comparison, Record, Turn};
use crate::{Error, Result};

/// Refuses a column that these records could not carry to the template.
fn without_tools(row: &Map<String, Value>) -> Result<()> {
    match chat::tools(row, false)? {
        None => Ok(()),
        Some(_) => Err(Error::data("a `tools` column beside compared or judged completions")
            .hint("tools are read with `messages` and with `prompt` and `completion` only")),
    }
}

/// A row of `chosen` and `rejected`.
pub(super) fn preference(row: &Map<String, Value>) -> Result<Record> {
    without_tools(row)?;
    let [chosen, rejected] = [("chosen", "chosen_messages"), ("rejected", "rejected_messages")]
        .map(|(column, other)| {
            let column = if present(row, column).is_none() && present(row, other).is_some() {
                other
            } else {
                column
            };
            completion(required(row, column)?, column)
        });
    let (chosen, rejected) = (chosen?, rejected?);
    let comparison = Comparison::of(row);
    match any_prompt(row)? {
        Some(prompt) if !(repeats(&prompt, &chosen) && repeats(&prompt, &rejected)) => {
            let (prompt, [chosen, rejected]) = agree(prompt, [chosen, rejected]);
            Ok(Record::Preference { prompt: Some(prompt), chosen, rejected, comparison })
        }
        // Where both completions begin with the prompt again (UltraFeedback's files), it is the
        // one that they share.
        _ => match (&chosen, &rejected) {
            (Turn::Text(_), Turn::Text(_)) | (Turn::Messages(_), Turn::Messages(_)) => {
                Ok(Record::Preference { prompt: None, chosen, rejected, comparison })
            }
            _ => Err(Error::data(
                "expected `chosen` and `rejected` to be both text or both messages",
            )),
        },
    }
}

/// Whether a completion in messages begins with the prompt that the row gave apart from it.
fn repeats(prompt: &Turn, completion: &Turn) -> bool {
    let Turn::Messages(turns) = completion else { return false };
    match prompt {
        Turn::Text(text) => turns
            .iter()
            .find(|turn| turn.role() != "system")
            .is_some_and(|turn| turn.role() == "user" && turn.content() == Some(text)),
        Turn::Messages(prompt) => turns.len() > prompt.len() && turns.starts_with(prompt),
    }
}

/// A row of `prompt` and `completions`, best first.
pub(super) fn ranked(row: &Map<String, Value>) -> Result<Record> {
    without_tools(row)?;
    let mut prompt = prompt(row, "prompt")?;
    let value = required(row, "completions")?;
    let Value::Array(completions) = value else {
        return Err(expected("`completions`", "an array", value));
    };
    if completions.len() < 2 {
        return Err(Error::data(format!(
            "expected two or more `completions`, got `{}`",
            completions.len()
        )));
    }
    let mut completions: Vec<Turn> = completions
        .iter()
        .enumerate()
        .map(|(index, value)| completion(value, &format!("completions[{index}]")))
        .collect::<Result<_>>()?;
    let is_chat = |turn: &Turn| matches!(turn, Turn::Messages(_));
    if is_chat(&prompt) || completions.iter().any(is_chat) {
        prompt = as_messages(prompt, "user");
        completions = completions.into_iter().map(|turn| as_messages(turn, "assistant")).collect();
    }
    Ok(Record::Ranked { prompt, completions, comparison: Comparison::of(row) })
}

/// A completion with a verdict: `prompt`, `completion`, `label`; or a conversation whose last turn
/// is judged; or Alpaca's columns.
pub(super) fn unpaired(row: &Map<String, Value>) -> Result<Record> {
    without_tools(row)?;
    let column = if present(row, "kto_tag").is_some() { "kto_tag" } else { "label" };
    let label = match required(row, column)? {
        Value::Bool(label) => *label,
        value => match value.as_u64() {
            Some(0) => false,
            Some(1) => true,
            _ => return Err(expected(&format!("`{column}`"), "true or false", value)),
        },
    };
    if present(row, "completion").is_some() {
        let completion = completion(required(row, "completion")?, "completion")?;
        let (prompt, [completion]) = agree(prompt(row, "prompt")?, [completion]);
        return Ok(Record::Unpaired { prompt, completion, label });
    }
    let mut messages = match chat::conversation_column(row) {
        Some(column) => chat::with_system(row, chat::messages(required(row, column)?, column)?)?,
        None if present(row, "instruction").is_some() => match chat::alpaca(row)? {
            Record::Chat { messages, .. } => messages,
            _ => Vec::new(),
        },
        None => return Err(Error::data("expected a `completion` beside the `label`")),
    };
    match messages.pop() {
        Some(last) if last.role() == "assistant" && !messages.is_empty() => Ok(Record::Unpaired {
            prompt: Turn::Messages(messages),
            completion: Turn::Messages(vec![last]),
            label,
        }),
        Some(last) => Err(Error::data(format!(
            "expected the judged conversation to be a prompt and an assistant's answer, got a last \
             turn of `{}` after `{}` others",
            last.role(),
            messages.len()
        ))),
        None => Err(Error::data("expected at least one message")),
    }
}
