//! Code fences, as CommonMark has them (section 4.5).

/// A fence: its character, how many there are, and what follows them.
fn fence(line: &str) -> Option<(char, usize, &str)> {
    let trimmed = line.trim_start();
    let mark = trimmed.chars().next().filter(|mark| ['`', '~'].contains(mark))?;
    let length = trimmed.chars().take_while(|&c| c == mark).count();
    let info = &trimmed[length..];
    // Backticks after an opening are code within a line.
    (length >= 3 && !(mark == '`' && info.contains('`'))).then_some((mark, length, info.trim()))
}

/// Goes through a text's lines; `true` for those of code and of its fences. What is open at the end
/// is given back.
fn walk(text: &str, mut each: impl FnMut(&str, bool)) -> Option<(char, usize, usize)> {
    let mut open: Option<(char, usize, usize)> = None;
    for (number, line) in text.lines().enumerate() {
        let found = fence(line);
        each(line, open.is_some() || found.is_some());
        open = match (open, found) {
            (None, Some((mark, length, _))) => Some((mark, length, number + 1)),
            (Some((mark, length, _)), Some((again, longer, "")))
                if mark == again && longer >= length =>
            {
                None
            }
            (open, _) => open,
        };
    }
    open
}

/// The fence that is open where the text ends.
pub(super) fn open_at_end(text: &str) -> Option<String> {
    let (mark, length, line) = walk(text, |_, _| {})?;
    Some(format!("`{}` on line {line} is not closed", mark.to_string().repeat(length)))
}

/// The text without its blocks of code.
pub(super) fn without_code(text: &str) -> String {
    let mut prose = String::with_capacity(text.len());
    walk(text, |line, is_code| {
        if !is_code {
            prose.push_str(line);
            prose.push('\n');
        }
    });
    prose
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_closed_by_one_of_its_own_kind_and_length() {
        for whole in [
            "no code",
            "a\n```py\nx\n```\nb",
            "````\n```\n````",
            "~~~\n```\n~~~",
            "``` inline ``` code",
            "- item\n  ```\n  x\n  ```",
        ] {
            assert_eq!(open_at_end(whole), None, "{whole}");
        }
        for broken in ["```py\nx", "```\nx\n~~~", "````\nx\n```", "```\na\n```\n```"] {
            assert!(open_at_end(broken).is_some(), "{broken}");
        }
        assert_eq!(open_at_end("a\n~~~py\nx").unwrap(), "`~~~` on line 2 is not closed");
    }

    #[test]
    fn prose_is_what_is_outside_of_the_fences() {
        assert_eq!(without_code("a\n```py\nx!\n```\nb\n"), "a\nb\n");
    }
}
