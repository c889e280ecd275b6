//! Resumable checkpoints: `checkpoints/step-N`, complete or not there.
//!
//! A checkpoint is written to a temporary directory, every file synced, then renamed and the
//! parent synced. Its `manifest.json` holds the length and the BLAKE3 sum of each file, so that
//! what a disk or a copy damaged is noticed before a run goes on from it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::files::{Sink, is_temporary, sync_directory, sync_parent, temporary_beside};
pub use super::tensor_file::Values;
use super::tensor_file::{self, WriteError};
use crate::{Error, ErrorKind, Result};

const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
const STATE: &str = "state.json";
/// In a temporary name: a valid checkpoint moved aside while another takes its name.
const ASIDE: &str = ".aside";

/// Tensors that are saved in one file, `NAME.safetensors`.
#[derive(Debug)]
pub struct Group<'a> {
    /// e.g. `weights` or `optimizer`.
    pub name: &'a str,
    /// Names are unique within the group.
    pub tensors: Vec<(String, Values<'a>)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    step: u64,
    files: BTreeMap<String, FileSum>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSum {
    bytes: u64,
    blake3: String,
}

/// A checkpoint whose every byte was checked.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    step: u64,
    path: PathBuf,
}

/// What [`CheckpointStore::latest`] found.
#[derive(Debug)]
pub struct Found {
    /// The newest checkpoint that is whole, if there is one.
    pub checkpoint: Option<Checkpoint>,
    /// What the user must be told: newer ones that are damaged, and how.
    pub notices: Vec<String>,
}

/// The `checkpoints` directory of a run that this process has locked.
#[derive(Debug)]
pub struct CheckpointStore {
    root: PathBuf,
    keep_last: usize,
}

impl CheckpointStore {
    /// Opens the directory (made at the first save) and removes what a killed process left half
    /// written. `keep_last` newest checkpoints are kept after each save; 0 keeps them all.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(root: impl Into<PathBuf>, keep_last: usize) -> Result<Self> {
        let store = Self { root: root.into(), keep_last };
        if !store.root.exists() {
            return Ok(store);
        }
        for name in store.names()? {
            if !is_temporary(&name) {
                continue;
            }
            let path = store.root.join(&name);
            // Killed between the two renames of a replacement: the older one is still whole.
            let original = name.split_once(ASIDE).map(|(step, _)| store.root.join(&step[1..]));
            match original {
                Some(original) if !original.exists() => rename(&path, &original)?,
                _ => remove(&path)?,
            }
        }
        Ok(store)
    }

    /// Writes `step-N` from the groups and the state, which must not hold floats that are not
    /// finite (JSON has none). When it returns, the checkpoint is on the disk.
    ///
    /// # Errors
    /// A full disk, a tensor that cannot be written, a state that JSON cannot hold. Older
    /// checkpoints are intact then, and no part of the new one is left.
    pub fn save(&self, step: u64, groups: &[Group<'_>], state: &impl Serialize) -> Result<PathBuf> {
        self.save_through(step, groups, state, &|path| Ok(Box::new(File::create_new(path)?)))
    }

    fn save_through(
        &self,
        step: u64,
        groups: &[Group<'_>],
        state: &impl Serialize,
        open: &OpenSink<'_>,
    ) -> Result<PathBuf> {
        let state = serde_json::to_vec_pretty(state).map_err(|error| {
            Error::config("the state of the run cannot be written as JSON").because(error)
        })?;
        fs::create_dir_all(&self.root).map_err(|error| Error::io("create", &self.root, error))?;
        let path = self.path_of(step);
        let temporary = temporary_beside(&path);
        let placed = write_all(&temporary, step, groups, &state, open)
            .and_then(|()| self.put_in_place(&temporary, &path));
        if let Err(error) = placed {
            // A leftover is removed at the next start; the first error is the one to report.
            let _ = fs::remove_dir_all(&temporary);
            return Err(match self.steps().unwrap_or_default().last() {
                Some(last) if error.kind() == ErrorKind::Io => {
                    let hint = format!("free some space and `--resume`: `step-{last}` is intact");
                    error.hint(hint)
                }
                _ => error,
            });
        }
        self.retain(step)?;
        Ok(path)
    }

    /// The newest checkpoint that is whole. Every byte is read and compared with the manifest; a
    /// damaged checkpoint is passed over with a notice.
    ///
    /// # Errors
    /// What the file system says of the directory itself.
    pub fn latest(&self) -> Result<Found> {
        let mut found = Found { checkpoint: None, notices: Vec::new() };
        let mut damaged = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            match Checkpoint::open(self.path_of(step)) {
                Ok(checkpoint) => {
                    found.checkpoint = Some(checkpoint);
                    break;
                }
                Err(error) => damaged.push((step, error)),
            }
        }
        let instead = match &found.checkpoint {
            Some(checkpoint) => format!("going back to `step-{}`", checkpoint.step),
            None => "no older one is left".to_string(),
        };
        for (step, error) in damaged {
            found.notices.push(format!("checkpoint `step-{step}` is damaged: {error}; {instead}"));
        }
        Ok(found)
    }

    /// The state of any checkpoint in `root`, for what is the same in all of a run. Nothing is
    /// checked or changed, so the run need not be locked.
    pub fn any_state<S: DeserializeOwned>(root: &Path) -> Option<S> {
        let entries = fs::read_dir(root).ok()?.flatten();
        entries.into_iter().find_map(|entry| read_json(&entry.path().join(STATE)).ok())
    }

    /// Steps that have a checkpoint, whole or not, ascending.
    ///
    /// # Errors
    /// What the file system says.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let mut steps: Vec<u64> = self.names()?.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    fn path_of(&self, step: u64) -> PathBuf {
        self.root.join(format!("step-{step}"))
    }

    fn names(&self) -> Result<Vec<String>> {
        let io = |error| Error::io("read", &self.root, error);
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io(error)),
        };
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        entries.map(|entry| entry.map(name).map_err(io)).collect()
    }

    /// Gives the finished temporary its name. A checkpoint of the same step that is there (the
    /// run went back to an older one) is moved aside first, never removed before the new one is
    /// in place.
    fn put_in_place(&self, temporary: &Path, path: &Path) -> Result<()> {
        if !path.exists() {
            rename(temporary, path)?;
            return sync_directory(&self.root);
        }
        let aside = temporary_beside(&path.with_added_extension(&ASIDE[1..]));
        rename(path, &aside)?;
        if let Err(error) = rename(temporary, path) {
            rename(&aside, path)?;
            return Err(error);
        }
        sync_directory(&self.root)?;
        remove(&aside)
    }

    /// Removes what is too old, and what lies after `step`: those were damaged, or belong to a
    /// future that this run left when it went back.
    fn retain(&self, step: u64) -> Result<()> {
        let (past, future): (Vec<_>, Vec<_>) =
            self.steps()?.into_iter().partition(|&other| other <= step);
        let kept = if self.keep_last == 0 { past.len() } else { self.keep_last };
        let old = &past[..past.len().saturating_sub(kept)];
        for &step in old.iter().chain(&future) {
            let path = self.path_of(step);
            // Renamed first: a removal that is cut short must not leave a checkpoint with files
            // missing.
            let doomed = temporary_beside(&path);
            rename(&path, &doomed)?;
            remove(&doomed)?;
        }
        Ok(())
    }
}

impl Checkpoint {
    /// Opens a checkpoint directory and checks every byte of it.
    ///
    /// # Errors
    /// A manifest that is missing or unreadable, a file that is missing, of another length or of
    /// another sum.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let manifest = read_json::<Manifest>(&path.join(MANIFEST))?;
        if manifest.format != FORMAT {
            let message = format!("checkpoint format `{}`, expected `{FORMAT}`", manifest.format);
            return Err(Error::new(ErrorKind::Io, message).in_file(path));
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        if let Some(named) = name.as_deref().and_then(step_of)
            && named != manifest.step
        {
            let message = format!("its manifest is of step `{}`", manifest.step);
            return Err(Error::new(ErrorKind::Io, message).in_file(path));
        }
        for (name, sum) in &manifest.files {
            check_file(&path, name, sum)?;
        }
        Ok(Self { step: manifest.step, path })
    }

    /// Optimizer updates done when it was saved.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The state it was saved with.
    ///
    /// # Errors
    /// A state of another shape, as of another version of halter.
    pub fn state<S: DeserializeOwned>(&self) -> Result<S> {
        read_json(&self.path.join(STATE))
    }

    /// The tensors of a group, by name, on `device`.
    ///
    /// # Errors
    /// A group that was not saved, or a device that has no room.
    pub fn tensors(&self, group: &str, device: &Device) -> Result<BTreeMap<String, Tensor>> {
        tensor_file::read(&self.path.join(file_of(group)), device)
    }
}

fn file_of(group: &str) -> String {
    format!("{group}.safetensors")
}

/// `step-12` → 12; `None` for `step-012` and anything else, which is not ours.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (name == format!("step-{step}")).then_some(step)
}

type OpenSink<'a> = dyn Fn(&Path) -> io::Result<Box<dyn Sink>> + 'a;

fn write_all(
    directory: &Path,
    step: u64,
    groups: &[Group<'_>],
    state: &[u8],
    open: &OpenSink<'_>,
) -> Result<()> {
    fs::create_dir(directory).map_err(|error| Error::io("create", directory, error))?;
    let mut files = BTreeMap::new();
    for group in groups {
        let name = file_of(group.name);
        let sum = write_file(&directory.join(&name), open, &|sink| {
            tensor_file::write(&group.tensors, sink)
        })?;
        if files.insert(name, sum).is_some() {
            let message = format!("two groups of a checkpoint are called `{}`", group.name);
            return Err(Error::new(ErrorKind::Tensor, message));
        }
    }
    let write_bytes = |name: &str, bytes: &[u8]| {
        write_file(&directory.join(name), open, &|sink| Ok(sink.write_all(bytes)?))
    };
    files.insert(STATE.to_string(), write_bytes(STATE, state)?);
    let manifest = Manifest { format: FORMAT, step, files };
    let manifest = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| Error::io("write", directory, error.into()))?;
    write_bytes(MANIFEST, &manifest)?;
    sync_directory(directory)
}

/// Writes one file through `open`, summing what goes by, and waits until it is on the disk.
fn write_file(
    path: &Path,
    open: &OpenSink<'_>,
    write: &dyn Fn(&mut dyn Write) -> Result<(), WriteError>,
) -> Result<FileSum> {
    let io = |error| Error::io("write", path, error);
    let mut sink = open(path).map_err(io)?;
    let mut summing =
        BufWriter::new(Summing { sink: &mut *sink, hasher: blake3::Hasher::new(), bytes: 0 });
    let written = write(&mut summing).and_then(|()| Ok(summing.flush()?));
    match written {
        Ok(()) => {}
        Err(WriteError::Io(error)) => return Err(io(error)),
        Err(WriteError::Tensor(error)) => return Err(error),
    }
    let Summing { hasher, bytes, .. } = summing.get_ref();
    let sum = FileSum { bytes: *bytes, blake3: hasher.finalize().to_hex().to_string() };
    drop(summing);
    sink.sync().map_err(io)?;
    Ok(sum)
}

struct Summing<'a> {
    sink: &'a mut dyn Sink,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Summing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.sink.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

fn check_file(directory: &Path, name: &str, sum: &FileSum) -> Result<()> {
    let path = directory.join(name);
    let io = |error| Error::io("read", &path, error);
    let damaged = |message: String| Error::new(ErrorKind::Io, message).in_file(&path);
    if Path::new(name).file_name() != Some(name.as_ref()) {
        return Err(damaged("the manifest names a file outside the checkpoint".to_string()));
    }
    let mut file = File::open(&path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    if bytes != sum.bytes {
        return Err(damaged(format!("`{bytes}` bytes long, expected `{}`", sum.bytes)));
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(io(error)),
        };
    }
    if hasher.finalize().to_hex().as_str() != sum.blake3 {
        return Err(damaged("its bytes differ from those written".to_string()));
    }
    Ok(())
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(|error| Error::io("read", path, error))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::new(ErrorKind::Io, format!("not readable: {error}")).in_file(path))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|error| Error::io("write", to, error))
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(|error| Error::io("remove", path, error))?;
    sync_parent(path)
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
