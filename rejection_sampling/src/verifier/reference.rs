//! Where a row keeps the right answer.

use halter_core::data::parse::value::{expected, names, present};
use halter_core::{Error, Result};
use serde_json::{Map, Value};

use super::answer;

/// Columns looked at, in this order, where none is named.
pub const COLUMNS: [&str; 4] = ["answer", "solution", "reference", "ground_truth"];

/// The assistant's turn that a row for fine-tuning ends with.
fn assistant_turn(row: &Map<String, Value>) -> Option<(&'static str, &Value)> {
    ["messages", "completion"].into_iter().find_map(|column| {
        let turn = match present(row, column)? {
            Value::Array(messages) => {
                let last = messages.last()?;
                (last.get("role")?.as_str()? == "assistant").then(|| last.get("content"))??
            }
            text => text,
        };
        Some((column, turn))
    })
}

/// The column that holds the right answer: a named one, or the first of [`COLUMNS`] that is there,
/// or the assistant's turn at the end of `messages` or `completion`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reference {
    column: Option<String>,
}

impl Reference {
    /// The answer in `column`, or in the first of [`COLUMNS`].
    pub fn new(column: Option<&str>) -> Self {
        Self { column: column.map(str::to_string) }
    }

    /// The right answer of `row`: what follows the last `####` (GSM8K), else the last `\boxed{…}`
    /// (MATH), else the whole column, trimmed. Numbers and booleans are taken as they are written.
    ///
    /// # Errors
    /// The column is missing, null, or neither text, number nor boolean; or the answer is empty.
    pub fn answer(&self, row: &Map<String, Value>) -> Result<String> {
        let (column, text) = self.read(row)?;
        let stated = answer::line(&text).or_else(|| answer::boxed(&text));
        let whole = if text.trim_end().ends_with("####") { "" } else { &text };
        match stated.unwrap_or(whole).trim() {
            "" => Err(Error::data(format!("column `{column}`: expected an answer, got none"))),
            answer => Ok(answer.to_string()),
        }
    }

    /// All that the column of `row` says.
    ///
    /// # Errors
    /// The column is missing, null, or neither text, number nor boolean.
    pub fn text(&self, row: &Map<String, Value>) -> Result<String> {
        self.read(row).map(|(_, text)| text)
    }

    fn read<'a>(&'a self, row: &'a Map<String, Value>) -> Result<(&'a str, String)> {
        let (column, value) = self.find(row)?;
        match value {
            Value::String(text) => Ok((column, text.clone())),
            Value::Number(_) | Value::Bool(_) => Ok((column, value.to_string())),
            other => Err(expected(&format!("`{column}`"), "text or a number", other)),
        }
    }

    fn find<'a>(&'a self, row: &'a Map<String, Value>) -> Result<(&'a str, &'a Value)> {
        let found = match &self.column {
            Some(column) => present(row, column).map(|value| (column.as_str(), value)),
            None => COLUMNS
                .iter()
                .find_map(|column| Some((*column, present(row, column)?)))
                .or_else(|| assistant_turn(row)),
        };
        found.ok_or_else(|| {
            let wanted = match &self.column {
                Some(column) => format!("a column `{column}`"),
                None => "a column `answer`, `solution`, `reference` or `ground_truth`, or an \
                         assistant's turn"
                    .to_string(),
            };
            Error::data(format!("right answer: expected {wanted}, got {}", names(row)))
                .hint("name the column that holds it, as in `numeric:column=target`")
        })
    }
}
