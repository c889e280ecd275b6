//! `clean`: rules that need no model (Llama 3, section 4.2.3: "rule-based data removal and
//! modification strategies to filter or clean problematic data").

mod fences;
mod limits;
mod phrases;
mod rules;
#[cfg(test)]
mod tests;

use halter_core::Result;
use rayon::prelude::*;
use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, json};

use super::dialogue::Dialogue;
use super::options::{self, Checked, wrong};
use super::refusals;
use crate::row::Row;
use crate::step::{Outcome, Removed, Run, Step};
use limits::Limit;
use phrases::Phrases;

/// Phrases of which the paper names two.
const PHRASES: [&str; 5] =
    ["I'm sorry", "I am sorry", "I apologize", "I apologise", "my apologies"];

/// Removes rows that break a rule. What is looked at are the assistant's turns, outside of code
/// where it is marks that are counted; a rule that an option turns off is not applied.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Clean {
    /// Phrases that are common enough to be learnt as a habit.
    pub phrases: Vec<String>,
    /// The largest share of the rows that are kept in which each phrase may stand; 1: any.
    pub max_phrase_share: f64,
    /// Emojis that an answer may have.
    pub emojis: Limit,
    /// Exclamation marks that an answer may have.
    pub exclamation_marks: Limit,
    /// Remove answers that decline.
    pub refusals: bool,
    /// Regular expressions of refusals beyond those that are known.
    pub refusal_patterns: Vec<String>,
    /// Remove answers without text (and without a tool call).
    pub empty: bool,
    /// Remove answers that break off.
    pub truncated: bool,
    /// Remove answers that are the prompt again or begin with all of it.
    pub repeated_prompt: bool,
    /// Remove answers with a code fence that is not closed.
    pub broken_fences: bool,
}

impl Default for Clean {
    fn default() -> Self {
        Self {
            phrases: PHRASES.map(str::to_string).to_vec(),
            max_phrase_share: 0.05,
            emojis: Limit { most: 3, per_100_words: 1.0 },
            exclamation_marks: Limit { most: 4, per_100_words: 2.0 },
            refusals: true,
            refusal_patterns: Vec::new(),
            empty: true,
            truncated: true,
            repeated_prompt: true,
            broken_fences: true,
        }
    }
}

impl Checked for Clean {
    fn check(&self) -> Result<()> {
        options::share("max_phrase_share", self.max_phrase_share)?;
        if let Some(phrase) = self.phrases.iter().find(|phrase| phrase.trim().is_empty()) {
            return Err(wrong("phrases", "phrases with words", phrase));
        }
        for (key, limit) in [("emojis", self.emojis), ("exclamation_marks", self.exclamation_marks)]
        {
            if limit.per_100_words.is_nan() || limit.per_100_words < 0.0 {
                let key = format!("{key}.per_100_words");
                return Err(wrong(&key, "a number from 0", limit.per_100_words));
            }
        }
        self.patterns().map(|_| ())
    }
}

impl Clean {
    fn patterns(&self) -> Result<Vec<Regex>> {
        let own = |pattern: &String| {
            refusals::compile(pattern).map_err(|told| {
                wrong("refusal_patterns", &format!("regular expressions ({told})"), pattern)
            })
        };
        self.refusal_patterns.iter().map(own).collect()
    }

    /// The first rule that a row breaks, and how.
    fn broken(&self, row: &Row, own_refusals: &[Regex]) -> Option<(&'static str, String)> {
        let dialogue = match Dialogue::of(row) {
            Ok(dialogue) => dialogue,
            Err(error) => return Some(("unreadable", error.to_string())),
        };
        let finish = row.text("finish").or_else(|| row.text("finish_reason"));
        if self.truncated && finish == Some("length") {
            return Some(("truncated", "it ended at the limit of tokens".into()));
        }
        let answers = dialogue.answers().collect::<Vec<_>>();
        answers.iter().enumerate().find_map(|(at, (asked, said))| {
            let (text, is_last) = (said.text.as_str(), at + 1 == answers.len());
            if text.trim().is_empty() {
                return (self.empty && !said.calls).then(|| ("empty", String::new()));
            }
            let refusal =
                || refusals::refusal(text).or_else(|| refusals::refusal_by(own_refusals, text));
            if let Some(found) = self.refusals.then(refusal).flatten() {
                return Some(("refusal", found));
            }
            if let Some(found) = self.broken_fences.then(|| fences::open_at_end(text)).flatten() {
                return Some(("broken code fence", found));
            }
            if let Some(found) =
                (self.truncated && is_last).then(|| rules::truncated(text)).flatten()
            {
                return Some(("truncated", found));
            }
            let asked = asked.filter(|_| self.repeated_prompt).map(|said| said.text.as_str());
            if let Some(found) = asked.and_then(|asked| rules::repeats(asked, text)) {
                return Some(("repeats the prompt", found));
            }
            let prose = fences::without_code(text);
            let over = self.emojis.broken(limits::emojis(&prose), &prose, "emojis");
            if let Some(found) = over {
                return Some(("emojis", found));
            }
            let marks = limits::exclamation_marks(&prose);
            let over = self.exclamation_marks.broken(marks, &prose, "exclamation marks");
            over.map(|found| ("exclamation marks", found))
        })
    }
}

impl Step for Clean {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let own_refusals = self.patterns()?;
        run.interrupt.check()?;
        let broken: Vec<_> = rows.par_iter().map(|row| self.broken(row, &own_refusals)).collect();
        let mut outcome = Outcome::default();
        let mut kept = Vec::with_capacity(rows.len());
        for (row, broken) in rows.into_iter().zip(broken) {
            match broken {
                Some((reason, detail)) => outcome.removed.push(Removed { row, reason, detail }),
                None => kept.push(row),
            }
        }
        run.interrupt.check()?;
        let phrases = Phrases::new(&self.phrases, self.max_phrase_share);
        let (fates, figures) = phrases.balance(&kept, run.seed);
        for (row, fate) in kept.into_iter().zip(fates) {
            match fate {
                Some(phrase) => outcome.removed.push(Removed {
                    row,
                    reason: "overused phrase",
                    detail: phrase.to_string(),
                }),
                None => outcome.rows.push(row),
            }
        }
        outcome.figures = Map::from_iter([("phrases".to_string(), json!(figures))]);
        Ok(outcome)
    }
}
