//! A step of a pipeline.

use std::collections::BTreeMap;
use std::path::PathBuf;

use halter_core::Result;
use halter_core::endpoint::Teacher;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::Progress;
use serde_json::{Map, Value};

use crate::row::Row;

/// A function from rows to rows: equal rows, options, seed and answers give equal rows. So a step
/// that was interrupted is run again from its beginning, and asks its teachers nothing twice, as they
/// keep their answers.
pub trait Step: Send + Sync {
    /// Runs it.
    ///
    /// # Errors
    /// What ends the pipeline; a row that cannot be used is removed with its reason instead.
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome>;
}

/// What a step runs with.
pub struct Run<'a> {
    /// By the names that the pipeline gives them.
    pub teachers: &'a BTreeMap<String, Box<dyn Teacher>>,
    /// The pipeline's seed, with the step's name mixed in.
    pub seed: u64,
    /// Who watches.
    pub progress: &'a mut dyn Progress,
    /// Looked at often.
    pub interrupt: &'a Interrupt,
}

/// What a step made.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// What the next step reads.
    pub rows: Vec<Row>,
    /// What went into the step and did not come out, and what failed.
    pub removed: Vec<Removed>,
    /// Figures of the step's own, for the report.
    pub figures: Map<String, Value>,
}

/// A row that went no further.
#[derive(Debug, Clone, PartialEq)]
pub struct Removed {
    /// The row.
    pub row: Row,
    /// Why, in a few words that many rows share (`refusal`, `near-duplicate`, `no answer`).
    pub reason: &'static str,
    /// What exactly: the phrase that was found, the row that it repeats, the server's error.
    pub detail: String,
}

/// A step made from its options, and what a pipeline must know of it.
pub struct Made {
    /// The step.
    pub step: Box<dyn Step>,
    /// Whom it asks.
    pub teachers: Vec<String>,
    /// Files that it reads beside its rows.
    pub files: Vec<PathBuf>,
    /// Whether it does nothing without rows.
    pub needs_rows: bool,
    /// How much it asks.
    pub questions: Questions,
}

/// How much a step asks, where all goes well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Questions {
    /// For each row.
    PerRow(usize),
    /// Whatever the rows are.
    Fixed(usize),
}

impl Questions {
    /// For so many rows.
    pub fn of(self, rows: usize) -> usize {
        match self {
            Self::PerRow(each) => each.saturating_mul(rows),
            Self::Fixed(all) => all,
        }
    }
}
