//! A pipeline as a TOML file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use halter_core::endpoint::TeacherConfig;
use halter_core::{Error, Result, bundled};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::options::{Options, with_nearest};
use super::set::set;
use crate::step::Made;
use crate::{curate, generate};

/// Steps in their order, and who answers.
pub struct Pipeline {
    /// Of all draws.
    pub seed: u64,
    /// By name.
    pub teachers: BTreeMap<String, TeacherConfig>,
    /// A step reads only those before it.
    pub steps: Vec<Stage>,
}

/// A step with its place.
pub struct Stage {
    /// The name, which no other step has.
    pub name: String,
    /// What it does.
    pub kind: String,
    /// Where its rows come from.
    pub input: Vec<Input>,
    /// All its options but name and input, for its key.
    pub told: toml::Table,
    /// What it does, made from the options.
    pub made: Made,
}

/// Where rows come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The step of this number.
    Step(usize),
    /// A data set.
    Data(String),
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Several(Vec<String>),
}

impl Pipeline {
    /// Reads a pipeline, with `values` as [`parse`](Self::parse) has them.
    ///
    /// # Errors
    /// A file that cannot be read, or as [`parse`](Self::parse).
    pub fn open(path: &Path, values: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        Self::parse(path, &text, values)
    }

    /// Reads a pipeline from its text; `path` is told in errors. `values` stand in place of the text's:
    /// `teachers.NAME.KEY=VALUE` or `STEP.KEY=VALUE`.
    ///
    /// # Errors
    /// The first key or value that cannot be used, with its line.
    pub fn parse(path: &Path, text: &str, values: &[String]) -> Result<Self> {
        let line_at = |at: usize| 1 + text.bytes().take(at).filter(|&byte| byte == b'\n').count();
        let syntax = |error: toml::de::Error| {
            let line = error.span().map_or(1, |span| line_at(span.start));
            Error::config(error.message().replace('\n', " ")).at(path, line)
        };
        let mut table: toml::Table = text.parse().map_err(syntax)?;
        values.iter().try_for_each(|told| set(&mut table, told))?;
        let places = DeTable::parse(text).map_err(syntax)?;
        let places = places.get_ref();
        let top_lines = lines_of(places, &line_at);
        let mut top = Options::new(path, 1, top_lines, table);
        let seed = top.or("seed", 0u64)?;
        let tables: BTreeMap<String, toml::Value> = top.or("teachers", BTreeMap::new())?;
        let mut teachers = BTreeMap::new();
        for (name, table) in tables {
            let config: TeacherConfig = table.try_into().map_err(|error: toml::de::Error| {
                let message = error.message().replace('\n', " ");
                let error = Error::config(format!("teacher `{name}`: {message}"));
                error.at(path, line_of_teacher(places, &name, &line_at))
            })?;
            config.validate(&name).map_err(|error| {
                let told = Error::config(error.message());
                let told = told.at(path, line_of_teacher(places, &name, &line_at));
                match error.remedy() {
                    Some(hint) => told.hint(hint),
                    None => told,
                }
            })?;
            teachers.insert(name, config);
        }
        let tables: Vec<toml::Table> = top.or("step", Vec::new())?;
        top.finish()?;
        if tables.is_empty() {
            return Err(Error::config("no step: expected `[[step]]` at least once").in_file(path));
        }
        let mut pipeline = Self { seed, teachers, steps: Vec::new() };
        let list = places.get("step").map(Spanned::get_ref);
        let names: Vec<String> = tables.iter().filter_map(name_of).map(str::to_string).collect();
        for (at, table) in tables.into_iter().enumerate() {
            let place = match list {
                Some(DeValue::Array(items)) => items.get(at),
                _ => None,
            };
            let line = place.map_or(1, |place| line_at(place.span().start));
            let lines = match place.map(Spanned::get_ref) {
                Some(DeValue::Table(table)) => lines_of(table, &line_at),
                _ => BTreeMap::new(),
            };
            let stage =
                pipeline.stage(&names, table.clone(), Options::new(path, line, lines, table))?;
            pipeline.steps.push(stage);
        }
        Ok(pipeline)
    }

    fn stage(
        &self,
        names: &[String],
        mut told: toml::Table,
        mut options: Options,
    ) -> Result<Stage> {
        let kind: String = options.need("kind")?;
        let at = self.steps.len();
        let name: String = options.or("name", kind.clone())?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        if name.is_empty() || !name.chars().all(fits) {
            let why = format!("expected letters, digits, `-` and `_`, got `{name}`");
            return Err(options.wrong("name", &why));
        }
        if self.steps.iter().any(|step| step.name == name) {
            return Err(options.wrong("name", &format!("another step is called `{name}`")));
        }
        let given: Option<Names> = options.get("input")?;
        let given = match given {
            None => None,
            Some(Names::One(name)) => Some(vec![name]),
            Some(Names::Several(names)) => Some(names),
        };
        let input = match given {
            None if at == 0 => Vec::new(),
            None => vec![Input::Step(at - 1)],
            Some(given) => {
                let find = |text: String| self.find_input(names, text, &options);
                given.into_iter().map(find).collect::<Result<_>>()?
            }
        };
        let teachers: Vec<&str> = self.teachers.keys().map(String::as_str).collect();
        let made = generate::step(&kind, &mut options, &teachers)
            .or_else(|| curate::step(&kind, &mut options, &teachers))
            .unwrap_or_else(|| {
                let error = options.wrong("kind", &format!("no step is of the kind `{kind}`"));
                let kinds: Vec<&str> = generate::KINDS.into_iter().chain(curate::KINDS).collect();
                Err(with_nearest(error, &kind, &kinds))
            })?;
        for name in &made.teachers {
            if !self.teachers.contains_key(name) {
                let error = options.wrong("teacher", &format!("no teacher is called `{name}`"));
                return Err(with_nearest(error, name, &teachers));
            }
        }
        if made.needs_rows && input.is_empty() {
            let error = options
                .fault(format!("step `{name}`: `{kind}` reads rows, and no step is before it"));
            return Err(error.hint("name a data file in `input`"));
        }
        options.finish()?;
        told.remove("name");
        told.remove("input");
        Ok(Stage { name, kind, input, told, made })
    }

    fn find_input(&self, names: &[String], text: String, options: &Options) -> Result<Input> {
        if let Some(at) = self.steps.iter().position(|step| step.name == text) {
            return Ok(Input::Step(at));
        }
        if names.contains(&text) {
            let why = format!(
                "step `{text}` is not before this one: expected an earlier step, or a data file"
            );
            return Err(options
                .wrong("input", &why)
                .hint("steps run in the order of the file, so no cycle can be"));
        }
        if Path::new(&text).exists() || bundled::path(&text)?.is_some() {
            return Ok(Input::Data(text));
        }
        let error = options.wrong("input", &format!("no step and no data file is called `{text}`"));
        let names: Vec<&str> = self.steps.iter().map(|step| step.name.as_str()).collect();
        Err(with_nearest(error, &text, &names))
    }

    /// The number of the step called `name`.
    ///
    /// # Errors
    /// Where there is none; with the nearest name.
    pub fn position(&self, name: &str) -> Result<usize> {
        self.steps.iter().position(|step| step.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.steps.iter().map(|step| step.name.as_str()).collect();
            with_nearest(Error::config(format!("no step is called `{name}`")), name, &names)
        })
    }

    /// The files of step `at` in `output`: rows, what was removed, and what is known of both.
    pub fn files(&self, output: &Path, at: usize) -> [PathBuf; 3] {
        let stem = format!("{:02}-{}", at + 1, self.steps[at].name);
        ["jsonl", "removed.jsonl", "json"].map(|ending| output.join(format!("{stem}.{ending}")))
    }
}

/// The name that a step has or will have.
pub(super) fn name_of(step: &toml::Table) -> Option<&str> {
    step.get("name").or_else(|| step.get("kind"))?.as_str()
}

fn lines_of(table: &DeTable, line_at: &impl Fn(usize) -> usize) -> BTreeMap<String, usize> {
    table.iter().map(|(key, _)| (key.get_ref().to_string(), line_at(key.span().start))).collect()
}

fn line_of_teacher(top: &DeTable, name: &str, line_at: &impl Fn(usize) -> usize) -> usize {
    match top.get("teachers").map(Spanned::get_ref) {
        Some(DeValue::Table(teachers)) => lines_of(teachers, line_at).get(name).copied(),
        _ => None,
    }
    .unwrap_or(1)
}
