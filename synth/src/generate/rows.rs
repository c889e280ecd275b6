//! Rows from data files.

use halter_core::Result;
use serde_json::{Value, json};

use super::{Made, Questions};
use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Outcome, Run, Step};

/// The rows of its input, some of them if `limit` says so, each with the note of their licence.
#[derive(Debug)]
pub(super) struct Read {
    skip: usize,
    limit: Option<usize>,
    licence: Option<String>,
}

impl Read {
    pub fn made(options: &mut Options) -> Result<Made> {
        let step = Self {
            skip: options.or("skip", 0)?,
            limit: options.get("limit")?,
            licence: options.get("licence")?,
        };
        Ok(Made {
            step: Box::new(step),
            teachers: Vec::new(),
            files: Vec::new(),
            needs_rows: true,
            questions: Questions::Fixed(0),
        })
    }
}

impl Step for Read {
    fn run(&self, rows: Vec<Row>, _: &mut Run) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let of = rows.len();
        for mut row in rows.into_iter().skip(self.skip).take(self.limit.unwrap_or(usize::MAX)) {
            let mut entries = match row.0.get("provenance") {
                Some(Value::Array(entries)) => entries.clone(),
                _ => Vec::new(),
            };
            entries.push(json!({"kind": "rows", "parents": [row.id()], "licence": self.licence}));
            row.set("provenance", entries);
            outcome.rows.push(row);
        }
        outcome.figures.insert("rows_there".into(), json!(of));
        Ok(outcome)
    }
}
