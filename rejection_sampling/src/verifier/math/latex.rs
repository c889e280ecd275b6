//! LaTeX made plain: `\dfrac`, `\left(`, `\text{…}`, `$`, thin spaces and units leave one spelling.
//!
//! What is left holds `\frac`, braces, and one character for each operator: `* / √ π ∞ ∪ ∈`.

use super::value::{SCALES, is_function};

/// Nested `\text{…}` that are still read.
const MAX_DEPTH: usize = 8;

/// `text` in plain spelling, white space collapsed.
pub(super) fn plain(text: &str) -> String {
    let mut out = String::new();
    write(&text.chars().collect::<Vec<_>>(), &mut out, 0);
    let words: Vec<_> = out.split_whitespace().collect();
    let text = words.join(" ");
    let text = text.replace("{,}", ",").replace("^{°}", "°").replace("^°", "°");
    text.trim_matches(['*', '_', '"', ' ']).trim_end_matches(['.', ',', ';', ':', ' ']).to_string()
}

fn write(chars: &[char], out: &mut String, depth: usize) {
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        at += 1;
        match c {
            '\\' => at += command(&chars[at..], out, depth),
            '$' | '€' | '£' | '`' => {}
            '~' => out.push(' '),
            '−' | '–' => out.push('-'),
            '×' | '·' | '⋅' => out.push('*'),
            '÷' => out.push('/'),
            '²' => out.push_str("^2"),
            '³' => out.push_str("^3"),
            _ => out.push(c),
        }
    }
}

/// Writes what the command at the start of `rest` (after its backslash) stands for, and gives the
/// characters it took.
fn command(rest: &[char], out: &mut String, depth: usize) -> usize {
    let len = rest.iter().take_while(|c| c.is_ascii_alphabetic()).count();
    if len == 0 {
        match rest.first() {
            None | Some('!' | ',' | ';' | ':' | '(' | ')' | '[' | ']' | '$') => {}
            Some(' ' | '\\') => out.push(' '),
            Some(c) => out.push(*c),
        }
        return rest.len().min(1);
    }
    let name: String = rest[..len].iter().collect();
    match name.as_str() {
        "left" | "right" | "displaystyle" | "big" | "bigl" | "bigr" | "Big" | "limits" => {
            // `\left.` is an empty bracket
            return len + usize::from(rest.get(len) == Some(&'.'));
        }
        "frac" | "dfrac" | "tfrac" | "cfrac" => out.push_str("\\frac"),
        "sqrt" => out.push('√'),
        "times" | "cdot" | "ast" => out.push('*'),
        "div" => out.push('/'),
        "pi" => out.push('π'),
        "infty" => out.push('∞'),
        "cup" => out.push('∪'),
        "in" => out.push('∈'),
        "le" | "leq" => out.push('≤'),
        "ge" | "geq" => out.push('≥'),
        "ne" | "neq" => out.push('≠'),
        "pm" => out.push('±'),
        "emptyset" | "varnothing" => out.push('∅'),
        "circ" | "degree" => out.push('°'),
        "lbrace" => out.push('{'),
        "rbrace" => out.push('}'),
        "quad" | "qquad" => out.push(' '),
        "text" | "textrm" | "mathrm" | "mbox" => {
            return len + words(&rest[len..], out, depth, true);
        }
        "textbf" | "textit" | "mathbf" | "mathit" | "operatorname" | "boxed" | "fbox" => {
            return len + words(&rest[len..], out, depth, false);
        }
        _ if is_function(&name) => {
            out.push_str(&name);
            out.push(' ');
        }
        _ => {
            out.push('\\');
            out.push_str(&name);
            out.push(' ');
        }
    }
    len
}

/// The braced words after `\text`; of a command that units are written with, one after a number is
/// left out, with its power.
fn words(rest: &[char], out: &mut String, depth: usize, has_units: bool) -> usize {
    let skipped = rest.iter().take_while(|c| **c == ' ').count();
    let Some(end) = closing(&rest[skipped..]).filter(|_| depth < MAX_DEPTH) else {
        return 0;
    };
    let end = skipped + end;
    let mut inside = String::new();
    write(&rest[skipped + 1..end], &mut inside, depth + 1);
    let taken = end + 1;
    let after_number =
        out.trim_end().ends_with(|c: char| c.is_ascii_digit() || matches!(c, ')' | '}' | 'π'));
    let is_unit = has_units
        && !inside.trim().is_empty()
        && !is_function(inside.trim())
        && !matches!(inside.trim(), "or" | "and")
        && !SCALES.iter().any(|(scale, _)| inside.contains(scale))
        && inside.chars().all(|c| c.is_alphabetic() || " ./^23".contains(c));
    if after_number && is_unit {
        out.push(' ');
        return taken + power(&rest[taken..]);
    }
    out.push(' ');
    out.push_str(&inside);
    out.push(' ');
    taken
}

/// Characters of `^2`, `^3`, `^{2}` or `^{3}` at the start of `rest`.
fn power(rest: &[char]) -> usize {
    match rest {
        ['^', '{', '2' | '3', '}', ..] => 4,
        ['^', '2' | '3', ..] => 2,
        _ => 0,
    }
}

/// Where the brace that `chars` starts with is closed.
fn closing(chars: &[char]) -> Option<usize> {
    if chars.first() != Some(&'{') {
        return None;
    }
    let mut depth = 0;
    chars.iter().position(|c| {
        depth += i32::from(*c == '{') - i32::from(*c == '}');
        depth == 0
    })
}
