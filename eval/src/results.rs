//! What the lines of a task say: accuracies with their standard errors.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use halter_core::train::progress::counted;
use halter_core::{Error, Result};
use halter_rejection_sampling::sample::{Figures, Rate};
use halter_rejection_sampling::statistics::clustered_mean;
use serde::Serialize;

use crate::choice::Line;
use crate::task::{Questions, Task};

/// The score from which on a completion is right: verifiers give 1 or 0.
const RIGHT: f64 = 0.5;

/// Figures of a task.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TaskResult {
    /// What it is called.
    pub task: String,
    /// How its rows were read.
    pub format: &'static str,
    /// The data set.
    pub data: String,
    /// Rows asked.
    pub rows: usize,
    /// Share of right answers; with several completions of a row, of all completions.
    pub acc: f64,
    /// Its standard error, clustered by row; not a number (null) for one row.
    pub acc_stderr: f64,
    /// Share of right answers where log-likelihoods are divided by the choices' characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_norm: Option<f64>,
    /// Its standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_norm_stderr: Option<f64>,
    /// Rows whose context was cut from the left to fit the model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_contexts: Option<usize>,
    /// At least one of `k` completions is right, for several completions of a row.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pass_at: Vec<Rate>,
    /// Completions that were cut off at their longest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_off: Option<usize>,
    /// Completions that could not be judged; they count as wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unscored: Option<usize>,
}

impl TaskResult {
    /// The figures of the lines in `path`, which are those of `task`.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no line.
    pub fn read(task: &Task, path: &Path) -> Result<Self> {
        let result = match task.questions {
            Questions::Choice(_) => Self::of_choices(path)?,
            Questions::Open(..) => Self::of_completions(path)?,
        };
        Ok(Self {
            task: task.name.clone(),
            format: task.format.name,
            data: task.set.name().to_string(),
            ..result
        })
    }

    /// The figures in a line, for people.
    pub fn told(&self) -> String {
        let percent = |mean: f64, error: f64| match error.is_nan() {
            true => format!("{:.1} %", 100.0 * mean),
            false => format!("{:.1} % ± {:.1}", 100.0 * mean, 100.0 * error),
        };
        let mut told = format!("{}: acc {}", self.task, percent(self.acc, self.acc_stderr));
        if let (Some(mean), Some(error)) = (self.acc_norm, self.acc_norm_stderr) {
            told += &format!(", acc_norm {}", percent(mean, error));
        }
        for rate in &self.pass_at {
            told += &format!(", pass@{} {:.1} %", rate.k, 100.0 * rate.mean);
        }
        told += &format!(", {}", counted(self.rows, "row"));
        for (what, number) in [
            ("context cut", self.cut_contexts),
            ("completion cut off", self.cut_off),
            ("completion not judged", self.unscored),
        ] {
            if let Some(number) = number.filter(|&number| number > 0) {
                told += &format!(", {what}: {number}");
            }
        }
        told
    }

    fn of_choices(path: &Path) -> Result<Self> {
        let (mut right, mut right_norm) = (Vec::new(), Vec::new());
        let mut cut = 0;
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        for (at, text) in BufReader::new(file).lines().enumerate() {
            let text = text.map_err(|error| Error::io("read", path, error))?;
            let line: Line = serde_json::from_str(&text).map_err(|error| {
                Error::data(format!("not a line of choices: {error}")).at(path, at + 1)
            })?;
            right.push([f64::from(u8::from(line.correct))]);
            right_norm.push([f64::from(u8::from(line.correct_norm))]);
            cut += usize::from(line.was_cut);
        }
        let (acc, acc_norm) = (estimate(&right, path)?, estimate(&right_norm, path)?);
        Ok(Self {
            rows: right.len(),
            acc: acc.0,
            acc_stderr: acc.1,
            acc_norm: Some(acc_norm.0),
            acc_norm_stderr: Some(acc_norm.1),
            cut_contexts: Some(cut),
            ..Self::default()
        })
    }

    fn of_completions(path: &Path) -> Result<Self> {
        let figures = Figures::read(path, Some(RIGHT), false)?;
        if figures.failed_prompts > 0 {
            let failed = counted(figures.failed_prompts, "prompt");
            return Err(Error::data(format!("{failed} could not be completed"))
                .in_file(path)
                .hint("their lines have the reasons"));
        }
        let (acc, acc_stderr) =
            figures.acceptance.ok_or_else(|| Error::data("no row was completed").in_file(path))?;
        let several = figures.pass_at.len() > 1;
        Ok(Self {
            rows: figures.prompts,
            acc,
            acc_stderr,
            pass_at: if several { figures.pass_at } else { Vec::new() },
            cut_off: Some(figures.cut_off),
            unscored: Some(figures.unscored),
            ..Self::default()
        })
    }
}

fn estimate(values: &[[f64; 1]], path: &Path) -> Result<(f64, f64)> {
    clustered_mean(values.iter().map(|value| &value[..]))
        .map(|estimate| (estimate.mean, estimate.standard_error))
        .ok_or_else(|| Error::data("no row was scored").in_file(path))
}
