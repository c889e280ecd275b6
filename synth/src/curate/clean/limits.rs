//! How many marks of a kind an answer may have.

use std::sync::LazyLock;

use regex::Regex;
use serde::Deserialize;
use unicode_segmentation::UnicodeSegmentation;

/// `most`, or more in a long answer: the greater of `most` and `per_100_words` × words ⁄ 100.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Allowed in any answer.
    pub most: usize,
    /// Allowed for each hundred words.
    #[serde(default)]
    pub per_100_words: f64,
}

impl Limit {
    /// What is to be said of an answer with too many.
    pub(super) fn broken(self, found: usize, prose: &str, what: &str) -> Option<String> {
        if found <= self.most {
            return None;
        }
        let words = prose.unicode_words().count();
        let allowed = (self.per_100_words * words as f64 / 100.0).floor().max(self.most as f64);
        (found as f64 > allowed).then(|| format!("{found} {what} in {words} words"))
    }
}

/// Emojis, each sequence counted once: flags, skin tones, families.
pub(super) fn emojis(text: &str) -> usize {
    static EMOJI: LazyLock<Option<Regex>> = LazyLock::new(|| {
        let one = r"(?:\p{Emoji_Presentation}|\p{Emoji}\x{FE0F}\x{20E3}?)\p{Emoji_Modifier}?";
        Regex::new(&format!(
            r"\p{{Regional_Indicator}}{{2}}|{one}(?:\x{{200D}}(?:{one}|\p{{Emoji}}))*"
        ))
        .ok()
    });
    EMOJI.as_ref().map_or(0, |emoji| emoji.find_iter(text).count())
}

/// `!` and its full-width form; `!=` and `![` are not speech.
pub(super) fn exclamation_marks(text: &str) -> usize {
    let mut marks = text.chars().peekable();
    let mut found = 0;
    while let Some(mark) = marks.next() {
        let is_speech = !matches!(marks.peek(), Some('=' | '['));
        found += usize::from(mark == '！' || (mark == '!' && is_speech));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_one_emoji_and_plain_symbols_are_none() {
        assert_eq!(emojis("😀 👍🏽 👨‍👩‍👧 🇩🇪 ❤️ 1️⃣"), 6);
        assert_eq!(emojis("1 2 # * © ✓ → ☎ a!"), 0);
    }

    #[test]
    fn marks_of_code_are_not_counted_as_speech() {
        assert_eq!(exclamation_marks("No!! a != b ![image] 好！"), 3);
    }

    #[test]
    fn long_answers_may_have_more() {
        let limit = Limit { most: 2, per_100_words: 2.0 };
        assert_eq!(limit.broken(2, "a", "marks"), None);
        assert_eq!(limit.broken(3, "a b", "marks").unwrap(), "3 marks in 2 words");
        assert_eq!(limit.broken(3, &"a ".repeat(150), "marks"), None);
    }
}
