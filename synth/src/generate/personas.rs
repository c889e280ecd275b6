//! Prompts that a person would write (Ge et al. 2024, "Scaling Synthetic Data Creation with
//! 1,000,000,000 Personas").

use halter_core::Result;
use serde_json::json;

use super::asking::{Asking, prompt_row, remove, said};
use super::template::Template;
use super::{Made, Questions, reply};
use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Outcome, Run, Step};

const PROMPT: &str = include_str!("../../prompts/persona.txt");

/// Each persona with each task. Rows are personas (`persona`); others may be listed.
#[derive(Debug)]
pub(super) struct Personas {
    asking: Asking,
    prompt: Template,
    personas: Vec<String>,
    tasks: Vec<String>,
    samples: usize,
}

impl Personas {
    pub fn made(options: &mut Options, teachers: &[&str]) -> Result<Made> {
        let asking = Asking::read(options, teachers, 0.9)?;
        let personas: Vec<String> = options.or("personas", Vec::new())?;
        let tasks: Vec<String> = options.need("tasks")?;
        if tasks.is_empty() {
            return Err(options.wrong("tasks", "expected at least one, as `a maths problem`"));
        }
        let samples = options.within("samples", 1, 1..=10_000)?;
        let each = tasks.len().saturating_mul(samples);
        let (needs_rows, questions) = match personas.len() {
            0 => (true, Questions::PerRow(each)),
            listed => (false, Questions::Fixed(each.saturating_mul(listed))),
        };
        let prompt = Template::read(options, "prompt", PROMPT)?;
        let teachers = vec![asking.teacher.clone()];
        let step = Box::new(Self { asking, prompt, personas, tasks, samples });
        Ok(Made { step, teachers, files: Vec::new(), needs_rows, questions })
    }
}

impl Step for Personas {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let listed = self.personas.iter().map(|persona| {
            let mut row = Row::default();
            row.set("persona", persona.as_str());
            row
        });
        let rows: Vec<Row> = listed.chain(rows).collect();
        let mut questions = Vec::new();
        let mut asked = Vec::new();
        for row in &rows {
            let Some(persona) = row.text("persona").filter(|text| !text.trim().is_empty()) else {
                remove(&mut outcome, row, "no persona", "expected the column `persona`");
                continue;
            };
            for task in &self.tasks {
                let text = self.prompt.render(&json!({"persona": persona, "task": task}))?;
                for sample in 0..self.samples {
                    questions.push(self.asking.user(&text, run.seed, sample));
                    asked.push((row, persona, task));
                }
            }
        }
        let answers = self.asking.ask(&questions, run, &mut outcome.figures)?;
        for ((row, persona, task), answer) in asked.into_iter().zip(answers) {
            let Some(text) = said(answer, row, &mut outcome) else { continue };
            let mut made = prompt_row(reply::bare(&text));
            made.set("persona", persona);
            made.set("task", task.as_str());
            self.asking.sign(&mut made, "personas", run, &self.prompt.hash, &[row]);
            outcome.rows.push(made);
        }
        Ok(outcome)
    }
}
