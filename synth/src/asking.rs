//! Asking a teacher, and what is told of it.

use halter_core::data::record::{Message, Turn};
use halter_core::endpoint::{Answer, Question};
use halter_core::generate::sampling::Sampling;
use halter_core::train::progress::Unit;
use halter_core::{Error, Result};
use serde_json::{Map, Value, json};

use crate::generate::number;
use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Outcome, Removed, Run};

/// Who is asked, and how.
#[derive(Debug, Clone)]
pub(crate) struct Asking {
    pub teacher: String,
    pub sampling: Sampling,
    pub max_new_tokens: usize,
}

/// The name in `key`, or the only teacher.
pub(crate) fn teacher(options: &mut Options, key: &str, teachers: &[&str]) -> Result<String> {
    match (options.get::<String>(key)?, teachers) {
        (Some(name), _) => Ok(name),
        (None, [only]) => Ok(only.to_string()),
        (None, []) => Err(options
            .fault("no teacher: expected a table `[teachers.NAME]`")
            .hint("`local = \"bundled\"`, or `model` with `endpoints`")),
        (None, several) => {
            let why = format!("expected one of {}, got none", several.join(", "));
            Err(options.wrong(key, &why))
        }
    }
}

impl Asking {
    /// `teacher`, `temperature`, `top_p`, `top_k`, `min_p`, `repetition_penalty` and
    /// `max_new_tokens`.
    pub fn read(options: &mut Options, teachers: &[&str], temperature: f32) -> Result<Self> {
        let teacher = teacher(options, "teacher", teachers)?;
        let sampling = Sampling {
            temperature: options.or("temperature", temperature)?,
            top_p: options.or("top_p", 1.0)?,
            top_k: options.or("top_k", 0)?,
            min_p: options.or("min_p", 0.0)?,
            repetition_penalty: options.or("repetition_penalty", 1.0)?,
        };
        sampling.validate().map_err(|error| options.fault(error.message()))?;
        let max_new_tokens = options.within("max_new_tokens", 1024, 1..=1 << 20)?;
        Ok(Self { teacher, sampling, max_new_tokens })
    }

    /// As [`read`](Self::read) says, but asking somebody else.
    pub fn of(&self, teacher: &str) -> Self {
        Self { teacher: teacher.into(), ..self.clone() }
    }

    /// The likeliest answer.
    pub fn greedy(&self) -> Self {
        Self { sampling: Sampling::GREEDY, ..self.clone() }
    }

    /// A conversation to go on. `draw` tells equal questions apart.
    pub fn chat(
        &self,
        messages: Vec<Message>,
        seed: u64,
        draw: impl std::fmt::Display,
    ) -> Question {
        self.question(Turn::Messages(messages), seed, draw)
    }

    /// A user's message.
    pub fn user(&self, text: &str, seed: u64, draw: impl std::fmt::Display) -> Question {
        self.chat(vec![Message::new("user", text)], seed, draw)
    }

    /// Any prompt.
    pub fn question(&self, prompt: Turn, seed: u64, draw: impl std::fmt::Display) -> Question {
        let mut question = Question::new(prompt, self.max_new_tokens);
        question.sampling = self.sampling;
        question.draw = number(&format!("{seed} {draw}"));
        question
    }

    /// The likeliest answer of a teacher, which is the same whatever the seed.
    pub fn likeliest(teacher: &str, max_new_tokens: usize) -> Self {
        Self { teacher: teacher.into(), sampling: Sampling::GREEDY, max_new_tokens }
    }

    /// A user's message; equal ones have one answer.
    pub fn once(&self, text: &str) -> Question {
        let question = Question::of_user(text, self.max_new_tokens);
        Question { sampling: self.sampling, ..question }
    }

    /// The answers, in the questions' order. What they took is added to the figures.
    pub fn ask(
        &self,
        questions: &[Question],
        run: &mut Run,
        figures: &mut Map<String, Value>,
    ) -> Result<Vec<Result<Answer>>> {
        if questions.is_empty() {
            return Ok(Vec::new());
        }
        let Run { teachers, progress, interrupt, .. } = run;
        let teacher = teachers
            .get(&self.teacher)
            .ok_or_else(|| Error::config(format!("no teacher is called `{}`", self.teacher)))?;
        progress.begin(&format!("asking {}", self.teacher), questions.len() as u64, Unit::Items);
        let answers = teacher.answer(questions, &mut |done| {
            progress.advance(done as u64, "");
            interrupt.check()
        });
        progress.finish();
        let answers = answers?;
        let mut add = |name: &str, more: u64| {
            let before = figures.get(name).and_then(Value::as_u64).unwrap_or(0);
            figures.insert(name.into(), json!(before.saturating_add(more)));
        };
        add("questions", questions.len() as u64);
        let told = || answers.iter().flatten();
        add("prompt_tokens", told().map(|a| a.usage.prompt_tokens).sum());
        add("completion_tokens", told().map(|a| a.usage.completion_tokens).sum());
        add("no_answer", answers.iter().filter(|answer| answer.is_err()).count() as u64);
        Ok(answers)
    }

    /// Adds to `row` what it was made from. The runner adds the step's name.
    pub fn sign(
        &self,
        row: &mut Row,
        kind: &str,
        run: &Run,
        prompt: Option<&str>,
        parents: &[&Row],
    ) {
        let sampling = &self.sampling;
        let model = run.teachers.get(&self.teacher).map(|teacher| teacher.name());
        let mut entries: Vec<Value> = Vec::new();
        for parent in parents {
            let before = parent.0.get("provenance").and_then(Value::as_array);
            for entry in before.into_iter().flatten() {
                if !entries.contains(entry) {
                    entries.push(entry.clone());
                }
            }
        }
        let licence = entries.iter().rev().find_map(|entry| entry.get("licence")).cloned();
        entries.push(json!({
            "kind": kind, "teacher": self.teacher, "model": model, "prompt_hash": prompt,
            "sampling": {
                "temperature": told(sampling.temperature), "top_p": told(sampling.top_p),
                "top_k": sampling.top_k, "min_p": told(sampling.min_p),
                "repetition_penalty": told(sampling.repetition_penalty),
                "max_new_tokens": self.max_new_tokens, "seed": run.seed,
            },
            "parents": parents.iter().map(|row| row.id()).collect::<Vec<_>>(),
            "licence": licence,
        }));
        row.set("provenance", entries);
    }
}

/// As the user wrote it: 0.7, not 0.699999988079071.
fn told(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

/// The text of an answer that is there, is whole and says something; else the row is removed.
pub(crate) fn whole(answer: Result<Answer>, row: &Row, outcome: &mut Outcome) -> Option<String> {
    let (reason, detail) = match answer {
        Err(error) => ("no answer", error.to_string()),
        Ok(answer) if !answer.is_whole() => ("cut off", excerpt(answer.text())),
        Ok(answer) if answer.text().trim().is_empty() => ("empty answer", answer.finish),
        Ok(answer) => return Some(answer.text().trim().to_string()),
    };
    outcome.removed.push(Removed { row: row.clone(), reason, detail });
    None
}

/// A row that goes no further.
pub(crate) fn remove(outcome: &mut Outcome, row: &Row, reason: &'static str, detail: &str) {
    outcome.removed.push(Removed { row: row.clone(), reason, detail: excerpt(detail) });
}

/// So much of a text as a reader needs.
pub(crate) fn excerpt(text: &str) -> String {
    const CHARS: usize = 300;
    match text.char_indices().nth(CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

/// A row that is nothing but a user's message.
pub(crate) fn prompt_row(text: &str) -> Row {
    let mut row = Row::default();
    row.set("prompt", json!([{"role": "user", "content": text}]));
    row
}

/// What a model said after its thinking.
pub(crate) fn after_thinking(said: &str) -> &str {
    said.rsplit_once("</think>").map_or(said, |(_, answer)| answer).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinking_is_not_part_of_the_answer() {
        assert_eq!(after_thinking("<think>no: 0</think>\n yes "), "yes");
        assert_eq!(after_thinking("yes"), "yes");
    }
}
