//! Files of rows one after the other, whatever their columns.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::hub::{self, HubId};
use super::reader::{DataFile, ENDINGS, ending};
use super::record::Origin;
use crate::{Error, Result, bundled};

/// The rows of one or several files. Rows are read by number, by any number of threads.
#[derive(Debug)]
pub struct Files {
    name: String,
    files: Vec<DataFile>,
    /// Number of rows up to and with each file.
    ends: Vec<usize>,
}

impl Files {
    /// Opens a file, a directory (every data file in it, sorted by name) or a hub data set
    /// (`org/name[:split]`).
    ///
    /// # Errors
    /// If there is nothing to read, a file is not what its ending says, or no row is there.
    pub fn open(path: &str) -> Result<Self> {
        let bundled = bundled::path(path)?.map(|path| path.display().to_string());
        let found = find_files(bundled.as_deref().unwrap_or(path))?;
        Self::new(path, found.iter().map(DataFile::open).collect::<Result<_>>()?)
    }

    /// Files that are open already; `name` is what they are called in messages.
    ///
    /// # Errors
    /// No row is there.
    pub fn new(name: impl Into<String>, files: Vec<DataFile>) -> Result<Self> {
        let name = name.into();
        let mut ends = Vec::with_capacity(files.len());
        let mut rows = 0usize;
        for file in &files {
            rows += file.len();
            ends.push(rows);
        }
        if rows == 0 {
            let place = match files.as_slice() {
                [file] => file.path().as_path(),
                _ => Path::new(&name),
            };
            return Err(Error::data("the data set holds no rows").in_file(place));
        }
        Ok(Self { name, files, ends })
    }

    /// What they are called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The files, in order; one at least.
    pub fn all(&self) -> &[DataFile] {
        &self.files
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether there are no rows (never so for open files).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the files hold, hashed: the length of each and up to 64 of its blocks, so that a file
    /// that was replaced is noticed without reading all of it.
    ///
    /// # Errors
    /// If a file cannot be read any more.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"halter data set 1");
        for file in &self.files {
            file.hash_into(&mut hasher)?;
        }
        Ok(hasher.finalize().to_hex()[..32].to_string())
    }

    /// Where a row comes from.
    pub fn origin(&self, row: usize) -> Origin {
        match self.locate(row) {
            Some((file, row)) => file.origin(row),
            None => Origin { path: Arc::new(PathBuf::from(&self.name)), line: row + 1 },
        }
    }

    /// The JSON object of a row.
    ///
    /// # Errors
    /// With the row's place, if it cannot be read.
    pub fn row(&self, row: usize) -> Result<Map<String, Value>> {
        match self.locate(row) {
            Some((file, row)) => file.row(row),
            None => {
                let message = format!("no row {row} among `{}`", self.len());
                Err(Error::data(message).in_file(&self.name))
            }
        }
    }

    fn locate(&self, row: usize) -> Option<(&DataFile, usize)> {
        let index = self.ends.partition_point(|&end| end <= row);
        let file = self.files.get(index)?;
        let before = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some((file, row - before))
    }
}

/// The files that a path or hub id stands for.
fn find_files(text: &str) -> Result<Vec<PathBuf>> {
    let path = Path::new(text);
    if path.is_dir() {
        return files_in(path);
    }
    match hub_id(text)? {
        Some(id) => hub::fetch(&id),
        None => Ok(vec![path.to_path_buf()]),
    }
}

/// The hub's name for a data set, where it is one. What is on disk goes before the hub.
pub(super) fn hub_id(text: &str) -> Result<Option<HubId>> {
    let is_here = bundled::path(text)?.is_some() || Path::new(text).exists();
    Ok(if is_here { None } else { HubId::parse(text) })
}

/// Every data file in a directory, sorted by name.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::io("list", folder, error);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        let known = ending(&path).is_some_and(|ending| ENDINGS.contains(&ending.as_str()));
        if known && !hidden && path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::data("the directory holds no `.jsonl`, `.json` or `.parquet` file")
            .in_file(folder)
            .hint("folders inside it are not searched; name the one that holds the data"));
    }
    files.sort();
    Ok(files)
}
