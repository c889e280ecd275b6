//! Small readers of JSON values that say what they expected and what they got.

use serde_json::{Map, Value};

use crate::{Error, Result};

/// What a value is, for an error message.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A column's value, unless it is missing or null.
pub fn present<'a>(row: &'a Map<String, Value>, column: &str) -> Option<&'a Value> {
    row.get(column).filter(|value| !value.is_null())
}

/// A column that must be there.
pub fn required<'a>(row: &'a Map<String, Value>, column: &str) -> Result<&'a Value> {
    match row.get(column) {
        Some(Value::Null) => Err(Error::data(format!("column `{column}` is null"))),
        Some(value) => Ok(value),
        None => Err(Error::data(format!("expected a column `{column}`, got {}", names(row)))),
    }
}

/// A column that must be there and hold a string.
pub fn string<'a>(row: &'a Map<String, Value>, column: &str) -> Result<&'a str> {
    let value = required(row, column)?;
    value.as_str().ok_or_else(|| expected(&format!("`{column}`"), "a string", value))
}

/// A column that may be missing, null or empty, and is a string where it is there.
pub(crate) fn optional_string<'a>(
    row: &'a Map<String, Value>,
    column: &str,
) -> Result<Option<&'a str>> {
    match present(row, column) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(other) => Err(expected(&format!("`{column}`"), "a string", other)),
    }
}

/// "expected `what` to be …, got …".
pub fn expected(what: &str, wanted: &str, got: &Value) -> Error {
    Error::data(format!("expected {what} to be {wanted}, got {}", shown(got)))
}

/// A value as an error shows it: its kind, and the value itself where it is short.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) | Value::Number(_) => format!("`{value}`"),
        Value::String(text) => {
            format!("the string `{}`", excerpt(text))
        }
        other => kind(other).into(),
    }
}

/// At most 40 characters of a text, without control characters.
pub fn excerpt(text: &str) -> String {
    let mut short: String =
        text.chars().take(40).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(40).is_some() {
        short.push('…');
    }
    short
}

/// The columns of a row, for an error message.
pub fn names(row: &Map<String, Value>) -> String {
    let shown: Vec<_> = row.keys().take(12).map(|name| format!("`{}`", excerpt(name))).collect();
    match (shown.len(), row.len()) {
        (0, _) => "an empty object".into(),
        (few, all) if few < all => format!("{} and {} more", shown.join(", "), all - few),
        _ => shown.join(", "),
    }
}
