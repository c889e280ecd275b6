//! Rows that are tokens already.

use serde_json::{Map, Value};

use super::value::{expected, present, required};
use crate::data::record::{Comparison, Record};
use crate::{Error, Result};

/// A row of `input_ids`, perhaps with `completion_mask`, `assistant_masks` or `labels`.
pub(super) fn tokenized(row: &Map<String, Value>) -> Result<Record> {
    let input_ids = ids(row, "input_ids")?;
    if input_ids.is_empty() {
        return Err(Error::data("`input_ids` is empty"));
    }
    if let Some(mask) = flags(row, "attention_mask", input_ids.len())?
        && mask.contains(&false)
    {
        return Err(Error::data("`attention_mask` marks padding, expected rows without")
            .hint("drop the padding: rows are packed, not padded"));
    }
    let mut masks = Vec::new();
    for column in ["completion_mask", "assistant_masks"] {
        if let Some(mask) = flags(row, column, input_ids.len())? {
            masks.push((column, mask));
        }
    }
    if present(row, "labels").is_some() {
        masks.push(("labels", labels(row, &input_ids)?));
    }
    if let [(first, mask), (second, other), ..] = masks.as_slice()
        && mask != other
    {
        return Err(Error::data(format!("`{first}` and `{second}` train different tokens"))
            .hint("keep one of the two"));
    }
    let completion_mask =
        masks.into_iter().next().map_or_else(|| vec![true; input_ids.len()], |(_, mask)| mask);
    Ok(Record::Tokenized { input_ids, completion_mask })
}

/// A row of `prompt_ids`, `chosen_ids`, `rejected_ids`.
pub(super) fn tokenized_preference(row: &Map<String, Value>) -> Result<Record> {
    let [prompt_ids, chosen_ids, rejected_ids] =
        ["prompt_ids", "chosen_ids", "rejected_ids"].map(|column| ids(row, column));
    let (chosen_ids, rejected_ids) = (chosen_ids?, rejected_ids?);
    for (column, ids) in [("chosen_ids", &chosen_ids), ("rejected_ids", &rejected_ids)] {
        if ids.is_empty() {
            return Err(Error::data(format!("`{column}` is empty")));
        }
    }
    let (prompt_ids, comparison) = (prompt_ids?, Comparison::of(row));
    Ok(Record::TokenizedPreference { prompt_ids, chosen_ids, rejected_ids, comparison })
}

fn array<'a>(row: &'a Map<String, Value>, column: &str) -> Result<&'a [Value]> {
    let value = required(row, column)?;
    value
        .as_array()
        .map(Vec::as_slice)
        .ok_or_else(|| expected(&format!("`{column}`"), "an array", value))
}

fn ids(row: &Map<String, Value>, column: &str) -> Result<Vec<u32>> {
    array(row, column)?
        .iter()
        .enumerate()
        .map(|(index, value)| {
            value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| expected(&format!("`{column}[{index}]`"), "a token id", value))
        })
        .collect()
}

/// A column of 0 and 1 or of booleans, as long as the tokens.
fn flags(row: &Map<String, Value>, column: &str, len: usize) -> Result<Option<Vec<bool>>> {
    if present(row, column).is_none() {
        return Ok(None);
    }
    let values = array(row, column)?;
    same_length(column, values.len(), len)?;
    let flag = |(index, value): (usize, &Value)| match (value, value.as_u64()) {
        (Value::Bool(flag), _) => Ok(*flag),
        (_, Some(0)) => Ok(false),
        (_, Some(1)) => Ok(true),
        _ => Err(expected(&format!("`{column}[{index}]`"), "0 or 1", value)),
    };
    values.iter().enumerate().map(flag).collect::<Result<_>>().map(Some)
}

/// The mask that labels say: −100 is not trained, everything else must be the token itself.
fn labels(row: &Map<String, Value>, input_ids: &[u32]) -> Result<Vec<bool>> {
    let values = array(row, "labels")?;
    same_length("labels", values.len(), input_ids.len())?;
    let label = |(index, (value, &id)): (usize, (&Value, &u32))| match value.as_i64() {
        Some(-100) => Ok(false),
        Some(label) if label == i64::from(id) => Ok(true),
        Some(_) => Err(expected(
            &format!("`labels[{index}]`"),
            &format!("-100 or `input_ids[{index}]` (`{id}`)"),
            value,
        )
        .hint("labels are not shifted: each is the token at its own place")),
        None => Err(expected(&format!("`labels[{index}]`"), "an integer", value)),
    };
    values.iter().zip(input_ids).enumerate().map(label).collect()
}

fn same_length(column: &str, got: usize, len: usize) -> Result<()> {
    if got == len {
        return Ok(());
    }
    Err(Error::data(format!(
        "expected `{column}` to have `{len}` values as `input_ids` has, got `{got}`"
    )))
}
