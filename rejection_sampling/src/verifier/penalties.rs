//! Scores of zero or less for completions that are too long or say the same again and again.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use halter_core::Result;

use crate::scorer::{Item, Score, Scorer};

/// 0 up to `limit` tokens, then evenly down to −1 at `limit + ramp` tokens and beyond; −1 for a
/// completion that was cut off. (The soft overlong punishment of DAPO, Yu et al. 2025, equation 13,
/// with `limit` = L_max − L_cache and `ramp` = L_cache.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LengthPenalty {
    /// Tokens that cost nothing.
    pub limit: NonZeroUsize,
    /// Tokens from no penalty to the whole one.
    pub ramp: NonZeroUsize,
}

impl Scorer for LengthPenalty {
    fn name(&self) -> &str {
        "length"
    }

    fn score(&self, item: &Item) -> Result<Score> {
        if !item.ended {
            return Ok(Score::because(-1.0, "cut off"));
        }
        let over = item.num_tokens.saturating_sub(self.limit.get());
        if over == 0 {
            return Ok(Score::new(0.0));
        }
        let share = (over as f64 / self.ramp.get() as f64).min(1.0);
        Ok(Score::because(-share, format!("{over} tokens over {}", self.limit)))
    }
}

/// Minus the share of n-grams that occurred before: `distinct / total − 1`, from −1 (exclusive) to
/// 0. Words are what white space separates, in lower case; a completion shorter than one n-gram
/// scores 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepetitionPenalty {
    /// Words of an n-gram.
    pub ngram: NonZeroUsize,
}

impl Scorer for RepetitionPenalty {
    fn name(&self) -> &str {
        "repetition"
    }

    fn score(&self, item: &Item) -> Result<Score> {
        let text = item.completion.to_lowercase();
        let words: Vec<&str> = text.split_whitespace().collect();
        let total = words.windows(self.ngram.get()).len();
        let distinct = words.windows(self.ngram.get()).collect::<HashSet<_>>().len();
        if distinct == total {
            return Ok(Score::new(0.0));
        }
        let value = distinct as f64 / total as f64 - 1.0;
        let repeated = total - distinct;
        Ok(Score::because(value, format!("{repeated} of {total} {}-grams again", self.ngram)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::scorer::NO_PROMPT;

    fn score(scorer: &dyn Scorer, completion: &str, num_tokens: usize, ended: bool) -> f64 {
        let row = Map::new();
        let item = Item { prompt: &NO_PROMPT, completion, num_tokens, ended, row: &row };
        scorer.score(&item).unwrap().value
    }

    fn count(n: usize) -> NonZeroUsize {
        NonZeroUsize::new(n).unwrap()
    }

    #[test]
    fn the_length_penalty_falls_evenly_to_minus_one() {
        let scorer = LengthPenalty { limit: count(100), ramp: count(50) };
        for (num_tokens, value) in [
            (0, 0.0),
            (100, 0.0),
            (101, -0.02),
            (125, -0.5),
            (150, -1.0),
            (151, -1.0),
            (9999, -1.0),
        ] {
            assert_eq!(score(&scorer, "", num_tokens, true), value, "{num_tokens}");
        }
    }

    #[test]
    fn a_completion_that_was_cut_off_gets_the_whole_penalty() {
        let scorer = LengthPenalty { limit: count(100), ramp: count(50) };
        assert_eq!(score(&scorer, "", 5, false), -1.0);
    }

    #[test]
    fn the_repetition_penalty_is_the_share_of_ngrams_seen_before() {
        for (completion, ngram, value) in [
            ("", 1, 0.0),
            ("a", 2, 0.0),
            ("a b c d", 2, 0.0),
            ("a A a a", 1, -0.75),
            // ab ba ab ba ab: two distinct of five
            ("a b a b\na b", 2, -0.6),
            ("a b c a b c", 3, -0.25),
            ("a b c a b c", 7, 0.0),
        ] {
            let scorer = RepetitionPenalty { ngram: count(ngram) };
            let got = score(&scorer, completion, 9, true);
            assert!((got - value).abs() < 1e-12, "{completion:?} {ngram}: {got}");
        }
    }

    #[test]
    fn a_very_long_ngram_is_no_allocation() {
        let scorer = RepetitionPenalty { ngram: count(usize::MAX) };
        assert_eq!(score(&scorer, "a b", 2, true), 0.0);
    }
}
