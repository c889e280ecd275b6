//! A data set: the rows of one file, of a directory, or of a hub repository, in one format.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::format::{Columns, Format};
use super::hub::{self, HubId};
use super::parse::parse;
use super::reader::{DataFile, ENDINGS, ending};
use super::record::{Origin, Record};
use crate::train::progress::counted;
use crate::{Error, Result, bundled};

/// Rows of each file that are looked at to tell the format.
const DETECT_ROWS: usize = 16;

/// A data set of a command line: `PATH[:weight]` or `org/name[:split][:weight]`.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSpec {
    /// Path or hub id, with the split where one was given.
    pub path: String,
    /// Epochs of this data set in each epoch of the mixture; 1 where none was given.
    pub weight: f64,
}

impl FromStr for DataSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::config("expected a data set, got an empty name"));
        }
        // A file may have a colon in its name.
        let whole = Self { path: text.to_string(), weight: 1.0 };
        if Path::new(text).exists() {
            return Ok(whole);
        }
        let Some((path, tail)) = text.rsplit_once(':').filter(|(path, _)| !path.is_empty()) else {
            return Ok(whole);
        };
        match tail.parse::<f64>() {
            Ok(weight) if weight.is_finite() && weight > 0.0 => {
                Ok(Self { path: path.to_string(), weight })
            }
            Ok(_) => Err(Error::config(format!(
                "expected a weight above zero for `{path}`, got `{tail}`"
            ))
            .hint("0.5 takes half of the rows each epoch, 2 takes each row twice")),
            Err(_) if Path::new(path).exists() => {
                Err(Error::config(format!("expected a weight after `{path}:`, got `{tail}`"))
                    .hint("0.5 takes half of the rows each epoch, 2 takes each row twice"))
            }
            Err(_) => Ok(whole),
        }
    }
}

/// How to open a data set.
#[derive(Debug, Clone, Default)]
pub struct DataOptions {
    /// The format, where it is stated rather than detected.
    pub format: Option<Format>,
    /// Column renames.
    pub columns: Columns,
}

/// The rows of one or several files. Rows are read by number, by any number of threads.
#[derive(Debug)]
pub struct Dataset {
    name: String,
    hub_id: Option<String>,
    files: Vec<DataFile>,
    /// Number of rows up to and with each file.
    ends: Vec<usize>,
    format: Format,
    stated: bool,
    columns: Columns,
}

impl Dataset {
    /// Opens a file, a directory (every data file in it, sorted by name) or a hub data set
    /// (`org/name[:split]`), and tells the format from the first rows of each file.
    ///
    /// # Errors
    /// If there is nothing to read, a file is not what its ending says, no row is there, or the
    /// first rows are of no known format or of several.
    pub fn open(path: &str, options: &DataOptions) -> Result<Self> {
        let bundled = bundled::path(path)?.map(|path| path.display().to_string());
        let place = bundled.as_deref().unwrap_or(path);
        let files = find_files(place)?.iter().map(DataFile::open).collect::<Result<Vec<_>>>()?;
        let hub_id = hub_id(place).map(|id| format!("{}/{}", id.owner, id.name));
        Ok(Self { hub_id, ..Self::from_files(path, files, options)? })
    }

    /// A data set of files that are open already; `name` is what it is called in messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_files(
        name: impl Into<String>,
        files: Vec<DataFile>,
        options: &DataOptions,
    ) -> Result<Self> {
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
        let format = match options.format {
            Some(format) => format,
            None => detect(&files, &options.columns)?,
        };
        let columns = options.columns.clone();
        let stated = options.format.is_some();
        let dataset = Self { name, hub_id: None, files, ends, format, stated, columns };
        dataset.check_columns()?;
        Ok(dataset)
    }

    /// What the data set is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id on the hub, without the split, where it is from there.
    pub fn hub_id(&self) -> Option<&str> {
        self.hub_id.as_deref()
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether there are no rows (never so for an open data set).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The format of its rows.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The files, in order.
    pub fn files(&self) -> &[DataFile] {
        &self.files
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

    /// The JSON object of a row, its columns renamed.
    ///
    /// # Errors
    /// With the row's place, if it cannot be read.
    pub fn row(&self, row: usize) -> Result<Map<String, Value>> {
        let Some((file, row)) = self.locate(row) else {
            return Err(
                Error::data(format!("no row {row} among `{}`", self.len())).in_file(&self.name)
            );
        };
        let mut object = file.row(row)?;
        self.columns.apply(&mut object);
        Ok(object)
    }

    /// A row, parsed.
    ///
    /// # Errors
    /// With the row's place, if it cannot be read or does not fit the format.
    pub fn record(&self, row: usize) -> Result<Record> {
        let object = self.row(row)?;
        parse(self.format, object).map_err(|error| {
            let origin = self.origin(row);
            error.at(&*origin.path, origin.line)
        })
    }

    fn locate(&self, row: usize) -> Option<(&DataFile, usize)> {
        let index = self.ends.partition_point(|&end| end <= row);
        let file = self.files.get(index)?;
        let before = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some((file, row - before))
    }

    /// A rename that no row answers to is a slip of the pen.
    fn check_columns(&self) -> Result<()> {
        for own in self.columns.sources() {
            let rows = 0..self.files[0].len().min(DETECT_ROWS);
            let mut first = None;
            let mut found = rows.is_empty();
            for row in rows {
                let object = self.files[0].row(row)?;
                found = found || object.contains_key(own);
                first.get_or_insert(object);
            }
            if !found {
                let names: Vec<_> =
                    first.iter().flat_map(Map::keys).take(12).map(|n| format!("`{n}`")).collect();
                return Err(Error::data(format!("no column `{own}` to rename"))
                    .in_file(&**self.files[0].path())
                    .hint(format!("the first row has {}", names.join(", "))));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Dataset {
    /// What a command says when it opens a data set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = self.files.len();
        write!(f, "{}: {}", self.name, counted(self.len(), "row"))?;
        if files > 1 {
            write!(f, " in {files} files")?;
        }
        let how = if self.stated { "as stated" } else { "detected" };
        write!(f, ", format `{}` ({how}): {}", self.format, self.format.description())
    }
}

/// The format that the first rows of every file agree on.
fn detect(files: &[DataFile], columns: &Columns) -> Result<Format> {
    let mut agreed: Option<(Format, Origin)> = None;
    for file in files {
        for row in 0..file.len().min(DETECT_ROWS) {
            let origin = file.origin(row);
            let mut object = file.row(row)?;
            columns.apply(&mut object);
            let format =
                Format::detect(&object).map_err(|error| error.at(&*origin.path, origin.line))?;
            match &agreed {
                None => agreed = Some((format, origin)),
                Some((before, _)) if *before == format => {}
                Some((before, first)) => {
                    let place = if first.path == origin.path {
                        format!("row {}", first.line)
                    } else {
                        format!("`{}`", first.path.display())
                    };
                    return Err(Error::data(format!(
                        "this row looks like `{format}`, but {place} like `{before}`"
                    ))
                    .at(&*origin.path, origin.line)
                    .hint("give data sets of different formats apart, or state the format"));
                }
            }
        }
    }
    agreed.map(|(format, _)| format).ok_or_else(|| Error::data("the data set holds no rows"))
}

/// The files that a path or hub id stands for.
fn find_files(text: &str) -> Result<Vec<PathBuf>> {
    let path = Path::new(text);
    if path.is_dir() {
        return files_in(path);
    }
    match hub_id(text) {
        Some(id) => hub::fetch(&id),
        None => Ok(vec![path.to_path_buf()]),
    }
}

/// What is on disk goes before the hub.
fn hub_id(text: &str) -> Option<HubId> {
    if Path::new(text).exists() { None } else { HubId::parse(text) }
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
