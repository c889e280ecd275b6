//! Files that are either wholly there or not at all, whatever happens while they are written.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Writes `bytes` to `path` so that a reader sees the old content or the new, never a part: a
/// temporary name in the same directory, synced, renamed, and the directory synced.
///
/// # Errors
/// What the file system says; the old content is intact and the temporary is gone.
pub fn atomic_write(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let temporary = temporary_beside(path);
    let written = File::create_new(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // The first error is the one to report; a leftover is harmless.
        let _ = fs::remove_file(&temporary);
        return Err(Error::io("write", path, error));
    }
    sync_parent(path)
}

/// A name for a temporary file or directory beside `path` that no other call will choose.
///
/// It begins with a dot and contains `.tmp-`; see [`is_temporary`].
pub fn temporary_beside(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".tmp-{}-{next}", std::process::id()));
    path.with_file_name(name)
}

/// Whether `name` was made by [`temporary_beside`].
pub fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.contains(".tmp-")
}

/// Removes the temporary files and directories in `directory` that a killed process left.
///
/// # Errors
/// What the file system says.
pub fn remove_temporaries(directory: &Path) -> Result<()> {
    let failed = |doing, error| Error::io(doing, directory, error);
    for entry in fs::read_dir(directory).map_err(|error| failed("read", error))? {
        let entry = entry.map_err(|error| failed("read", error))?;
        if is_temporary(&entry.file_name().to_string_lossy()) {
            let removed = match entry.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
                _ => fs::remove_file(entry.path()),
            };
            removed.map_err(|error| failed("clear", error))?;
        }
    }
    Ok(())
}

/// Makes the renames and new names in `directory` last through a power cut.
///
/// # Errors
/// What the file system says.
pub fn sync_directory(directory: &Path) -> Result<()> {
    // Only Unix lets a directory be opened and synced; elsewhere the rename is journalled.
    if cfg!(unix) {
        File::open(directory)
            .and_then(|file| file.sync_all())
            .map_err(|error| Error::io("sync", directory, error))?;
    }
    Ok(())
}

/// [`sync_directory`] of the directory that holds `path`.
///
/// # Errors
/// What the file system says.
pub fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
        _ => sync_directory(Path::new(".")),
    }
}

/// Where bytes go that must be on the disk before the work goes on. A trait so that tests can put
/// a disk that fills up in its place.
pub(crate) trait Sink: Write {
    /// Waits until everything written is on the disk.
    fn sync(&mut self) -> io::Result<()>;
}

impl Sink for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_atomic_write_replaces_the_whole_file_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        atomic_write(&path, b"a long first version").unwrap();
        atomic_write(&path, b"short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_atomic_write_keeps_what_was_there_and_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        // A directory cannot be replaced by a file, so the rename fails after the write.
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        let error = atomic_write(&path, b"bytes").unwrap_err();
        assert!(error.to_string().contains("cannot write"), "{error}");
        let names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["taken"]);
    }

    #[test]
    fn temporary_names_are_recognised_and_never_repeat() {
        let first = temporary_beside(Path::new("a/b.json"));
        assert_ne!(first, temporary_beside(Path::new("a/b.json")));
        assert_eq!(first.parent(), Some(Path::new("a")));
        assert!(is_temporary(first.file_name().unwrap().to_str().unwrap()));
        assert!(!is_temporary("step-10"));
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        for path in [&path, &temporary_beside(&path), &dir.path().join(".hidden")] {
            fs::write(path, "x").unwrap();
        }
        fs::create_dir_all(temporary_beside(&path).join("half")).unwrap();
        remove_temporaries(dir.path()).unwrap();
        let entries = fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".hidden", "rows.jsonl"]);
    }
}
