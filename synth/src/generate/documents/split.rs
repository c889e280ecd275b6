//! Passages of a text: they begin at headings where they can, and end with paragraphs, sentences or
//! words.

use unicode_segmentation::UnicodeSegmentation;

/// The passages of `text`, of `least` to `most` characters. A passage that is shorter goes with the
/// next, or with the one before; a text that is shorter in all has none. Beside them an end that is too
/// short, and for which the one before has no room.
pub(super) fn passages(text: &str, least: usize, most: usize) -> (Vec<String>, String) {
    let mut found: Vec<String> = Vec::new();
    let (mut current, mut length) = (String::new(), 0);
    for block in blocks(text) {
        let more = chars(block);
        let begins = is_heading(block) && length >= least;
        let overflows = length + 2 + more > most && length >= least;
        if length > 0 && (begins || overflows) {
            found.push(std::mem::take(&mut current));
            length = 0;
        }
        let between = if length > 0 { "\n\n" } else { "" };
        current.push_str(between);
        current.push_str(block);
        length += between.len() + more;
        if length > most {
            let mut pieces = pieces(&current, most);
            current = pieces.pop().unwrap_or_default();
            length = chars(&current);
            found.append(&mut pieces);
        }
    }
    match found.last_mut() {
        _ if length >= least && length > 0 => found.push(current),
        Some(last) if length > 0 && chars(last) + 2 + length <= most => {
            last.push_str("\n\n");
            last.push_str(&current);
        }
        _ => return (found, current),
    }
    (found, String::new())
}

fn chars(text: &str) -> usize {
    text.chars().count()
}

/// Paragraphs, headings and fenced blocks.
fn blocks(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut from, mut at, mut fence) = (0, 0, None);
    let mut end = |from: &mut usize, at: usize, next: usize| {
        let block = text[*from..at].trim_matches(['\n', '\r']).trim_end();
        if !block.trim().is_empty() {
            found.push(block);
        }
        *from = next;
    };
    for line in text.split_inclusive('\n') {
        let (start, trimmed) = (at, line.trim());
        at += line.len();
        let mark = ["```", "~~~"].into_iter().find(|mark| trimmed.starts_with(mark));
        match (fence, mark) {
            (None, Some(mark)) => fence = Some(mark),
            (Some(open), Some(mark)) if open == mark => fence = None,
            (Some(_), _) => {}
            (None, None) if trimmed.is_empty() => end(&mut from, start, at),
            (None, None) if is_heading(trimmed) => {
                end(&mut from, start, start);
                end(&mut from, at, at);
            }
            (None, None) => {}
        }
    }
    end(&mut from, at, at);
    found
}

/// `## Bees`, or a line that is underlined.
fn is_heading(block: &str) -> bool {
    let level = block.bytes().take_while(|&byte| byte == b'#').count();
    if (1..=6).contains(&level) && block[level..].starts_with([' ', '\t']) {
        return !block.contains('\n');
    }
    let mut lines = block.lines();
    let (first, second, third) = (lines.next(), lines.next(), lines.next());
    let is_line = |text: &str| {
        let text = text.trim_end();
        text.len() >= 3 && (text.bytes().all(|b| b == b'=') || text.bytes().all(|b| b == b'-'))
    };
    first.is_some() && second.is_some_and(is_line) && third.is_none()
}

/// A text cut between sentences, else between words, else between characters.
fn pieces(text: &str, most: usize) -> Vec<String> {
    let mut pieces = Pieces { found: Vec::new(), current: String::new(), length: 0, most };
    for sentence in text.split_sentence_bounds() {
        if chars(sentence) <= most {
            pieces.push(sentence);
            continue;
        }
        for word in sentence.split_word_bounds() {
            if chars(word) <= most {
                pieces.push(word);
                continue;
            }
            let mut buffer = [0; 4];
            word.chars().for_each(|c| pieces.push(c.encode_utf8(&mut buffer)));
        }
    }
    pieces.end();
    pieces.found
}

struct Pieces {
    found: Vec<String>,
    current: String,
    length: usize,
    most: usize,
}

impl Pieces {
    fn push(&mut self, part: &str) {
        let more = chars(part);
        if self.length + more > self.most {
            self.end();
        }
        self.current.push_str(part);
        self.length += more;
    }

    fn end(&mut self) {
        let text = self.current.trim();
        if !text.is_empty() {
            self.found.push(text.to_string());
        }
        self.current.clear();
        self.length = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passages_begin_at_headings_and_are_bounded() {
        let text =
            "# One\nshort\n\n# Two\n\nA first paragraph.\n\nA second.\n\nThree\n=====\n\nend";
        assert_eq!(
            passages(text, 15, 60).0,
            ["# One\n\nshort\n\n# Two\n\nA first paragraph.\n\nA second.", "Three\n=====\n\nend"]
        );
        assert_eq!(passages("One. Two. Three.", 1, 10).0, ["One. Two.", "Three."]);
        assert_eq!(passages("abcdefgh ij", 1, 3).0, ["abc", "def", "gh", "ij"]);
        assert_eq!(passages("```\na\n\n# b\n```\n\nc", 1, 15).0, ["```\na\n\n# b\n```", "c"]);
        assert_eq!(passages("too short", 20, 100), (vec![], "too short".to_string()));
        let text = format!("{}\n\nend", "a".repeat(20));
        assert_eq!(passages(&text, 10, 22), (vec!["a".repeat(20)], "end".to_string()));
        assert_eq!(passages(" \n\n", 0, 10), Default::default());
    }

    #[test]
    fn nothing_but_space_is_lost_and_no_bound_is_passed() {
        let text = "Ünï cödé. \u{301}\u{301}\u{301}\u{301} x\n\n".repeat(40) + &"z".repeat(100);
        let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
        for most in [1, 2, 7, 30, 1000] {
            let (found, rest) = passages(&text, 1, most);
            assert_eq!(rest, "");
            assert!(found.iter().all(|passage| chars(passage) <= most), "{most}");
            assert_eq!(letters(&found.concat()), letters(&text), "{most}");
        }
    }
}
