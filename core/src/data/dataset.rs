//! A data set: the rows of one file, of a directory, or of a hub repository, in one format.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::files::{Files, hub_id};
use super::format::{Columns, Format};
use super::parse::parse;
use super::reader::DataFile;
use super::record::{Origin, Record};
use crate::train::progress::counted;
use crate::{Error, Result};

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
    files: Files,
    hub_id: Option<String>,
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
        let hub_id = hub_id(path)?.map(|id| format!("{}/{}", id.owner, id.name));
        Ok(Self { hub_id, ..Self::of(Files::open(path)?, options)? })
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
        Self::of(Files::new(name, files)?, options)
    }

    fn of(files: Files, options: &DataOptions) -> Result<Self> {
        let format = match options.format {
            Some(format) => format,
            None => detect(files.all(), &options.columns)?,
        };
        let columns = options.columns.clone();
        let stated = options.format.is_some();
        let dataset = Self { hub_id: None, files, format, stated, columns };
        dataset.check_columns()?;
        Ok(dataset)
    }

    /// What the data set is called.
    pub fn name(&self) -> &str {
        self.files.name()
    }

    /// Its id on the hub, without the split, where it is from there.
    pub fn hub_id(&self) -> Option<&str> {
        self.hub_id.as_deref()
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.files.len()
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
        self.files.all()
    }

    /// See [`Files::fingerprint`].
    ///
    /// # Errors
    /// If a file cannot be read any more.
    pub fn fingerprint(&self) -> Result<String> {
        self.files.fingerprint()
    }

    /// Where a row comes from.
    pub fn origin(&self, row: usize) -> Origin {
        self.files.origin(row)
    }

    /// The JSON object of a row, its columns renamed.
    ///
    /// # Errors
    /// With the row's place, if it cannot be read.
    pub fn row(&self, row: usize) -> Result<Map<String, Value>> {
        let mut object = self.files.row(row)?;
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

    /// A rename that no row answers to is a slip of the pen.
    fn check_columns(&self) -> Result<()> {
        for own in self.columns.sources() {
            let file = &self.files.all()[0];
            let rows = 0..file.len().min(DETECT_ROWS);
            let mut first = None;
            let mut found = rows.is_empty();
            for row in rows {
                let object = file.row(row)?;
                found = found || object.contains_key(own);
                first.get_or_insert(object);
            }
            if !found {
                let names: Vec<_> =
                    first.iter().flat_map(Map::keys).take(12).map(|n| format!("`{n}`")).collect();
                return Err(Error::data(format!("no column `{own}` to rename"))
                    .in_file(&**file.path())
                    .hint(format!("the first row has {}", names.join(", "))));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Dataset {
    /// What a command says when it opens a data set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = self.files.all().len();
        write!(f, "{}: {}", self.name(), counted(self.len(), "row"))?;
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
