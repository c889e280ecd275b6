//! Steps that generate rows: each asks teachers, and reads strictly what they say. A reply that does
//! not fit is removed with its reason.

mod answer;
mod asking;
mod backtranslate;
mod dialogue;
mod evol_instruct;
mod magpie;
mod maths;
mod personas;
mod preferences;
mod reply;
mod rouge;
mod rows;
mod self_instruct;
mod template;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use halter_core::Result;

use crate::pipeline::Options;
use crate::step::Step;

/// What `kind` of a step may be.
pub const KINDS: [&str; 10] = [
    "answer",
    "backtranslate",
    "dialogue",
    "evol-instruct",
    "magpie",
    "maths",
    "personas",
    "preferences",
    "rows",
    "self-instruct",
];

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

/// The step of a kind; `None` where there is no such kind. `teachers` are the names that there are.
pub fn step(kind: &str, options: &mut Options, teachers: &[&str]) -> Option<Result<Made>> {
    Some(match kind {
        "answer" => answer::Answer::made(options, teachers),
        "backtranslate" => backtranslate::Backtranslate::made(options, teachers),
        "dialogue" => dialogue::Dialogue::made(options, teachers),
        "evol-instruct" => evol_instruct::EvolInstruct::made(options, teachers),
        "magpie" => magpie::Magpie::made(options, teachers),
        "maths" => maths::Maths::made(options, teachers),
        "personas" => personas::Personas::made(options, teachers),
        "preferences" => preferences::Preferences::made(options, teachers),
        "rows" => rows::Read::made(options),
        "self-instruct" => self_instruct::SelfInstruct::made(options, teachers),
        _ => return None,
    })
}

/// A number that only `text` decides; it fits into 63 bits, which is what servers take as a seed.
pub(crate) fn number(text: &str) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..8]);
    u64::from_le_bytes(first) >> 1
}
