//! An answer in words, with one number in it.

use std::sync::LazyLock;

use regex::Regex;

use super::latex;
use super::value::{SCALES, UNITS};
use crate::verifier::{answer, fixed};

/// Characters of the longest answer in words.
const MAX_CHARS: usize = 1000;

/// Words with which a number is another one.
const CHANGING: [&str; 9] =
    ["pi", "sqrt", "root", "half", "quarter", "plus", "minus", "squared", "cubed"];

/// The number in an answer in words (`there are 5 apples`, `5 km/h`), if it is the only one and all
/// else is words: beside an operator, a letter that touches it, a root or `million`, a number is only
/// part of the answer.
///
/// ```
/// use halter_rejection_sampling::verifier::math::number_in_words;
/// assert_eq!(number_in_words("she has 5 apples").as_deref(), Some("5"));
/// assert_eq!(number_in_words("3x"), None);
/// ```
pub fn number_in_words(text: &str) -> Option<String> {
    static POWER_OF_UNIT: LazyLock<Regex> =
        LazyLock::new(|| fixed(r"\b(m|[a-zA-Z]{2,})\^[23]([^0-9]|$)"));
    if text.chars().nth(MAX_CHARS).is_some() {
        return None;
    }
    let plain = latex::plain(text).replace("**", "");
    let plain = POWER_OF_UNIT.replace_all(&plain, "$1$2");
    let mut numbers = answer::numbers(&plain);
    let (Some(only), None) = (numbers.next(), numbers.next()) else { return None };
    let (before, after) = plain.split_once(only)?;
    let unit = after.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    let touches = !unit.is_empty() && !UNITS.contains(&unit)
        || after.starts_with('(')
        || before.trim_end_matches('(').ends_with(|c: char| c.is_ascii_alphabetic());
    let is_alone = !touches && is_words(before) && is_words(after);
    is_alone.then(|| only.to_string())
}

/// Whether `text` beside a number leaves it as it is.
fn is_words(text: &str) -> bool {
    let chars: Vec<char> = text.chars().collect();
    let letter = |at: usize| chars.get(at).is_some_and(|c| c.is_alphabetic());
    let is_plain = chars.iter().enumerate().all(|(at, c)| match c {
        '≈' => true,
        '\\' | '+' | '*' | '^' | '<' | '>' | '{' | '}' | '|' | '√' | 'π' | '±' => false,
        '\u{2200}'..='\u{22ff}' => false,
        // in `km/h` and `5-year`, not in `5/x`
        '/' | '-' => letter(at + 1) && (letter(at + 2) || (at > 0 && letter(at - 1))),
        c => !c.is_numeric(),
    });
    let changes = |word: &str| {
        let singular = word.strip_suffix('s').unwrap_or(word);
        CHANGING.iter().any(|name| name.eq_ignore_ascii_case(word))
            || SCALES.iter().any(|(name, _)| name.eq_ignore_ascii_case(singular))
    };
    is_plain && !text.split(|c: char| !c.is_alphabetic()).any(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_among_words_is_the_answer() {
        for (text, number) in [
            ("she has 5 apples", "5"),
            ("**5** apples", "5"),
            ("$5 per day", "5"),
            ("about 5% of them", "5%"),
            ("a speed of 5 km/h", "5"),
            ("5km/h in all", "5"),
            ("an area of 5 m²", "5"),
            ("a room of 12 square-feet", "12"),
            ("a 5-year plan", "5"),
            ("$5/hour", "5"),
            ("total cost = 1,234.50 dollars", "1,234.50"),
            ("the number is -5", "-5"),
            (r"there are \(5\) apples", "5"),
            (r"it takes $5\text{ hours}$ in all", "5"),
            ("he has 5 quarters left", "5"),
            ("about 5 million people", "5 million"),
            ("共5个", "5"),
        ] {
            assert_eq!(number_in_words(text).as_deref(), Some(number), "{text}");
        }
    }

    #[test]
    fn a_number_that_is_part_of_something_is_none() {
        for text in [
            r"2\pi",
            "2π",
            r"\sqrt{2}",
            "√2",
            "x + 5",
            "5 - x",
            "5/x",
            "3x",
            "2*x",
            "x^2",
            "2^x",
            "5 x^3 metres",
            "f(5)",
            "sqrt(5)",
            "5(x)",
            "5k",
            "5th",
            "a > 5",
            "x ≤ 5",
            "± 5",
            "5½",
            "5 and a half",
            "the square root of 5",
            "2 pi",
            "millions of 5",
            "5 millions",
            "5 to 6",
            "no number",
            "x1 is 5",
            r"\alpha 5",
            "5 ∑",
        ] {
            assert_eq!(number_in_words(text), None, "{text}");
        }
        assert_eq!(number_in_words(&format!("5 {}", "apples ".repeat(200))), None);
    }
}
