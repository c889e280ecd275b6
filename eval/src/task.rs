//! A benchmark with its rows: what is asked, and the examples before it.

use std::path::Path;
use std::str::FromStr;

use halter_core::data::dataset::{DataOptions, Dataset};
use halter_core::data::format::Format as RowFormat;
use halter_core::data::hub::HubId;
use halter_core::data::parse::value::present;
use halter_core::data::record::Turn;
use halter_core::{Error, Result, bundled};

use crate::format::{CHOICES, Completed, FORMATS, Format, OPEN, Read, named};
use crate::question::{Choice, Open, Row};

/// A benchmark of a command line: `FORMAT=DATA`, or `DATA` alone for rows of one's own.
#[derive(Debug, Clone)]
pub struct TaskSpec {
    /// What it is called in the results: its format, or the name of its file.
    pub name: String,
    /// How the rows are read; told from the first one where it is not given.
    pub format: Option<&'static Format>,
    /// File, directory or hub id.
    pub data: String,
}

impl FromStr for TaskSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let whole = || Self { name: file_name(text), format: None, data: text.to_string() };
        match text.split_once('=') {
            _ if Path::new(text).exists() => Ok(whole()),
            None => Ok(whole()),
            Some((name, data)) => match named(name) {
                Some(_) if data.is_empty() => {
                    Err(Error::config(format!("task `{name}`: expected data after `=`")))
                }
                Some(format) => {
                    Ok(Self { name: name.into(), format: Some(format), data: data.to_string() })
                }
                None => {
                    let names: Vec<_> = FORMATS.iter().map(|format| format.name).collect();
                    Err(Error::config(format!("unknown task `{name}`"))
                        .hint(format!("expected one of {}", names.join(", "))))
                }
            },
        }
    }
}

/// A benchmark, read.
pub struct Task {
    /// What it is called in the results.
    pub name: String,
    /// How its rows were read.
    pub format: &'static Format,
    /// The data set.
    pub set: Dataset,
    /// The rows that are asked.
    pub questions: Questions,
}

/// The questions of a task, each with its examples before it.
pub enum Questions {
    /// Of choices.
    Choice(Vec<Choice>),
    /// Of completions, and how they are judged.
    Open(Vec<Open>, &'static Completed),
}

/// How much of a task is asked, and what is shown before it.
#[derive(Debug, Clone, Copy, Default)]
pub struct TaskOptions<'a> {
    /// Only so many of the first rows.
    pub limit: Option<usize>,
    /// So many examples before each row.
    pub num_fewshot: usize,
    /// Where they are from; the other rows of the task where nothing is given.
    pub fewshot: Option<&'a Dataset>,
}

impl Task {
    /// Reads the rows of `spec`; every one of them is checked.
    ///
    /// # Errors
    /// Data that cannot be opened, a row that is not of the task's format, or too few examples.
    pub fn open(spec: &TaskSpec, options: TaskOptions) -> Result<Self> {
        let set = open_rows(&measured(&spec.data)?)?;
        let format = match spec.format {
            Some(format) => format,
            None => told(&set.row(0)?),
        };
        let count = options.limit.map_or(set.len(), |limit| limit.min(set.len()));
        let TaskOptions { num_fewshot, fewshot, .. } = options;
        let questions = match &format.read {
            Read::Choice(read) => {
                let shown = |row: &Row| read(row).map(|choice| choice.shown());
                let examples = Examples::new(format, &set, fewshot, num_fewshot, shown)?;
                let ask = |(at, mut choice): (usize, Choice)| {
                    let Choice { description, context, .. } = &choice;
                    choice.context = format!("{description}{}{context}", examples.before(at));
                    choice
                };
                let read = read_rows(format, &set, count, read)?;
                Questions::Choice(read.into_iter().enumerate().map(ask).collect())
            }
            Read::Open(completed) => {
                let unfit = || {
                    Error::data(format!("`{}` rows cannot have or be examples", format.name))
                        .hint("leave out `--num-fewshot`; rows need a text prompt and an answer")
                };
                let shown = |row: &Row| (completed.read)(row)?.shown().ok_or_else(unfit);
                let examples = Examples::new(format, &set, fewshot, num_fewshot, shown)?;
                let read = |row: &Row| {
                    let open = (completed.read)(row)?;
                    match open.prompt {
                        Turn::Messages(_) if num_fewshot > 0 => Err(unfit()),
                        _ => Ok(open),
                    }
                };
                let ask = |(at, mut open): (usize, Open)| {
                    if let Turn::Text(text) = &mut open.prompt {
                        text.insert_str(0, &examples.before(at));
                    }
                    open
                };
                let read = read_rows(format, &set, count, read)?;
                Questions::Open(read.into_iter().enumerate().map(ask).collect(), completed)
            }
        };
        Ok(Self { name: spec.name.clone(), format, set, questions })
    }
}

/// Opens a data set whose rows are read column by column.
///
/// # Errors
/// As [`Dataset::open`].
pub fn open_rows(data: &str) -> Result<Dataset> {
    // A format is stated, or columns that are of none would be refused.
    let options = DataOptions { format: Some(RowFormat::Prompt), ..DataOptions::default() };
    Dataset::open(data, &options)
}

/// A data set of the hub with the split that models are measured on, where none is named.
fn measured(data: &str) -> Result<String> {
    let is_here = Path::new(data).exists() || bundled::path(data)?.is_some();
    let id = HubId::parse(data).filter(|id| !is_here && id.split.is_none());
    Ok(id.map_or(data.to_string(), |_| format!("{data}:test|validation")))
}

/// The format of rows of one's own.
fn told(row: &Row) -> &'static Format {
    if present(row, "choices").is_some() { &CHOICES } else { &OPEN }
}

fn file_name(data: &str) -> String {
    let stem = Path::new(data).file_stem().unwrap_or_default().to_string_lossy();
    stem.replace(|c: char| !c.is_alphanumeric() && !"-_.".contains(c), "-")
}

/// Questions of the first `count` rows; an error has its place and what the columns should be.
fn read_rows<T>(
    format: &Format,
    set: &Dataset,
    count: usize,
    read: impl Fn(&Row) -> Result<T>,
) -> Result<Vec<T>> {
    let one = |at: usize| {
        let row = set.row(at)?;
        read(&row).map_err(|error| {
            let origin = set.origin(at);
            let error = match error.remedy() {
                Some(_) => error,
                None => error.hint(format!("a row of `{}` has {}", format.name, format.columns)),
            };
            error.at(&*origin.path, origin.line)
        })
    };
    (0..count).map(one).collect()
}

/// What is shown before a row.
struct Examples {
    shown: Vec<String>,
    wanted: usize,
    /// Whether they are rows of the task itself, which do not show their own answer.
    are_own: bool,
}

impl Examples {
    fn new(
        format: &Format,
        own: &Dataset,
        others: Option<&Dataset>,
        wanted: usize,
        shown: impl Fn(&Row) -> Result<String>,
    ) -> Result<Self> {
        let (set, are_own) = others.map_or((own, true), |others| (others, false));
        let needed = if are_own && wanted > 0 { wanted + 1 } else { wanted };
        if set.len() < needed {
            return Err(Error::config(format!(
                "`num-fewshot` is `{wanted}`: expected at least `{needed}` rows, got `{}`",
                set.len()
            ))
            .in_file(set.name()));
        }
        Ok(Self { shown: read_rows(format, set, needed, shown)?, wanted, are_own })
    }

    fn before(&self, row: usize) -> String {
        let others = self.shown.iter().enumerate().filter(|(at, _)| !self.are_own || *at != row);
        others.take(self.wanted).map(|(_, text)| format!("{text}\n\n")).collect()
    }
}
