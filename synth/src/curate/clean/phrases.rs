//! Overused phrases: not removed at first sight, but held to a share of the data set (Llama 3,
//! section 4.2.3: "carefully balance the proportion of such samples").

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use crate::curate::dialogue::{Dialogue, Part};
use crate::curate::refusals::plain_quotes;
use crate::curate::words::{hash, mix};
use crate::row::Row;

/// What became of the rows with a phrase.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub(super) struct Found {
    /// Rows that have it.
    rows: usize,
    /// Of these, those that were kept.
    kept: usize,
}

/// Phrases and the share of the rows that each may have.
pub(super) struct Phrases<'a> {
    phrases: &'a [String],
    share: f64,
}

impl<'a> Phrases<'a> {
    pub(super) fn new(phrases: &'a [String], share: f64) -> Self {
        Self { phrases, share }
    }

    /// The phrase for which each row goes, and the figures of each phrase. Which rows of a phrase
    /// stay is drawn by `seed`.
    pub(super) fn balance(
        &self,
        rows: &[Row],
        seed: u64,
    ) -> (Vec<Option<&'a str>>, BTreeMap<&'a str, Found>) {
        let spelt: Vec<String> = self.phrases.iter().map(|phrase| spelling(phrase)).collect();
        let having: Vec<Vec<usize>> = rows
            .par_iter()
            .map(|row| {
                let text = Dialogue::of(row).map(|said| said.text(Part::Answer));
                let text = spelling(&text.unwrap_or_default());
                (0..spelt.len()).filter(|&at| has(&text, &spelt[at])).collect()
            })
            .collect();
        let mut fates: Vec<Option<&str>> = vec![None; rows.len()];
        let order = |row: usize| (mix(seed ^ hash(rows[row].id().as_bytes())), row);
        let mut left = rows.len();
        // A row that goes for one phrase raises the share of the others.
        loop {
            let before = left;
            for (at, phrase) in self.phrases.iter().enumerate() {
                let with = |&row: &usize| fates[row].is_none() && having[row].contains(&at);
                let mut with: Vec<usize> = (0..rows.len()).filter(with).collect();
                let surplus = with.len() - self.allowed(with.len(), left).min(with.len());
                if surplus > 0 {
                    with.sort_by_key(|&row| order(row));
                    with.iter().rev().take(surplus).for_each(|&row| fates[row] = Some(phrase));
                    left -= surplus;
                }
            }
            if left == before {
                break;
            }
        }
        let mut figures = BTreeMap::new();
        for (at, phrase) in self.phrases.iter().enumerate() {
            let with: Vec<usize> =
                (0..rows.len()).filter(|&row| having[row].contains(&at)).collect();
            let kept = with.iter().filter(|&&row| fates[row].is_none()).count();
            if !with.is_empty() {
                figures.insert(phrase.as_str(), Found { rows: with.len(), kept });
            }
        }
        (fates, figures)
    }

    /// How many of `with` rows may stay among `all` so that they are no more than the share of what
    /// then remains: m ⁄ (all − with + m) ≤ share.
    fn allowed(&self, with: usize, all: usize) -> usize {
        if self.share >= 1.0 {
            return with;
        }
        (self.share / (1.0 - self.share) * (all - with) as f64 + 1e-9).floor() as usize
    }
}

/// A text as phrases are looked for: in lower case, plain apostrophes, one space between words.
fn spelling(text: &str) -> String {
    plain_quotes(&text.to_lowercase()).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a phrase stands in a text as whole words.
fn has(text: &str, phrase: &str) -> bool {
    text.match_indices(phrase).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + phrase.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::testing::chat;

    #[test]
    fn a_phrase_is_held_to_its_share_of_what_remains() {
        let sorry = |at: usize| chat(&format!("q{at}"), "I’m  sorry, it is late.");
        let mut rows: Vec<Row> = (0..90).map(|at| chat(&format!("p{at}"), "Yes.")).collect();
        rows.extend((0..40).map(sorry));
        let phrases = ["I'm sorry".to_string()];
        let (fates, figures) = Phrases::new(&phrases, 0.1).balance(&rows, 7);
        let kept = fates.iter().skip(90).filter(|fate| fate.is_none()).count();
        assert_eq!(kept, 10, "10 of 100");
        assert_eq!(figures["I'm sorry"], Found { rows: 40, kept: 10 });
        assert!(fates.iter().take(90).all(Option::is_none));
        // Another seed keeps others, the same seed the same.
        assert_ne!(Phrases::new(&phrases, 0.1).balance(&rows, 8).0, fates);
        assert_eq!(Phrases::new(&phrases, 0.1).balance(&rows, 7).0, fates);
    }

    #[test]
    fn a_share_of_one_keeps_all() {
        let rows = [chat("a", "I apologize."), chat("b", "I apologize!")];
        let phrases = ["I apologize".to_string()];
        assert!(Phrases::new(&phrases, 1.0).balance(&rows, 0).0.iter().all(Option::is_none));
    }

    #[test]
    fn phrases_are_whole_words() {
        assert!(has("well, i'm sorry.", "i'm sorry"));
        assert!(!has("i'm sorrysome", "i'm sorry"));
        assert!(!has("hi i am", "i i"));
    }
}
