//! Does what a plan says: one stage after the other, each in a process of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use halter_core::train::files::{atomic_write, remove_temporaries};
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::Progress;
use halter_core::{Error, ErrorKind, Result};
use serde::Serialize;
use serde_json::Value;

use crate::cache::Done;
use crate::graph::Node;
use crate::kind::{Form, Kind, Resumes};
use crate::plan::{Plan, Status, Step, duration};
use crate::report;

/// The exit code of a command that was interrupted.
const INTERRUPTED: i32 = 130;

/// A process to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The arguments of `halter`.
    pub arguments: Vec<String>,
    /// The directory that it writes to.
    pub output: PathBuf,
    /// Where its stdout goes.
    pub stdout: PathBuf,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// Most memory that it held, in bytes.
    pub peak_memory: Option<u64>,
}

/// Who runs processes.
pub trait Runner {
    /// Runs a job to its end; one that `interrupt` asks to stop is asked to stop, and waited for.
    ///
    /// # Errors
    /// When it cannot be started.
    fn run(&mut self, job: &Job, interrupt: &Interrupt) -> Result<Ended>;
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Where everything is.
    pub output: PathBuf,
    /// The last model.
    pub model: Option<PathBuf>,
    /// The report.
    pub report: PathBuf,
    /// Stages that were run, and stages that were done before.
    pub ran: usize,
    /// See [`Outcome::ran`].
    pub cached: usize,
    /// Every stage.
    pub stages: Vec<Told>,
}

/// A stage as programs are told of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Told {
    /// Its round; 0 for what comes before the first.
    pub round: usize,
    /// Its name.
    pub name: String,
    /// Its command.
    pub kind: &'static str,
    /// Where its outputs are.
    pub directory: PathBuf,
    /// Whether it was done before.
    pub cached: bool,
    /// Seconds that it took when it was run.
    pub seconds: f64,
    /// Most memory that it held, in bytes.
    pub peak_memory: Option<u64>,
    /// Accuracies by task, where it measures a model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accuracy: Vec<(String, f64)>,
}

/// Runs every stage of `plan` that is not done.
///
/// # Errors
/// An input that is missing, a stage that failed, or an interruption (of kind `Interrupted`). What is
/// done stays done.
pub fn run(
    plan: &mut Plan,
    runner: &mut dyn Runner,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    plan.check()?;
    let stages = plan.recipe.output.join("stages");
    fs::create_dir_all(&stages).map_err(|error| Error::io("create", &stages, error))?;
    remove_temporaries(&stages)?;
    atomic_write(plan.recipe.output.join("recipe.toml"), plan.recipe.resolved().as_bytes())?;
    let place = plan.recipe.output.join("report.html");
    let (total, mut cached) = (plan.steps.len(), Vec::new());
    for at in 0..total {
        let title = plan.graph.nodes[at].title();
        // A stage may stand in two rounds and be the same in both.
        let twin = (0..at).find(|&other| plan.steps[other].directory == plan.steps[at].directory);
        if let Some(twin) = twin {
            plan.steps[at].status = plan.steps[twin].status.clone();
        }
        if matches!(plan.steps[at].status, Status::Done(_)) {
            let (node, step) = (&plan.graph.nodes[at], &plan.steps[at]);
            plan.store.drop_checkpoints(&node.name, &step.key)?;
            cached.push(at);
            continue;
        }
        progress.note(&format!("── {title} ({} of {total})", at + 1));
        let done = one(plan, at, runner, progress, interrupt);
        let done = done.map_err(|error| in_stage(error, &plan.graph.nodes[at], plan))?;
        progress.note(&format!("── {title}: {}", duration(done.seconds)));
        plan.steps[at].status = Status::Done(Box::new(done));
        report::write(plan, &place)?;
    }
    report::write(plan, &place)?;
    if !cached.is_empty() {
        progress.note(&format!("{} of {total} stages were done before", cached.len()));
    }
    let model = plan.graph.result().map(|at| plan.steps[at].directory.clone());
    Ok(Outcome {
        output: plan.recipe.output.clone(),
        model,
        report: place,
        ran: total - cached.len(),
        cached: cached.len(),
        stages: told(plan, &cached),
    })
}

fn told(plan: &Plan, cached: &[usize]) -> Vec<Told> {
    let each = plan.graph.nodes.iter().zip(&plan.steps).enumerate();
    let told = each.filter_map(|(at, (node, step))| {
        let Status::Done(done) = &step.status else { return None };
        Some(Told {
            round: node.round,
            name: node.name.clone(),
            kind: node.kind.name,
            directory: step.directory.clone(),
            cached: cached.contains(&at),
            seconds: done.seconds,
            peak_memory: done.peak_memory,
            accuracy: report::accuracies(done),
        })
    });
    told.collect()
}

/// Runs a stage, and writes down that it is done.
fn one(
    plan: &Plan,
    at: usize,
    runner: &mut dyn Runner,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Done> {
    interrupt.check()?;
    let (node, step) = (&plan.graph.nodes[at], &plan.steps[at]);
    if let Status::Damaged(why) = &step.status {
        progress.note(&format!("{}: {why}; it is run again", step.directory.display()));
    }
    let is_begun = matches!(step.status, Status::Begun);
    let resumed = match node.kind.resumes {
        // It looks itself whether what it has is whole, and some of that may have been paid for.
        Resumes::Itself => is_begun || matches!(step.status, Status::Damaged(_)),
        Resumes::Flag => is_begun && plan.store.can_go_on(&node.name, &step.key),
        Resumes::Never => false,
    };
    match resumed {
        true => plan.store.reopen(&node.name, &step.key)?,
        false => plan.store.clear(&node.name, &step.key)?,
    }
    if node.kind.file.is_some() {
        fs::create_dir_all(&step.directory)
            .map_err(|error| Error::io("create", &step.directory, error))?;
    }
    let config = plan.store.beside(&node.name, &step.key, "toml");
    if node.kind.form == Form::Config {
        let text = toml::to_string(&step.options)
            .map_err(|error| Error::config("options that are not TOML").because(error))?;
        atomic_write(&config, text.as_bytes())?;
    }
    let began = Instant::now();
    let stdout = plan.store.beside(&node.name, &step.key, "json");
    let mut job = job(node.kind, step, &config, &stdout, resumed);
    if node.kind.asks {
        let answers = plan.recipe.output.join("teachers");
        job.arguments.extend(["--answers".into(), answers.display().to_string()]);
    }
    let ended = runner.run(&job, interrupt)?;
    let said = Said::read(&stdout)?;
    if let Err(error) = outcome(ended, &said, interrupt) {
        let failed = Failed::of(node.kind, &said.summary);
        match failed.filter(|failed| failed.share() <= node.failures) {
            Some(failed) => progress.note(&format!("{failed}; up to that share are accepted")),
            None => return Err(error),
        }
    }
    let summary = said.summary;
    let done = Done {
        key: step.key.clone(),
        name: node.name.clone(),
        kind: node.kind.name.into(),
        seconds: began.elapsed().as_secs_f64(),
        resumed,
        peak_memory: ended.peak_memory.or_else(|| summary["peak_memory"].as_u64()),
        summary,
        files: Vec::new(),
    };
    let done = plan.store.finish(done)?;
    for path in [config, stdout] {
        let _ = fs::remove_file(path);
    }
    Ok(done)
}

/// The arguments of a stage.
fn job(kind: &Kind, step: &Step, config: &Path, stdout: &Path, resume: bool) -> Job {
    let mut arguments: Vec<String> = kind.name.split(' ').map(str::to_string).collect();
    match kind.form {
        Form::Config => arguments.extend(["--config".into(), config.display().to_string()]),
        Form::Flags => arguments.extend(flags(kind, &step.options)),
    }
    let output = match kind.file {
        Some(file) => step.directory.join(file),
        None => step.directory.clone(),
    };
    arguments.extend(["--output".into(), output.display().to_string(), "--json".into()]);
    if resume && kind.resumes == Resumes::Flag {
        arguments.push("--resume".into());
    }
    Job { arguments, output: step.directory.clone(), stdout: stdout.to_path_buf() }
}

/// Options as flags: a list is the flag again and again, `true` the flag alone.
pub fn flags(kind: &Kind, options: &toml::Table) -> Vec<String> {
    let mut flags = Vec::new();
    for (key, value) in options {
        let values = match value {
            toml::Value::Array(values) => values.iter().collect(),
            value => vec![value],
        };
        for value in values {
            let flag = format!("--{}", key.replace('_', "-"));
            let text = match value {
                toml::Value::Boolean(true) => {
                    flags.push(flag);
                    continue;
                }
                toml::Value::Boolean(false) => continue,
                toml::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            match kind.positional == Some(key.as_str()) {
                true => flags.push(text),
                // In one word, so that a value may begin with a dash.
                false => flags.push(format!("{flag}={text}")),
            }
        }
    }
    flags
}

/// What the command said of itself, as the last lines of its stdout that are JSON.
struct Said {
    summary: Value,
    error: Value,
}

impl Said {
    fn read(stdout: &Path) -> Result<Self> {
        let bytes = match fs::read(stdout) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::io("read", stdout, error)),
        };
        let text = String::from_utf8_lossy(&bytes);
        let mut said = Self { summary: Value::Null, error: Value::Null };
        for value in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            match value.get("error") {
                Some(error) => said.error = error.clone(),
                None => said.summary = value,
            }
        }
        Ok(said)
    }
}

fn outcome(ended: Ended, said: &Said, interrupt: &Interrupt) -> Result<()> {
    if ended.code == Some(0) {
        return Ok(());
    }
    if interrupt.is_set() || ended.code == Some(INTERRUPTED) {
        return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
    }
    let told = &said.error;
    let message = match (told["message"].as_str(), ended.code) {
        (Some(message), _) => message.to_string(),
        (None, Some(code)) => format!("it ended with exit code {code}"),
        (None, None) => "it was killed".to_string(),
    };
    // The message has its place in it already.
    let error = Error::new(ErrorKind::Data, message);
    Err(match told["hint"].as_str() {
        Some(hint) => error.hint(hint),
        None => error,
    })
}

/// Rows, prompts or completions that a command could do nothing with, of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    /// How many.
    pub failed: u64,
    /// Of all.
    pub of: u64,
}

impl Failed {
    /// What the summary of a command tells of it, which only one that came to its end has; of
    /// several figures the worst.
    pub fn of(kind: &Kind, summary: &Value) -> Option<Self> {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let figures = &summary["figures"];
        let failed_prompts =
            number(&figures["failed_prompts"]) + number(&figures["partial_prompts"]);
        let told = match kind.name {
            "eval" => {
                let each = number(&summary["settings"]["num_completions"]);
                let tasks = summary["tasks"].as_array().map_or(&[][..], Vec::as_slice);
                let of_task =
                    |task: &Value| (number(&task["unscored"]), each * number(&task["rows"]));
                tasks.iter().map(of_task).collect()
            }
            "sample" => vec![
                (failed_prompts, number(&figures["failed_prompts"]) + number(&figures["prompts"])),
                (number(&figures["unscored"]), number(&figures["completions"])),
            ],
            "distill capture" => {
                let failed = number(&summary["failed"]);
                vec![(failed, failed + number(&summary["rows"]))]
            }
            "generate" => vec![(number(&summary["failed_rows"]), number(&summary["rows"]))],
            "synth" => {
                let steps = summary["steps"].as_array().map_or(&[][..], Vec::as_slice);
                let figures = steps.iter().map(|step| &step["figures"]);
                figures.map(|f| (number(&f["unanswered"]), number(&f["questions"]))).collect()
            }
            _ => Vec::new(),
        };
        let told = told.into_iter().filter(|(failed, _)| *failed > 0);
        let worst = told.map(|(failed, of)| Self { failed, of: of.max(failed) });
        worst.max_by(|a, b| a.share().total_cmp(&b.share()))
    }

    /// From 0 to 1.
    pub fn share(self) -> f64 {
        self.failed as f64 / self.of.max(1) as f64
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} failed", self.failed, self.of)
    }
}

fn in_stage(error: Error, node: &Node, plan: &Plan) -> Error {
    let title = node.title();
    match error.kind() {
        ErrorKind::Interrupted => Error::new(
            ErrorKind::Interrupted,
            format!("interrupted in {title}; what is done is kept"),
        )
        .hint("the same command goes on"),
        kind => {
            let hint = error.remedy().map(str::to_string);
            let outer = Error::new(kind, format!("{title} failed"))
                .at(&plan.recipe.path, node.line)
                .because(error);
            match hint {
                Some(hint) => outer.hint(hint),
                None => outer,
            }
        }
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
