//! Rows of benchmarks whose answers are completions.

use halter_core::data::format::Format;
use halter_core::data::parse::parse;
use halter_core::data::parse::value::string;
use halter_core::data::record::{Record, Turn};
use halter_core::generate::generator::question;
use halter_core::{Error, Result};
use halter_rejection_sampling::verifier::reference::Reference;

use crate::question::{Open, Row};

/// Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems".
pub(crate) fn gsm8k(row: &Row) -> Result<Open> {
    let prompt = format!("Question: {}\nAnswer:", string(row, "question")?);
    answered(prompt, string(row, "answer")?)
}

/// Miao et al. 2020, "A Diverse Corpus for Evaluating and Developing English Math Word Problem
/// Solvers"; the unit in brackets is no part of the answer.
pub(crate) fn asdiv(row: &Row) -> Result<Open> {
    let body = string(row, if row.contains_key("body") { "body" } else { "passage" })?;
    let prompt = format!("{body}\nQuestion:{}\nAnswer:", string(row, "question")?);
    let answer = string(row, "answer")?;
    answered(prompt, answer.split_once(" (").map_or(answer, |(number, _)| number))
}

/// Chen et al. 2021, "Evaluating Large Language Models Trained on Code".
pub(crate) fn humaneval(row: &Row) -> Result<Open> {
    let prompt = string(row, "prompt")?;
    string(row, "entry_point").and_then(|_| string(row, "test"))?;
    let instruction = format!(
        "Complete this Python function. Answer with the whole function in one block of code.\n\n\
         ```python\n{}\n```",
        prompt.trim_end()
    );
    let prompt = Turn::Text(prompt.to_string());
    Ok(Open { prompt, instruction: Some(instruction), target: None })
}

/// Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models".
pub(crate) fn ifeval(row: &Row) -> Result<Open> {
    let prompt = Turn::Text(string(row, "prompt")?.to_string());
    Ok(Open { prompt, instruction: None, target: None })
}

/// Rows of one's own: whatever has a prompt, with the answer where `halter sample` looks for it.
pub(crate) fn open(row: &Row) -> Result<Open> {
    let prompt = match parse(Format::detect(row)?, row.clone())? {
        Record::Chat { messages, .. } => question(&messages),
        Record::PromptCompletion { prompt, .. } | Record::Prompt { prompt, .. } => prompt,
        _ => return Err(Error::data("the row has neither `prompt` nor `messages`")),
    };
    Ok(Open { prompt, instruction: None, target: Reference::default().text(row).ok() })
}

fn answered(prompt: String, answer: &str) -> Result<Open> {
    let target = Some(answer.to_string());
    Ok(Open { prompt: Turn::Text(prompt), instruction: None, target })
}
