//! What the tests of the steps share.

use std::collections::BTreeMap;
use std::path::Path;

use halter_core::data::record::{Message, Turn};
use halter_core::endpoint::{Answer, Question, Teacher, Usage};
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::Silent;
use halter_core::{Error, Result};

use super::step;
use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Outcome, Run};

/// A question and an answer.
pub fn chat(prompt: &str, answer: &str) -> Row {
    Row::chat(&[Message::new("user", prompt), Message::new("assistant", answer)])
}

/// The row with a column more.
pub fn with(mut row: Row, column: &str, value: impl Into<serde_json::Value>) -> Row {
    row.set(column, value);
    row
}

/// Answers by what the question holds: the first pair whose first text is in it. Without one there
/// is no answer.
pub struct Scripted(pub Vec<(&'static str, &'static str)>);

impl Teacher for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn answer(
        &self,
        questions: &[Question],
        done: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Result<Answer>>> {
        let answers = questions.iter().enumerate().map(|(at, question)| {
            done(at + 1)?;
            let Turn::Messages(messages) = &question.prompt else {
                return Ok(Err(Error::data("expected messages")));
            };
            let text = messages.iter().filter_map(Message::content).collect::<Vec<_>>().join("\n");
            let found = self.0.iter().find(|(part, _)| text.contains(part));
            Ok(found.map(|(_, said)| said_by(said)).ok_or_else(|| Error::data("server said 500")))
        });
        answers.collect()
    }
}

fn said_by(text: &str) -> Answer {
    Answer {
        message: Message::new("assistant", text),
        finish: "stop".into(),
        logprobs: None,
        usage: Usage::default(),
        model: "scripted".into(),
    }
}

/// Options as they stand in a pipeline.
pub fn options(text: &str) -> Options {
    Options::new(Path::new("pipeline.toml"), 1, BTreeMap::new(), toml::from_str(text).unwrap())
}

/// Runs a step of these options.
pub fn run(kind: &str, options: &str, rows: Vec<Row>) -> Outcome {
    try_run(kind, options, rows, Vec::new()).unwrap()
}

/// Runs a step with one teacher.
pub fn try_run(
    kind: &str,
    text: &str,
    rows: Vec<Row>,
    script: Vec<(&'static str, &'static str)>,
) -> Result<Outcome> {
    let teachers: BTreeMap<String, Box<dyn Teacher>> =
        BTreeMap::from([("teacher".to_string(), Box::new(Scripted(script)) as Box<dyn Teacher>)]);
    let (interrupt, mut progress) = (Interrupt::new(), Silent);
    let mut run =
        Run { teachers: &teachers, seed: 1, progress: &mut progress, interrupt: &interrupt };
    step(kind, &mut options(text), &["teacher"]).unwrap()?.step.run(rows, &mut run)
}

/// What is said of options that cannot be used.
pub fn refused(kind: &str, text: &str) -> String {
    let made = step(kind, &mut options(text), &["teacher"]).unwrap();
    made.err().unwrap_or_else(|| panic!("taken: {text}")).message().to_string()
}

/// Prompts of rows.
pub fn prompts(rows: &[Row]) -> Vec<String> {
    let prompt = |row: &Row| row.messages().unwrap()[0].content().unwrap().to_string();
    rows.iter().map(prompt).collect()
}

/// Prompt, reason and detail of what was removed.
pub fn removed(outcome: &Outcome) -> Vec<(String, &'static str, String)> {
    let told = |removed: &crate::step::Removed| {
        (
            prompts(std::slice::from_ref(&removed.row)).remove(0),
            removed.reason,
            removed.detail.clone(),
        )
    };
    outcome.removed.iter().map(told).collect()
}
