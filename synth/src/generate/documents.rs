//! Questions with answers, and summaries, from passages of documents (as synthetic long-context data
//! in "The Llama 3 Herd of Models", section 4.3.4).

mod html;
mod pdf;
mod read;
mod split;

use std::path::PathBuf;
use std::time::Duration;

use halter_core::Result;
use halter_core::data::record::Message;
use halter_core::train::progress::Unit;
use serde::Deserialize;
use serde_json::{Value, json};

use super::asking::{Asking, after_thinking, remove, teacher, whole};
use super::template::Template;
use super::{Made, Questions, reply};
use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Outcome, Run, Step};
use read::{Bounds, Fault};

const QUESTIONS: &str = include_str!("../../prompts/document-questions.txt");
const SUMMARY: &str = include_str!("../../prompts/document-summary.txt");
const CHECK: &str = include_str!("../../prompts/document-check.txt");

/// What is made of a passage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Make {
    Questions,
    Summary,
}

/// Reads documents, splits them, and asks about each passage.
#[derive(Debug)]
pub(super) struct Documents {
    asking: Asking,
    /// Says whether the passage supports an answer, where that is asked.
    judge: Option<Asking>,
    files: Vec<PathBuf>,
    make: Vec<Make>,
    count: usize,
    chars: (usize, usize),
    max_passages: usize,
    with_passage: bool,
    bounds: Bounds,
    questions: Template,
    summary: Template,
    check: Template,
}

impl Documents {
    pub fn made(options: &mut Options, teachers: &[&str]) -> Result<Made> {
        let asking = Asking::read(options, teachers, 0.7)?;
        let judge = match options.or("check", false)? {
            true => Some(teacher(options, "judge", &[&asking.teacher])?),
            false => None,
        };
        let files = read::files(options)?;
        let mut make = options.or("make", vec![Make::Questions])?;
        make.dedup();
        if make.is_empty() {
            return Err(options.wrong("make", "expected `questions` or `summary`, got none"));
        }
        let most = options.within("max_chars", 3000, 1..=1_000_000)?;
        let each = make.len() * (1 + usize::from(judge.is_some()));
        let questions = match files.len() {
            0 => Questions::PerRow(each),
            files => Questions::Fixed(files * each),
        };
        let mut teachers = vec![asking.teacher.clone()];
        teachers.extend(judge.clone().filter(|judge| *judge != asking.teacher));
        let step = Self {
            make,
            count: options.within("questions", 3, 1..=100)?,
            chars: (options.within("min_chars", most.min(200), 1..=most)?, most),
            max_passages: options.within("max_passages", 100_000, 1..=usize::MAX >> 1)?,
            with_passage: options.or("with_passage", false)?,
            bounds: Bounds {
                bytes: options.within("max_bytes", 32 << 20, 1..=1 << 30)?,
                time: Duration::from_secs(options.within("seconds", 60, 1..=86_400)?),
            },
            questions: Template::read(options, "questions_prompt", QUESTIONS)?,
            summary: Template::read(options, "summary_prompt", SUMMARY)?,
            check: Template::read(options, "check_prompt", CHECK)?,
            judge: judge.map(|judge| asking.of(&judge).greedy()),
            files: files.clone(),
            asking,
        };
        Ok(Made { step: Box::new(step), teachers, needs_rows: files.is_empty(), files, questions })
    }

    /// Every document's passages, those of the rows after those of the files.
    fn passages(
        &self,
        rows: Vec<Row>,
        run: &mut Run,
        outcome: &mut Outcome,
    ) -> Result<Vec<Passage>> {
        let mut passages = Vec::new();
        let documents = self.files.len() + rows.len();
        run.progress.begin("reading documents", documents as u64, Unit::Items);
        for path in &self.files {
            let told = path.display().to_string();
            let (hash, text) = read::document(path, self.bounds, run.interrupt)?;
            let mut row = Row::default();
            row.set("document", told.as_str());
            let origin = json!({"path": told, "hash": hash});
            self.split(row, None, text, origin, &mut passages, outcome);
            run.progress.advance(1, "");
        }
        for row in rows {
            run.interrupt.check()?;
            let text = row.text("text").map(str::to_string).or_else(|| reply::answer(&row));
            let text = text.ok_or_else(|| Fault("no text", "expected `text` or an answer".into()));
            let hash = text.as_ref().ok().map(|text| blake3::hash(text.as_bytes()).to_hex());
            let origin = json!({"hash": hash.map(|hash| hash.to_string())});
            self.split(row.clone(), Some(row), text, origin, &mut passages, outcome);
        }
        run.progress.finish();
        outcome.figures.insert("documents".into(), json!(documents));
        outcome.figures.insert("passages".into(), json!(passages.len()));
        Ok(passages)
    }

    fn split(
        &self,
        row: Row,
        parent: Option<Row>,
        text: Result<String, Fault>,
        origin: Value,
        passages: &mut Vec<Passage>,
        outcome: &mut Outcome,
    ) {
        let text = match text {
            Ok(text) => text,
            Err(Fault(reason, detail)) => return remove(outcome, &row, reason, &detail),
        };
        let (found, rest) = split::passages(&text, self.chars.0, self.chars.1);
        if found.is_empty() || !rest.is_empty() {
            remove(outcome, &row, "too short", &rest);
        }
        for (at, text) in found.into_iter().enumerate() {
            let mut origin = origin.clone();
            origin["passage"] = json!(at + 1);
            let mut row = Row::default();
            row.set("text", text.as_str());
            row.set("document", origin.clone());
            match at < self.max_passages {
                true => passages.push(Passage { text, row, parent: parent.clone(), origin }),
                false => remove(outcome, &row, "too many passages", &(at + 1).to_string()),
            }
        }
    }

    /// Asks for what is to be made, and reads the replies.
    fn ask(
        &self,
        make: Make,
        passages: &[Passage],
        run: &mut Run,
        outcome: &mut Outcome,
    ) -> Result<Vec<Pair>> {
        let template = self.template(make);
        let asked = passages
            .iter()
            .map(|passage| template.render(&json!({"passage": passage.text, "count": self.count})));
        let asked: Vec<String> = asked.collect::<Result<_>>()?;
        let questions: Vec<_> =
            asked.iter().map(|text| self.asking.user(text, run.seed, 0)).collect();
        let answers = self.asking.ask(&questions, run, &mut outcome.figures)?;
        let mut pairs = Vec::new();
        for ((of, answer), asked) in answers.into_iter().enumerate().zip(asked) {
            let passage = &passages[of];
            let Some(said) = whole(answer, &passage.row, outcome) else { continue };
            if make == Make::Summary {
                let answer = after_thinking(&said).to_string();
                pairs.push(Pair { of, make, user: asked, question: None, answer });
                continue;
            }
            let Some(Value::Array(list)) = reply::json(&said) else {
                remove(outcome, &passage.row, "no list", &said);
                continue;
            };
            let most = list.len().min(self.count);
            for item in &list[most..] {
                remove(outcome, &passage.row, "beyond `questions`", &item.to_string());
            }
            for item in list.into_iter().take(most) {
                let Some((question, answer)) = pair(&item) else {
                    remove(outcome, &passage.row, "no pair", &item.to_string());
                    continue;
                };
                let user = match self.with_passage {
                    true => format!("{}\n\n{question}", passage.text),
                    false => question.clone(),
                };
                pairs.push(Pair { of, make, user, question: Some(question), answer });
            }
        }
        Ok(pairs)
    }

    fn template(&self, make: Make) -> &Template {
        match make {
            Make::Questions => &self.questions,
            Make::Summary => &self.summary,
        }
    }

    /// The rows whose answers their passages support, where that is asked.
    fn check(
        &self,
        made: Vec<(Row, &Passage, Pair)>,
        run: &mut Run,
        outcome: &mut Outcome,
    ) -> Result<Vec<Row>> {
        let Some(judge) = &self.judge else {
            return Ok(made.into_iter().map(|(row, ..)| row).collect());
        };
        let questions = made.iter().map(|(_, passage, pair)| {
            let names = json!({"passage": passage.text, "question": pair.question,
                               "answer": pair.answer});
            Ok(judge.user(&self.check.render(&names)?, run.seed, 0))
        });
        let questions: Vec<_> = questions.collect::<Result<_>>()?;
        let mut kept = Vec::new();
        for ((row, ..), answer) in
            made.into_iter().zip(judge.ask(&questions, run, &mut outcome.figures)?)
        {
            let Some(said) = whole(answer, &row, outcome) else { continue };
            match is_supported(&said) {
                Some(true) => kept.push(row),
                Some(false) => remove(outcome, &row, "not supported", &said),
                None => remove(outcome, &row, "no verdict", &said),
            }
        }
        Ok(kept)
    }

    fn row(&self, passage: &Passage, pair: &Pair, run: &Run) -> Row {
        let turns = [Message::new("user", &pair.user), Message::new("assistant", &pair.answer)];
        let mut row = Row::chat(&turns);
        row.set("passage", passage.text.as_str());
        let parents: Vec<&Row> = passage.parent.iter().collect();
        let hash = &self.template(pair.make).hash;
        self.asking.sign(&mut row, "documents", run, hash, &parents);
        row.note("document", passage.origin.clone());
        if let Some(judge) = &self.judge {
            judge.sign_as(&mut row, "judge", run);
        }
        row
    }
}

impl Step for Documents {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let passages = self.passages(rows, run, &mut outcome)?;
        let mut pairs = Vec::new();
        for make in &self.make {
            pairs.extend(self.ask(*make, &passages, run, &mut outcome)?);
        }
        pairs.sort_by_key(|pair| pair.of);
        let made = pairs.into_iter().map(|pair| {
            let passage = &passages[pair.of];
            (self.row(passage, &pair, run), passage, pair)
        });
        let made = made.collect();
        outcome.rows = self.check(made, run, &mut outcome)?;
        Ok(outcome)
    }
}

/// A passage, and where it is from.
struct Passage {
    text: String,
    /// What stands among the removed rows where nothing comes of it.
    row: Row,
    parent: Option<Row>,
    origin: Value,
}

/// What was made of a passage.
struct Pair {
    of: usize,
    make: Make,
    user: String,
    question: Option<String>,
    answer: String,
}

/// A question and its answer, of an object that holds these alone.
fn pair(item: &Value) -> Option<(String, String)> {
    let fields = item.as_object().filter(|fields| fields.len() == 2)?;
    let text = |name: &str| {
        let text = fields.get(name)?.as_str()?.trim();
        (!text.is_empty()).then(|| text.to_string())
    };
    Some((text("question")?, text("answer")?))
}

/// The verdict in the last line.
fn is_supported(said: &str) -> Option<bool> {
    let last = after_thinking(said).lines().rfind(|line| !line.trim().is_empty())?;
    let last = last.trim().trim_matches(['*', '.']).to_ascii_lowercase();
    match last.strip_prefix("verdict:")?.trim_matches(['*', ' ']) {
        "supported" => Some(true),
        "not supported" => Some(false),
        _ => None,
    }
}
