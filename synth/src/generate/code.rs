//! Solutions in code that pass their tests ("The Llama 3 Herd of Models", section 4.3.1).
//!
//! A teacher explains and solves; the code runs in the sandbox against the row's tests or tests that
//! the teacher wrote; what goes wrong is told, and the teacher tries again. Unlike in the paper the
//! tests stay as they are while the solution is repaired.

use std::sync::LazyLock;
use std::time::Duration;

use halter_core::data::record::Message;
use halter_core::train::progress::Unit;
use halter_core::{Error, Result};
use halter_rejection_sampling::code::{Credit, check, tests_of, waiting_threads};
use halter_rejection_sampling::sandbox::{Sandbox, Settings};
use rayon::prelude::*;
use regex::Regex;
use serde_json::{Map, Value, json};

use super::asking::{Asking, after_thinking, remove, whole};
use super::template::Template;
use super::{Made, Questions, reply};
use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Outcome, Run, Step};

const PROMPT: &str = include_str!("../../prompts/code.txt");
const TESTS: &str = include_str!("../../prompts/code-tests.txt");
const REPAIR: &str = include_str!("../../prompts/code-repair.txt");

/// Where Python's messages show an object's address, which is another one in every run.
#[allow(clippy::unwrap_used, reason = "a constant pattern")]
static ADDRESS: LazyLock<Regex> = LazyLock::new(|| Regex::new(" at 0x[0-9a-fA-F]+").unwrap());

/// Solves each problem `samples` times, and keeps what passes.
#[derive(Debug)]
pub(super) struct Code {
    asking: Asking,
    prompt: Template,
    tests_prompt: Template,
    repair_prompt: Template,
    samples: usize,
    repairs: usize,
    write_tests: bool,
    keep_dialogue: bool,
    parallel: usize,
    settings: Settings,
}

impl Code {
    pub fn made(options: &mut Options, teachers: &[&str]) -> Result<Made> {
        let asking = Asking::read(options, teachers, 0.7)?;
        let samples = options.within("samples", 1, 1..=10_000)?;
        let seconds = options.within("seconds", 10, 1..=3600)?;
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let mut settings = Settings::default();
        settings.limits.cpu_seconds = seconds;
        settings.limits.wall = Duration::from_secs(seconds);
        let step = Self {
            prompt: Template::read(options, "prompt", PROMPT)?,
            tests_prompt: Template::read(options, "tests_prompt", TESTS)?,
            repair_prompt: Template::read(options, "repair_prompt", REPAIR)?,
            samples,
            repairs: options.within("repairs", 2, 0..=100)?,
            write_tests: options.or("write_tests", true)?,
            keep_dialogue: options.or("keep_dialogue", false)?,
            parallel: options.within("parallel", cores, 1..=1024)?,
            settings,
            asking: asking.clone(),
        };
        Ok(Made {
            step: Box::new(step),
            teachers: vec![asking.teacher],
            files: Vec::new(),
            needs_rows: true,
            questions: Questions::PerRow(samples),
        })
    }

    /// The rows that can be solved and tested, each `samples` times.
    fn begin<'a>(&self, rows: &'a [Row], outcome: &mut Outcome) -> Result<Vec<Try<'a>>> {
        let mut tries = Vec::new();
        for row in rows {
            let (Some(turns), Some(problem)) = (reply::prompt(row), reply::instruction(row)) else {
                remove(outcome, row, "no prompt", "expected `prompt` or `messages`");
                continue;
            };
            let is_named =
                matches!(row.0.get("entry_point"), None | Some(Value::Null | Value::String(_)));
            let tests = match has_tests(row) {
                _ if !is_named => Err(Error::data("column `entry_point`: expected a string")),
                true => tests_of(&row.0).map(Some),
                false if self.write_tests => Ok(None),
                false => Err(Error::data("expected `tests`, `test_list` or `test`")),
            };
            let tests = match tests {
                Ok(tests) => tests,
                Err(error) => {
                    remove(outcome, row, "no tests", error.message());
                    continue;
                }
            };
            let mut shown = turns.clone();
            if let Some(last) = shown.iter_mut().rfind(|turn| turn.role() == "user") {
                let text = self.prompt.render(&json!({"problem": problem}))?;
                last.0.insert("content".into(), text.into());
            }
            for sample in 0..self.samples {
                tries.push(Try {
                    row,
                    sample,
                    turns: turns.clone(),
                    problem: problem.clone(),
                    tests: tests.clone(),
                    shown: shown.clone(),
                    attempts: 0,
                    fault: None,
                });
            }
        }
        Ok(tries)
    }

    /// Asks for the next attempt of each; those without an answer are removed.
    fn attempt<'a>(
        &self,
        tries: Vec<Try<'a>>,
        run: &mut Run,
        outcome: &mut Outcome,
    ) -> Result<Vec<Try<'a>>> {
        let ask = |of: &Try| self.asking.chat(of.shown.clone(), run.seed, of.sample);
        let questions: Vec<_> = tries.iter().map(ask).collect();
        let answers = self.asking.ask(&questions, run, &mut outcome.figures)?;
        let mut answered = Vec::new();
        for (mut of, answer) in tries.into_iter().zip(answers) {
            let Some(text) = whole(answer, of.row, outcome) else { continue };
            of.shown.push(Message::new("assistant", &text));
            of.attempts += 1;
            answered.push(of);
        }
        Ok(answered)
    }

    /// Has tests written where there are none.
    fn give_tests<'a>(
        &self,
        tries: Vec<Try<'a>>,
        tester: &Tester,
        run: &mut Run,
        outcome: &mut Outcome,
    ) -> Result<Vec<Try<'a>>> {
        let without: Vec<&Try> = tries.iter().filter(|of| of.tests.is_none()).collect();
        let questions: Vec<_> = without
            .iter()
            .map(|of| {
                let solution = after_thinking(of.said());
                let names = json!({"problem": of.problem, "solution": solution});
                Ok(self.asking.user(&self.tests_prompt.render(&names)?, run.seed, of.sample))
            })
            .collect::<Result<_>>()?;
        let mut answers = self.asking.ask(&questions, run, &mut outcome.figures)?.into_iter();
        let (mut known, mut written) = (Vec::new(), Vec::new());
        for (at, mut of) in tries.into_iter().enumerate() {
            if of.tests.is_some() {
                known.push((at, of));
                continue;
            }
            let Some(answer) = answers.next() else { break };
            let Some(text) = whole(answer, of.row, outcome) else { continue };
            match fenced(after_thinking(&text)).filter(|tests| tests.contains("assert")) {
                Some(tests) => {
                    of.tests = Some(vec![tests.to_string()]);
                    written.push((at, of));
                }
                None => remove(outcome, of.row, "no tests", &text),
            }
        }
        // Tests that nothing at all passes as well test nothing.
        let runs: Vec<_> = written.iter().map(|(_, of)| (of, "```python\npass\n```")).collect();
        let faults = tester.run(&runs, run)?;
        for ((at, of), fault) in written.into_iter().zip(faults) {
            match fault {
                Some(_) => known.push((at, of)),
                None => remove(outcome, of.row, "tests prove nothing", &of.all_tests()),
            }
        }
        known.sort_by_key(|(at, _)| *at);
        Ok(known.into_iter().map(|(_, of)| of).collect())
    }

    fn row(&self, of: &Try, run: &Run) -> Row {
        let mut turns = of.turns.clone();
        let mut after: Vec<Message> = of.shown[of.turns.len()..].to_vec();
        if self.keep_dialogue {
            let last = after.len().saturating_sub(1);
            for turn in after[..last].iter_mut().filter(|turn| turn.role() == "assistant") {
                // Only the solution that passes is to be learned.
                turn.0.insert("train".into(), json!(false));
            }
            turns.append(&mut after);
        } else {
            turns.extend(after.pop());
        }
        let mut made = Row::chat(&turns);
        let asks = ["messages", "prompt", "completion", "instruction", "input", "output"];
        for (name, value) in of.row.0.iter().filter(|(name, _)| !asks.contains(&name.as_str())) {
            made.set(name, value.clone());
        }
        made.set("tests", json!(of.tests));
        made.set("attempts", of.attempts);
        self.asking.sign(&mut made, "code", run, &self.prompt.hash, &[of.row]);
        made
    }
}

impl Step for Code {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut open = self.begin(&rows, &mut outcome)?;
        if open.is_empty() {
            return Ok(outcome);
        }
        let tester = Tester::new(self.settings.clone(), self.parallel)?;
        let mut passed: Vec<Vec<Try>> = Vec::new();
        for round in 0..=self.repairs {
            open = self.attempt(open, run, &mut outcome)?;
            if round == 0 {
                open = self.give_tests(open, &tester, run, &mut outcome)?;
            }
            let runs: Vec<_> = open.iter().map(|of| (of, of.said())).collect();
            let faults = tester.run(&runs, run)?;
            for (of, fault) in open.iter_mut().zip(faults) {
                of.fault = fault;
            }
            let (right, wrong) = open.into_iter().partition(|of: &Try| of.fault.is_none());
            open = wrong;
            passed.push(right);
            if round < self.repairs {
                for of in &mut open {
                    let names = json!({"problem": of.problem, "error": of.fault,
                                       "alone": !self.keep_dialogue});
                    let text = self.repair_prompt.render(&names)?;
                    of.shown.push(Message::new("user", &text));
                }
            }
        }
        for of in &open {
            remove(&mut outcome, of.row, "tests fail", of.fault.as_deref().unwrap_or_default());
        }
        let counts: Vec<usize> = passed.iter().map(Vec::len).collect();
        outcome.figures.insert("passed_by_attempt".into(), json!(counts));
        let made = passed.iter().flatten().map(|of| self.row(of, run));
        outcome.rows.extend(made);
        Ok(outcome)
    }
}

/// A problem on its way.
struct Try<'a> {
    row: &'a Row,
    sample: usize,
    /// The row's conversation up to the problem.
    turns: Vec<Message>,
    problem: String,
    tests: Option<Vec<String>>,
    /// What the teacher sees: `turns` with the prompt in place of the problem, and all attempts.
    shown: Vec<Message>,
    attempts: usize,
    /// Why the last attempt does not pass.
    fault: Option<String>,
}

impl Try<'_> {
    fn said(&self) -> &str {
        self.shown.last().and_then(Message::content).unwrap_or_default()
    }

    fn all_tests(&self) -> String {
        self.tests.iter().flatten().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// The row with its tests as they are run.
    fn tested(&self) -> Map<String, Value> {
        let mut row = self.row.0.clone();
        row.retain(|name, _| ["prompt", "entry_point"].contains(&name.as_str()));
        row.insert("tests".into(), json!(self.tests));
        row
    }
}

/// The sandbox, and the threads that wait for it.
struct Tester {
    sandbox: Sandbox,
    pool: rayon::ThreadPool,
}

impl Tester {
    fn new(settings: Settings, parallel: usize) -> Result<Self> {
        Ok(Self { sandbox: Sandbox::new(settings)?, pool: waiting_threads(parallel)? })
    }

    /// Why each reply does not pass its tests, in their order; `None` where it does.
    fn run(&self, runs: &[(&Try, &str)], run: &mut Run) -> Result<Vec<Option<String>>> {
        if runs.is_empty() {
            return Ok(Vec::new());
        }
        run.progress.begin("running tests", runs.len() as u64, Unit::Items);
        let mut faults = Vec::with_capacity(runs.len());
        for chunk in runs.chunks(self.pool.current_num_threads() * 4) {
            run.interrupt.check()?;
            let one = |(of, said): &(&Try, &str)| self.fault(of, said);
            let some = self.pool.install(|| chunk.par_iter().map(one).collect::<Result<Vec<_>>>());
            faults.extend(some?);
            run.progress.advance(faults.len() as u64, "");
        }
        run.progress.finish();
        Ok(faults)
    }

    fn fault(&self, of: &Try, said: &str) -> Result<Option<String>> {
        let said = after_thinking(said);
        if fenced(said).is_none() {
            return Ok(Some("the reply has no fenced block of code".into()));
        }
        let prompt = Some(of.problem.as_str());
        let (_, fault) = check(&self.sandbox, Credit::AllOrNothing, said, prompt, &of.tested())?;
        Ok(fault.map(|fault| ADDRESS.replace_all(&fault, " at an address").into_owned()))
    }
}

/// Whether the row says something of tests, right or wrong.
fn has_tests(row: &Row) -> bool {
    let columns = ["test_list", "tests", "test"];
    columns.iter().any(|name| match row.0.get(*name) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.trim().is_empty(),
        Some(Value::Array(tests)) => !tests.is_empty(),
        Some(_) => true,
    })
}

/// The last fenced block that is closed and holds something.
fn fenced(text: &str) -> Option<&str> {
    let (mut open, mut found, mut at) = (None, None, 0);
    for line in text.split_inclusive('\n') {
        let start = at;
        at += line.len();
        if line.trim_start().starts_with("```") {
            match open.take() {
                Some(from) => {
                    found =
                        Some(&text[from..start]).filter(|b: &&str| !b.trim().is_empty()).or(found)
                }
                None => open = Some(at),
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_closed_block_is_found() {
        assert_eq!(fenced("so:\n```python\na\n```\nor\n  ```\nb\n```"), Some("b\n"));
        assert_eq!(fenced("```\na\n```\n```\n\n```\n```py\ncut"), Some("a\n"));
        assert_eq!(fenced("a = 1"), None);
    }
}
