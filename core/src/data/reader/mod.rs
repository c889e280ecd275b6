//! Files of rows: JSON Lines, JSON and Parquet, with any row readable at any time.

mod bytes;
mod footer;
mod json;
mod jsonl;
mod parquet;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use self::bytes::{Bytes, Extent};
use self::parquet::ParquetFile;
use super::parse::value::kind;
use super::record::Origin;
use crate::{Error, Result};

/// The endings of the files that hold data.
pub(super) const ENDINGS: [&str; 4] = ["jsonl", "ndjson", "json", "parquet"];

/// One file of rows. Rows are read by number, by any number of threads.
#[derive(Debug)]
pub struct DataFile {
    path: Arc<PathBuf>,
    rows: Rows,
}

#[derive(Debug)]
enum Rows {
    Text { bytes: Bytes, extents: Vec<Extent>, lines: bool },
    Parquet(ParquetFile),
}

impl DataFile {
    /// Opens a file by its ending: `.jsonl` or `.ndjson`, `.json`, `.parquet`. A `.json` file may
    /// hold an array of objects, an object with an array in `data`, or JSON Lines.
    ///
    /// # Errors
    /// If the file cannot be read, or is not what its ending says.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let rows = match ending(path).as_deref() {
            Some("jsonl" | "ndjson") => Self::lines(Bytes::open(path)?, path)?,
            Some("json") => Self::document(Bytes::open(path)?, path)?,
            Some("parquet") => Rows::Parquet(ParquetFile::open(path)?),
            other => {
                // A file that is not there is the likelier mistake.
                std::fs::metadata(path).map_err(|error| Error::io("open", path, error))?;
                let got = other.map_or("no ending".into(), |other| format!("`.{other}`"));
                return Err(Error::data(format!(
                    "expected a file ending in `.jsonl`, `.json` or `.parquet`, got {got}"
                ))
                .in_file(path));
            }
        };
        Ok(Self { path: Arc::new(path.to_path_buf()), rows })
    }

    /// JSON Lines held in memory, under a name for errors.
    ///
    /// # Errors
    /// If a line is too long.
    pub fn from_jsonl(name: impl Into<PathBuf>, text: impl Into<Vec<u8>>) -> Result<Self> {
        let name = name.into();
        let rows = Self::lines(Bytes::Memory(text.into()), &name)?;
        Ok(Self { path: Arc::new(name), rows })
    }

    /// A JSON document held in memory, read as a `.json` file is.
    ///
    /// # Errors
    /// If it is not an array of objects, nor one in `data`, nor JSON Lines.
    pub fn from_json(name: impl Into<PathBuf>, text: impl Into<Vec<u8>>) -> Result<Self> {
        let name = name.into();
        let rows = Self::document(Bytes::Memory(text.into()), &name)?;
        Ok(Self { path: Arc::new(name), rows })
    }

    fn lines(mut bytes: Bytes, path: &Path) -> Result<Rows> {
        let extents = jsonl::index(&mut bytes, path)?;
        Ok(Rows::Text { bytes, extents, lines: true })
    }

    fn document(mut bytes: Bytes, path: &Path) -> Result<Rows> {
        match json::index(&mut bytes, path)? {
            json::Layout::Array(extents) => Ok(Rows::Text { bytes, extents, lines: false }),
            json::Layout::Lines => Self::lines(bytes, path),
        }
    }

    /// The file's path, or the name it was given.
    pub fn path(&self) -> &Arc<PathBuf> {
        &self.path
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        match &self.rows {
            Rows::Text { extents, .. } => extents.len(),
            Rows::Parquet(file) => file.len(),
        }
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds to `hasher` what tells the file from another.
    pub(super) fn hash_into(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        let hashed = match &self.rows {
            Rows::Text { bytes, .. } => bytes.hash_into(hasher),
            Rows::Parquet(_) => Bytes::open(&self.path)?.hash_into(hasher),
        };
        hashed.map_err(|error| Error::io("read", &*self.path, error))
    }

    /// Where a row comes from: its line in JSON Lines, else its number, from one.
    pub fn origin(&self, row: usize) -> Origin {
        let line = match &self.rows {
            Rows::Text { extents, .. } => {
                extents.get(row).map_or(row + 1, |extent| extent.line as usize)
            }
            Rows::Parquet(_) => row + 1,
        };
        Origin { path: Arc::clone(&self.path), line }
    }

    /// The JSON object of a row.
    ///
    /// # Errors
    /// With the row's place: if it cannot be read, is not UTF-8, not JSON, or not an object.
    pub fn row(&self, row: usize) -> Result<Map<String, Value>> {
        let origin = self.origin(row);
        let text = match &self.rows {
            Rows::Text { bytes, extents, .. } => {
                let Some(extent) = extents.get(row) else {
                    return Err(Error::data(format!("no row {row} among `{}`", self.len()))
                        .in_file(&*self.path));
                };
                bytes.read(extent.start, extent.len as usize).map_err(|error| {
                    Error::io("read a row", &*self.path, error)
                        .at(&*self.path, origin.line)
                        .hint("did the file change while it was in use?")
                })?
            }
            Rows::Parquet(file) => file.read(row)?,
        };
        let lines = matches!(self.rows, Rows::Text { lines: true, .. });
        parse_object(&text, lines).map_err(|error| error.at(&*origin.path, origin.line))
    }
}

/// The ending of a path, in lower case.
pub(super) fn ending(path: &Path) -> Option<String> {
    path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase())
}

/// Reads one JSON object; `lines` tells whether it was a line of a file.
fn parse_object(text: &[u8], lines: bool) -> Result<Map<String, Value>> {
    let text = std::str::from_utf8(text).map_err(|error| {
        Error::data(format!("not UTF-8: a wrong byte after `{}` good ones", error.valid_up_to()))
            .hint("save the file as UTF-8")
    })?;
    match serde_json::from_str(text.trim_end()) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(other) => Err(Error::data(format!("expected a JSON object, got {}", kind(&other)))),
        Err(error) => {
            // The parser counts lines within the row, so only its column is of use.
            let message = error.to_string();
            let what = message.split(" at line ").next().unwrap_or_default();
            let wrong = Error::data(format!("not JSON: {what} at column {}", error.column()));
            Err(if lines && text.trim_start().starts_with('[') {
                wrong.hint("a JSON array of rows belongs in a file ending in `.json`")
            } else if text.contains("NaN") || text.contains("Infinity") {
                wrong.hint("JSON has no NaN and no Infinity")
            } else if lines {
                wrong.hint("each line must be one whole JSON object")
            } else {
                wrong
            })
        }
    }
}
