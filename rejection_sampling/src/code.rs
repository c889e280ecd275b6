//! A completion's code against tests, each in a process of its own in the sandbox.

mod source;
#[cfg(test)]
mod tests;

use std::num::NonZero;
use std::thread::available_parallelism;

use halter_core::data::record::{Message, Turn};
use halter_core::{Error, Result};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde_json::{Map, Value};

use self::source::{extract, with_prompt};
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
    /// Its own: a model that generates beside it shares rayon's.
    threads: ThreadPool,
}

impl Code {
    /// Tests run in a sandbox with `settings`.
    ///
    /// # Errors
    ///
    /// Where programs cannot be contained here; the message says why.
    pub fn new(settings: Settings, credit: Credit) -> Result<Self> {
        let cores = available_parallelism().map_or(1, NonZero::get);
        Ok(Self { sandbox: Sandbox::new(settings)?, credit, threads: waiting_threads(cores)? })
    }
}

/// Threads that wait for programs, as many at once.
///
/// # Errors
/// Where the system starts none.
pub fn waiting_threads(count: usize) -> Result<ThreadPool> {
    let threads = ThreadPoolBuilder::new().num_threads(count).build();
    threads.map_err(|error| Error::config(format!("cannot start threads: {error}")))
}

impl Scorer for Code {
    fn name(&self) -> &str {
        "code"
    }

    fn score(&self, item: &Item) -> Result<Score> {
        let completion = answer::after_thinking(item.completion);
        let prompt = match item.prompt {
            Turn::Text(text) => Some(text.as_str()),
            Turn::Messages(messages) => messages.last().and_then(Message::content),
        };
        let (value, detail) = check(&self.sandbox, self.credit, completion, prompt, item.row)?;
        Ok(Score { value, detail })
    }

    fn score_all(&self, items: &[Item]) -> Vec<Result<Score>> {
        self.threads.install(|| items.par_iter().map(|item| self.score(item)).collect())
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
