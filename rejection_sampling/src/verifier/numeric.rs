//! Is the final answer of a completion the row's answer?

use halter_core::Result;

use super::answer::{self, FinalAnswer, Mark};
use super::math::{equivalent, number_in_words};
use super::reference::Reference;
use super::shortened;
use crate::scorer::{Item, Score, Scorer};

/// Characters of an answer in a report.
const DETAIL: usize = 60;

/// 1 where the completion's final answer ([`answer::find`]) and the row's are the same
/// ([`equivalent`]), else 0. An answer in words that is not in a box (`there are 5 apples`) is the
/// number in it ([`number_in_words`]).
#[derive(Debug, Clone, Default)]
pub struct Numeric {
    /// Where the answer is.
    pub reference: Reference,
}

/// Whether `answer` is the same as `wanted`.
pub fn matches(answer: FinalAnswer, wanted: &str) -> bool {
    if equivalent(answer.text, wanted) {
        return true;
    }
    let may_be_words = matches!(answer.mark, Mark::Line | Mark::Phrase | Mark::Tag);
    let number = may_be_words.then(|| number_in_words(answer.text)).flatten();
    number.is_some_and(|number| equivalent(&number, wanted))
}

impl Scorer for Numeric {
    fn name(&self) -> &str {
        "numeric"
    }

    fn score(&self, item: &Item) -> Result<Score> {
        let wanted = self.reference.answer(item.row)?;
        let Some(found) = answer::find(item.completion) else {
            return Ok(Score::because(0.0, "no final answer"));
        };
        if matches(found, &wanted) {
            return Ok(Score::new(1.0));
        }
        let (got, wanted) = (shortened(found.text, DETAIL), shortened(&wanted, DETAIL));
        Ok(Score::because(0.0, format!("expected `{wanted}`, got `{got}`")))
    }
}
