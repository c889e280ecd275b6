//! A judge's verdict: strict, so that no point is read into prose.

use crate::curate::words::excerpt;

/// What a point is given for.
pub(super) struct Criterion {
    /// As the verdict's line begins.
    pub name: &'static str,
    /// What has to be so.
    pub asks: &'static str,
}

/// Whether each criterion got its point. There must be exactly one line `name: 0` or `name: 1` for
/// each, among whatever else is said; marks of Markdown around them do not count.
///
/// # Errors
/// What is missing or said twice.
pub(super) fn read(said: &str, criteria: &[Criterion]) -> Result<Vec<bool>, String> {
    criteria.iter().map(|criterion| point(said, criterion)).collect()
}

fn point(said: &str, criterion: &Criterion) -> Result<bool, String> {
    let mut found = Vec::new();
    for line in said.lines() {
        let plain = line.trim_start_matches([' ', '\t', '-', '*', '_', '#', '`', '>']);
        let Some(rest) = strip_name(plain, criterion.name) else { continue };
        let rest = rest.trim_matches([' ', '\t', '*', '_', '`']);
        if let Some(mark) = rest.strip_prefix(':') {
            found.push(mark.trim_matches([' ', '\t', '*', '_', '`', '.', '[', ']']));
        }
    }
    match found.as_slice() {
        ["1"] => Ok(true),
        ["0"] => Ok(false),
        [] => {
            let end: Vec<char> = said.trim().chars().rev().take(120).collect();
            let end: String = end.into_iter().rev().collect();
            Err(format!(
                "expected a line `{}: 0` or `: 1`, got an answer that ends `{end}`",
                criterion.name
            ))
        }
        [other] => {
            Err(format!("expected 0 or 1 for `{}`, got `{}`", criterion.name, excerpt(other, 60)))
        }
        several => Err(format!("expected one line `{}`, got {}", criterion.name, several.len())),
    }
}

fn strip_name<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let head = line.get(..name.len())?;
    head.eq_ignore_ascii_case(name).then(|| &line[name.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: [Criterion; 2] =
        [Criterion { name: "accuracy", asks: "" }, Criterion { name: "tone", asks: "" }];

    #[test]
    fn points_are_read_from_lines_of_their_own() {
        for said in [
            "accuracy: 1\ntone: 0",
            "Reasons: accuracy is high.\n\n**Accuracy:** 1\n- **tone**: 0",
            "Accuracy : 1\n`tone: 0`",
            "accuracy: [1]\ntone: 0.",
        ] {
            assert_eq!(read(said, &TWO), Ok(vec![true, false]), "{said}");
        }
    }

    #[test]
    fn anything_else_is_no_verdict() {
        for said in [
            "",
            "accuracy: 1",
            "accuracy 1\ntone 0",
            "accuracy: 2\ntone: 1",
            "accuracy: yes\ntone: 1",
            "accuracy: 1\naccuracy: 0\ntone: 1",
            "accuracy: N\ntone: N",
            "the accuracy: 1 and tone: 1",
            "accuracy: 1 point\ntone: 1",
        ] {
            assert!(read(said, &TWO).is_err(), "{said}");
        }
    }
}
