//! The run directory: where every method leaves its files, and who may write there.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use super::files::{atomic_write, is_temporary, sync_parent};
use crate::{Error, ErrorKind, Result};

const LOCK: &str = ".lock";

/// The names of a run directory's files. Knows paths only; [`RunDir`] owns the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFiles {
    root: PathBuf,
}

impl RunFiles {
    /// The files of the run in `root`, whether it is there or not.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The files of a run that exists, to read them.
    ///
    /// # Errors
    /// When `root` is not a directory or holds no run.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let files = Self::new(root);
        if !files.root.is_dir() {
            return Err(Error::config("no such run directory").in_file(&files.root));
        }
        if !files.config().is_file() {
            return Err(Error::config("not a run directory: it has no `config.toml`")
                .in_file(&files.root)
                .hint("give the `--output` directory of a halter run"));
        }
        Ok(files)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// A line for each step.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// A line for each row that was not simply used.
    pub fn ledger(&self) -> PathBuf {
        self.root.join("ledger.jsonl")
    }

    /// Resumable checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// TensorBoard's event files.
    pub fn tensorboard(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// Figures, samples and prediction, for programs and for `halter report`.
    pub fn summary(&self) -> PathBuf {
        self.root.join("summary.json")
    }

    /// The report for people.
    pub fn report(&self) -> PathBuf {
        self.root.join("report.html")
    }

    /// The model card.
    pub fn card(&self) -> PathBuf {
        self.root.join("README.md")
    }
}

/// How a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Anew, in a directory that is not there or is empty.
    Fresh,
    /// Where the run in the directory stopped (`--resume`).
    Resume,
}

/// A run directory that this process alone may write.
///
/// A fresh one is removed again when it is dropped before [`RunDir::keep`], so that a run that
/// fails while it starts leaves nothing behind.
#[derive(Debug)]
pub struct RunDir {
    files: RunFiles,
    // Held for its lock, which the system releases when the process ends, however it ends.
    _lock: File,
    /// Directories this call made, outermost first; empty where the directory was there before.
    made: Vec<PathBuf>,
    kept: bool,
    notices: Vec<String>,
}

impl Deref for RunDir {
    type Target = RunFiles;

    fn deref(&self) -> &RunFiles {
        &self.files
    }
}

impl RunDir {
    /// Whether [`RunDir::create`] would begin, without touching anything (`--dry-run`).
    ///
    /// # Errors
    /// Those of [`RunDir::create`] that can be known beforehand.
    pub fn check(path: impl AsRef<Path>, start: Start) -> Result<()> {
        let path = path.as_ref();
        match start {
            Start::Resume => RunFiles::open(path).map(drop).map_err(|error| {
                error.hint("leave out `--resume` to begin a run, or check `--output`")
            }),
            Start::Fresh if !path.exists() => Ok(()),
            Start::Fresh if !path.is_dir() => {
                Err(Error::config("the output is a file, expected a directory").in_file(path))
            }
            Start::Fresh => refuse_occupied(path),
        }
    }

    /// Takes `path` for a run: makes it where it is not there, and locks it.
    ///
    /// # Errors
    /// A directory with something in it (fresh) or without a run (resumed), one that another
    /// process is writing, or what the file system says. Nothing is left behind then.
    pub fn create(path: impl AsRef<Path>, start: Start) -> Result<Self> {
        let path = path.as_ref();
        Self::check(path, start)?;
        let made = make_directories(path)?;
        let (lock, notices) = match lock(path) {
            Ok(locked) => locked,
            Err(error) => {
                remove_empty(&made);
                return Err(error);
            }
        };
        let files = RunFiles::new(path);
        let kept = start == Start::Resume;
        // Another process may have filled the directory between the check and the lock; from here
        // on nobody can. What it wrote is not this run's to remove.
        if start == Start::Fresh {
            refuse_occupied(path)?;
        }
        Ok(Self { files, _lock: lock, made, kept, notices })
    }

    /// Writes `config.toml`, which makes the directory a run.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_config(&self, toml: &str) -> Result<()> {
        atomic_write(self.config(), toml.as_bytes())
    }

    /// The `config.toml` of the run.
    ///
    /// # Errors
    /// What the file system says, or text that is not UTF-8.
    pub fn read_config(&self) -> Result<String> {
        let path = self.config();
        fs::read_to_string(&path).map_err(|error| Error::io("read", path, error))
    }

    /// From now on the directory stays, even if the run fails. Call it once there is something to
    /// resume or to look at: at the latest before the first checkpoint.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// What the user should be told about how the directory was taken.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // The directory was empty when it was locked, so all that is in it is this run's.
        let entries = fs::read_dir(self.files.path()).into_iter().flatten().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
        // The lock goes last, so that nobody takes the directory while it is being emptied.
        paths.sort_by_key(|path| path.ends_with(LOCK));
        for path in paths {
            let removed = match path.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path),
                _ => fs::remove_file(&path),
            };
            if let Err(error) = removed {
                tracing::warn!("cannot remove {}: {error}", path.display());
            }
        }
        remove_empty(&self.made);
    }
}

/// Refuses a directory that holds anything but what an interrupted start leaves.
fn refuse_occupied(path: &Path) -> Result<()> {
    let entries = fs::read_dir(path).map_err(|error| Error::io("read", path, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("read", path, error))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == LOCK || is_temporary(&name) {
            continue;
        }
        let (what, hint) = if path.join("config.toml").is_file() {
            (
                "the output directory already holds a run".to_string(),
                "`--resume` continues it; or choose another `--output`",
            )
        } else {
            (
                format!("the output directory is not empty: it holds `{name}`"),
                "choose another `--output`, or an empty directory",
            )
        };
        return Err(Error::config(what).in_file(path).hint(hint));
    }
    Ok(())
}

/// `create_dir_all` that says which directories it made, outermost first.
fn make_directories(path: &Path) -> Result<Vec<PathBuf>> {
    let missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let mut missing: Vec<_> = path.ancestors().take_while(missing).collect();
    missing.reverse();
    let mut made = Vec::new();
    for directory in missing {
        match fs::create_dir(directory) {
            Ok(()) => made.push(directory.to_path_buf()),
            // Somebody else made it meanwhile, which serves as well.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                remove_empty(&made);
                return Err(Error::io("create", directory, error).hint(
                    "the output directory must be writable; choose another with `--output`",
                ));
            }
        }
    }
    if !made.is_empty() {
        sync_parent(path)?;
    }
    Ok(made)
}

/// Removes directories that are empty, innermost first; one that is not empty stays.
fn remove_empty(made: &[PathBuf]) {
    for directory in made.iter().rev() {
        let _ = fs::remove_dir(directory);
    }
}

/// Takes the lock of a run directory. The lock belongs to the open file, not to the file's being
/// there: one left by a process that died is free.
fn lock(path: &Path) -> Result<(File, Vec<String>)> {
    let lock_path = path.join(LOCK);
    let io = |error| {
        Error::io("write", &lock_path, error)
            .hint("the output directory must be writable; choose another with `--output`")
    };
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(io)?;
    let mut notices = Vec::new();
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            // Only for the message; the number may not be written yet.
            let _ = file.take(32).read_to_string(&mut owner);
            let owner = match owner.trim() {
                "" => "another process".to_string(),
                id => format!("process `{id}`"),
            };
            return Err(Error::new(ErrorKind::Io, format!("{owner} is writing this run"))
                .in_file(path)
                .hint("wait until it is through, or choose another `--output`"));
        }
        Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
            notices.push(format!(
                "the file system of {} has no locks: make sure that no other process writes there",
                path.display()
            ));
        }
        Err(TryLockError::Error(error)) => return Err(io(error)),
    }
    if !is_same_file(&file, &lock_path) {
        return Err(Error::new(ErrorKind::Io, "another process has just given up this directory")
            .in_file(path)
            .hint("run the command again"));
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(io)?;
    Ok((file, notices))
}

/// Whether `path` still names `file`: between opening and locking, the process that had the lock
/// may have removed the file, and a lock on a file without a name keeps nobody out.
#[cfg(unix)]
fn is_same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Elsewhere an open file cannot be removed.
#[cfg(not(unix))]
fn is_same_file(_: &File, _: &Path) -> bool {
    true
}

#[cfg(test)]
#[path = "run_dir_tests.rs"]
mod tests;
