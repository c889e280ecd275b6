//! The tokens of a row as a terminal shows them: which are trained, and where each one ends.

use std::fmt::Write;

/// One token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Its text, as far as it is text.
    pub text: &'a str,
    /// Its id.
    pub id: u32,
    /// Whether it is trained.
    pub trained: bool,
}

/// How a row is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExplainStyle {
    /// With ANSI colours; the caller turns them off for `NO_COLOR` and for files.
    pub color: bool,
    /// With each token's id.
    pub ids: bool,
}

const RESET: &str = "\x1b[0m";
/// Backgrounds of trained tokens, in turn, so that neighbours are told apart.
const TRAINED: [&str; 2] = ["\x1b[30;42m", "\x1b[30;102m"];
/// The same for those that are not.
const UNTRAINED: [&str; 2] = ["\x1b[37;100m", "\x1b[97;40m"];

/// Renders the tokens of a row, and a last line that counts them.
///
/// Trained tokens are green, others grey, each next to another shade. Without colours, runs of
/// trained tokens stand between `⟦` and `⟧` and tokens are parted by `|`. A newline is shown as `↵`
/// before it breaks the line, a tab as `→`, an empty token as `∅`; other control characters are
/// spelt out, so that no row can write to the terminal what it likes.
pub fn explain(segments: &[Segment<'_>], style: ExplainStyle) -> String {
    let mut out = String::new();
    let mut inside = false;
    for (index, segment) in segments.iter().enumerate() {
        let paint = match (style.color, segment.trained) {
            (false, _) => "",
            (true, true) => TRAINED[index % 2],
            (true, false) => UNTRAINED[index % 2],
        };
        if !style.color {
            if segment.trained != inside {
                out.push(if segment.trained { '⟦' } else { '⟧' });
                inside = segment.trained;
            } else if index > 0 && !out.ends_with('\n') {
                out.push('|');
            }
        }
        out.push_str(paint);
        visible(segment.text, paint, &mut out);
        if style.ids {
            // Writing to a string cannot fail.
            let _ = write!(out, "‹{}›", segment.id);
        }
        if style.color {
            out.push_str(RESET);
        }
    }
    if inside {
        out.push('⟧');
    }
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    let trained = segments.iter().filter(|segment| segment.trained).count();
    let share = 100.0 * trained as f64 / segments.len().max(1) as f64;
    let _ = writeln!(out, "{} tokens, {trained} trained ({share:.1} %)", segments.len());
    out
}

/// A token's text, made visible.
fn visible(text: &str, paint: &str, out: &mut String) {
    if text.is_empty() {
        out.push('∅');
    }
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\n' => {
                out.push('↵');
                // The colour ends before the line does, or it would fill the rest of it.
                if !paint.is_empty() {
                    out.push_str(RESET);
                }
                out.push('\n');
                if !paint.is_empty() && characters.peek().is_some() {
                    out.push_str(paint);
                }
            }
            '\t' => out.push('→'),
            c if c.is_control() || is_format(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
}

/// Characters that change how others are shown: directions, joiners, a byte order mark.
fn is_format(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Vec<Segment<'static>> {
        let tokens = [
            ("<|im_start|>", 1, false),
            ("user", 4093, false),
            ("\n", 198, false),
            ("2+2?", 17, false),
            ("four\n\tor", 9, true),
            ("\u{1b}[2J\u{202e}", 8, true),
            ("", 7, true),
            ("<|im_end|>", 2, true),
            ("\n", 198, false),
        ];
        tokens.into_iter().map(|(text, id, trained)| Segment { text, id, trained }).collect()
    }

    #[test]
    fn without_colours_trained_tokens_stand_between_brackets() {
        insta::assert_snapshot!(explain(&row(), ExplainStyle::default()));
        let ids = ExplainStyle { ids: true, ..ExplainStyle::default() };
        insta::assert_snapshot!(explain(&row(), ids));
    }

    #[test]
    fn with_colours_every_token_is_painted_and_every_line_reset() {
        let text = explain(&row(), ExplainStyle { color: true, ids: false });
        insta::assert_snapshot!(text.replace('\x1b', "␛"));
        assert!(text.lines().all(|line| !line.contains('\x1b') || line.ends_with("\x1b[0m")));
    }

    #[test]
    fn a_row_cannot_write_control_characters() {
        let text = explain(&row(), ExplainStyle::default());
        assert!(text.chars().all(|c| c == '\n' || !(c.is_control() || is_format(c))));
        assert_eq!(explain(&[], ExplainStyle::default()), "0 tokens, 0 trained (0.0 %)\n");
    }
}
