//! The files of a step: whole or not there, and what they were made from beside them.

use std::collections::BTreeMap;
use std::path::Path;

use halter_core::train::files::atomic_write;
use halter_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::asking::UNANSWERED;
use crate::row::Row;
use crate::step::Outcome;

/// What is known of a step's files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// The hash of all that the rows depend on.
    pub key: String,
    /// Of the rows' file.
    pub rows_hash: String,
    /// Of the file of what was removed.
    pub removed_hash: String,
    /// Rows that were read.
    pub rows_in: usize,
    /// Rows that came out.
    pub rows_out: usize,
    /// Rows removed, by reason.
    pub removed: BTreeMap<String, usize>,
    /// Figures of the step's own.
    pub figures: Map<String, Value>,
    /// What the teachers had spent when the step was through.
    pub spent: BTreeMap<String, Spending>,
}

/// What a teacher's answers took.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Spending {
    /// Requests, those that failed included.
    pub requests: u64,
    /// Of prompts and completions.
    pub tokens: u64,
    /// In the unit of the prices.
    pub money: f64,
}

pub(super) fn hash_file(path: &Path) -> Option<String> {
    let bytes = std::fs::read(path).ok()?;
    Some(blake3::hash(&bytes).to_hex().to_string())
}

impl Made {
    /// Questions that got no answer for a reason that may pass: no server, no room, no tries left.
    pub fn unanswered(&self) -> u64 {
        self.figures.get(UNANSWERED).and_then(Value::as_u64).unwrap_or(0)
    }
}

/// What was made before, where it is whole, has the key, and would not come out otherwise now.
pub(super) fn read(files: &[std::path::PathBuf; 3], key: &str) -> Option<Made> {
    let [rows, removed, about] = files;
    let made: Made = serde_json::from_slice(&std::fs::read(about).ok()?).ok()?;
    let whole = made.key == key
        && made.unanswered() == 0
        && hash_file(rows)? == made.rows_hash
        && hash_file(removed)? == made.removed_hash;
    whole.then_some(made)
}

/// Writes rows and what was removed, then what is known of them.
pub(super) fn write(
    files: &[std::path::PathBuf; 3],
    key: String,
    rows_in: usize,
    outcome: Outcome,
    spent: BTreeMap<String, Spending>,
) -> Result<Made> {
    let [rows_path, removed_path, about] = files;
    let mut rows = String::new();
    for row in &outcome.rows {
        rows += &Value::Object(row.0.clone()).to_string();
        rows.push('\n');
    }
    let mut removed = String::new();
    let mut reasons = BTreeMap::new();
    for item in &outcome.removed {
        *reasons.entry(item.reason.to_string()).or_insert(0) += 1;
        let line = json!({"reason": item.reason, "detail": item.detail, "row": item.row.0});
        removed += &line.to_string();
        removed.push('\n');
    }
    let hash = |text: &str| blake3::hash(text.as_bytes()).to_hex().to_string();
    let made = Made {
        key,
        rows_hash: hash(&rows),
        removed_hash: hash(&removed),
        rows_in,
        rows_out: outcome.rows.len(),
        removed: reasons,
        figures: outcome.figures,
        spent,
    };
    atomic_write(rows_path, rows.as_bytes())?;
    atomic_write(removed_path, removed.as_bytes())?;
    let told = serde_json::to_string_pretty(&made)
        .map_err(|error| Error::data("a step's figures cannot be written").because(error))?;
    atomic_write(about, (told + "\n").as_bytes())?;
    Ok(made)
}

/// The rows in a step's file.
pub(super) fn rows(path: &Path) -> Result<Vec<Row>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let parse = |(at, line): (usize, &str)| {
        let row = serde_json::from_str(line);
        row.map(Row).map_err(|e| Error::data("expected a row").at(path, at + 1).because(e))
    };
    text.lines().enumerate().map(parse).collect()
}
