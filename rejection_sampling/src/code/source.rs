//! The program that a completion makes with its prompt.

use std::sync::LazyLock;

use regex::Regex;

use crate::verifier::fixed;

/// The last fenced block of Python, or else the last fenced block, or else all of it.
pub(super) fn extract(completion: &str) -> &str {
    let blocks = blocks(completion);
    let python = blocks.iter().rev().find(|(python, _)| *python);
    python.or(blocks.last()).map_or(completion, |(_, code)| code)
}

/// The fenced blocks, and whether each says that it is Python.
fn blocks(text: &str) -> Vec<(bool, &str)> {
    let mut blocks = Vec::new();
    let mut open: Option<(bool, usize)> = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let Some(language) = line.trim_start().strip_prefix("```") else { continue };
        match open.take() {
            Some((python, from)) => blocks.push((python, &text[from..start])),
            None => {
                let language = language.trim().to_ascii_lowercase();
                open = Some((matches!(language.as_str(), "python" | "python3" | "py"), at));
            }
        }
    }
    // A completion that was cut has no closing fence.
    blocks.extend(open.map(|(python, from)| (python, &text[from..])));
    blocks
}

/// A completion goes on where the prompt's code ends, unless it has the function itself; the imports
/// and helpers before it go with it either way. The prompt's code is the fenced block that defines the
/// function, or all of a prompt without one but for its prose.
pub(super) fn with_prompt(code: &str, prompt: Option<&str>, entry_point: Option<&str>) -> String {
    let (Some(prompt), Some(name)) = (prompt, entry_point) else { return code.to_string() };
    let definition = format!("def {name}(");
    let fenced = blocks(prompt).into_iter().rev().find_map(|(_, block)| {
        let at = start_of(block, &definition)?;
        Some((block[..at].to_string(), &block[at..]))
    });
    let plain =
        || start_of(prompt, &definition).map(|at| (without_prose(&prompt[..at]), &prompt[at..]));
    match fenced.or_else(plain) {
        None => code.to_string(),
        Some((before, _)) if code.contains(&definition) => format!("{before}\n{code}"),
        Some((before, begun)) => format!("{before}{begun}{code}"),
    }
}

/// Where the last line of `text` that begins with `definition` starts.
fn start_of(text: &str, definition: &str) -> Option<usize> {
    text.rmatch_indices(definition).find_map(|(at, _)| {
        let start = text[..at].rfind('\n').map_or(0, |end| end + 1);
        matches!(text[start..at].trim(), "" | "async").then_some(start)
    })
}

/// The lines of `text` that can be Python: those that begin as statements do, what is indented below
/// them, and texts between triple quotes that they open.
fn without_prose(text: &str) -> String {
    static STATEMENT: LazyLock<Regex> = LazyLock::new(|| {
        fixed(concat!(
            r"^(?:import\s+[\w.]+(?:\s+as\s+\w+)?(?:\s*,.*)?\s*(?:#.*)?$|from\s+[\w.]+\s+import\b",
            r#"|(?:async\s+)?def\s+\w+\s*\(|class\s+\w+\s*[(:]|[@#)\]}]|[rR]?["']{3}"#,
            r"|(?:if|for|while|with)\b.*:\s*(?:#.*)?$|(?:try|else|finally)\s*:|(?:except|elif)\b.*:",
            r"|[A-Za-z_][\w.]*(?:\s*:\s*[\w.\[\], ]+)?\s*=[^=]|[\w.]+\(.*\)\s*(?:#.*)?$)",
        ))
    });
    let (mut code, mut is_code, mut quotes) = (String::new(), false, None);
    for line in text.split_inclusive('\n') {
        let is_indented = line.starts_with([' ', '\t']);
        if quotes.is_none() && !is_indented && !line.trim().is_empty() {
            is_code = STATEMENT.is_match(line.trim_end());
        }
        if !is_code {
            continue;
        }
        code.push_str(line);
        for mark in ["\"\"\"", "'''"] {
            let is_odd = line.matches(mark).count() % 2 == 1;
            if is_odd && quotes.is_none_or(|open| open == mark) {
                quotes = if quotes.is_none() { Some(mark) } else { None };
            }
        }
    }
    code
}
