//! A completion's code against tests, each in a process of its own in the sandbox.

#[cfg(test)]
mod tests;

use halter_core::data::record::Message;
use halter_core::{Error, Result};
use serde_json::{Map, Value};

use crate::sandbox::{Program, Sandbox, Settings, Status};
use crate::scorer::{Item, Score, Scorer};
use crate::verifier::answer;

const HARNESS: &str = include_str!("code/harness.py");

/// What a completion gets that passes some of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Credit {
    /// Nothing.
    #[default]
    AllOrNothing,
    /// The share of tests passed.
    Share,
}

/// The row's tests ([`check`]) on the code of what follows a completion's thinking. The prompt is the
/// row's text in `prompt`, else its last message. Whatever the code does, it costs its row only.
#[derive(Debug)]
pub struct Code {
    sandbox: Sandbox,
    credit: Credit,
}

impl Code {
    /// Tests run in a sandbox with `settings`.
    ///
    /// # Errors
    ///
    /// Where programs cannot be contained here; the message says why.
    pub fn new(settings: Settings, credit: Credit) -> Result<Self> {
        Ok(Self { sandbox: Sandbox::new(settings)?, credit })
    }
}

impl Scorer for Code {
    fn name(&self) -> &str {
        "code"
    }

    fn score(&self, item: &Item) -> Result<Score> {
        let completion = answer::after_thinking(item.completion);
        let prompt = item.prompt.last().and_then(Message::content);
        let (value, detail) = check(&self.sandbox, self.credit, completion, prompt, item.row)?;
        Ok(Score { value, detail })
    }
}

/// Runs the code of `completion` against the tests of `row`: `test_list` with `test_setup_code` and
/// `test_imports` (MBPP), `test` with `entry_point` (HumanEval), or `tests`, a string or a list.
/// Returns a value from 0 to 1 and, below 1, why.
///
/// # Errors
///
/// Where the row has no tests, or the sandbox cannot start a process.
pub fn check(
    sandbox: &Sandbox,
    credit: Credit,
    completion: &str,
    prompt: Option<&str>,
    row: &Map<String, Value>,
) -> Result<(f64, Option<String>)> {
    let tests = tests_of(row)?;
    // a conversation in this column is what `prompt` was taken from
    let prompt = row.get("prompt").and_then(Value::as_str).or(prompt);
    let code = with_prompt(extract(completion), prompt, text(row, "entry_point")?);
    let mut passed = 0;
    let mut first = None;
    for (index, test) in tests.iter().enumerate() {
        match run(sandbox, &code, test)? {
            None => passed += 1,
            Some(why) if tests.len() == 1 => first = Some(why),
            Some(why) => {
                first.get_or_insert(format!("test {} of {}: {why}", index + 1, tests.len()));
            }
        }
        if first.is_some() && credit == Credit::AllOrNothing {
            return Ok((0.0, first));
        }
    }
    Ok((f64::from(passed) / tests.len() as f64, first))
}

/// Why `code` does not pass `test`, if it does not.
fn run(sandbox: &Sandbox, code: &str, test: &str) -> Result<Option<String>> {
    if code.contains('\0') {
        return Ok(Some("the code holds a zero byte".into()));
    }
    let secret = format!("{:032x}", rand::random::<u128>());
    let stdin = [&secret, code, test].join("\0").into_bytes();
    let program = Program { source: HARNESS.into(), stdin, files: Vec::new() };
    let outcome = sandbox.run(&program)?;
    Ok(match outcome.status {
        Status::Exited(0) if outcome.stdout == secret => None,
        Status::TimedOut => Some("ran out of time".into()),
        Status::OutOfMemory => Some("ran out of memory".into()),
        Status::TooMuchOutput => Some("wrote too much".into()),
        Status::Signal(number) => Some(format!("ended by signal {number}")),
        Status::Exited(_) => Some(match outcome.stdout.strip_prefix("failed ") {
            Some(why) => why.to_string(),
            None => "the code ended the program".into(),
        }),
    })
}

fn text<'a>(row: &'a Map<String, Value>, column: &str) -> Result<Option<&'a str>> {
    match row.get(column) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => {
            Err(Error::data(format!("column `{column}`: expected a string, got `{other}`")))
        }
    }
}

fn strings<'a>(row: &'a Map<String, Value>, column: &str) -> Result<Option<Vec<&'a str>>> {
    let wrong = || Error::data(format!("column `{column}`: expected a list of strings"));
    match row.get(column) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().ok_or_else(wrong))
            .collect::<Result<_>>()
            .map(Some),
        Some(_) => Err(wrong()),
    }
}

/// The programs that test the code of `row`, at least one; [`check`] says in which columns they are.
///
/// # Errors
///
/// Where the row has none, or a column is not what it should be.
pub fn tests_of(row: &Map<String, Value>) -> Result<Vec<String>> {
    let list = match row.get("tests") {
        Some(Value::String(tests)) => Some(vec![tests.as_str()]),
        _ => strings(row, "tests")?,
    };
    let tests = match (strings(row, "test_list")?.or(list), text(row, "test")?) {
        (Some(list), _) => list.into_iter().map(str::to_string).collect(),
        (None, Some(test)) => vec![match text(row, "entry_point")? {
            Some(name) => format!("{test}\ncheck({name})\n"),
            None => test.to_string(),
        }],
        (None, None) => Vec::new(),
    };
    if tests.iter().all(|test: &String| test.trim().is_empty()) {
        return Err(Error::data("a row without tests")
            .hint("give the tests in `test_list`, in `tests`, or in `test` with `entry_point`"));
    }
    let mut before = strings(row, "test_imports")?.unwrap_or_default();
    before.extend(text(row, "test_setup_code")?);
    before.retain(|code| !code.is_empty());
    if before.is_empty() {
        return Ok(tests);
    }
    let before = before.join("\n");
    Ok(tests.into_iter().map(|test| format!("{before}\n{test}")).collect())
}

/// The last fenced block of Python, or else the last fenced block, or else all of it.
fn extract(completion: &str) -> &str {
    let mut blocks: Vec<(bool, &str)> = Vec::new();
    let mut open: Option<(bool, usize)> = None;
    let mut at = 0;
    for line in completion.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let Some(language) = line.trim_start().strip_prefix("```") else { continue };
        match open.take() {
            Some((python, from)) => blocks.push((python, &completion[from..start])),
            None => {
                let language = language.trim().to_ascii_lowercase();
                open = Some((matches!(language.as_str(), "python" | "python3" | "py"), at));
            }
        }
    }
    // A completion that was cut has no closing fence.
    blocks.extend(open.map(|(python, from)| (python, &completion[from..])));
    let python = blocks.iter().rev().find(|(python, _)| *python);
    python.or(blocks.last()).map_or(completion, |(_, code)| code)
}

/// A completion goes on where the prompt ends, unless it has the function itself; the prompt's
/// imports and helpers go before it either way.
fn with_prompt(code: &str, prompt: Option<&str>, entry_point: Option<&str>) -> String {
    let (Some(prompt), Some(name)) = (prompt, entry_point) else { return code.to_string() };
    let definition = format!("def {name}(");
    let Some(at) = prompt.rfind(&definition) else { return code.to_string() };
    if code.contains(&definition) {
        format!("{}\n{code}", &prompt[..at])
    } else {
        format!("{prompt}{code}")
    }
}
