//! The options of a step: from a table of the pipeline's file to a struct that can be used.

use std::path::PathBuf;

use halter_core::{Error, Result};
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::asking;
use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Made, Questions, Step};

/// Options that can be checked before anything runs.
pub(super) trait Checked {
    /// Refuses values that cannot be used; the step's name is put before the message.
    fn check(&self) -> Result<()>;

    /// Questions to a teacher for each row.
    fn questions(&self) -> usize {
        0
    }

    /// Files that are read beside the rows.
    fn files(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

/// Reads and checks a step's options.
pub(super) fn made<S>(kind: &str, options: &mut Options, teachers: &[&str]) -> Result<Made>
where
    S: Step + Checked + DeserializeOwned + 'static,
{
    let read = |table: Table| {
        let step = S::deserialize(Value::Table(table))
            .map_err(|error| Error::config(error.message().replace('\n', " ")))?;
        step.check().map(|()| step)
    };
    let mut table = options.take_rest();
    let mut step = read(table.clone()).map_err(|error| options.about(kind, &error))?;
    let mut asked = Vec::new();
    if step.questions() > 0 {
        let name = match table.get("teacher") {
            Some(Value::String(name)) => name.clone(),
            _ => asking::teacher(options, "teacher", teachers)?,
        };
        table.insert("teacher".into(), Value::String(name.clone()));
        step = read(table)?;
        asked.push(name);
    }
    Ok(Made {
        teachers: asked,
        files: step.files(),
        needs_rows: true,
        questions: Questions::PerRow(step.questions()),
        step: Box::new(step),
    })
}

/// A value that cannot be used.
pub(super) fn wrong(key: &str, expected: &str, got: impl std::fmt::Display) -> Error {
    Error::config(format!("`{key}`: expected {expected}, got `{got}`"))
}

/// Refuses a share that is not above zero and at most one.
pub(super) fn share(key: &str, value: f64) -> Result<()> {
    match value > 0.0 && value <= 1.0 {
        true => Ok(()),
        false => Err(wrong(key, "a share above 0 and at most 1", value)),
    }
}

/// Refuses the empty name of a column.
pub(super) fn column(key: &str, name: &str) -> Result<()> {
    match name.is_empty() {
        false => Ok(()),
        true => Err(wrong(key, "the name of a column", "")),
    }
}

/// A row's number in a column. A dot goes into an object: `judge.accuracy`.
pub(super) fn number(row: &Row, column: &str) -> Option<f64> {
    value(row, column)?.as_f64()
}

/// A row's value in a column, or within the object there.
pub(super) fn value<'a>(row: &'a Row, column: &str) -> Option<&'a serde_json::Value> {
    let own = row.0.get(column);
    let within = || {
        let mut parts = column.split('.');
        let first = row.0.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    };
    own.or_else(within).filter(|value| !value.is_null())
}

/// What a row is grouped by: the text of a column, or its JSON; `null` where there is none.
pub(super) fn group(row: &Row, column: &str) -> String {
    match value(row, column) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "null".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_their_own_name_first_and_then_within() {
        let row = |text: &str| Row(serde_json::from_str(text).unwrap());
        let nested = row(r#"{"judge": {"tone": 1}, "a.b": 2, "a": {"b": 3}, "n": null}"#);
        assert_eq!(number(&nested, "judge.tone"), Some(1.0));
        assert_eq!(number(&nested, "a.b"), Some(2.0));
        assert_eq!(number(&nested, "judge"), None);
        assert_eq!(group(&nested, "n"), "null");
        assert_eq!(group(&nested, "a"), r#"{"b":3}"#);
    }
}
