//! What a stage is made from that no stage makes: files, models and data sets, by their contents.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use halter_core::data::hub::HubId;
use halter_core::train::files::atomic_write;
use halter_core::{Error, Result, bundled};
use serde::{Deserialize, Serialize};
use serde_json::json;
use toml::{Table, Value};

use crate::kind::INPUTS;

/// Keys of teachers and their endpoints that their answers do not depend on, as the cache of the
/// answers has it (docs/reference/teachers.md).
const OPERATIONAL: [&str; 13] = [
    "api_key_env",
    "api_key_file",
    "backoff_seconds",
    "batch_size",
    "budget",
    "cache_tokens",
    "concurrency",
    "price_per_million_completion_tokens",
    "price_per_million_prompt_tokens",
    "retries",
    "timeout_seconds",
    "url",
    "weight",
];

/// Keys whose values may name data sets on a hub.
const DATA: [&str; 4] = ["data", "eval_data", "fewshot", "task"];

/// Folders within folders of an input that are looked at.
const DEPTH: usize = 8;

/// What was found out about a text that names an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The option.
    pub key: String,
    /// The text, as it is in the recipe.
    pub text: String,
    /// What it is.
    pub state: State,
}

/// What a text that names an input is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Something on disk, and its contents hashed.
    There {
        /// Of the contents.
        checksum: String,
        /// Where it is.
        path: PathBuf,
    },
    /// Perhaps the name of something on a hub, which is not looked at.
    Named,
    /// A path at which nothing is.
    Missing(PathBuf),
}

/// The inputs that `options` name; a text with a mark of another stage's output in it, as `is_made`
/// tells, is not one.
///
/// # Errors
/// A file that cannot be read.
pub fn of(
    options: &Table,
    is_made: &dyn Fn(&str) -> bool,
    checksums: &mut Checksums,
) -> Result<Vec<Input>> {
    let mut found = Vec::new();
    for (key, value) in options.iter().filter(|(key, _)| INPUTS.contains(&key.as_str())) {
        let texts = match value {
            Value::Array(values) => values.iter().filter_map(Value::as_str).collect(),
            value => value.as_str().into_iter().collect::<Vec<_>>(),
        };
        for text in texts.into_iter().filter(|text| !is_made(text)) {
            let mut state = state_of(key, text, checksums)?;
            let mut named = Vec::new();
            if let State::There { path, checksum } = &mut state
                && path.extension().is_some_and(|ext| ext == "toml")
                && let Some(table) = decisive(key, path)?
            {
                *checksum = blake3::hash(json!(table).to_string().as_bytes()).to_hex().to_string();
                named = named_in(key, table, checksums)?;
            }
            found.push(Input { key: key.clone(), text: text.to_string(), state });
            found.extend(named);
        }
    }
    Ok(found)
}

/// What of the configuration in `path` decides what comes out. What teachers may spend and how they
/// are reached does not: a raised budget must not buy everything again.
fn decisive(key: &str, path: &Path) -> Result<Option<Table>> {
    let text = fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
    // Who reads it will say what is wrong with it.
    let Ok(mut table) = text.parse::<Table>() else { return Ok(None) };
    match key {
        "pipeline" => {
            let teachers = table.get_mut("teachers").and_then(Value::as_table_mut);
            let teachers = teachers.into_iter().flatten();
            teachers.filter_map(|(_, teacher)| teacher.as_table_mut()).for_each(strip);
        }
        "scorer" | "teacher_config" => strip(&mut table),
        _ => {}
    }
    Ok(Some(table))
}

/// Leaves of a teacher or judge what its answers depend on.
fn strip(teacher: &mut Table) {
    teacher.retain(|key, _| !OPERATIONAL.contains(&key));
    let endpoints = teacher.get_mut("endpoints").and_then(Value::as_array_mut);
    endpoints.into_iter().flatten().filter_map(Value::as_table_mut).for_each(strip);
}

/// What a configuration that is an input names in its turn, where that is on disk.
fn named_in(key: &str, table: Table, checksums: &mut Checksums) -> Result<Vec<Input>> {
    let mut texts = Vec::new();
    texts_of(&Value::Table(table), &mut texts);
    let mut found = Vec::new();
    for text in texts {
        if let state @ State::There { .. } = state_of(key, &text, checksums)? {
            found.push(Input { key: key.to_string(), text, state });
        }
    }
    Ok(found)
}

fn texts_of(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) if !text.is_empty() && !text.contains('\n') => into.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| texts_of(value, into)),
        Value::Table(table) => table.iter().for_each(|(_, value)| texts_of(value, into)),
        _ => {}
    }
}

/// A path may have a weight behind it (`a.jsonl:2`), or a name before it (`gsm8k=a.jsonl`,
/// `0.5*judge:a.toml`).
fn candidates(text: &str) -> Vec<&str> {
    let mut found = vec![text];
    found.extend(text.rsplit_once(':').map(|(path, _)| path));
    for sign in ['=', ':'] {
        found.extend(text.split_once(sign).map(|(_, path)| path));
    }
    found.retain(|path| !path.is_empty());
    found
}

fn state_of(key: &str, text: &str, checksums: &mut Checksums) -> Result<State> {
    for path in candidates(text) {
        let path = match bundled::path(path)? {
            Some(path) => path,
            None => PathBuf::from(path),
        };
        if path.exists() {
            return Ok(State::There { checksum: checksums.of(&path)?, path });
        }
    }
    let path = match key {
        "scorer" => text.split_once("reward:").or_else(|| text.split_once("judge:")),
        "task" | "fewshot" => text.split_once('='),
        _ => None,
    };
    let path = path.map_or(text, |(_, path)| path);
    // Scorers that name no file have none to miss, and a value of a pipeline may be anything.
    let plain = key == "set" || key == "scorer" && path == text;
    let is_on_hub = DATA.contains(&key) && HubId::parse(without_weight(path)).is_some();
    match !plain && !is_on_hub && is_path(path) {
        true => Ok(State::Missing(PathBuf::from(without_weight(path)))),
        false => Ok(State::Named),
    }
}

/// `PATH:WEIGHT` without the weight.
fn without_weight(text: &str) -> &str {
    match text.rsplit_once(':') {
        Some((path, weight)) if weight.parse::<f64>().is_ok() => path,
        _ => text,
    }
}

/// Whether a text that nothing on disk is called by can be nothing but a path: `owner/name` may be
/// on a hub.
fn is_path(text: &str) -> bool {
    let text = without_weight(text);
    let endings = ["jsonl", "json", "parquet", "gguf", "toml", "logps", "csv", "txt", "jinja"];
    let extension = Path::new(text).extension().and_then(|extension| extension.to_str());
    text.starts_with(['.', '/', '~'])
        || text.matches('/').count() != 1
        || extension.is_some_and(|extension| endings.contains(&extension))
}

/// Checksums of files, remembered until a file's length or time changes.
#[derive(Debug, Default)]
pub struct Checksums {
    place: Option<PathBuf>,
    known: BTreeMap<PathBuf, Known>,
    is_changed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    bytes: u64,
    modified: u128,
    checksum: String,
}

impl Checksums {
    /// Those that are kept in `place`; none if that cannot be read.
    pub fn open(place: PathBuf) -> Self {
        let read = fs::read(&place).ok();
        let known = read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { place: Some(place), known, is_changed: false }
    }

    /// Keeps them.
    ///
    /// # Errors
    /// What the file system says.
    pub fn keep(&mut self) -> Result<()> {
        let (Some(place), true) = (&self.place, self.is_changed) else { return Ok(()) };
        let text = serde_json::to_string(&self.known)
            .map_err(|error| Error::config("checksums that are not JSON").because(error))?;
        self.is_changed = false;
        atomic_write(place, text.as_bytes())
    }

    /// The checksum of a file, or of a directory: of names and contents of all files in it whose
    /// names do not begin with a dot.
    ///
    /// # Errors
    /// What the file system says.
    pub fn of(&mut self, path: &Path) -> Result<String> {
        let metadata = fs::metadata(path).map_err(|error| Error::io("read", path, error))?;
        if !metadata.is_dir() {
            return self.of_file(path, &metadata);
        }
        let mut hasher = blake3::Hasher::new();
        for name in files_of(path)? {
            let file = path.join(&name);
            let metadata = fs::metadata(&file).map_err(|error| Error::io("read", &file, error))?;
            let checksum = self.of_file(&file, &metadata)?;
            hasher.update(name.to_string_lossy().as_bytes());
            hasher.update(b"\0").update(checksum.as_bytes()).update(b"\n");
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    fn of_file(&mut self, path: &Path, metadata: &Metadata) -> Result<String> {
        let place = fs::canonicalize(path).map_err(|error| Error::io("read", path, error))?;
        let (bytes, modified) = (metadata.len(), modified(metadata));
        if let Some(known) = self.known.get(&place)
            && (known.bytes, known.modified) == (bytes, modified)
        {
            return Ok(known.checksum.clone());
        }
        let checksum = checksum(path)?;
        self.known.insert(place, Known { bytes, modified, checksum: checksum.clone() });
        self.is_changed = true;
        Ok(checksum)
    }
}

/// When a file was last written, in nanoseconds; 0 where the system does not say.
pub fn modified(metadata: &Metadata) -> u128 {
    let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |time| time.as_nanos())
}

/// The checksum of a file.
///
/// # Errors
/// What the file system says.
pub fn checksum(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    File::open(path)
        .and_then(|file| hasher.update_reader(file).map(drop))
        .map_err(|error| Error::io("read", path, error))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// The files in `root`, by their names from there, in order; hidden ones are left out.
///
/// # Errors
/// What the file system says.
pub fn files_of(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![(PathBuf::new(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let place = root.join(&folder);
        let failed = |error| Error::io("read", &place, error);
        for entry in fs::read_dir(&place).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if name.to_string_lossy().starts_with('.') {
                continue;
            }
            let path = folder.join(&name);
            match fs::metadata(root.join(&path)) {
                Ok(metadata) if metadata.is_dir() && depth < DEPTH => {
                    folders.push((path, depth + 1));
                }
                Ok(metadata) if metadata.is_file() => found.push(path),
                // A link to nothing, or what is neither.
                _ => {}
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(key: &str, text: &str) -> State {
        state_of(key, text, &mut Checksums::default()).unwrap()
    }

    #[test]
    fn paths_are_found_behind_names_and_before_weights() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        fs::write(&path, "{}").unwrap();
        let shown = path.display();
        for (key, text) in [
            ("data", format!("{shown}")),
            ("data", format!("{shown}:2")),
            ("task", format!("gsm8k={shown}")),
            ("scorer", format!("0.5*judge:{shown}")),
            ("set", format!("questions.input={shown}")),
        ] {
            assert!(matches!(state(key, &text), State::There { .. }), "{text}");
        }
    }

    #[test]
    fn what_may_be_on_a_hub_is_not_missing() {
        for (key, text, is_missing) in [
            ("data", "openai/gsm8k", false),
            ("data", "openai/gsm8k/main:test", false),
            ("task", "gsm8k=openai/gsm8k/main", false),
            ("model", "runs/sft/model", true),
            ("model", "meta-llama/Llama-3.1-8B", false),
            ("scorer", "numeric", false),
            ("scorer", "0.2*length:1024", false),
            ("scorer", "reward:there/is/none", true),
            ("task", "gsm8k=none.jsonl", true),
            ("set", "answers.samples=4", false),
            ("set", "teachers.big.local=org/model", false),
            ("data", "data/none.jsonl:2", true),
            ("model", "./none", true),
            ("model", "none", true),
        ] {
            let found = state(key, text);
            assert_eq!(matches!(found, State::Missing(_)), is_missing, "{text}: {found:?}");
        }
        let weighted = state("data", "data/none.jsonl:0.5");
        assert_eq!(weighted, State::Missing("data/none.jsonl".into()));
    }

    #[test]
    fn a_directory_is_its_names_and_contents() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        fs::create_dir_all(folder.join("deep")).unwrap();
        fs::write(folder.join("deep/a"), "1").unwrap();
        let sum = || Checksums::default().of(&folder).unwrap();
        let before = sum();
        fs::write(folder.join(".hidden"), "x").unwrap();
        assert_eq!(sum(), before);
        fs::rename(folder.join("deep/a"), folder.join("deep/b")).unwrap();
        assert_ne!(sum(), before, "another name");
        fs::rename(folder.join("deep/b"), folder.join("deep/a")).unwrap();
        fs::write(folder.join("deep/a"), "2").unwrap();
        assert_ne!(sum(), before, "other contents");
    }

    #[test]
    fn checksums_are_remembered_until_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (file, place) = (dir.path().join("a"), dir.path().join("checksums.json"));
        fs::write(&file, "1").unwrap();
        let mut sums = Checksums::open(place.clone());
        let first = sums.of(&file).unwrap();
        sums.keep().unwrap();
        let mut again = Checksums::open(place);
        assert_eq!(again.known.len(), 1);
        assert_eq!(again.of(&file).unwrap(), first);
        assert!(!again.is_changed);
        fs::write(&file, "22").unwrap();
        assert_ne!(again.of(&file).unwrap(), first);
    }

    #[test]
    fn what_a_pipeline_names_is_an_input_too() {
        let dir = tempfile::tempdir().unwrap();
        let seeds = dir.path().join("seeds.jsonl");
        fs::write(&seeds, "{}").unwrap();
        let pipeline = dir.path().join("p.toml");
        let text = format!("[a]\nseeds = [\"{}\"]\nn = 3\n", seeds.display());
        fs::write(&pipeline, text).unwrap();
        let mut options = Table::new();
        options.insert("pipeline".into(), pipeline.display().to_string().into());
        let found = of(&options, &|_| false, &mut Checksums::default()).unwrap();
        let texts: Vec<&str> = found.iter().map(|input| input.text.as_str()).collect();
        assert_eq!(texts, [pipeline.to_str().unwrap(), seeds.to_str().unwrap()]);
    }

    #[test]
    fn what_a_teacher_may_spend_and_where_it_is_decides_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("key"), "secret").unwrap();
        let file = dir.path().join("p.toml");
        let inputs = |key: &str, text: &str| {
            fs::write(&file, text).unwrap();
            let mut options = Table::new();
            options.insert(key.into(), file.display().to_string().into());
            of(&options, &|_| false, &mut Checksums::default()).unwrap()
        };
        let secret = dir.path().join("key").display().to_string();
        let teacher = |name: &str, many: u32, model: &str| {
            let (head, dot) = match name {
                "" => (String::new(), ""),
                name => (format!("[{name}]\n"), "."),
            };
            format!(
                "{head}model = \"{model}\"\nbudget = {{ requests = {many} }}\n\
                 [[{name}{dot}endpoints]]\nurl = \"http://host-{many}/v1\"\n\
                 concurrency = {many}\napi_key_file = \"{secret}\"\n"
            )
        };
        for (key, place) in [("pipeline", "teachers.a"), ("teacher_config", "")] {
            let before = inputs(key, &teacher(place, 5, "big"));
            assert_eq!(before.len(), 1, "no key is read: {before:?}");
            assert_eq!(before, inputs(key, &teacher(place, 50, "big")), "{key}");
            assert_ne!(before, inputs(key, &teacher(place, 5, "small")), "{key}");
        }
        let step = |weight: u32| format!("[[step]]\nkind = \"x\"\nweight = {weight}\n");
        assert_ne!(inputs("pipeline", &step(1)), inputs("pipeline", &step(2)), "of a step");
    }
}
