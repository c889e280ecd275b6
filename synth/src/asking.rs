//! Asking a teacher, and what is told of it.

use halter_core::data::record::{Message, Turn};
use halter_core::endpoint::{Answer, Question};
use halter_core::generate::sampling::Sampling;
use halter_core::train::progress::Unit;
use halter_core::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

use crate::generate::number;
use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Outcome, Removed, Run};

/// The figure of questions without an answer that may well have one another time.
pub(crate) const UNANSWERED: &str = "unanswered";

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
        let failed = || answers.iter().filter_map(|answer| answer.as_ref().err());
        add("no_answer", failed().count() as u64);
        let passing = failed().filter(|error| error.kind() == ErrorKind::Network).count();
        if passing > 0 {
            add(UNANSWERED, passing as u64);
        }
        Ok(answers)
    }

    /// Adds to `row` what it was made from: behind what is told of its parent, where it has one; of
    /// several only their ids, as what is told of all of them would grow with every generation. The
    /// runner adds the step's name.
    pub fn sign(&self, row: &mut Row, kind: &str, run: &Run, prompt: &str, parents: &[&Row]) {
        let of = |row: &Row| row.0.get("provenance").and_then(Value::as_array).cloned();
        let mut entries = match parents {
            [parent] => of(parent).unwrap_or_default(),
            _ => Vec::new(),
        };
        let mut entry = self.told(run);
        entry.insert("kind".into(), kind.into());
        entry.insert("prompt_hash".into(), prompt.into());
        entry.insert("parents".into(), parents.iter().map(|row| row.id()).collect());
        entry.insert("licence".into(), licence(parents));
        entries.push(entry.into());
        row.set("provenance", entries);
    }

    /// Adds to the newest entry of `row`'s provenance that this one had a part in it.
    pub fn sign_as(&self, row: &mut Row, part: &str, run: &Run) {
        row.note(part, self.told(run).into());
    }

    /// Who is asked, and how.
    fn told(&self, run: &Run) -> Map<String, Value> {
        let sampling = &self.sampling;
        let model = run.teachers.get(&self.teacher).map(|teacher| teacher.name());
        let sampling = json!({
            "temperature": told(sampling.temperature), "top_p": told(sampling.top_p),
            "top_k": sampling.top_k, "min_p": told(sampling.min_p),
            "repetition_penalty": told(sampling.repetition_penalty),
            "max_new_tokens": self.max_new_tokens, "seed": run.seed,
        });
        let pairs =
            [("teacher", json!(self.teacher)), ("model", json!(model)), ("sampling", sampling)];
        pairs.map(|(name, value)| (name.to_string(), value)).into_iter().collect()
    }
}

/// The licences of all that rows were made from: none, one, or a list.
fn licence(parents: &[&Row]) -> Value {
    let mut all: Vec<&Value> = Vec::new();
    for parent in parents {
        let entries = parent.0.get("provenance").and_then(Value::as_array);
        for told in entries.into_iter().flatten().filter_map(|entry| entry.get("licence")) {
            let each = match told {
                Value::Array(several) => several.as_slice(),
                one => std::slice::from_ref(one),
            };
            for one in each.iter().filter(|one| !one.is_null()) {
                if !all.contains(&one) {
                    all.push(one);
                }
            }
        }
    }
    match all.as_slice() {
        [] => Value::Null,
        [one] => (*one).clone(),
        several => several.iter().copied().cloned().collect(),
    }
}

/// As the user wrote it: 0.7, not 0.699999988079071.
fn told(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

/// What is said in an answer that is there, is whole and says something after its thinking; else the
/// row is removed.
pub(crate) fn said(answer: Result<Answer>, row: &Row, outcome: &mut Outcome) -> Option<String> {
    whole(answer, row, outcome).map(|text| after_thinking(&text).to_string())
}

/// [`said`] with the thinking before it, which belongs to an assistant's turn.
pub(crate) fn whole(answer: Result<Answer>, row: &Row, outcome: &mut Outcome) -> Option<String> {
    let (reason, detail) = match answer {
        Err(error) => ("no answer", error.to_string()),
        Ok(answer) if !answer.is_whole() => ("cut off", excerpt(answer.text())),
        Ok(answer) if after_thinking(answer.text()).is_empty() => ("empty answer", answer.finish),
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

/// What a model said after its thinking; nothing where that has no end.
pub(crate) fn after_thinking(said: &str) -> &str {
    match said.rsplit_once("</think>") {
        Some((_, answer)) => answer.trim(),
        None if said.trim_start().starts_with("<think>") => "",
        None => said.trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinking_is_not_part_of_the_answer() {
        assert_eq!(after_thinking("<think>no: 0</think>\n yes "), "yes");
        assert_eq!(after_thinking("yes"), "yes");
        assert_eq!(after_thinking("\n<think>1. no"), "");
    }

    #[test]
    fn a_row_has_every_licence_of_its_parents_once() {
        let of = |licences: Value| {
            let entry = |licence: &Value| json!({"kind": "rows", "licence": licence});
            let mut row = Row::default();
            row.set(
                "provenance",
                licences.as_array().unwrap().iter().map(entry).collect::<Value>(),
            );
            row
        };
        let (plain, mit) = (of(json!([null])), of(json!(["MIT", null])));
        let both = of(json!(["MIT", ["MIT", "CC-BY-4.0"]]));
        assert_eq!(licence(&[&plain]), Value::Null);
        assert_eq!(licence(&[&plain, &mit, &mit]), json!("MIT"));
        assert_eq!(licence(&[&plain, &both, &mit]), json!(["MIT", "CC-BY-4.0"]));
    }
}
