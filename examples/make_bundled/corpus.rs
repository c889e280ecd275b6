//! The sets: loose text for pre-training, and conversations, pairs and problems, each to train on and
//! held out.

use std::collections::HashSet;

use anyhow::Result;
use serde_json::{Value, json};

use crate::problem::{Mistake, Problem, calculate};
use crate::random::Random;
use crate::templates::{PEOPLE, THINGS};

/// Documents of plain text for pre-training.
pub const NUM_PRETRAIN: usize = 30_000;
/// Conversations for supervised fine-tuning.
pub const NUM_TRAIN: usize = 2_600;
/// Conversations held out.
pub const NUM_EVAL: usize = 250;

/// Pairs of a right and a wrong solution.
pub const NUM_PREFERENCES: usize = 2_000;
/// Pairs held out.
pub const NUM_PREFERENCES_EVAL: usize = 250;

/// Problems with their answers alone, for models to answer.
pub const NUM_PROBLEMS: usize = 3_000;
/// Such problems held out.
pub const NUM_PROBLEMS_EVAL: usize = 1_000;

const PRETRAIN_SEED: u64 = 1;
const TRAIN_SEED: u64 = 2;
const EVAL_SEED: u64 = 3;
const PREFERENCES_SEED: u64 = 4;
const PREFERENCES_EVAL_SEED: u64 = 5;
const PROBLEMS_SEED: u64 = 6;
const PROBLEMS_EVAL_SEED: u64 = 7;

/// Text of every kind the base should have read, none of it in the form of a chat.
pub fn pretrain() -> Result<Vec<String>> {
    let mut random = Random::new(PRETRAIN_SEED);
    let mut documents = Vec::with_capacity(NUM_PRETRAIN);
    while documents.len() < NUM_PRETRAIN {
        let kind = random.below(100);
        match kind {
            0..30 => documents.push(facts(&mut random)),
            30..40 => documents.push(recall(&mut random)),
            _ => {
                let problem = Problem::draw(&mut random)?;
                if !problem.is_held_out() {
                    documents.push(loose(&problem, kind, &mut random));
                }
            }
        }
    }
    Ok(documents)
}

/// A problem and its solution as prose, or as questions are asked and answered in many places.
fn loose(problem: &Problem, kind: usize, random: &mut Random) -> String {
    let (text, answer) = (problem.text(), problem.answer);
    let steps = random.pick(&problem.solutions).replace('\n', " ");
    match kind {
        40..60 => format!("{} {steps}", problem.story).trim_start().to_string(),
        60..78 => {
            let end = random.pick(&["So the answer is", "The answer is", "It is", "So it is"]);
            format!("{text} {steps} {end} {answer}.")
        }
        78..88 => format!("Question: {text}\nAnswer: {steps} The answer is {answer}."),
        88..92 => format!("{text}\n{steps}"),
        92..96 => format!("Question: {text}\nAnswer: {}\n#### {answer}", problem.solutions[0]),
        _ => format!("A user asks: {text} The assistant says: {steps}"),
    }
}

/// Plain arithmetic; an equation is often followed by one that it implies.
fn facts(random: &mut Random) -> String {
    let mut equations = Vec::new();
    while equations.len() < 10 {
        let (left, right) = match random.below(3) {
            0 => (random.between(2, 12), random.between(2, 12)),
            _ => (random.between(1, 90), random.between(1, 90)),
        };
        let sign = *random.pick(&["+", "-", "*", "/"]);
        let Some(value) = calculate(left, sign, right) else { continue };
        equations.push(format!("{left} {sign} {right} = {value}"));
        if random.chance(40) {
            equations.push(match sign {
                "+" => format!("{value} - {right} = {left}"),
                "-" => format!("{right} + {value} = {left}"),
                "*" => format!("{right} * {left} = {value}"),
                _ => format!("{value} * {right} = {left}"),
            });
        }
    }
    equations.join(if random.chance(50) { "\n" } else { ", " })
}

/// Who has what, and then the same again in another order.
fn recall(random: &mut Random) -> String {
    let (first, kind) = (random.below(PEOPLE.len()), random.below(THINGS.len()));
    let mut owned: Vec<(&str, i64, &str)> = (0..3)
        .map(|index| {
            let (name, _) = PEOPLE[(first + 7 * index) % PEOPLE.len()];
            (name, random.between(2, 99), THINGS[(kind + 3 * index) % THINGS.len()].1)
        })
        .collect();
    let mut told = String::new();
    for (name, count, things) in &owned {
        told += &format!("{name} has {count} {things}. ");
    }
    owned.rotate_left(random.between(1, 2) as usize);
    for (name, count, things) in owned {
        told += &match random.below(2) {
            0 => format!("How many {things} does {name} have? {name} has {count} {things}. "),
            _ => format!("The {count} {things} are what {name} has. "),
        };
    }
    told.trim_end().to_string()
}

/// Conversations to train on.
pub fn train() -> Result<Vec<Value>> {
    rows(TRAIN_SEED, NUM_TRAIN, false, conversation)
}

/// Conversations held out.
pub fn eval() -> Result<Vec<Value>> {
    rows(EVAL_SEED, NUM_EVAL, true, conversation)
}

/// Problems to sample answers to; none is in `train`.
pub fn problems() -> Result<Vec<Value>> {
    let trained: HashSet<Value> = train()?.iter().map(|row| row["messages"][0].clone()).collect();
    let mut problems = rows(PROBLEMS_SEED, NUM_PROBLEMS + 200, false, question)?;
    problems.retain(|row| !trained.contains(&row["prompt"][0]));
    problems.truncate(NUM_PROBLEMS);
    Ok(problems)
}

/// Problems held out.
pub fn problems_eval() -> Result<Vec<Value>> {
    rows(PROBLEMS_EVAL_SEED, NUM_PROBLEMS_EVAL, true, question)
}

fn rows(seed: u64, count: usize, held_out: bool, row: fn(&Problem) -> Value) -> Result<Vec<Value>> {
    let mut random = Random::new(seed);
    let mut seen = HashSet::new();
    let mut rows = Vec::with_capacity(count);
    while rows.len() < count {
        let problem = Problem::draw(&mut random)?;
        if problem.is_held_out() == held_out && seen.insert(problem.text()) {
            rows.push(row(&problem));
        }
    }
    Ok(rows)
}

/// Pairs to train a reward model on.
pub fn preferences() -> Result<Vec<Value>> {
    pairs(PREFERENCES_SEED, NUM_PREFERENCES, false)
}

/// Pairs held out.
pub fn preferences_eval() -> Result<Vec<Value>> {
    pairs(PREFERENCES_EVAL_SEED, NUM_PREFERENCES_EVAL, true)
}

fn pairs(seed: u64, count: usize, held_out: bool) -> Result<Vec<Value>> {
    let mut random = Random::new(seed);
    let mut seen = HashSet::new();
    let mut rows = Vec::with_capacity(count);
    while rows.len() < count {
        let problem = Problem::draw(&mut random)?;
        let (mistake, strength) = match random.chance(50) {
            true => (Mistake::Operation, "significantly better"),
            false => {
                let equation = random.below(problem.solutions[0].matches(" = ").count());
                let by = *random.pick(&[-10, -2, -1, 1, 2, 10]);
                (Mistake::Slip { equation, by }, "better")
            }
        };
        let Some((steps, answer)) = problem.wrong(mistake)? else { continue };
        if problem.is_held_out() == held_out && seen.insert(problem.text()) {
            let rejected = format!("{steps}\n#### {answer}");
            rows.push(pair(&problem, &rejected, strength));
        }
    }
    Ok(rows)
}

fn pair(problem: &Problem, rejected: &str, strength: &str) -> Value {
    let message = |role: &str, content: &str| json!([{"role": role, "content": content}]);
    json!({
        "prompt": message("user", &problem.text()),
        "chosen": message("assistant", &solution(problem)),
        "rejected": message("assistant", rejected),
        "strength": strength,
    })
}

/// The worked solution with the answer in a line of its own.
pub fn solution(problem: &Problem) -> String {
    format!("{}\n#### {}", problem.solutions[0], problem.answer)
}

/// The problem and its worked solution.
fn conversation(problem: &Problem) -> Value {
    json!({"messages": [
        {"role": "user", "content": problem.text()},
        {"role": "assistant", "content": solution(problem)},
    ]})
}

/// The problem and its answer without the steps.
fn question(problem: &Problem) -> Value {
    json!({
        "prompt": [{"role": "user", "content": problem.text()}],
        "answer": problem.answer.to_string(),
    })
}
