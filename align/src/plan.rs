//! What there is to do: every stage with its key, whether it is done, and what it will need.

use std::fmt::Write;
use std::path::PathBuf;

use halter_core::memory::plan::gigabytes;
use halter_core::model::config::ModelConfig;
use halter_core::model::weights::adapter::{AdapterConfig, TargetModules};
use halter_core::train::progress::counted;
use halter_core::{Error, Result, bundled};
use toml::{Table, Value};

use crate::cache::{self, Check, Done, Store};
use crate::graph::Graph;
use crate::inputs::{self, Checksums, State};
use crate::kind::Form;
use crate::recipe::Recipe;
use crate::{Commands, Prediction};

/// What there is to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The recipe.
    pub recipe: Recipe,
    /// Its stages over the rounds.
    pub graph: Graph,
    /// One for each node of the graph.
    pub steps: Vec<Step>,
    /// Directories of stages.
    pub store: Store,
    /// The base's shape, where it is on disk.
    pub base: Option<ModelConfig>,
}

/// A stage in a round.
#[derive(Debug, Clone)]
pub struct Step {
    /// See [`cache::key`].
    pub key: String,
    /// Where its outputs are, or will be.
    pub directory: PathBuf,
    /// Its options, with the paths of what it uses.
    pub options: Table,
    /// What was found out about its outputs.
    pub status: Status,
    /// Inputs that are not there, with the lines that name them.
    pub missing: Vec<(PathBuf, usize)>,
    /// What it will need.
    pub expected: Expected,
    /// Bytes that its outputs will take, and how many more while it runs; about.
    pub disk: Option<(u64, u64)>,
}

/// What was found out about a stage's outputs.
#[derive(Debug, Clone, PartialEq)]
pub enum Status {
    /// All of them are there.
    Done(Box<Done>),
    /// It was begun.
    Begun,
    /// They are not as they were written; why.
    Damaged(String),
    /// There are none.
    New,
}

/// What a stage will need.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// As planned from its inputs.
    Planned(Prediction),
    /// As planned with the base in place of a model that is not there yet.
    WithBase(Prediction),
    /// As it was in another round.
    Before(f64, Option<u64>),
    /// Known once this stage has run.
    After(String),
    /// An input is missing.
    Missing,
    /// Nothing can be said.
    Unknown,
    /// Nothing: it is done.
    Nothing,
}

impl Plan {
    /// Plans `recipe`, whose outputs are looked at as `check` says.
    ///
    /// # Errors
    /// References and options that cannot be used, with their line; files that cannot be read.
    pub fn new(recipe: Recipe, commands: &dyn Commands, check: Check) -> Result<Self> {
        for stage in recipe.stages.iter().chain(&recipe.eval) {
            commands.check(stage, &recipe)?;
        }
        let graph = Graph::new(&recipe)?;
        let store = Store::new(&recipe.output);
        let mut plan = Self { recipe, graph, steps: Vec::new(), store, base: None };
        let mut checksums = Checksums::open(plan.recipe.output.join("checksums.json"));
        let version = commands.version(&mut checksums)?;
        for at in 0..plan.graph.nodes.len() {
            let step = plan.step(at, &version, &mut checksums, check)?;
            plan.steps.push(step);
        }
        if plan.recipe.output.is_dir() {
            checksums.keep()?;
        }
        plan.base = shape(&plan.recipe.model);
        for at in 0..plan.steps.len() {
            plan.steps[at].expected = plan.expect(at, commands)?;
            plan.steps[at].disk = plan.disk(at);
        }
        Ok(plan)
    }

    fn step(
        &self,
        at: usize,
        version: &str,
        checksums: &mut Checksums,
        check: Check,
    ) -> Result<Step> {
        let node = &self.graph.nodes[at];
        let mark = |at: usize| format!("\u{1}{}\u{1}", self.steps[at].key);
        let keyed = node.options(&mark);
        let found = inputs::of(&keyed, &|text| text.contains('\u{1}'), checksums)?;
        let key = cache::key(version, node.kind, &keyed, &found);
        let options = node.options(&|at| self.place(at));
        let missing = found
            .iter()
            .filter_map(|input| match &input.state {
                State::Missing(path) => Some((path.clone(), node.line_of(&input.key))),
                _ => None,
            })
            .collect();
        let status = match self.store.done(&node.name, &key, check) {
            Ok(Some(done)) => Status::Done(Box::new(done)),
            Ok(None) if self.store.is_begun(&node.name, &key) => Status::Begun,
            Ok(None) => Status::New,
            Err(error) => Status::Damaged(error.message().to_string()),
        };
        let directory = self.store.directory(&node.name, &key);
        let (expected, disk) = (Expected::Nothing, None);
        Ok(Step { key, directory, options, status, missing, expected, disk })
    }

    /// What stands for the output of a stage in the options of another.
    pub fn place(&self, at: usize) -> String {
        let directory = &self.steps[at].directory;
        let place = match self.graph.nodes[at].kind.file {
            Some(file) => directory.join(file),
            None => directory.clone(),
        };
        place.display().to_string()
    }

    fn is_done(&self, at: usize) -> bool {
        matches!(self.steps[at].status, Status::Done(_))
    }

    fn expect(&self, at: usize, commands: &dyn Commands) -> Result<Expected> {
        let (node, step) = (&self.graph.nodes[at], &self.steps[at]);
        if self.is_done(at) {
            return Ok(Expected::Nothing);
        }
        let placed = |error: Error| match error.location() {
            Some(_) => error,
            None => error.at(&self.recipe.path, node.line),
        };
        // The last of them is there last.
        let waits = node.inputs.iter().copied().rfind(|&input| !self.is_done(input));
        let is_there = waits.is_none() && step.missing.is_empty();
        if is_there {
            let found = commands.predict(node.kind, &step.options, true).map_err(placed)?;
            return Ok(found.map_or_else(|| self.before(at), Expected::Planned));
        }
        commands.predict(node.kind, &step.options, false).map_err(placed)?;
        if !step.missing.is_empty() {
            return Ok(Expected::Missing);
        }
        // What a reward model says of completions does not decide what they need.
        let is_model = |input: &usize| {
            let kind = self.graph.nodes[*input].kind;
            kind.answers || kind.name == "reward"
        };
        if node.inputs.iter().all(|input| is_model(input) || self.is_done(*input)) {
            let stand_in = |at: usize| match is_model(&at) {
                true => self.recipe.model.clone(),
                false => self.place(at),
            };
            let options = node.options(&stand_in);
            // A stand-in that does not fit says nothing of what it stands for.
            if let Ok(Some(found)) = commands.predict(node.kind, &options, true) {
                return Ok(Expected::WithBase(found));
            }
        }
        Ok(match (self.before(at), waits) {
            (Expected::Unknown, Some(waits)) => {
                Expected::After(self.graph.nodes[waits].name.clone())
            }
            (found, _) => found,
        })
    }

    /// What the same stage needed in another round.
    fn before(&self, at: usize) -> Expected {
        let name = &self.graph.nodes[at].name;
        let found = self.graph.nodes.iter().zip(&self.steps).rev().find_map(|(node, step)| {
            match &step.status {
                Status::Done(done) if node.name == *name => Some(done),
                _ => None,
            }
        });
        found.map_or(Expected::Unknown, |done| Expected::Before(done.seconds, done.peak_memory))
    }

    /// What a stage writes, and how much more is there while it runs: weights, and its newest
    /// checkpoints (parameters with both moments); or what its command says.
    fn disk(&self, at: usize) -> Option<(u64, u64)> {
        let (node, step) = (&self.graph.nodes[at], &self.steps[at]);
        if self.is_done(at) {
            return None;
        }
        if !node.kind.answers && node.kind.name != "reward" {
            return step.expected.writes().map(|bytes| (bytes, 0));
        }
        let (base, options) = (self.base.as_ref()?, &step.options);
        if node.kind.form == Form::Flags {
            return Some((element(options) * parameters(base), 0));
        }
        let whole = |key: &str| options.get(key).and_then(Value::as_integer).filter(|&n| n > 0);
        let (element, parameters) = match whole("lora_rank") {
            Some(rank) => (4, adapter_parameters(base, rank as u64, options.get("lora_target"))),
            // One that is trained further is of a rank that it says itself.
            None if options.contains_key("adapter") => return None,
            None => (element(options), parameters(base)),
        };
        // Two are there while the older one goes.
        let checkpoints = whole("keep_checkpoints").unwrap_or(2) as u64;
        Some((element * parameters, 12 * checkpoints * parameters))
    }

    /// Stages that are not done.
    pub fn left(&self) -> usize {
        (0..self.steps.len()).filter(|&at| !self.is_done(at)).count()
    }

    /// The first thing that keeps the run from beginning.
    ///
    /// # Errors
    /// Names an input that is not there, and its line.
    pub fn check(&self) -> Result<()> {
        let lost = self.steps.iter().filter(|step| !matches!(step.status, Status::Done(_)));
        match lost.flat_map(|step| &step.missing).next() {
            None => Ok(()),
            Some((path, line)) => {
                let message = format!("`{}` is not there", path.display());
                Err(Error::config(message)
                    .at(&self.recipe.path, *line)
                    .hint("`--dry-run` shows all that is missing"))
            }
        }
    }

    /// The plan as a table, for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let widest = self.graph.nodes.iter().map(|node| node.name.len()).max().unwrap_or(0).max(5);
        let _ = writeln!(text, "round  {:<widest$}  {:<16}  state    needs", "stage", "command");
        for (node, step) in self.graph.nodes.iter().zip(&self.steps) {
            let round = if node.round == 0 { "–".to_string() } else { node.round.to_string() };
            let state = match &step.status {
                Status::Done(_) => "done",
                Status::Begun => "begun",
                Status::Damaged(_) => "damaged",
                Status::New => "to do",
            };
            let needs = told(step);
            let line = format!(
                "{round:<5}  {:<widest$}  {:<16}  {state:<7}  {needs}",
                node.name, node.kind.name
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
        self.totals(&mut text);
        let mut told = Vec::new();
        for (path, line) in self.steps.iter().flat_map(|step| &step.missing) {
            let missing =
                format!("missing: {} ({}:{line})", path.display(), self.recipe.path.display());
            if !told.contains(&missing) {
                told.push(missing);
            }
        }
        told.iter().for_each(|line| _ = writeln!(text, "{line}"));
        text
    }

    fn totals(&self, text: &mut String) {
        let (mut seconds, mut unknown, mut peak) = (0.0, 0, 0);
        for step in &self.steps {
            match step.expected.figures() {
                Some((needed, bytes)) => {
                    seconds += needed;
                    peak = peak.max(bytes.unwrap_or(0) as usize);
                }
                None => unknown += usize::from(step.expected != Expected::Nothing),
            }
        }
        let disk: u64 = self.steps.iter().filter_map(|step| Some(step.disk?.0)).sum();
        let more = self.steps.iter().filter_map(|step| Some(step.disk?.1)).max().unwrap_or(0);
        let stages = counted(self.steps.len(), "stage");
        let _ = writeln!(text, "\n{stages}, {} to do", self.left());
        if seconds > 0.0 {
            let memory =
                if peak > 0 { format!(", peak {}", gigabytes(peak)) } else { String::new() };
            let beside = match unknown {
                0 => String::new(),
                unknown => format!("; of {} nothing is known yet", counted(unknown, "stage")),
            };
            let _ = writeln!(text, "predicted: {}{memory}{beside}", duration(seconds));
        }
        if disk > 0 {
            let (disk, more) = (gigabytes(disk as usize), gigabytes(more as usize));
            let _ = writeln!(text, "disk: about {disk}, and {more} more while a stage runs");
        }
        if self.base.is_none() && self.left() > 0 {
            let model = &self.recipe.model;
            let _ = writeln!(text, "disk of weights: unknown, as `{model}` is not on it");
        }
    }
}

fn told(step: &Step) -> String {
    let needed = |needs: &Prediction| {
        let most = if needs.is_bound { "at most " } else { "" };
        format!("{}, {most}{}", gigabytes(needs.peak_bytes), duration(needs.seconds))
    };
    match &step.expected {
        Expected::Planned(needs) => needed(needs),
        Expected::WithBase(needs) => {
            format!("{} (with the base in its model's place)", needed(needs))
        }
        Expected::Before(seconds, bytes) => {
            let memory =
                bytes.map_or(String::new(), |bytes| format!("{}, ", gigabytes(bytes as usize)));
            format!("{memory}{} (as in another round)", duration(*seconds))
        }
        Expected::After(name) => format!("known once {name} has run"),
        Expected::Missing => "an input is missing".into(),
        Expected::Unknown => "not predicted".into(),
        Expected::Nothing => String::new(),
    }
}

/// `12 s`, `3 min 5 s`, `2 h 10 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round().max(0.0) as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, _) if seconds < 9.95 => format!("{seconds:.1} s"),
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// The shape of the model that is called `name`, if it is on disk.
fn shape(name: &str) -> Option<ModelConfig> {
    let folder = match bundled::path(name) {
        Ok(Some(folder)) => folder,
        _ => PathBuf::from(name),
    };
    ModelConfig::from_file(folder.join("config.json")).ok()
}

fn parameters(base: &ModelConfig) -> u64 {
    let params = base.params();
    params.iter().map(|param| param.shape.iter().product::<usize>() as u64).sum()
}

/// Parameters of an adapter on the matrices of the blocks, or on those that `targets` names.
fn adapter_parameters(base: &ModelConfig, rank: u64, targets: Option<&Value>) -> u64 {
    let targets = targets.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let targets: Vec<String> =
        targets.iter().filter_map(Value::as_str).map(str::to_string).collect();
    let adapter =
        AdapterConfig { target_modules: TargetModules::of(&targets), ..AdapterConfig::default() };
    let meant = adapter.modules(base).unwrap_or_default();
    meant.into_iter().map(|(_, output, input)| rank * (output + input) as u64).sum()
}

/// Bytes of an exported parameter.
fn element(options: &Table) -> u64 {
    match options.get("export_dtype").and_then(Value::as_str) {
        Some("bf16" | "f16") => 2,
        _ => 4,
    }
}

impl Expected {
    /// See [`Prediction::writes`].
    fn writes(&self) -> Option<u64> {
        match self {
            Self::Planned(needs) | Self::WithBase(needs) => needs.writes,
            _ => None,
        }
    }

    /// Seconds and bytes, where something is known.
    pub fn figures(&self) -> Option<(f64, Option<u64>)> {
        match self {
            Self::Planned(needs) | Self::WithBase(needs) => {
                Some((needs.seconds, Some(needs.peak_bytes as u64)))
            }
            Self::Before(seconds, bytes) => Some((*seconds, *bytes)),
            Self::After(_) | Self::Missing | Self::Unknown | Self::Nothing => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_has_a_rank_of_rows_and_columns_of_each_matrix() {
        let config = ModelConfig::from_json(
            &serde_json::json!({
                "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
                "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "vocab_size": 512, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
            }),
            "config.json",
        )
        .unwrap();
        let attention = 128 + 96 + 96 + 128;
        let all = 2 * 4 * (attention + 3 * 192);
        assert_eq!(adapter_parameters(&config, 4, None), all);
        let names = |names: &[&str]| Value::Array(names.iter().map(|&name| name.into()).collect());
        assert_eq!(adapter_parameters(&config, 4, Some(&names(&["all-linear"]))), all);
        assert_eq!(adapter_parameters(&config, 4, Some(&names(&["q_proj"]))), 2 * 4 * 128);
    }
}
