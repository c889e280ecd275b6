//! Answers to prompts: the row's conversation goes on.

use halter_core::Result;
use halter_core::data::record::Message;
use serde_json::Value;

use super::asking::{Asking, remove, whole};
use super::template::hash;
use super::{Made, Questions, reply};
use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Outcome, Run, Step};

/// Completes each prompt `samples` times.
#[derive(Debug)]
pub(super) struct Answer {
    asking: Asking,
    samples: usize,
    system: Option<String>,
    stop: Vec<String>,
}

impl Answer {
    pub fn made(options: &mut Options, teachers: &[&str]) -> Result<Made> {
        let asking = Asking::read(options, teachers, 0.7)?;
        let samples = options.within("samples", 1, 1..=10_000)?;
        let step = Self {
            samples,
            system: options.get("system")?,
            stop: options.or("stop", Vec::new())?,
            asking: asking.clone(),
        };
        Ok(Made {
            step: Box::new(step),
            teachers: vec![asking.teacher],
            files: Vec::new(),
            needs_rows: true,
            questions: Questions::PerRow(samples),
        })
    }
}

impl Step for Answer {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut questions = Vec::new();
        let mut asked = Vec::new();
        for row in &rows {
            let Some(turns) = reply::prompt(row) else {
                remove(&mut outcome, row, "no prompt", "expected `prompt` or `messages`");
                continue;
            };
            let mut shown = turns.clone();
            if let Some(system) = &self.system {
                shown.retain(|turn| turn.role() != "system");
                shown.insert(0, Message::new("system", system));
            }
            let hash = hash(&Row::chat(&shown).0["messages"].to_string());
            for sample in 0..self.samples {
                let mut question = self.asking.chat(shown.clone(), run.seed, sample);
                question.stop.clone_from(&self.stop);
                question.tools = row.0.get("tools").and_then(Value::as_array).cloned();
                questions.push(question);
                asked.push((row, turns.clone(), hash.clone()));
            }
        }
        let answers = self.asking.ask(&questions, run, &mut outcome.figures)?;
        for ((row, mut turns, hash), answer) in asked.into_iter().zip(answers) {
            let Some(text) = whole(answer, row, &mut outcome) else { continue };
            turns.push(Message::new("assistant", &text));
            let mut made = Row::chat(&turns);
            let asks = ["messages", "prompt", "completion", "instruction", "input", "output"];
            for (name, value) in row.0.iter().filter(|(name, _)| !asks.contains(&name.as_str())) {
                made.set(name, value.clone());
            }
            self.asking.sign(&mut made, "answer", run, &hash, &[row]);
            outcome.rows.push(made);
        }
        Ok(outcome)
    }
}
