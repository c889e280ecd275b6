//! Parquet: rows at random without ever holding a file as JSON values.
//!
//! A shuffled run asks for rows of all row groups in turn, and a row group can only be decoded as
//! a whole. So a group is decoded once, when one of its rows is first wanted, and its rows are
//! kept as JSON text in an unnamed temporary file; from then on a row is one positional read.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use parquet::basic::{ConvertedType, Repetition};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;
use serde_json::Value;

use super::bytes::{Bytes, Extent};
use super::{footer, jsonl};
use crate::{Error, Result};

/// Rows of a file that is not bigger than this are believed without comparing them with its size.
const BELIEVED_ROWS: u64 = 1 << 24;

/// An open Parquet file.
pub(super) struct ParquetFile {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    /// Number of the first row of each row group, and the number of all rows.
    starts: Vec<usize>,
    groups: Vec<Mutex<Option<Arc<Vec<Extent>>>>>,
    /// Held while a group is decoded: the parquet crate clones its file, and clones share one
    /// place in it.
    decoding: Mutex<()>,
    spill: Mutex<Option<Spill>>,
}

/// The decoded rows.
struct Spill {
    file: File,
    bytes: Arc<Bytes>,
    end: u64,
}

impl std::fmt::Debug for ParquetFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParquetFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ParquetFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        let size = file.metadata().map_err(|error| Error::io("open", path, error))?.len();
        let wrong = |what: String| Error::data(format!("not a sound Parquet file: {what}"));
        if let Some(bytes) =
            read_footer(&file, size).map_err(|error| Error::io("read", path, error))?
        {
            footer::check(&bytes).map_err(|what| wrong(what).in_file(path))?;
        }
        let reader = guarded(|| SerializedFileReader::new(file)).map_err(|e| e.in_file(path))?;
        let metadata = reader.metadata();
        check_schema(metadata.file_metadata().schema(), 0)
            .map_err(|what| wrong(what).in_file(path))?;
        let mut starts = vec![0usize];
        let mut rows = 0u64;
        for group in metadata.row_groups() {
            let count = u64::try_from(group.num_rows())
                .map_err(|_| wrong(format!("a row group of `{}` rows", group.num_rows())))
                .map_err(|error| error.in_file(path))?;
            rows = rows.saturating_add(count);
            starts.push(usize::try_from(rows).unwrap_or(usize::MAX));
        }
        if rows > BELIEVED_ROWS.max(size.saturating_mul(8)) {
            return Err(wrong(format!("`{rows}` rows in `{size}` bytes")).in_file(path));
        }
        let groups = metadata.row_groups().iter().map(|_| Mutex::new(None)).collect();
        let (path, decoding) = (path.to_path_buf(), Mutex::new(()));
        Ok(Self { path, reader, starts, groups, decoding, spill: Mutex::new(None) })
    }

    pub(super) fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The JSON text of a row.
    pub(super) fn read(&self, row: usize) -> Result<Vec<u8>> {
        let group = self.starts.partition_point(|&start| start <= row).saturating_sub(1);
        let (Some(cell), Some(&start)) = (self.groups.get(group), self.starts.get(group)) else {
            return Err(Error::data(format!("row {row} of `{}`", self.len())).in_file(&self.path));
        };
        let rows = {
            let mut cell = cell.lock().unwrap_or_else(PoisonError::into_inner);
            match &*cell {
                Some(rows) => Arc::clone(rows),
                None => {
                    let rows = Arc::new(self.decode(group, start)?);
                    *cell = Some(Arc::clone(&rows));
                    rows
                }
            }
        };
        let extent = rows[row - start];
        let spill = self.spill.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = spill.as_ref().map(|spill| Arc::clone(&spill.bytes));
        drop(spill);
        bytes
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))
            .and_then(|bytes| bytes.read(extent.start, extent.len as usize))
            .map_err(|error| Error::io("read the decoded rows of", &self.path, error))
    }

    /// Decodes one row group into the temporary file.
    fn decode(&self, group: usize, first: usize) -> Result<Vec<Extent>> {
        let count = self.starts[group + 1] - first;
        let mut text = Vec::new();
        let mut rows = Vec::new();
        let one_at_a_time = self.decoding.lock().unwrap_or_else(PoisonError::into_inner);
        guarded(|| {
            let reader = self.reader.get_row_group(group)?;
            for row in RowIter::from_row_group(None, reader.as_ref())? {
                let mut value = row?.to_json_value();
                drop_nulls(&mut value);
                let start = text.len() as u64;
                serde_json::to_writer(&mut text, &value)
                    .map_err(|error| parquet::errors::ParquetError::External(error.into()))?;
                rows.push((start, text.len() as u64));
            }
            Ok(())
        })
        .map_err(|error| error.at(&self.path, first + rows.len() + 1))?;
        drop(one_at_a_time);
        if rows.len() != count {
            let what = format!("row group {group} holds `{}` of `{count}` rows", rows.len());
            return Err(
                Error::data(format!("not a sound Parquet file: {what}")).in_file(&self.path)
            );
        }
        let base = self.append(&text)?;
        rows.iter()
            .enumerate()
            .map(|(index, (start, end))| {
                let line = first + index + 1;
                jsonl::extent(base + start, base + end, line)
                    .map_err(|error| error.at(&self.path, line))
            })
            .collect()
    }

    fn append(&self, text: &[u8]) -> Result<u64> {
        let full = |error| {
            Error::io("keep the decoded rows in a temporary file", &self.path, error)
                .hint("set TMPDIR to a folder with room for the data set as text")
        };
        let mut spill = self.spill.lock().unwrap_or_else(PoisonError::into_inner);
        if spill.is_none() {
            let file = tempfile::tempfile().map_err(full)?;
            let bytes = Arc::new(Bytes::File(file.try_clone().map_err(full)?));
            *spill = Some(Spill { file, bytes, end: 0 });
        }
        let Some(spill) = spill.as_mut() else { return Ok(0) };
        let base = spill.end;
        spill.file.seek(SeekFrom::Start(base)).map_err(full)?;
        spill.file.write_all(text).map_err(full)?;
        spill.end += text.len() as u64;
        Ok(base)
    }
}

/// The bytes of the footer: its length and `PAR1` are the last eight bytes. `None` where there is
/// none, which the parquet crate has words for.
fn read_footer(file: &File, size: u64) -> std::io::Result<Option<Vec<u8>>> {
    let bytes = Bytes::File(file.try_clone()?);
    let Some(end) = size.checked_sub(8) else { return Ok(None) };
    let tail = bytes.read(end, 8)?;
    let length = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
    match end.checked_sub(u64::from(length)) {
        Some(start) if &tail[4..] == b"PAR1" => bytes.read(start, length as usize).map(Some),
        _ => Ok(None),
    }
}

/// Runs a piece of the parquet crate, which asserts where a file lies to it.
fn guarded<T>(run: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::data(format!("not a sound Parquet file: {error}"))),
        Err(_) => Err(Error::data("not a sound Parquet file: its pages contradict its schema")),
    }
}

/// Refuses the shapes that the parquet crate's row reader asserts against, and depth without end.
fn check_schema(schema: &Type, depth: usize) -> Result<(), String> {
    if depth > 64 {
        return Err("a schema of more than 64 levels".into());
    }
    if schema.is_primitive() {
        return Ok(());
    }
    let fields = schema.get_fields();
    let repeated = |field: &Type| {
        let info = field.get_basic_info();
        info.has_repetition() && info.repetition() == Repetition::REPEATED
    };
    let sound = match schema.get_basic_info().converted_type() {
        _ if depth == 0 => true,
        ConvertedType::LIST => {
            fields.len() == 1
                && repeated(&fields[0])
                && (fields[0].is_primitive() || !fields[0].get_fields().is_empty())
        }
        ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE => {
            fields.len() == 1
                && repeated(&fields[0])
                && !fields[0].is_primitive()
                && matches!(fields[0].get_fields().len(), 1 | 2)
        }
        _ => true,
    };
    if !sound {
        return Err(format!("column `{}` is no list or map", schema.name()));
    }
    fields.iter().try_for_each(|field| check_schema(field, depth + 1))
}

/// Parquet gives every struct all the keys that any row has; a null key is a missing one.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(values) => values.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
