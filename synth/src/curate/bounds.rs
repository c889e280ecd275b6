//! `bounds`: rows of other languages, and rows that are too short or too long.

use std::path::{Path, PathBuf};

use halter_core::text::tokenizer::Tokenizer;
use halter_core::{Error, Result};
use rayon::prelude::*;
use serde::Deserialize;
use unicode_segmentation::UnicodeSegmentation;

use super::dialogue::{Dialogue, Part};
use super::language;
use super::options::{Checked, wrong};
use crate::row::Row;
use crate::step::{Outcome, Removed, Run, Step};

/// Removes rows outside of bounds; a bound that is not given does not bind. Both ends belong to the
/// range.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bounds {
    /// What is looked at: `all`, `prompt` or `answer`.
    pub of: Part,
    /// ISO 639-1 codes of the languages that stay; none: all.
    pub languages: Vec<String>,
    /// A text goes for its language only where that is at least as sure (0 to 1).
    pub min_confidence: f64,
    /// Fewest characters.
    pub min_characters: Option<usize>,
    /// Most characters.
    pub max_characters: Option<usize>,
    /// Fewest words.
    pub min_words: Option<usize>,
    /// Most words.
    pub max_words: Option<usize>,
    /// Fewest turns of the whole row, the system's not counted.
    pub min_turns: Option<usize>,
    /// Most turns.
    pub max_turns: Option<usize>,
    /// Fewest tokens; needs `tokenizer`.
    pub min_tokens: Option<usize>,
    /// Most tokens.
    pub max_tokens: Option<usize>,
    /// A `tokenizer.json`, or the folder that holds it.
    pub tokenizer: Option<PathBuf>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            of: Part::All,
            languages: Vec::new(),
            min_confidence: 0.9,
            min_characters: None,
            max_characters: None,
            min_words: None,
            max_words: None,
            min_turns: None,
            max_turns: None,
            min_tokens: None,
            max_tokens: None,
            tokenizer: None,
        }
    }
}

impl Checked for Bounds {
    fn check(&self) -> Result<()> {
        if let Some(code) = self.languages.iter().find(|code| !language::is_known(code)) {
            let error = wrong("languages", "languages that can be told apart", code);
            return Err(error.hint(format!("these can: {}", language::codes())));
        }
        if !(0.0..=1.0).contains(&self.min_confidence) {
            return Err(wrong("min_confidence", "a number from 0 to 1", self.min_confidence));
        }
        for (what, least, most) in [
            ("characters", self.min_characters, self.max_characters),
            ("words", self.min_words, self.max_words),
            ("turns", self.min_turns, self.max_turns),
            ("tokens", self.min_tokens, self.max_tokens),
        ] {
            if let (Some(least), Some(most)) = (least, most)
                && least > most
            {
                let key = format!("max_{what}");
                return Err(wrong(&key, &format!("at least `min_{what}`, {least}"), most));
            }
        }
        let counts = self.min_tokens.is_some() || self.max_tokens.is_some();
        match (counts, &self.tokenizer) {
            (true, None) => Err(Error::config("`min_tokens` and `max_tokens` need a `tokenizer`")),
            _ => Ok(()),
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        self.tokenizer.iter().cloned().collect()
    }
}

/// A number outside of its range, in words.
fn outside(what: &str, number: usize, least: Option<usize>, most: Option<usize>) -> Option<String> {
    let below = least.filter(|least| number < *least).map(|least| format!("fewer than {least}"));
    let above = || most.filter(|most| number > *most).map(|most| format!("more than {most}"));
    let bound = below.or_else(above)?;
    Some(format!("{number} {what}, {bound}"))
}

impl Bounds {
    fn broken(&self, row: &Row, tokens: Option<&Tokenizer>) -> Option<(&'static str, String)> {
        let dialogue = match Dialogue::of(row) {
            Ok(dialogue) => dialogue,
            Err(error) => return Some(("unreadable", error.to_string())),
        };
        let turns = dialogue.turns.iter().filter(|said| said.role != "system").count();
        let text = dialogue.text(self.of);
        let counted =
            |what, number, least, most| Some(("length", outside(what, number, least, most)?));
        counted("turns", turns, self.min_turns, self.max_turns)
            .or_else(|| {
                let characters = text.chars().count();
                counted("characters", characters, self.min_characters, self.max_characters)
            })
            .or_else(|| {
                (self.min_words, self.max_words).ne(&(None, None)).then_some(())?;
                let words = text.unicode_words().count();
                counted("words", words, self.min_words, self.max_words)
            })
            .or_else(|| match tokens?.encode(&text, false) {
                Ok(tokens) => counted("tokens", tokens.ids.len(), self.min_tokens, self.max_tokens),
                Err(error) => Some(("unreadable", error.to_string())),
            })
            .or_else(|| self.foreign(&text))
    }

    fn foreign(&self, text: &str) -> Option<(&'static str, String)> {
        if self.languages.is_empty() {
            return None;
        }
        let (code, confidence) = language::detect(text)?;
        let stays = confidence < self.min_confidence || self.languages.iter().any(|l| l == code);
        (!stays).then(|| ("language", format!("{code}, confidence {confidence:.2}")))
    }
}

/// Opens a `tokenizer.json`, or that of a folder.
///
/// # Errors
/// A file that cannot be read or is no tokenizer.
pub fn open_tokenizer(path: &Path) -> Result<Tokenizer> {
    match path.is_dir() {
        true => Tokenizer::from_file(path.join("tokenizer.json"), &[]),
        false => Tokenizer::from_file(path, &[]),
    }
}

impl Step for Bounds {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let tokenizer = self.tokenizer.as_deref().map(open_tokenizer).transpose()?;
        run.interrupt.check()?;
        let broken: Vec<_> =
            rows.par_iter().map(|row| self.broken(row, tokenizer.as_ref())).collect();
        let mut outcome = Outcome::default();
        for (row, broken) in rows.into_iter().zip(broken) {
            match broken {
                Some((reason, detail)) => outcome.removed.push(Removed { row, reason, detail }),
                None => outcome.rows.push(row),
            }
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use crate::curate::testing::{chat, prompts, refused, removed, run};

    const ENGLISH: &str = "The river runs through the town and under the old stone bridge.";
    const GERMAN: &str = "Der Fluss fließt durch die Stadt und unter der alten Brücke hindurch.";

    #[test]
    fn other_languages_go_where_they_are_sure() {
        let rows = vec![chat("a", ENGLISH), chat("b", GERMAN), chat("c", "42")];
        let outcome = run("bounds", "languages = ['en']\nof = 'answer'", rows.clone());
        assert_eq!(prompts(&outcome.rows), ["a", "c"]);
        let told = removed(&outcome);
        assert!(told[0].1 == "language" && told[0].2.starts_with("de, "), "{told:?}");
        let both = run("bounds", "languages = ['en', 'de']", rows);
        assert_eq!(both.rows.len(), 3);
    }

    #[test]
    fn lengths_are_bounded_at_both_ends_and_the_ends_stay() {
        let rows = || vec![chat("1", "a b"), chat("2", "a b c"), chat("3", "a b c d")];
        let words = run("bounds", "of = 'answer'\nmin_words = 3\nmax_words = 3", rows());
        assert_eq!(prompts(&words.rows), ["2"]);
        let details: Vec<_> = removed(&words).into_iter().map(|(_, _, detail)| detail).collect();
        assert_eq!(details, ["2 words, fewer than 3", "4 words, more than 3"]);
        assert_eq!(run("bounds", "max_characters = 5", rows()).rows.len(), 1);
        assert_eq!(run("bounds", "min_turns = 3", rows()).rows.len(), 0);
        assert_eq!(run("bounds", "", rows()).rows.len(), 3);
    }

    #[test]
    fn bounds_that_nothing_meets_are_refused() {
        for (options, told) in [
            ("languages = ['xx']", "bounds: `languages`: expected languages that can be told"),
            ("min_words = 3\nmax_words = 2", "bounds: `max_words`: expected at least `min_words`"),
            ("max_tokens = 2", "bounds: `min_tokens` and `max_tokens` need a `tokenizer`"),
            ("min_confidence = 2", "bounds: `min_confidence`"),
        ] {
            let error = refused("bounds", options);
            assert!(error.starts_with(told), "{error}");
        }
    }
}
