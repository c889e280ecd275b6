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
    "provenance",
    "id",
];
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
        let dialogue = Dialogue::of_record(&parse(format, row)?);
        let text = dialogue.text(Part::All);
        facts.roles = dialogue.turns.iter().map(|said| said.role.clone()).collect();
        facts.turns = dialogue.turns.iter().filter(|said| said.role != "system").count();
        facts.characters = dialogue.turns.iter().map(|said| said.text.chars().count()).sum();
        facts.words = words(&text);
        let (prompt, answer) =
            (words(&dialogue.text(Part::Prompt)), words(&dialogue.text(Part::Answer)));
        (facts.prompt_words, facts.answer_words) = (prompt.len(), answer.len());
        let start = |words: &[String]| (words.len() > 1).then(|| words[..2].join(" "));
        (facts.prompt_start, facts.answer_start) = (start(&prompt), start(&answer));
        let head: String = text.chars().take(LANGUAGE).collect();
        facts.language = match language::detect(&head) {
            Some((code, confidence)) if confidence >= SURE => code,
            Some(_) => "not sure",
            None => "no letters",
        };
        let digest = blake3::hash(facts.words.join(" ").as_bytes());
        facts.digest.copy_from_slice(&digest.as_bytes()[..16]);
        for said in &dialogue.turns {
            let found = secrets::find(&said.text).into_iter();
            let masked = |kind, text: &str| (kind, secrets::mask(text, kind));
            facts.findings.extend(found.map(|found| masked(found.kind, &said.text[found.at])));
        }
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

    /// Numbers and classes beside the content.
    fn columns(&mut self, row: &Map<String, Value>) {
        let class = |text: &str| (text.chars().count() <= CLASS).then(|| text.to_string());
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
                Value::Null | Value::Object(_) => {}
            }
        }
    }
}
