//! Rules about a single answer.

use crate::curate::words::{excerpt, normalised, words};

/// Words of an answer from which on it is looked at for its end; shorter ones often have none.
const PROSE: usize = 50;
/// Words of a prompt from which on an answer that begins with it repeats it.
const PROMPT: usize = 5;
/// Words that no English sentence ends with.
const HANGING: [&str; 22] = [
    "a", "an", "the", "and", "or", "of", "to", "with", "for", "from", "by", "into", "but",
    "because", "that", "which", "while", "your", "their", "its", "is", "are",
];

/// How an answer breaks off, if it does: the end of its last line is a comma, an opening bracket or a
/// word that cannot be the last; or it is long and its last line is prose without an end.
pub(super) fn truncated(answer: &str) -> Option<String> {
    let line = answer.trim_end().lines().last()?.trim();
    let last = line.chars().last()?;
    let told = || {
        let tail: Vec<char> = line.chars().rev().take(40).collect();
        format!("ends with `{}`", tail.into_iter().rev().collect::<String>())
    };
    let is_long = words(answer).len() >= PROSE;
    if matches!(last, ',' | '(' | '[' | '{' | '（' | '，') {
        return is_long.then(told);
    }
    if !last.is_alphabetic() || !is_long || !is_prose(line) {
        return None;
    }
    let word = line.rsplit(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    let hangs = HANGING.contains(&word.to_lowercase().as_str());
    // A line that has a sentence before is not a heading, a name or an item.
    let has_sentence = line.contains(". ") || line.contains("! ") || line.contains("? ");
    (hangs || has_sentence).then(told)
}

/// Whether a line is neither an item of a list nor a row of a table nor a heading.
fn is_prose(line: &str) -> bool {
    let numbered = line.split_once(['.', ')']).is_some_and(|(number, _)| {
        !number.is_empty() && number.chars().all(|c| c.is_ascii_digit())
    });
    !numbered && !line.starts_with(['-', '*', '+', '•', '|', '#', '>', '`', '$', '\\'])
}

/// How an answer repeats its prompt, if it does.
pub(super) fn repeats(prompt: &str, answer: &str) -> Option<String> {
    let (asked, said) = (normalised(prompt), normalised(answer));
    if asked.is_empty() {
        return None;
    }
    if asked == said {
        // A word may be the right answer to itself.
        return asked.contains(' ').then(|| "it is the prompt".to_string());
    }
    let is_long = asked.split(' ').count() >= PROMPT;
    let begins = said.strip_prefix(&asked).is_some_and(|rest| rest.starts_with(' '));
    (is_long && begins).then(|| format!("begins with `{}`", excerpt(prompt.trim(), 60)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_without_an_end_breaks_off() {
        let before = "One two three four five six seven eight nine ten. ".repeat(6);
        for end in ["and then the", "so he went to the", "First, bread,", "as follows ("] {
            assert!(truncated(&format!("{before}{end}")).is_some(), "{end}");
        }
        for end in [
            "It is done.",
            "(see above)",
            "\n- last item",
            "\nKind regards\n\nAnna",
            "\n```\nx = 1\n```",
        ] {
            assert_eq!(truncated(&format!("{before}{end}")), None, "{end}");
        }
        assert_eq!(truncated("Paris"), None);
        assert_eq!(truncated(""), None);
    }

    #[test]
    fn a_prompt_is_repeated_whole_or_at_the_beginning() {
        let prompt = "What is the capital of France?";
        assert!(repeats(prompt, "what is the capital of france").is_some());
        assert!(repeats(prompt, "What is the capital of France? It is Paris.").is_some());
        assert_eq!(repeats(prompt, "The capital of France is Paris."), None);
        assert_eq!(repeats("Repeat: hello", "hello"), None);
        assert_eq!(repeats("Echo", "echo"), None);
    }
}
