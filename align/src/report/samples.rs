//! What the models answered to the same prompts.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use halter_core::{Error, Result};
use serde::Serialize;
use serde_json::Value;

use crate::kind;
use crate::plan::{Plan, Status};

/// Prompts that are shown.
const PROMPTS: usize = 24;
/// Models that are shown beside one another.
const MODELS: usize = 8;
/// A completion is right from this score on.
const RIGHT: f64 = 0.5;

/// A prompt with the answers of all models.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    prompt: String,
    answers: Vec<Answer>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Answer {
    who: String,
    text: String,
    right: Option<bool>,
}

/// The first prompts of the first task of `[eval]` with completions, and what every measured model
/// said.
///
/// # Errors
/// Files that cannot be read.
pub fn collect(plan: &Plan) -> Result<Vec<Sample>> {
    let mut samples: Vec<Sample> = Vec::new();
    let measured: Vec<usize> = (0..plan.steps.len())
        .filter(|&at| {
            let node = &plan.graph.nodes[at];
            let is_measure =
                node.kind.name == kind::EVAL.name && (node.of.is_some() || node.round == 0);
            is_measure && matches!(plan.steps[at].status, Status::Done(_))
        })
        .collect();
    // The base, and the newest.
    let skipped = measured.len().saturating_sub(MODELS);
    let shown = measured.iter().enumerate().filter(|(at, _)| *at == 0 || *at > skipped);
    for (_, &at) in shown {
        let node = &plan.graph.nodes[at];
        let name = node.name.strip_prefix("eval-").unwrap_or(&node.name);
        let who = super::label(name, node.round, plan.recipe.rounds);
        let mut files = files(&plan.steps[at].directory).into_iter();
        let Some(path) = files.find(|path| has_completions(path)) else { continue };
        for (number, line) in lines(&path)?.take(PROMPTS).enumerate() {
            let line = line?;
            let Some(said) = line["completions"].get(0) else { continue };
            let answer = Answer {
                who: who.clone(),
                text: said["text"].as_str().unwrap_or_default().to_string(),
                right: said["score"].as_f64().map(|score| score >= RIGHT),
            };
            match samples.get_mut(number) {
                Some(sample) => sample.answers.push(answer),
                None => {
                    samples.push(Sample { prompt: prompt(&line["prompt"]), answers: vec![answer] })
                }
            }
        }
    }
    Ok(samples)
}

/// Mean tokens of the completions in a directory of `halter eval`.
pub fn mean_tokens(directory: &Path) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    for path in files(directory) {
        for line in lines(&path).ok()? {
            let line = line.ok()?;
            for said in line["completions"].as_array().into_iter().flatten() {
                sum += said["num_tokens"].as_f64().unwrap_or(0.0);
                count += 1.0;
            }
        }
    }
    (count > 0.0).then(|| sum / count)
}

/// The files of samples.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    found.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("samples-") && name.ends_with(".jsonl")
    });
    found.sort();
    found
}

/// Whether the lines are of completions, not of choices.
pub fn has_completions(path: &Path) -> bool {
    let first = lines(path).ok().and_then(|mut lines| lines.next()?.ok());
    first.is_some_and(|line| line.get("completions").is_some())
}

fn lines(path: &Path) -> Result<impl Iterator<Item = Result<Value>>> {
    let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    let path = path.to_path_buf();
    Ok(BufReader::new(file).lines().map(move |line| {
        let line = line.map_err(|error| Error::io("read", &path, error))?;
        serde_json::from_str(&line)
            .map_err(|error| Error::data(format!("not a line of samples: {error}")).in_file(&path))
    }))
}

/// The last turn of a prompt.
fn prompt(prompt: &Value) -> String {
    let text = |value: &Value| value.as_str().map(str::to_string);
    match prompt {
        Value::Array(turns) => turns.last().and_then(|turn| text(&turn["content"])),
        other => text(other),
    }
    .unwrap_or_else(|| prompt.to_string())
}
