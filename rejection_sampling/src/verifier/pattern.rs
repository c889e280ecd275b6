//! Does the completion look as it should?

use std::str::FromStr;

use halter_core::{Error, Result};
use regex::{Regex, RegexBuilder};

use crate::scorer::{Item, Score, Scorer};

/// Bytes that a compiled pattern may take.
const SIZE_LIMIT: usize = 1 << 20;

/// How much of the completion a pattern has to match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Some part of it.
    Anywhere,
    /// All of it.
    Whole,
}

/// 1 where a regular expression matches the completion, else 0; the syntax is that of the crate
/// `regex`, whose searches take linear time. `.` matches no line feed unless the pattern begins with
/// `(?s)`.
#[derive(Debug, Clone)]
pub struct Pattern {
    regex: Regex,
    reach: Reach,
}

impl Pattern {
    /// The pattern `text`.
    ///
    /// # Errors
    /// It is malformed, or larger than a megabyte when compiled.
    pub fn new(text: &str, reach: Reach) -> Result<Self> {
        let anywhere = compile("regex", text)?;
        let regex = match reach {
            Reach::Anywhere => anywhere,
            Reach::Whole => compile("regex", &format!(r"\A(?:{text})\z"))?,
        };
        Ok(Self { regex, reach })
    }
}

/// The pattern `text` of a scorer.
pub(super) fn compile(scorer: &str, text: &str) -> Result<Regex> {
    RegexBuilder::new(text).size_limit(SIZE_LIMIT).build().map_err(|error| {
        let reason = error.to_string();
        let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
        Error::config(format!(
            "scorer `{scorer}`: expected a regular expression, got `{text}`: {reason}"
        ))
        .hint("look-around and back-references are not there; `\\` escapes a character")
    })
}

impl Scorer for Pattern {
    fn name(&self) -> &str {
        match self.reach {
            Reach::Anywhere => "regex",
            Reach::Whole => "regex-full",
        }
    }

    fn score(&self, item: &Item) -> Result<Score> {
        Ok(Score::new(f64::from(u8::from(self.regex.is_match(item.completion)))))
    }
}

/// 1 where the completion has the form, else 0. Each tag opens and closes once, in order, with
/// something between; before and between them is nothing but white space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `<think>…</think>`, then text.
    Think,
    /// `<think>…</think><answer>…</answer>`, then nothing.
    ThinkAnswer,
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "think" => Ok(Self::Think),
            "think-answer" => Ok(Self::ThinkAnswer),
            _ => Err(Error::config(format!(
                "scorer `format`: expected `think` or `think-answer`, got `{text}`"
            ))),
        }
    }
}

impl Format {
    /// What is wrong with `completion`.
    pub fn check(self, completion: &str) -> Result<(), String> {
        match self {
            Self::Think => match after_sections(completion, &["think"])?.trim() {
                "" => Err("nothing after `</think>`".into()),
                _ => Ok(()),
            },
            Self::ThinkAnswer => match after_sections(completion, &["think", "answer"])?.trim() {
                "" => Ok(()),
                _ => Err("text after `</answer>`".into()),
            },
        }
    }
}

/// Reads one section for each tag and gives what follows the last.
fn after_sections<'a>(text: &'a str, tags: &[&str]) -> Result<&'a str, String> {
    let mut rest = text;
    for tag in tags {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        for mark in [&open, &close] {
            match text.matches(mark.as_str()).count() {
                0 => return Err(format!("no `{mark}`")),
                1 => {}
                _ => return Err(format!("`{mark}` more than once")),
            }
        }
        let inside = rest.trim_start().strip_prefix(&open);
        let inside = inside.ok_or_else(|| format!("text before `{open}`"))?;
        let (section, after) =
            inside.split_once(&close).ok_or_else(|| format!("`{close}` out of place"))?;
        if section.trim().is_empty() {
            return Err(format!("nothing in `{open}`"));
        }
        rest = after;
    }
    Ok(rest)
}

impl Scorer for Format {
    fn name(&self) -> &str {
        "format"
    }

    fn score(&self, item: &Item) -> Result<Score> {
        Ok(match self.check(item.completion) {
            Ok(()) => Score::new(1.0),
            Err(reason) => Score::because(0.0, reason),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_found_anywhere_or_matches_all() {
        for (pattern, completion, anywhere, whole) in [
            ("b+", "abc", true, false),
            ("b+", "bbb", true, true),
            ("a|ab", "ab", true, true),
            ("^b$", "a\nb", false, false),
            ("(?m)^b$", "a\nb", true, false),
            ("a.b", "a\nb", false, false),
            ("(?s)a.b", "a\nb", true, true),
            ("", "", true, true),
            ("x*y", "", false, false),
            (r"\d{4}", "in 1999.", true, false),
        ] {
            let matches = |reach| Pattern::new(pattern, reach).unwrap().regex.is_match(completion);
            assert_eq!(matches(Reach::Anywhere), anywhere, "{pattern} in {completion:?}");
            assert_eq!(matches(Reach::Whole), whole, "all {pattern} of {completion:?}");
        }
    }

    #[test]
    fn a_pattern_cannot_leave_its_group() {
        assert!(Pattern::new("a)|(b", Reach::Whole).is_err());
    }

    #[test]
    fn a_hostile_pattern_is_refused_or_fast() {
        assert!(Pattern::new(r"(?:a{1000}){1000}", Reach::Anywhere).is_err());
        let slow_elsewhere = Pattern::new("(a+)+$", Reach::Anywhere).unwrap();
        assert!(!slow_elsewhere.regex.is_match(&format!("{}b", "a".repeat(100_000))));
    }

    #[test]
    fn thinking_comes_first_and_an_answer_follows() {
        for (completion, is_right) in [
            ("<think>so</think>5", true),
            (" \n<think>\nso\n</think>\n\n5\n", true),
            ("<think>so</think>", false),
            ("<think> </think>5", false),
            ("so</think>5", false),
            ("<think>so 5", false),
            ("5 <think>so</think>5", false),
            ("</think>so<think>5", false),
            ("<think>a</think>5<think>b</think>5", false),
            ("<think><think>a</think>5", false),
            ("<THINK>so</THINK>5", false),
            ("", false),
        ] {
            assert_eq!(Format::Think.check(completion).is_ok(), is_right, "{completion:?}");
        }
    }

    #[test]
    fn thinking_and_answer_come_in_order_once_each() {
        for (completion, is_right) in [
            ("<think>so</think><answer>5</answer>", true),
            ("<think>so</think>\n<answer>\n5\n</answer>\n", true),
            ("<think>so</think> hence <answer>5</answer>", false),
            ("<think>so</think><answer>5</answer>.", false),
            ("<think>so</think><answer></answer>", false),
            ("<answer>5</answer><think>so</think>", false),
            ("<think>so<answer>5</answer></think>", false),
            ("<think>so</think><answer>5</answer><answer>6</answer>", false),
            ("<think>so</think>5", false),
            ("<answer>5</answer>", false),
        ] {
            assert_eq!(Format::ThinkAnswer.check(completion).is_ok(), is_right, "{completion:?}");
        }
    }
}
