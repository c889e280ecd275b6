//! Instructions that a program can check: all 25 of IFEval (Zhou et al. 2023, "Instruction-Following
//! Evaluation for Large Language Models").

mod kind;
mod language;
#[cfg(test)]
mod tests;
mod text;

use halter_core::data::parse::value::{expected, required};
use halter_core::{Error, Result};
use serde_json::{Map, Value};

pub use kind::Instruction;

use crate::scorer::{Item, Score, Scorer};

/// The share of the row's instructions that the completion follows.
///
/// The instructions are the row's `instruction_id_list` and `kwargs`, as in the data set
/// `google/IFEval`. Departures from the original program:
/// - an argument that is missing is an error, where the original draws one at random;
/// - keywords and markers are found as they are written, where the original reads them as regular
///   expressions;
/// - sentences (`number_sentences`) are counted by rules instead of nltk's trained Punkt model;
///   words in capitals by rules close to nltk's tokenizer;
/// - languages are told by the crate `whatlang`, which does not know Swahili: an instruction to
///   answer in it costs its row;
/// - JSON is what the standard says: no `NaN`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InstructionFollowing {
    /// Whether an instruction counts as followed if it is by the completion without its first line,
    /// last line, both, or asterisks (the paper's loose accuracy).
    pub loose: bool,
    /// 1 if all are followed and else 0 (the paper's prompt-level accuracy), instead of the share.
    pub all: bool,
}

impl InstructionFollowing {
    /// Whether `completion` follows `instruction`. A blank one follows none.
    pub fn is_followed(&self, instruction: &Instruction, completion: &str) -> bool {
        let follows = |text: &str| !text.trim().is_empty() && instruction.is_followed(text);
        follows(completion) || (self.loose && variants(completion).iter().any(|text| follows(text)))
    }
}

/// The seven further forms that count in a loose check.
fn variants(completion: &str) -> Vec<String> {
    let lines: Vec<&str> = completion.split('\n').collect();
    let cut = |from: usize, to: usize| {
        lines.get(from..to).map(|lines| lines.join("\n").trim().to_string()).unwrap_or_default()
    };
    let last = lines.len() - 1;
    let parts = [completion.to_string(), cut(1, lines.len()), cut(0, last), cut(1, last)];
    let plain: Vec<String> = parts.iter().map(|part| part.replace('*', "")).collect();
    parts.into_iter().skip(1).chain(plain).collect()
}

/// The instructions of a row.
fn instructions(row: &Map<String, Value>) -> Result<Vec<(&str, Instruction)>> {
    let array = |column| {
        let value = required(row, column)?;
        value.as_array().ok_or_else(|| expected(&format!("`{column}`"), "an array", value))
    };
    let (ids, arguments) = (array("instruction_id_list")?, array("kwargs")?);
    if ids.is_empty() || ids.len() != arguments.len() {
        return Err(Error::data(format!(
            "expected as many `kwargs` as instructions in `instruction_id_list`, at least one, got \
             {} and {}",
            arguments.len(),
            ids.len()
        )));
    }
    let none = Map::new();
    let mut instructions = Vec::new();
    for (id, arguments) in ids.iter().zip(arguments) {
        let id = id.as_str().ok_or_else(|| expected("an instruction id", "a string", id))?;
        let arguments = match arguments {
            Value::Null => &none,
            Value::Object(arguments) => arguments,
            other => return Err(expected(&format!("`kwargs` of `{id}`"), "an object", other)),
        };
        instructions.push((id, Instruction::read(id, arguments)?));
    }
    Ok(instructions)
}

impl Scorer for InstructionFollowing {
    fn name(&self) -> &str {
        "ifeval"
    }

    fn score(&self, item: &Item) -> Result<Score> {
        let instructions = instructions(item.row)?;
        let missed: Vec<&str> = instructions
            .iter()
            .filter(|(_, instruction)| !self.is_followed(instruction, item.completion))
            .map(|(id, _)| *id)
            .collect();
        if missed.is_empty() {
            return Ok(Score::new(1.0));
        }
        let share = 1.0 - missed.len() as f64 / instructions.len() as f64;
        let value = if self.all { 0.0 } else { share };
        Ok(Score::because(value, format!("not followed: {}", missed.join(", "))))
    }
}
