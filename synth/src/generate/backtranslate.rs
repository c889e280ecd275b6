//! Instructions to answers that are there (Li et al. 2024, "Self-Alignment with Instruction
//! Backtranslation"), and the score by which pairs are kept.

use halter_core::Result;
use halter_core::data::record::Message;
use serde_json::json;

use super::asking::{Asking, remove, said};
use super::template::Template;
use super::{Made, Questions, reply};
use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Outcome, Run, Step};

const PROMPT: &str = include_str!("../../prompts/backtranslate.txt");
const SCORE: &str = include_str!("../../prompts/backtranslate-score.txt");

/// Asks which instruction a text answers, then how good an answer it is.
#[derive(Debug)]
pub(super) struct Backtranslate {
    asking: Asking,
    prompt: Template,
    score: Template,
    least: f64,
}

impl Backtranslate {
    pub fn made(options: &mut Options, teachers: &[&str]) -> Result<Made> {
        let asking = Asking::read(options, teachers, 0.7)?;
        let step = Self {
            prompt: Template::read(options, "prompt", PROMPT)?,
            score: Template::read(options, "score_prompt", SCORE)?,
            least: options.within("min_score", 4.0, 1.0..=5.0)?,
            asking: asking.clone(),
        };
        Ok(Made {
            step: Box::new(step),
            teachers: vec![asking.teacher],
            files: Vec::new(),
            needs_rows: true,
            questions: Questions::PerRow(2),
        })
    }
}

impl Step for Backtranslate {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut asked = Vec::new();
        let mut questions = Vec::new();
        for row in &rows {
            let Some(text) = reply::answer(row) else {
                remove(&mut outcome, row, "no answer", "expected `text` or an answer");
                continue;
            };
            let prompt = self.prompt.render(&json!({"answer": text}))?;
            questions.push(self.asking.user(&prompt, run.seed, 0));
            asked.push((row, text));
        }
        let answers = self.asking.ask(&questions, run, &mut outcome.figures)?;
        let (mut pairs, mut questions) = (Vec::new(), Vec::new());
        for ((row, text), answer) in asked.into_iter().zip(answers) {
            let Some(said) = said(answer, row, &mut outcome) else { continue };
            let instruction = reply::bare(&said).to_string();
            let names = json!({"instruction": instruction, "answer": text});
            questions.push(self.asking.greedy().user(&self.score.render(&names)?, run.seed, 0));
            let turns = [Message::new("user", &instruction), Message::new("assistant", &text)];
            let mut made = Row::chat(&turns);
            self.asking.sign(&mut made, "backtranslate", run, &self.prompt.hash, &[row]);
            pairs.push(made);
        }
        let answers = self.asking.ask(&questions, run, &mut outcome.figures)?;
        for (mut row, answer) in pairs.into_iter().zip(answers) {
            let Some(said) = said(answer, &row, &mut outcome) else { continue };
            match reply::score(&said, "score:", 1.0, 5.0) {
                None => remove(&mut outcome, &row, "no score", &said),
                Some(score) => {
                    row.set("score", score);
                    match score >= self.least {
                        true => outcome.rows.push(row),
                        false => remove(&mut outcome, &row, "low score", &said),
                    }
                }
            }
        }
        Ok(outcome)
    }
}
