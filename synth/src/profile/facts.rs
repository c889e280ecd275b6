//! What is noted of one row.

use halter_core::Result;
use halter_core::data::format::Format;
use halter_core::data::parse::parse;
use halter_core::text::tokenizer::Tokenizer;
use serde_json::{Map, Value};

use super::secrets::{self, Kind};
use crate::curate::decontaminate::index::{Hit, Index};
use crate::curate::dialogue::{Dialogue, Part};
use crate::curate::language;
use crate::curate::words::words;

/// What steps wrote of a row's origin.
const PROVENANCE: &str = "provenance";
/// Columns that hold the row itself.
const CONTENT: [&str; 18] = [
    "messages",
    "conversations",
    "conversation",
    "prompt",
    "completion",
    "completions",
    "chosen",
    "rejected",
    "text",
    "instruction",
    "input",
    "output",
    "system",
    "tools",
    "history",
    "input_ids",
    PROVENANCE,
    "id",
];
/// Objects within one another whose numbers are columns: `judge.accuracy`.
const DEPTH: usize = 3;
/// Characters of a class's name; longer texts are no classes.
const CLASS: usize = 40;
/// Characters that a language is told by.
const LANGUAGE: usize = 2000;
/// Confidence below which a language is not told.
const SURE: f64 = 0.5;

/// One row.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub roles: Vec<String>,
    pub turns: usize,
    pub characters: usize,
    pub tokens: Option<usize>,
    pub words: Vec<String>,
    /// The words that may be shown, where these are not all.
    pub shown: Option<Vec<String>>,
    pub prompt_words: usize,
    pub answer_words: usize,
    pub language: &'static str,
    /// A hash of the normalised text: equal for exact duplicates.
    pub digest: [u8; 16],
    pub prompt_start: Option<String>,
    pub answer_start: Option<String>,
    pub findings: Vec<(Kind, String)>,
    pub hits: Vec<Hit>,
    pub numbers: Vec<(String, f64)>,
    pub classes: Vec<(String, String)>,
}

/// What rows are looked at with.
#[derive(Clone, Copy, Default)]
pub struct Lenses<'a> {
    /// Counts tokens, where it is given.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Finds rows of evaluations, and the share of their words from which on one is found.
    pub evaluation: Option<(&'a Index, f64)>,
}

impl Facts {
    /// Those of a row.
    ///
    /// # Errors
    /// A row that does not hold what the format asks for, or a text that cannot be encoded.
    pub(super) fn of(row: Map<String, Value>, format: Format, lenses: Lenses) -> Result<Self> {
        let mut facts = Self::default();
        facts.columns(&row);
        for (_, value) in row.iter().filter(|(name, _)| *name != PROVENANCE) {
            facts.search(value);
        }
        let dialogue = Dialogue::of_record(&parse(format, row)?);
        let text = dialogue.text(Part::All);
        facts.roles = dialogue.turns.iter().map(|said| said.role.clone()).collect();
        facts.turns = dialogue.turns.iter().filter(|said| said.role != "system").count();
        facts.characters = dialogue.turns.iter().map(|said| said.text.chars().count()).sum();
        facts.words = words(&text);
        let (prompt, answer) =
            (words(&dialogue.text(Part::Prompt)), words(&dialogue.text(Part::Answer)));
        (facts.prompt_words, facts.answer_words) = (prompt.len(), answer.len());
        let mut starts = (prompt, answer);
        if !facts.findings.is_empty() {
            let clean = |part| words(&secrets::without(&dialogue.text(part)));
            facts.shown = Some(clean(Part::All));
            starts = (clean(Part::Prompt), clean(Part::Answer));
        }
        let start = |words: &[String]| (words.len() > 1).then(|| words[..2].join(" "));
        (facts.prompt_start, facts.answer_start) = (start(&starts.0), start(&starts.1));
        let head: String = text.chars().take(LANGUAGE).collect();
        facts.language = match language::detect(&head) {
            Some((code, confidence)) if confidence >= SURE => code,
            Some(_) => "not sure",
            None => "no letters",
        };
        let digest = blake3::hash(facts.words.join(" ").as_bytes());
        facts.digest.copy_from_slice(&digest.as_bytes()[..16]);
        if let Some(tokenizer) = lenses.tokenizer {
            let counted = |said: &crate::curate::dialogue::Said| {
                Ok(tokenizer.encode(&said.text, false)?.ids.len())
            };
            facts.tokens = Some(dialogue.turns.iter().map(counted).sum::<Result<usize>>()?);
        }
        if let Some((index, bar)) = lenses.evaluation {
            facts.hits = index.hits(&facts.words, bar);
        }
        Ok(facts)
    }

    /// Secrets in whatever text the row holds, be it one that is not trained on.
    fn search(&mut self, value: &Value) {
        match value {
            Value::String(text) => {
                let found = secrets::find(text).into_iter();
                let masked = |kind, text: &str| (kind, secrets::mask(text, kind));
                self.findings.extend(found.map(|found| masked(found.kind, &text[found.at])));
            }
            Value::Array(values) => values.iter().for_each(|value| self.search(value)),
            Value::Object(values) => values.values().for_each(|value| self.search(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Numbers and classes beside the content.
    fn columns(&mut self, row: &Map<String, Value>) {
        let class = |text: &str| (text.chars().count() <= CLASS).then(|| secrets::masked(text));
        for (name, value) in row.iter().filter(|(name, _)| !CONTENT.contains(&name.as_str())) {
            match value {
                Value::Number(number) => {
                    let number = number.as_f64().unwrap_or(f64::NAN);
                    self.numbers.push((name.clone(), number));
                }
                Value::String(text) => {
                    self.classes.extend(class(text).map(|class| (name.clone(), class)));
                }
                Value::Bool(yes) => self.classes.push((name.clone(), yes.to_string())),
                Value::Array(items) => {
                    let items = items.iter().filter_map(Value::as_str).filter_map(class);
                    self.classes.extend(items.map(|class| (name.clone(), class)));
                }
                Value::Object(parts) => self.add_numbers(name, parts, DEPTH),
                Value::Null => {}
            }
        }
    }

    /// Numbers within an object, under the names that other steps give them.
    fn add_numbers(&mut self, name: &str, parts: &Map<String, Value>, depth: usize) {
        for (part, value) in parts {
            let name = format!("{name}.{part}");
            match value {
                Value::Number(number) => {
                    self.numbers.push((name, number.as_f64().unwrap_or(f64::NAN)));
                }
                Value::Object(parts) if depth > 1 => self.add_numbers(&name, parts, depth - 1),
                _ => {}
            }
        }
    }
}
