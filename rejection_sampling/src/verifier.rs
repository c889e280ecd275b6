//! Scorers that check an answer against what is known of it.

pub mod answer;
pub mod exact;
pub mod instructions;
#[cfg(feature = "judge")]
pub mod judge;
pub mod math;
pub mod numeric;
pub mod pattern;
pub mod penalties;
pub mod reference;
pub mod schema;

use regex::Regex;

/// A pattern that is part of the program.
#[expect(clippy::expect_used, reason = "every pattern is a constant that a test compiles")]
pub(crate) fn fixed(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant pattern is well formed")
}

/// `text` in at most `most` characters, for a report.
fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}
