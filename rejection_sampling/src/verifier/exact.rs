//! Is the completion the answer, character for character?

use halter_core::Result;

use super::reference::Reference;
use crate::scorer::{Item, Score, Scorer};

/// 1 where the completion is the row's answer, else 0. White space around both is ignored; all
/// else counts.
#[derive(Debug, Clone, Default)]
pub struct Exact {
    /// Where the answer is.
    pub reference: Reference,
    /// Whether upper and lower case are the same.
    pub ignore_case: bool,
}

impl Scorer for Exact {
    fn name(&self) -> &str {
        "exact"
    }

    fn score(&self, item: &Item) -> Result<Score> {
        let wanted = self.reference.answer(item.row)?;
        let got = item.completion.trim();
        let equal = match self.ignore_case {
            true => got.to_lowercase() == wanted.to_lowercase(),
            false => got == wanted,
        };
        Ok(Score::new(f64::from(u8::from(equal))))
    }
}
