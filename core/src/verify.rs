//! Answers that can be checked: a worked solution ends with `####` and the number (the convention
//! of GSM8K, Cobbe et al. 2021).

/// What stands before the answer.
const MARK: &str = "####";

/// A decimal number, compared by value: `1,234.50` is `1234.5`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Number {
    negative: bool,
    /// Without leading zeros; empty for zero.
    whole: String,
    /// Without trailing zeros.
    fraction: String,
}

impl Number {
    /// Reads digits with an optional sign, thousands commas, and a fraction; a unit such as `$` or
    /// `%` is not read.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let mut groups = whole.split(',');
        let first = groups.next().unwrap_or_default();
        let grouped = groups.clone().next().is_some();
        let fits = !grouped || (1..=3).contains(&first.len());
        if !fits || !is_digits(first) || !groups.all(|group| group.len() == 3 && is_digits(group)) {
            return None;
        }
        if !is_digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
            return None;
        }
        let whole = whole.replace(',', "").trim_start_matches('0').to_string();
        let fraction = fraction.trim_end_matches('0').to_string();
        let is_zero = whole.is_empty() && fraction.is_empty();
        Some(Self { negative: negative && !is_zero, whole, fraction })
    }
}

/// What follows the last `####` on its line, without white space around it; empty where nothing does.
pub fn answer_line(completion: &str) -> Option<&str> {
    let (_, after) = completion.rsplit_once(MARK)?;
    Some(after.trim_start_matches([' ', '\t']).lines().next().unwrap_or_default().trim_end())
}

/// The number after the last `####`, which nothing but spaces and a full stop may follow on its
/// line.
///
/// ```
/// use halter_core::verify::{Number, final_answer};
/// assert_eq!(final_answer("3 + 4 = 7\n#### 7"), Number::parse("7"));
/// assert_eq!(final_answer("the answer is 7"), None);
/// ```
pub fn final_answer(completion: &str) -> Option<Number> {
    let line = answer_line(completion)?;
    Number::parse(line.strip_suffix('.').unwrap_or(line).trim_end())
}

/// Whether `completion` ends in the answer of `reference`, which is a worked solution or the bare
/// number. A reference without an answer is matched by nothing.
pub fn is_correct(completion: &str, reference: &str) -> bool {
    let wanted = final_answer(reference).or_else(|| Number::parse(reference.trim()));
    wanted.is_some() && final_answer(completion) == wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_stands_after_the_last_mark() {
        for (completion, answer) in [
            ("#### 42", "42"),
            ("6 * 7 = 42\n####42", "42"),
            ("#### 1\nno:\n#### 42\n", "42"),
            ("####  42 . \nand more", "42"),
            ("#### 42.", "42"),
            ("#### 1,042", "1042"),
            ("#### -7", "-7"),
            ("#### +7.50", "7.5"),
            ("#### 007", "7"),
            ("#### -0", "0"),
            ("#### .5", "0.5"),
        ] {
            assert_eq!(final_answer(completion), Number::parse(answer), "{completion:?}");
            assert!(final_answer(completion).is_some(), "{completion:?}");
        }
    }

    #[test]
    fn what_is_not_a_number_is_no_answer() {
        for completion in [
            "",
            "42",
            "The answer is 42.",
            "####",
            "#### ",
            "####\n42",
            "#### forty-two",
            "#### 42 apples",
            "#### $42",
            "#### 4 2",
            "#### 4,2",
            "#### 1,0420",
            "#### ,042",
            "#### 1234,567",
            "#### 1.2.3",
            "#### --1",
            "#### .",
            "#### ٤٢",
            "### 42",
        ] {
            assert_eq!(final_answer(completion), None, "{completion:?}");
        }
    }

    #[test]
    fn a_completion_is_correct_if_its_number_is_the_references() {
        assert!(is_correct("so\n#### 1,000.0", "500 + 500 = 1000\n#### 1000"));
        assert!(is_correct("#### 12.", "12"));
        assert!(!is_correct("#### 12", "#### 13"));
        assert!(!is_correct("12", "#### 12"));
        assert!(!is_correct("#### -12", "#### 12"));
        assert!(!is_correct("#### 12", "no answer"));
        assert!(!is_correct("no answer", "no answer"));
    }

    #[test]
    fn long_numbers_are_compared_in_full() {
        let long = "9".repeat(400);
        assert!(is_correct(&format!("#### {long}"), &long));
        assert!(!is_correct(&format!("#### {long}1"), &long));
    }
}
