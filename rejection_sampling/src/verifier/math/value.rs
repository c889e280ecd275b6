//! What an answer is, and when two are the same.

use super::expression::Expression;
use super::parser;

/// How deep tuples, sets and lists may nest.
const MAX_DEPTH: usize = 4;

/// Units that may be written right after a number.
pub(super) const UNITS: [&str; 21] = [
    "cm", "mm", "km", "kg", "mg", "ml", "mL", "in", "ft", "yd", "mi", "lb", "lbs", "oz", "hr",
    "hrs", "min", "mins", "sec", "mph", "kph",
];

/// Words that are numbers themselves.
pub(super) const SCALES: [(&str, &str); 5] = [
    ("hundred", "100"),
    ("thousand", "1000"),
    ("million", "1000000"),
    ("billion", "1000000000"),
    ("trillion", "1000000000000"),
];

/// Words that join numbers and are no units.
const JOINING: [&str; 8] = ["pi", "sqrt", "over", "times", "plus", "minus", "inf", "infinity"];

/// Functions: their names are no products of letters, and what holds one is compared as text.
pub(super) const FUNCTIONS: [&str; 20] = [
    "sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "lg", "exp", "max", "min", "gcd", "lcm",
    "lim", "det", "arg", "mod", "sup", "deg",
];

/// Whether `name` is that of a function.
pub(super) fn is_function(name: &str) -> bool {
    FUNCTIONS.contains(&name)
}

/// An answer as it was understood.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Expression {
        value: Expression,
        percent: bool,
    },
    /// A tuple or interval.
    Ordered {
        open: char,
        close: char,
        items: Vec<Value>,
    },
    /// A set, a list or a union; two or more items.
    Unordered(Vec<Value>),
    /// Folded text.
    Text(String),
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Expression { value: a, percent: a_percent },
                Self::Expression { value: b, percent: b_percent },
            ) => match (a_percent, b_percent) {
                (true, false) => a.equals(b) || hundredth(a).is_some_and(|a| a.equals(b)),
                (false, true) => a.equals(b) || hundredth(b).is_some_and(|b| b.equals(a)),
                _ => a.equals(b),
            },
            (
                Self::Ordered { open, close, items },
                Self::Ordered { open: other_open, close: other_close, items: others },
            ) => open == other_open && close == other_close && items == others,
            (Self::Unordered(items), Self::Unordered(others)) => {
                let mut left: Vec<&Value> = others.iter().collect();
                items.len() == others.len()
                    && items.iter().all(|item| {
                        let place = left.iter().position(|other| item == *other);
                        place.map(|place| left.swap_remove(place)).is_some()
                    })
            }
            (Self::Text(a), Self::Text(b)) => a == b && !a.is_empty(),
            _ => false,
        }
    }
}

fn hundredth(value: &Expression) -> Option<Expression> {
    value.over(&parser::parse("100")?)
}

/// `text` for a comparison letter by letter: lower case, without white space, outer quotes, brackets
/// around a single letter, and a full stop.
pub(super) fn folded(text: &str) -> String {
    let text: String = text.to_lowercase().chars().filter(|c| !c.is_whitespace()).collect();
    let text = text.trim_matches(['"', '\'', '.', '“', '”']);
    match text.strip_prefix('(').and_then(|text| text.strip_suffix(')')) {
        Some(choice) if choice.chars().count() == 1 => choice.to_string(),
        _ => text.to_string(),
    }
}

/// Reads an answer in plain spelling.
pub(super) fn read(text: &str) -> Value {
    nested(text, 0)
}

fn nested(text: &str, depth: usize) -> Value {
    let text = after_name(text.trim());
    if depth < MAX_DEPTH {
        let parts = split_unions(text);
        if parts.len() > 1 {
            return unordered(&parts, depth);
        }
        if let Some((open, close, inside)) = in_brackets(text) {
            let parts = split_list(inside, true);
            if open == '{' && !inside.trim().is_empty() {
                return unordered(&parts, depth);
            }
            if parts.len() > 1 {
                let items = parts.iter().map(|part| nested(part, depth + 1)).collect();
                return Value::Ordered { open, close, items };
            }
        }
        let parts = split_list(text, false);
        if parts.len() > 1 && parts.iter().all(|part| !part.trim().is_empty()) {
            return unordered(&parts, depth);
        }
    }
    let text = without_remark(text);
    let (number, percent) = match text.strip_suffix('%').or(text.strip_suffix(" percent")) {
        Some(number) => (number, true),
        None => (text, false),
    };
    match has_value(number).then(|| parser::parse(&without_unit(number))).flatten() {
        Some(value) => Value::Expression { value, percent },
        None => Value::Text(folded(text)),
    }
}

/// Whether `text` can be more than a word or a choice such as `(B)`: it has a digit or an operator.
fn has_value(text: &str) -> bool {
    let bare = text.trim_matches(['(', ')']);
    matches!(bare, "pi" | "π") || bare.contains(|c: char| !c.is_alphabetic() && c != ' ')
}

fn unordered(parts: &[&str], depth: usize) -> Value {
    let mut items: Vec<_> = parts.iter().map(|part| nested(part, depth + 1)).collect();
    match (items.len(), items.pop()) {
        (1, Some(only)) => only,
        (_, last) => {
            items.extend(last);
            Value::Unordered(items)
        }
    }
}

/// What follows `x =`, `f(x) =` or `x ∈`; else all of `text`.
fn after_name(text: &str) -> &str {
    let Some((name, value)) = text.split_once(['=', '∈']) else {
        return text;
    };
    let name = name.trim();
    let is_name = name.starts_with(|c: char| c.is_alphabetic() || c == '\\')
        && name.chars().count() <= 12
        && name.chars().all(|c| c.is_alphanumeric() || "\\_()'".contains(c));
    match is_name && !value.contains('=') && !value.trim().is_empty() {
        true => value.trim(),
        false => text,
    }
}

/// The brackets around all of `text`, and what is inside.
fn in_brackets(text: &str) -> Option<(char, char, &str)> {
    let (open, close) = (text.chars().next()?, text.chars().next_back()?);
    if !matches!((open, close), ('(' | '[', ')' | ']') | ('{', '}')) || text.len() < 2 {
        return None;
    }
    let inside = &text[1..text.len() - 1];
    let mut depth = 0;
    let stays_inside = inside.chars().all(|c| {
        depth += step(c);
        depth >= 0
    });
    (stays_inside && depth == 0).then_some((open, close, inside))
}

/// How a character changes the depth of brackets.
fn step(c: char) -> i32 {
    match c {
        '(' | '[' | '{' => 1,
        ')' | ']' | '}' => -1,
        _ => 0,
    }
}

/// The parts of `A ∪ B`.
fn split_unions(text: &str) -> Vec<&str> {
    text.split('∪').collect()
}

/// The parts between commas, semicolons, `or` and `and` that stand outside brackets. Outside a
/// bracket, a comma before exactly three digits belongs to a number.
fn split_list(text: &str, bracketed: bool) -> Vec<&str> {
    let bytes = text.as_bytes();
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        depth += step(c);
        if depth != 0 {
            continue;
        }
        let joint = match c {
            ';' => 1,
            ',' if bracketed || !is_in_number(bytes, at) => 1,
            ' ' if text[at..].starts_with(" or ") => 4,
            ' ' if text[at..].starts_with(" and ") => 5,
            _ => continue,
        };
        if at >= start {
            // in `3, 5, and 7` nothing stands between the comma and the word
            let is_oxford = joint > 1 && !parts.is_empty() && text[start..at].trim().is_empty();
            if !is_oxford {
                parts.push(&text[start..at]);
            }
            start = at + joint;
        }
    }
    parts.push(text.get(start..).unwrap_or_default());
    parts
}

/// Whether the comma at `at` separates thousands.
fn is_in_number(bytes: &[u8], at: usize) -> bool {
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let before = bytes[..at].iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    (1..=3).contains(&before) && (1..=3).all(|step| is_digit(at + step)) && !is_digit(at + 4)
}

/// `text` without words in brackets after a number: `9 (red apples)` is 9.
fn without_remark(text: &str) -> &str {
    let scales = |word: &str| SCALES.iter().any(|(name, _)| name.eq_ignore_ascii_case(word));
    match text.strip_suffix(')').and_then(|text| text.rsplit_once(" (")) {
        Some((number, words))
            if number.ends_with(|c: char| c.is_ascii_digit() || matches!(c, '%' | '}'))
                && words.split(' ').all(|word| is_unit(word) && !scales(word)) =>
        {
            number
        }
        _ => text,
    }
}

/// `text` without degree signs and the words after a number; `3 million` is a product.
fn without_unit(text: &str) -> String {
    let text = text.replace("°C", "").replace("°F", "").replace('°', "");
    let mut text = text.trim();
    while let Some((head, word)) = text.rsplit_once(' ') {
        let has_number = head.contains(|c: char| c.is_ascii_digit() || matches!(c, 'π' | '√'));
        if !has_number {
            break;
        }
        if let Some((_, scale)) = SCALES.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)) {
            return format!("({head})*{scale}");
        }
        if !is_unit(word) {
            break;
        }
        text = head.trim_end();
    }
    let letters = text.trim_end_matches("^2").trim_end_matches("^3");
    let number = letters.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &letters[number.len()..];
    match UNITS.contains(&unit) && number.ends_with(|c: char| c.is_ascii_digit()) {
        true => number.to_string(),
        false => text.to_string(),
    }
}

/// A word of two letters or more, perhaps with a power (`cm^2`), or letters over letters (`m/s`).
fn is_unit(word: &str) -> bool {
    let letters = word.trim_end_matches("^2").trim_end_matches("^3");
    let only_letters = letters.chars().all(|c| c.is_alphabetic() || c == '/' || c == '-');
    let is_long = letters.chars().count() >= 2;
    only_letters
        && is_long
        && letters.starts_with(char::is_alphabetic)
        && !JOINING.contains(&letters)
}
