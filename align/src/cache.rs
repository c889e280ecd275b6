//! What is done: a directory for each stage, named by all that its outputs depend on.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use halter_core::train::files::{atomic_write, remove_temporaries, temporary_beside};
use halter_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::inputs::{self, Input, State, files_of};
use crate::kind::{Kind, NEUTRAL};

/// Digits of a key.
const DIGITS: usize = 16;
/// Files up to this many bytes are read whenever it is asked whether they are as they were.
const SMALL: u64 = 32 << 20;
/// Where a stage that trains keeps what it can go on from.
const CHECKPOINTS: &str = "checkpoints";
/// The name of the file that makes a directory a stage that is done.
pub const DONE: &str = "done.json";

/// What the outputs of a stage depend on, hashed. `options` are rendered with the keys of the stages
/// they refer to.
pub fn key(version: &str, kind: &Kind, options: &toml::Table, inputs: &[Input]) -> String {
    let mut options: Vec<_> =
        options.iter().filter(|(name, _)| !NEUTRAL.contains(&name.as_str())).collect();
    options.sort_by_key(|(name, _)| *name);
    let inputs: Vec<_> = inputs
        .iter()
        .map(|input| match &input.state {
            State::There { checksum, .. } => json!([input.key, input.text, checksum]),
            State::Named | State::Missing(_) => json!([input.key, input.text]),
        })
        .collect();
    let all = json!(["halter align 1", version, kind.name, options, inputs]);
    let digest = blake3::hash(all.to_string().as_bytes()).to_hex();
    digest[..DIGITS].to_string()
}

/// What is written at the end of a stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// See [`key`].
    pub key: String,
    /// The stage's name.
    pub name: String,
    /// Its command.
    pub kind: String,
    /// Seconds that it took, from its start or its last resumption.
    pub seconds: f64,
    /// Whether it was continued after an interruption.
    #[serde(default)]
    pub resumed: bool,
    /// Most memory that it held, in bytes.
    #[serde(default)]
    pub peak_memory: Option<u64>,
    /// What the command said of itself (`--json`).
    #[serde(default)]
    pub summary: Value,
    /// What it wrote.
    pub files: Vec<Output>,
}

/// A file that a stage wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Its name from the stage's directory.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// When it was written, in nanoseconds.
    pub modified: u128,
    /// Of its contents.
    pub checksum: String,
}

/// The directories of all stages.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Those below `output`.
    pub fn new(output: &Path) -> Self {
        Self { root: output.join("stages") }
    }

    /// The directory of a stage.
    pub fn directory(&self, name: &str, key: &str) -> PathBuf {
        self.root.join(format!("{name}-{key}"))
    }

    /// What is beside the directory of a stage: its configuration, or what it says of itself.
    pub fn beside(&self, name: &str, key: &str, ending: &str) -> PathBuf {
        self.root.join(format!("{name}-{key}.{ending}"))
    }

    /// What a stage wrote, if it is done and all of it is still there as it was.
    ///
    /// # Errors
    /// Why not, if it was done once.
    pub fn done(&self, name: &str, key: &str, how: Check) -> Result<Option<Done>> {
        let directory = self.directory(name, key);
        let path = directory.join(DONE);
        let Ok(bytes) = fs::read(&path) else { return Ok(None) };
        let damaged = |what: String| Error::data(what).in_file(&directory);
        let done: Done = serde_json::from_slice(&bytes)
            .map_err(|error| damaged(format!("`{DONE}` is damaged: {error}")))?;
        if done.key != key || done.files.is_empty() {
            return Err(damaged(format!("`{DONE}` is of another stage")));
        }
        for file in &done.files {
            let name = file.path.display();
            // A name that leads elsewhere is not one that was written here.
            if file.path.is_absolute()
                || file.path.components().any(|part| part.as_os_str() == "..")
            {
                return Err(damaged(format!("`{DONE}` names `{name}`")));
            }
            let place = directory.join(&file.path);
            let metadata = fs::metadata(&place)
                .map_err(|error| damaged(format!("`{name}` cannot be read: {error}")))?;
            let is_unmoved = inputs::modified(&metadata) == file.modified;
            let trusted = how == Check::Quick && is_unmoved && file.bytes > SMALL;
            if metadata.len() != file.bytes
                || !trusted && inputs::checksum(&place)? != file.checksum
            {
                return Err(damaged(format!("`{name}` is not what was written")));
            }
        }
        Ok(Some(done))
    }

    /// Writes down that a stage is done. Checkpoints go: nothing resumes it any more.
    ///
    /// # Errors
    /// A stage that wrote nothing, or what the file system says.
    pub fn finish(&self, mut done: Done) -> Result<Done> {
        let directory = self.directory(&done.name, &done.key);
        remove_temporaries(&directory)?;
        for path in files_of(&directory)? {
            if path.starts_with(CHECKPOINTS) {
                continue;
            }
            let place = directory.join(&path);
            let metadata =
                fs::metadata(&place).map_err(|error| Error::io("read", &place, error))?;
            done.files.push(Output {
                path,
                bytes: metadata.len(),
                modified: inputs::modified(&metadata),
                checksum: inputs::checksum(&place)?,
            });
        }
        if done.files.is_empty() {
            return Err(
                Error::data(format!("the stage `{}` wrote nothing", done.name)).in_file(&directory)
            );
        }
        let text = serde_json::to_string_pretty(&done)
            .map_err(|error| Error::data("a stage that is not JSON").because(error))?;
        atomic_write(directory.join(DONE), text.as_bytes())?;
        self.drop_checkpoints(&done.name, &done.key)?;
        Ok(done)
    }

    /// Removes the checkpoints of a stage that is done. Before, one that is removed by halves would be
    /// damaged to a run that goes on from it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn drop_checkpoints(&self, name: &str, key: &str) -> Result<()> {
        let path = self.directory(name, key).join(CHECKPOINTS);
        removed(fs::remove_dir_all(&path), &path)
    }

    /// Removes what a stage has written.
    ///
    /// # Errors
    /// What the file system says.
    pub fn clear(&self, name: &str, key: &str) -> Result<()> {
        let directory = self.directory(name, key);
        // Renamed first: a half of it must not pass for a stage that was begun.
        let doomed = temporary_beside(&directory);
        match fs::rename(&directory, &doomed) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("remove", &directory, error)),
            Ok(()) => {}
        }
        fs::remove_dir_all(&doomed).map_err(|error| Error::io("remove", &doomed, error))
    }

    /// Takes back that a stage is done, and keeps what it wrote.
    ///
    /// # Errors
    /// What the file system says.
    pub fn reopen(&self, name: &str, key: &str) -> Result<()> {
        let path = self.directory(name, key).join(DONE);
        removed(fs::remove_file(&path), &path)
    }

    /// Whether `--resume` has something to go on from: a run's configuration, or the settings of
    /// results. They are written before anything that took work.
    pub fn can_go_on(&self, name: &str, key: &str) -> bool {
        let entries = fs::read_dir(self.directory(name, key)).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.any(|name| {
            name == "config.toml" || name.ends_with(".settings.json") && !name.starts_with('.')
        })
    }

    /// Whether a stage was begun.
    pub fn is_begun(&self, name: &str, key: &str) -> bool {
        let entries = fs::read_dir(self.directory(name, key)).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.file_name());
        names.any(|name| !name.to_string_lossy().starts_with('.'))
    }
}

/// How outputs are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Large files by their length and time, others by their contents.
    Quick,
    /// All by their contents.
    Full,
}

/// What was not there counts as removed.
fn removed(outcome: io::Result<()>, path: &Path) -> Result<()> {
    match outcome {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(store: &Store) -> Done {
        let directory = store.directory("sft", "0123");
        fs::create_dir_all(directory.join("checkpoints/step-1")).unwrap();
        fs::write(directory.join("checkpoints/step-1/state.json"), "{}").unwrap();
        fs::write(directory.join("model.safetensors"), "weights").unwrap();
        fs::write(directory.join(".lock"), "1").unwrap();
        let done = Done { key: "0123".into(), name: "sft".into(), ..Done::default() };
        store.finish(done).unwrap()
    }

    #[test]
    fn what_is_done_is_found_again_without_its_checkpoints() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        assert_eq!(store.done("sft", "0123", Check::Quick).unwrap(), None);
        let done = written(&store);
        assert_eq!(done.files.len(), 1, "{:?}", done.files);
        assert_eq!(store.done("sft", "0123", Check::Full).unwrap(), Some(done));
        let checkpoints = store.directory("sft", "0123").join("checkpoints");
        assert!(!checkpoints.exists());
        // Killed while they were removed.
        fs::create_dir_all(checkpoints.join("step-1")).unwrap();
        assert!(store.done("sft", "0123", Check::Full).unwrap().is_some());
        store.drop_checkpoints("sft", "0123").unwrap();
        assert!(!checkpoints.exists());
        assert!(store.done("sft", "0124", Check::Quick).unwrap().is_none());
    }

    #[test]
    fn damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        type Damage<'a> = (&'a str, &'a dyn Fn(&Path));
        let damages: [Damage; 4] = [
            ("not what was written", &|dir| {
                fs::write(dir.join("model.safetensors"), "weighty").unwrap()
            }),
            ("cannot be read", &|dir| fs::remove_file(dir.join("model.safetensors")).unwrap()),
            ("is damaged", &|dir| fs::write(dir.join(DONE), "{").unwrap()),
            ("names `/etc/passwd`", &|dir| {
                let text = fs::read_to_string(dir.join(DONE)).unwrap();
                fs::write(dir.join(DONE), text.replace("model.safetensors", "/etc/passwd"))
                    .unwrap();
            }),
        ];
        for (told, damage) in damages {
            written(&store);
            damage(&store.directory("sft", "0123"));
            let error = store.done("sft", "0123", Check::Quick).unwrap_err();
            assert!(error.message().contains(told), "{error}");
            store.clear("sft", "0123").unwrap();
            assert_eq!(store.done("sft", "0123", Check::Quick).unwrap(), None);
        }
    }

    #[test]
    fn a_key_is_of_all_that_matters_and_nothing_else() {
        let kind = crate::kind::named("sft").unwrap();
        let options = |text: &str| text.parse::<toml::Table>().unwrap();
        let there = |checksum: &str| Input {
            key: "data".into(),
            text: "a.jsonl".into(),
            state: State::There { checksum: checksum.into(), path: "a.jsonl".into() },
        };
        let plain = key("1", kind, &options("a = 1\nb = 2"), &[there("x")]);
        assert_eq!(plain, key("1", kind, &options("b = 2\na = 1\nsave_every = 3"), &[there("x")]));
        assert_ne!(plain, key("2", kind, &options("a = 1\nb = 2"), &[there("x")]));
        assert_ne!(plain, key("1", kind, &options("a = 1\nb = 3"), &[there("x")]));
        assert_ne!(plain, key("1", kind, &options("a = 1\nb = 2"), &[there("y")]));
        let other = crate::kind::named("dpo").unwrap();
        assert_ne!(plain, key("1", other, &options("a = 1\nb = 2"), &[there("x")]));
    }
}
