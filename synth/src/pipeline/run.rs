//! From a pipeline to its files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use halter_core::data::files::Files;
use halter_core::endpoint::Teacher;
use halter_core::train::files::{atomic_write, remove_temporaries};
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::{Progress, counted};
use halter_core::{Error, Result, bundled};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::config::{Input, Pipeline, Stage};
use super::files::{self, Made, Spending};
use super::report;
use crate::row::Row;
use crate::step::{Outcome, Run};

/// Changes when a step makes other rows of the same input.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "+2");

/// A pipeline with its directory.
pub struct Runner<'a> {
    /// What is run.
    pub pipeline: &'a Pipeline,
    /// Where its files are.
    pub output: &'a Path,
    /// Where teachers' answers are kept; other pipelines may have kept theirs there.
    pub answers: &'a Path,
    /// The first step that is run again, whatever its files say.
    pub from: Option<usize>,
    /// The last step that is run.
    pub until: Option<usize>,
    /// Who watches.
    pub progress: &'a mut dyn Progress,
    /// Looked at often.
    pub interrupt: &'a Interrupt,
}

/// A step before it is run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Planned {
    /// Its name.
    pub step: String,
    /// What it does.
    pub kind: String,
    /// Whether its files are there.
    pub done: bool,
    /// Rows that it reads, where they are known.
    pub rows: Option<usize>,
    /// Questions that it will ask at least, where they are known.
    pub questions: Option<usize>,
}

/// A step that was run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Told {
    /// Its name.
    pub step: String,
    /// What it does.
    pub kind: String,
    /// Whether its files were there already.
    pub kept: bool,
    /// Where its rows came from.
    pub input: Vec<String>,
    /// What came of it.
    #[serde(flatten)]
    pub made: Made,
}

/// What a pipeline made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The file of the final rows.
    pub rows_file: PathBuf,
    /// How many there are.
    pub rows: usize,
    /// Every step.
    pub steps: Vec<Told>,
    /// What the teachers' answers took, those kept from earlier runs included.
    pub spent: BTreeMap<String, Spending>,
}

impl Runner<'_> {
    /// What would be run.
    ///
    /// # Errors
    /// Input that cannot be read.
    pub fn plan(&self) -> Result<Vec<Planned>> {
        let mut known: Vec<Option<(usize, String)>> = Vec::new();
        let mut plan = Vec::new();
        for (at, stage) in self.pipeline.steps.iter().enumerate() {
            if self.until.is_some_and(|until| at > until) {
                break;
            }
            let mut rows = Some(0);
            let mut hashes = Some(Vec::new());
            for input in &stage.input {
                let found = match input {
                    Input::Step(before) => known[*before].clone(),
                    Input::Data(name) => {
                        let files = Files::open(name)?;
                        Some((files.len(), files.fingerprint()?))
                    }
                };
                rows = rows.zip(found.as_ref()).map(|(sum, (rows, _))| sum + rows);
                hashes = hashes.zip(found).map(|(mut all, (_, hash))| {
                    all.push(hash);
                    all
                });
            }
            let made = match hashes {
                Some(hashes) if !self.is_forced(at) => {
                    files::read(&self.pipeline.files(self.output, at), &self.key(stage, hashes)?)
                }
                _ => None,
            };
            let questions = match stage.made.teachers.is_empty() {
                true => Some(0),
                false => rows.map(|rows| stage.made.questions.of(rows)),
            };
            plan.push(Planned {
                step: stage.name.clone(),
                kind: stage.kind.clone(),
                done: made.is_some(),
                rows,
                questions,
            });
            known.push(made.map(|made| (made.rows_out, made.rows_hash)));
        }
        Ok(plan)
    }

    /// Runs what was not run yet.
    ///
    /// # Errors
    /// What ends a step, an interruption, or a file that cannot be read or written. What earlier
    /// steps made stays, and so do the teachers' answers.
    pub fn run(&mut self) -> Result<Summary> {
        std::fs::create_dir_all(self.output).map_err(|e| Error::io("create", self.output, e))?;
        remove_temporaries(self.output)?;
        let mut teachers = BTreeMap::new();
        let mut told: Vec<Told> = Vec::new();
        let last = self.until.unwrap_or(usize::MAX).min(self.pipeline.steps.len() - 1);
        for at in 0..=last {
            self.interrupt.check()?;
            let stage = &self.pipeline.steps[at];
            let hashes = stage.input.iter().map(|input| match input {
                Input::Step(before) => Ok(told[*before].made.rows_hash.clone()),
                Input::Data(name) => Files::open(name)?.fingerprint(),
            });
            let key = self.key(stage, hashes.collect::<Result<_>>()?)?;
            let paths = self.pipeline.files(self.output, at);
            let kept = match self.is_forced(at) {
                true => None,
                false => files::read(&paths, &key),
            };
            let is_kept = kept.is_some();
            let made = match kept {
                Some(made) => made,
                None => self.run_step(at, key, &mut teachers)?,
            };
            let how = if is_kept { " (kept)" } else { "" };
            let (rows, out) = (counted(made.rows_in, "row"), made.rows_out);
            self.progress.note(&format!("{}: {rows} in, {out} out{how}", stage.name));
            let input = stage.input.iter().map(|input| match input {
                Input::Step(before) => self.pipeline.steps[*before].name.clone(),
                Input::Data(name) => name.clone(),
            });
            told.push(Told {
                step: stage.name.clone(),
                kind: stage.kind.clone(),
                kept: is_kept,
                input: input.collect(),
                made,
            });
        }
        self.finish(last, told)
    }

    fn is_forced(&self, at: usize) -> bool {
        self.from.is_some_and(|from| at >= from)
    }

    /// The hash of all that the rows of a step depend on.
    fn key(&self, stage: &Stage, inputs: Vec<String>) -> Result<String> {
        let mut teachers = Map::new();
        for name in &stage.made.teachers {
            let mut config = self.pipeline.teachers[name].clone();
            config.budget = Default::default();
            for endpoint in &mut config.endpoints {
                (endpoint.api_key_env, endpoint.api_key_file) = (None, None);
            }
            let mut files = Vec::new();
            for place in [config.local.clone().map(PathBuf::from), config.adapter.clone()] {
                files.extend(place.map(|place| sizes(&place)));
            }
            teachers.insert(name.clone(), json!([json!(config), files]));
        }
        let files: Vec<Value> =
            stage.made.files.iter().map(|path| print(path)).collect::<Result<_>>()?;
        let options = json!(stage.told);
        let all = json!([VERSION, self.seed(stage), inputs, options, teachers, files]);
        Ok(blake3::hash(all.to_string().as_bytes()).to_hex().to_string())
    }

    fn seed(&self, stage: &Stage) -> u64 {
        let text = json!([self.pipeline.seed, stage.name]).to_string();
        crate::generate::number(&text)
    }

    fn run_step(
        &mut self,
        at: usize,
        key: String,
        teachers: &mut BTreeMap<String, Box<dyn Teacher>>,
    ) -> Result<Made> {
        let stage = &self.pipeline.steps[at];
        for name in &stage.made.teachers {
            if !teachers.contains_key(name) {
                let cache = self.answers;
                std::fs::create_dir_all(cache).map_err(|e| Error::io("create", cache, e))?;
                teachers.insert(name.clone(), self.pipeline.teachers[name].open(name, cache)?);
            }
        }
        let rows = self.input(stage)?;
        let rows_in = rows.len();
        self.progress.note(&format!("{}: {}", stage.name, stage.kind));
        let mut run = Run {
            teachers,
            seed: self.seed(stage),
            progress: &mut *self.progress,
            interrupt: self.interrupt,
        };
        let mut outcome = stage.made.step.run(rows, &mut run)?;
        self.sign(stage, &mut outcome);
        let spent = teachers.iter().map(|(name, teacher)| {
            teacher.take_notes().iter().for_each(|note| self.progress.note(note));
            let spent = teacher.spent();
            let (requests, tokens, money) = (spent.requests, spent.tokens, spent.money);
            (name.clone(), Spending { requests, tokens, money })
        });
        let spent = spent.collect();
        files::write(&self.pipeline.files(self.output, at), key, rows_in, outcome, spent)
    }

    /// Adds the step to what is told of each row's origin.
    fn sign(&self, stage: &Stage, outcome: &mut Outcome) {
        for row in &mut outcome.rows {
            let mut entries = match row.0.remove("provenance") {
                Some(Value::Array(entries)) => entries,
                Some(other) if !other.is_null() => vec![other],
                _ => Vec::new(),
            };
            let is_new = |entry: &Value| entry.get("kind").is_some() && entry.get("step").is_none();
            if !entries.last().is_some_and(is_new) {
                entries.push(json!({"kind": stage.kind}));
            }
            if let Some(Value::Object(entry)) = entries.last_mut() {
                entry.insert("step".into(), json!(stage.name));
                entry.insert("version".into(), json!(VERSION));
            }
            row.set("provenance", entries);
        }
    }

    fn input(&self, stage: &Stage) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for input in &stage.input {
            match input {
                Input::Step(at) => {
                    rows.extend(files::rows(&self.pipeline.files(self.output, *at)[0])?);
                }
                Input::Data(name) => {
                    // Steps say themselves which columns they need.
                    let files = Files::open(name)?;
                    for row in 0..files.len() {
                        let mut columns = files.row(row)?;
                        if !columns.contains_key("provenance") {
                            let origin = json!([{"source": name, "row": row + 1}]);
                            columns.insert("provenance".into(), origin);
                        }
                        rows.push(Row(columns));
                    }
                }
            }
        }
        Ok(rows)
    }

    fn finish(&mut self, last: usize, steps: Vec<Told>) -> Result<Summary> {
        let rows_file = self.output.join("rows.jsonl");
        let from = &self.pipeline.files(self.output, last)[0];
        let bytes = std::fs::read(from).map_err(|e| Error::io("read", from, e))?;
        atomic_write(&rows_file, &bytes)?;
        let mut spent: BTreeMap<String, Spending> = BTreeMap::new();
        for (name, more) in steps.iter().flat_map(|step| &step.made.spent) {
            let all = spent.entry(name.clone()).or_default();
            if (more.requests, more.tokens) > (all.requests, all.tokens) {
                *all = *more;
            }
        }
        let rows = steps.last().map_or(0, |step| step.made.rows_out);
        let summary = Summary { rows_file, rows, steps, spent };
        let page = report::render(self.pipeline, self.output, &summary)?;
        atomic_write(self.output.join("report.html"), page.as_bytes())?;
        Ok(summary)
    }
}

/// What tells a file from another one in its place: its bytes, or, of a model, its [`sizes`].
fn print(path: &Path) -> Result<Value> {
    let bundled = bundled::path(&path.to_string_lossy())?;
    let path = bundled.as_deref().unwrap_or(path);
    if path.is_dir() {
        return Ok(json!(sizes(path)));
    }
    let mut hasher = blake3::Hasher::new();
    let read = std::fs::File::open(path).and_then(|file| hasher.update_reader(file).map(drop));
    read.map_err(|e| Error::io("read", path, e))?;
    Ok(json!(hasher.finalize().to_hex().as_str()))
}

/// Names, lengths and times of the files of a model, so that another one in its place is seen.
fn sizes(place: &Path) -> Vec<(String, u64, u64)> {
    let about = |path: &Path| {
        let about = std::fs::metadata(path).ok()?;
        let since = about.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
        let name = path.file_name()?.to_string_lossy().into_owned();
        Some((name, about.len(), since.as_secs()))
    };
    let mut all: Vec<_> = match std::fs::read_dir(place) {
        Ok(entries) => entries.flatten().filter_map(|entry| about(&entry.path())).collect(),
        Err(_) => about(place).into_iter().collect(),
    };
    all.sort();
    all
}
