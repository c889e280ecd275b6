//! Conversations of several turns: one teacher is the user, one the assistant.

use halter_core::Result;
use halter_core::data::record::Message;
use serde_json::{Value, json};

use super::asking::{Asking, remove, said, whole};
use super::template::Template;
use super::{Made, Questions, reply};
use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Outcome, Run, Step};

const PROMPT: &str = include_str!("../../prompts/next-turn.txt");
/// What the simulated user says who has no more to ask.
const END: &str = "[END]";

/// Goes on from each row's prompt for `turns` questions and answers.
#[derive(Debug)]
pub(super) struct Dialogue {
    assistant: Asking,
    user: Asking,
    prompt: Template,
    turns: usize,
    min_turns: usize,
}

impl Dialogue {
    pub fn made(options: &mut Options, teachers: &[&str]) -> Result<Made> {
        let assistant = Asking::read(options, teachers, 0.7)?;
        let user = match options.get::<String>("user")? {
            Some(name) => name,
            None => assistant.teacher.clone(),
        };
        let turns = options.within("turns", 3, 1..=100)?;
        let mut teachers = vec![assistant.teacher.clone(), user.clone()];
        teachers.dedup();
        let step = Self {
            user: assistant.of(&user),
            assistant,
            prompt: Template::read(options, "prompt", PROMPT)?,
            turns,
            min_turns: options.within("min_turns", 1, 1..=turns)?,
        };
        Ok(Made {
            step: Box::new(step),
            teachers,
            files: Vec::new(),
            needs_rows: true,
            questions: Questions::PerRow(2 * turns - 1),
        })
    }

    fn next_question(&self, talk: &Talk) -> Result<String> {
        let turns: Vec<Value> = talk.turns.iter().map(|t| Value::Object(t.0.clone())).collect();
        self.prompt.render(&json!({
            "turns": turns, "persona": talk.row.text("persona"), "end": END,
        }))
    }
}

struct Talk {
    /// Its number among all, which tells its questions from those of others whoever is still open.
    at: usize,
    row: Row,
    turns: Vec<Message>,
    answers: usize,
    is_over: bool,
}

impl Talk {
    fn say(&mut self, role: &str, text: &str) {
        self.turns.push(Message::new(role, text));
    }
}

impl Step for Dialogue {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut talks = Vec::new();
        for row in rows {
            match reply::prompt(&row) {
                Some(turns) => {
                    let at = talks.len();
                    talks.push(Talk { at, row, turns, answers: 0, is_over: false });
                }
                None => remove(&mut outcome, &row, "no prompt", "expected `prompt` or `messages`"),
            }
        }
        for turn in 0..self.turns {
            let mut open: Vec<&mut Talk> = talks.iter_mut().filter(|talk| !talk.is_over).collect();
            if turn > 0 {
                let questions = open.iter().map(|talk| {
                    let text = self.next_question(talk)?;
                    Ok(self.user.user(&text, run.seed, format!("user {turn} {}", talk.at)))
                });
                let questions: Vec<_> = questions.collect::<Result<_>>()?;
                let answers = self.user.ask(&questions, run, &mut outcome.figures)?;
                for (talk, answer) in open.iter_mut().zip(answers) {
                    match said(answer, &talk.row, &mut outcome) {
                        Some(text) if !text.contains(END) => talk.say("user", reply::bare(&text)),
                        _ => talk.is_over = true,
                    }
                }
                open.retain(|talk| !talk.is_over);
            }
            let questions: Vec<_> = open
                .iter()
                .map(|talk| {
                    let draw = format!("assistant {turn} {}", talk.at);
                    self.assistant.chat(talk.turns.clone(), run.seed, draw)
                })
                .collect();
            let answers = self.assistant.ask(&questions, run, &mut outcome.figures)?;
            for (talk, answer) in open.into_iter().zip(answers) {
                match whole(answer, &talk.row, &mut outcome) {
                    Some(text) => {
                        talk.say("assistant", &text);
                        talk.answers += 1;
                    }
                    None => {
                        // The question that has no answer goes, so that the rest ends with one.
                        talk.turns.pop();
                        talk.is_over = true;
                    }
                }
            }
        }
        for talk in talks {
            if talk.answers == 0 {
                continue;
            }
            if talk.answers < self.min_turns {
                remove(&mut outcome, &talk.row, "too few turns", &talk.answers.to_string());
                continue;
            }
            let mut made = Row::chat(&talk.turns);
            if let Some(persona) = talk.row.text("persona") {
                made.set("persona", persona);
            }
            self.assistant.sign(&mut made, "dialogue", run, &self.prompt.hash, &[&talk.row]);
            self.user.sign_as(&mut made, "user", run);
            outcome.rows.push(made);
        }
        Ok(outcome)
    }
}
