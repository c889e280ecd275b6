//! What a text is made of: words, sentences, paragraphs, lists, sections.

use std::sync::LazyLock;

use regex::Regex;

use crate::verifier::fixed;

/// Abbreviations whose full stop ends no sentence, in lower case.
const ABBREVIATIONS: [&str; 26] = [
    "mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "vs", "inc", "ltd", "co", "corp", "gen",
    "col", "capt", "lt", "sen", "rep", "rev", "e.g", "i.e", "u.s", "a.m", "p.m", "ph.d",
];

/// Runs of letters, digits and underscores (Python's `\w+`, which leaves combining marks out).
pub(super) fn count_words(text: &str) -> usize {
    static WORD: LazyLock<Regex> = LazyLock::new(|| fixed(r"[\p{L}\p{N}_]+"));
    WORD.find_iter(text).count()
}

/// Sentences, close to what Punkt finds: they end with `.`, `?` or `!`, closing quotes and brackets
/// and white space, but not after an abbreviation, an initial, or before a small letter after `…`
/// or a number. A line feed ends none.
pub(super) fn count_sentences(text: &str) -> usize {
    static END: LazyLock<Regex> = LazyLock::new(|| fixed(r#"[.?!]+["'”’)\]*]*\s+"#));
    let text = text.trim();
    if text.is_empty() {
        return 0;
    }
    let is_end = |found: &regex::Match| {
        let word = text[..found.start()].rsplit(char::is_whitespace).next().unwrap_or_default();
        let word = word.trim_start_matches(['"', '\'', '“', '‘', '(', '[', '*']);
        let mark = found.as_str().trim_end();
        let before_small = text[found.end()..].starts_with(char::is_lowercase);
        if !mark.starts_with('.') {
            return true;
        }
        if mark.starts_with("..") || word.bytes().all(|byte| byte.is_ascii_digit()) {
            return !before_small;
        }
        let mut letters = word.chars();
        let is_letter = letters.next().is_some_and(char::is_uppercase) && letters.next().is_none();
        let is_initial = is_letter && word != "I";
        !is_initial && !ABBREVIATIONS.contains(&word.to_lowercase().as_str())
    };
    1 + END.find_iter(text).filter(is_end).count()
}

/// Words without small letters and with a capital one. Words are what white space and punctuation
/// separate, hyphens left together and endings such as `'s` and `n't` apart, as nltk's
/// `word_tokenize` has them.
pub(super) fn count_capital_words(text: &str) -> usize {
    static ENDING: LazyLock<Regex> =
        LazyLock::new(|| fixed(r"(?i)^(.+?)(n['’]t|['’](?:s|m|d|re|ve|ll))$"));
    let separates = |c: char| c.is_whitespace() || "?!;,:@#$%&()[]{}<>\"“”«»…".contains(c);
    text.replace("--", " ")
        .split(separates)
        .flat_map(|word| match ENDING.captures(word) {
            Some(parts) => parts.extract::<2>().1.map(str::to_string).to_vec(),
            None => vec![word.to_string()],
        })
        .filter(|word| is_upper(word))
        .count()
}

/// Python's `isupper`: a letter in upper case and none in lower.
pub(super) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)
}

/// Python's `islower`: a letter in lower case and none in upper.
pub(super) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)
}

/// Whether `word` is in `text`, in any case, with no letter, digit or underscore beside it.
pub(super) fn has_word(text: &str, word: &str) -> bool {
    let (text, word) = (text.to_lowercase(), word.to_lowercase());
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    // `\b` on either side: what is inside and what is outside differ in kind
    text.match_indices(&word).any(|(at, found)| {
        let before = text[..at].chars().next_back();
        let after = text[at + found.len()..].chars().next();
        is_word(before) != is_word(word.chars().next())
            && is_word(after) != is_word(word.chars().next_back())
    })
}

/// Paragraphs between `***`; `None` where an inner one is empty.
pub(super) fn divided_paragraphs(text: &str) -> Option<usize> {
    let paragraphs: Vec<&str> = text.split("***").collect();
    let is_empty = |at: &usize| paragraphs[*at].trim().is_empty();
    let last = paragraphs.len() - 1;
    if (1..last).any(|at| is_empty(&at)) {
        return None;
    }
    let ends = if last == 0 { &[0][..] } else { &[0, last] };
    Some(paragraphs.len() - ends.iter().filter(|at| is_empty(at)).count())
}

/// The paragraphs between empty lines that are not blank, and the first word of paragraph `nth`
/// (from one, blank ones counted), in lower case up to its first punctuation.
pub(super) fn paragraph_start(text: &str, nth: usize) -> (usize, Option<String>) {
    let paragraphs: Vec<&str> = text.split("\n\n").collect();
    let count = paragraphs.iter().filter(|paragraph| !paragraph.trim().is_empty()).count();
    let paragraph = nth.checked_sub(1).filter(|index| *index < count).map(|at| paragraphs[at]);
    let word = paragraph.and_then(|paragraph| paragraph.split_whitespace().next());
    let word = word.map(|word| {
        let word = word.trim_start_matches('\'').trim_start_matches('"');
        word.split(['.', ',', '?', '!', '\'', '"']).next().unwrap_or_default().to_lowercase()
    });
    (count, word)
}

/// Whether `marker` is there; `P.S.` and `P.P.S` may have spaces inside.
pub(super) fn has_postscript(text: &str, marker: &str) -> bool {
    static PS: LazyLock<Regex> = LazyLock::new(|| fixed(r"p\.\s?s\."));
    static PPS: LazyLock<Regex> = LazyLock::new(|| fixed(r"p\.\s?p\.\s?s"));
    let text = text.to_lowercase();
    match marker {
        "P.S." => PS.is_match(&text),
        "P.P.S" => PPS.is_match(&text),
        _ => text.contains(&marker.to_lowercase()),
    }
}

/// Lines that begin with `-`, or with one `*` and something after it.
pub(super) fn count_bullets(text: &str) -> usize {
    static STAR: LazyLock<Regex> = LazyLock::new(|| fixed(r"(?m)^\s*\*[^\*].*$"));
    static DASH: LazyLock<Regex> = LazyLock::new(|| fixed(r"(?m)^\s*-.*$"));
    STAR.find_iter(text).count() + DASH.find_iter(text).count()
}

/// Parts between single asterisks, and those between double ones, that are not blank.
pub(super) fn count_highlights(text: &str) -> usize {
    static SINGLE: LazyLock<Regex> = LazyLock::new(|| fixed(r"\*([^\n\*]*)\*"));
    static DOUBLE: LazyLock<Regex> = LazyLock::new(|| fixed(r"\*\*([^\n\*]*)\*\*"));
    let count = |pattern: &Regex| {
        let parts = pattern.captures_iter(text).map(|found| found.extract::<1>().1[0]);
        parts.filter(|part| !part.trim().is_empty()).count()
    };
    count(&SINGLE) + count(&DOUBLE)
}

/// Occurrences of `word` with a number after it: `Section 1`.
pub(super) fn count_numbered(text: &str, word: &str) -> usize {
    let is_numbered = |after: &str| {
        let number = after.strip_prefix(char::is_whitespace).unwrap_or(after);
        number.starts_with(char::is_numeric)
    };
    text.match_indices(word).filter(|(at, _)| is_numbered(&text[at + word.len()..])).count()
}

/// Whether something stands in `<<…>>` on one line.
pub(super) fn has_title(text: &str) -> bool {
    static TITLE: LazyLock<Regex> = LazyLock::new(|| fixed(r"<<[^\n]+>>"));
    TITLE.find_iter(text).any(|found| {
        let title = found.as_str().trim_start_matches('<').trim_end_matches('>');
        !title.trim().is_empty()
    })
}

/// Whether `******` separates two different texts, and nothing else does.
pub(super) fn has_two_responses(text: &str) -> bool {
    let parts: Vec<&str> = text.split("******").map(str::trim).collect();
    let inner = parts.get(1..parts.len() - 1).unwrap_or_default();
    let said: Vec<_> = parts.iter().filter(|part| !part.is_empty()).collect();
    !inner.contains(&"") && matches!(said.as_slice(), [a, b] if a != b)
}
