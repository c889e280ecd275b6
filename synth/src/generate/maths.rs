//! Problems whose final answers are checked.
//!
//! Answers are compared as rejection sampling does it: with the row's `answer`, or with the answer
//! that most of a problem's solutions have (Wang et al. 2023, "Self-Consistency"). Where
//! `corrections` is set, a wrong solution is shown again, and a correction that ends in the right
//! answer becomes a conversation of its own ("The Llama 3 Herd of Models", section 4.3.3).

use std::collections::BTreeMap;

use halter_core::Result;
use halter_core::data::record::Message;
use halter_rejection_sampling::verifier::{answer::find, math::equivalent};
use serde_json::{Value, json};

use super::asking::{Asking, remove, whole};
use super::template::Template;
use super::{Made, Questions, reply};
use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Outcome, Run, Step};

const PROMPT: &str = include_str!("../../prompts/find-mistake.txt");

/// Keeps the solutions that are right.
#[derive(Debug)]
pub(super) struct Maths {
    /// `None`: nobody is asked.
    asking: Option<Asking>,
    corrections: usize,
    prompt: Template,
    /// Least share of a problem's solutions that must agree where it has no answer.
    least_share: f64,
    least_votes: usize,
}

impl Maths {
    pub fn made(options: &mut Options, teachers: &[&str]) -> Result<Made> {
        let corrections = options.within("corrections", 0, 0..=100)?;
        let asking = match corrections {
            0 => None,
            _ => Some(Asking::read(options, teachers, 0.7)?),
        };
        let step = Self {
            corrections,
            prompt: Template::read(options, "prompt", PROMPT)?,
            least_share: options.within("least_share", 0.5, 0.0..=1.0)?,
            least_votes: options.within("least_votes", 2, 1..=10_000)?,
            asking: asking.clone(),
        };
        Ok(Made {
            step: Box::new(step),
            teachers: asking.into_iter().map(|asking| asking.teacher).collect(),
            files: Vec::new(),
            needs_rows: true,
            questions: Questions::PerRow(corrections),
        })
    }

    /// The final answer of each row's problem, where it has one: its own, that of another row with the
    /// same conversation, or that of most solutions.
    fn references(&self, rows: &[Row]) -> Vec<Option<String>> {
        let problems: Vec<Option<String>> = rows.iter().map(problem).collect();
        let own: Vec<Option<String>> = rows.iter().map(stated).collect();
        let mut shared: BTreeMap<&String, String> = BTreeMap::new();
        let mut votes: BTreeMap<&String, Vec<String>> = BTreeMap::new();
        for ((row, problem), own) in rows.iter().zip(&problems).zip(&own) {
            let Some(problem) = problem else { continue };
            if let Some(answer) = own {
                shared.entry(problem).or_insert_with(|| answer.clone());
            } else if let Some(found) = reply::answer(row) {
                let answer = find(&found).map(|found| found.text.to_string());
                votes.entry(problem).or_default().extend(answer);
            }
        }
        for (problem, answers) in votes {
            let count =
                |one: &String| answers.iter().filter(|other| equivalent(one, other)).count();
            // Of equally many the first; solutions come in the order of the rows.
            let best = answers
                .iter()
                .map(|one| (count(one), one))
                .reduce(|best, next| if next.0 > best.0 { next } else { best });
            let Some((most, answer)) = best else { continue };
            let enough =
                most >= self.least_votes && most as f64 >= self.least_share * answers.len() as f64;
            if enough {
                shared.entry(problem).or_insert_with(|| answer.clone());
            }
        }
        let of = |problem: &Option<String>| shared.get(problem.as_ref()?).cloned();
        own.into_iter().zip(&problems).map(|(own, problem)| own.or_else(|| of(problem))).collect()
    }

    fn correct(
        &self,
        asking: &Asking,
        wrong: &[(&Row, String, &String)],
        run: &mut Run,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let mut questions = Vec::new();
        let mut asked = Vec::new();
        for (row, attempt, answer) in wrong {
            let Some(mut turns) = reply::prompt(row) else { continue };
            let problem = reply::instruction(row).unwrap_or_default();
            let request = self.prompt.render(&json!({"problem": problem, "attempt": attempt}))?;
            turns.push(Message::new("assistant", attempt));
            turns.push(Message::new("user", &request));
            for draw in 0..self.corrections {
                questions.push(asking.chat(turns.clone(), run.seed, draw));
                asked.push((*row, turns.clone(), *answer));
            }
        }
        for ((row, mut turns, right), answer) in
            asked.into_iter().zip(asking.ask(&questions, run, &mut outcome.figures)?)
        {
            let Some(text) = whole(answer, row, outcome) else { continue };
            if !find(&text).is_some_and(|found| equivalent(found.text, right)) {
                remove(outcome, row, "wrong correction", &text);
                continue;
            }
            // Only the correction is to be learned.
            for turn in turns.iter_mut().filter(|turn| turn.role() == "assistant") {
                turn.0.insert("train".into(), json!(false));
            }
            turns.push(Message::new("assistant", &text));
            let mut made = Row::chat(&turns);
            made.set("answer", right.as_str());
            asking.sign(&mut made, "maths", run, &self.prompt.hash, &[row]);
            outcome.rows.push(made);
        }
        Ok(())
    }
}

/// The whole conversation: many of them end with the same words.
fn problem(row: &Row) -> Option<String> {
    Some(Row::chat(&reply::prompt(row)?).0["messages"].to_string())
}

/// The final answer that the row itself states.
fn stated(row: &Row) -> Option<String> {
    let text = ["answer", "solution"].iter().find_map(|name| match row.0.get(*name) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    })?;
    Some(find(&text).map_or(text.trim().to_string(), |found| found.text.into()))
}

impl Step for Maths {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let references = self.references(&rows);
        let mut wrong = Vec::new();
        for (row, right) in rows.iter().zip(&references) {
            run.interrupt.check()?;
            let (Some(_), Some(said)) = (reply::instruction(row), reply::answer(row)) else {
                remove(&mut outcome, row, "no solution", "expected a problem with a solution");
                continue;
            };
            let Some(right) = right else {
                remove(&mut outcome, row, "no agreement", &said);
                continue;
            };
            let Some(found) = find(&said).map(|found| found.text.to_string()) else {
                remove(&mut outcome, row, "no final answer", &said);
                continue;
            };
            if equivalent(&found, right) {
                outcome.rows.push(row.clone());
            } else {
                let detail = format!("expected `{right}`, got `{found}`");
                remove(&mut outcome, row, "wrong answer", &detail);
                wrong.push((row, said, right));
            }
        }
        if let Some(asking) = &self.asking {
            self.correct(asking, &wrong, run, &mut outcome)?;
        }
        Ok(outcome)
    }
}
