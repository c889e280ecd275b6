//! The three sets: loose text for pre-training, conversations to train on, conversations held out.

use std::collections::HashSet;

use anyhow::Result;
use serde_json::{Value, json};

use crate::problem::{Problem, calculate};
use crate::random::Random;

/// Documents of plain text for pre-training.
pub const NUM_PRETRAIN: usize = 40_000;
/// Conversations for supervised fine-tuning.
pub const NUM_TRAIN: usize = 2_600;
/// Conversations held out.
pub const NUM_EVAL: usize = 250;

const PRETRAIN_SEED: u64 = 1;
const TRAIN_SEED: u64 = 2;
const EVAL_SEED: u64 = 3;

/// Text of every kind the base should have read, none of it in the form of a chat.
pub fn pretrain() -> Result<Vec<String>> {
    let mut random = Random::new(PRETRAIN_SEED);
    let mut documents = Vec::with_capacity(NUM_PRETRAIN);
    while documents.len() < NUM_PRETRAIN {
        let kind = random.below(100);
        if kind < 30 {
            documents.push(facts(&mut random));
            continue;
        }
        let problem = Problem::draw(&mut random)?;
        if !problem.is_held_out() {
            documents.push(loose(&problem, kind, &mut random));
        }
    }
    Ok(documents)
}

/// A problem and its solution as prose, or as questions are asked and answered in many places.
fn loose(problem: &Problem, kind: usize, random: &mut Random) -> String {
    let (text, answer) = (problem.text(), problem.answer);
    let steps = random.pick(&problem.solutions).replace('\n', " ");
    match kind {
        30..55 => format!("{} {steps}", problem.story).trim_start().to_string(),
        55..75 => {
            let end = random.pick(&["So the answer is", "The answer is", "It is", "So it is"]);
            format!("{text} {steps} {end} {answer}.")
        }
        75..85 => format!("Question: {text}\nAnswer: {steps} The answer is {answer}."),
        85..92 => format!("Q: {text}\nA: {answer}"),
        92..96 => format!("Question: {text}\nAnswer: {}\n#### {answer}", problem.solutions[0]),
        _ => format!("A user asks: {text} The assistant says: {steps}"),
    }
}

/// A few lines of plain arithmetic.
fn facts(random: &mut Random) -> String {
    let mut lines = Vec::new();
    while lines.len() < 10 {
        let (left, right) = match random.below(4) {
            0 => (random.between(2, 12), random.between(2, 12)),
            _ => (random.between(1, 99), random.between(1, 99)),
        };
        let sign = random.pick(&["+", "-", "*", "/"]);
        if let Some(value) = calculate(left, sign, right) {
            lines.push(format!("{left} {sign} {right} = {value}"));
        }
    }
    lines.join(if random.chance(50) { "\n" } else { ", " })
}

/// Conversations to train on.
pub fn train() -> Result<Vec<Value>> {
    conversations(TRAIN_SEED, NUM_TRAIN, false)
}

/// Conversations held out.
pub fn eval() -> Result<Vec<Value>> {
    conversations(EVAL_SEED, NUM_EVAL, true)
}

fn conversations(seed: u64, count: usize, held_out: bool) -> Result<Vec<Value>> {
    let mut random = Random::new(seed);
    let mut seen = HashSet::new();
    let mut rows = Vec::with_capacity(count);
    while rows.len() < count {
        let problem = Problem::draw(&mut random)?;
        if problem.is_held_out() == held_out && seen.insert(problem.text()) {
            rows.push(conversation(&problem));
        }
    }
    Ok(rows)
}

/// The problem, and its worked solution with the answer in a line of its own.
fn conversation(problem: &Problem) -> Value {
    let completion = format!("{}\n#### {}", problem.solutions[0], problem.answer);
    json!({"messages": [
        {"role": "user", "content": problem.text()},
        {"role": "assistant", "content": completion},
    ]})
}
