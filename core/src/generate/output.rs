//! Results as lines of JSON, one a row, that go on after any end of the program.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::train::files::atomic_write;
use crate::{Error, Result};

/// A file of results, and beside it the settings that they were made with.
#[derive(Debug)]
pub struct ResultFile {
    path: PathBuf,
    file: File,
    rows: u64,
    /// Bytes of whole lines.
    len: u64,
    /// See [`ResultFile::failures`].
    failures: Vec<String>,
}

impl ResultFile {
    /// Where the settings of the results in `path` stand.
    pub fn settings_path(path: &Path) -> PathBuf {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".settings.json");
        path.with_file_name(name)
    }

    /// The settings that the results in `path` were begun with.
    ///
    /// # Errors
    /// There are none, or they cannot be read.
    pub fn settings(path: &Path) -> Result<Map<String, Value>> {
        let place = Self::settings_path(path);
        match fs::read(&place) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| Error::data(format!("not settings: {error}")).in_file(&place)),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(Error::config("nothing to resume: it has no settings beside it")
                    .in_file(path)
                    .hint("leave out `--resume` to begin"))
            }
            Err(error) => Err(Error::io("read", &place, error)),
        }
    }

    /// Refuses a place where results, or something else, lie already.
    ///
    /// # Errors
    /// When there is something.
    pub fn refuse_occupied(path: &Path) -> Result<()> {
        let settings = Self::settings_path(path);
        match [path, &settings].into_iter().find(|path| path.exists()) {
            None => Ok(()),
            Some(found) => Err(Error::config("the output is there already")
                .in_file(found)
                .hint("`--resume` goes on after its last row; or name another `--output`")),
        }
    }

    /// Begins a file.
    ///
    /// # Errors
    /// Something is there already, or cannot be written.
    pub fn create(path: &Path, settings: &Map<String, Value>) -> Result<Self> {
        Self::refuse_occupied(path)?;
        let text = serde_json::to_string_pretty(settings)
            .map_err(|error| Error::config("settings that are not JSON").because(error))?;
        atomic_write(Self::settings_path(path), (text + "\n").as_bytes())?;
        let file = OpenOptions::new().append(true).create_new(true).open(path);
        let file = file.map_err(|error| Error::io("create", path, error))?;
        Ok(Self { path: path.into(), file, rows: 0, len: 0, failures: Vec::new() })
    }

    /// Goes on after the last whole line of a file that was begun with the same settings.
    ///
    /// # Errors
    /// Other settings, a line that is not the row of its number, or a file that cannot be read.
    pub fn resume(path: &Path, settings: &Map<String, Value>) -> Result<Self> {
        let began_with = Self::settings(path)?;
        for key in began_with.keys().chain(settings.keys()) {
            let (before, now) = (began_with.get(key), settings.get(key));
            if before != now {
                let shown =
                    |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
                let (now, before) = (shown(now), shown(before));
                return Err(Error::config(format!(
                    "`{key}` is `{now}`, but the output began with `{before}`"
                ))
                .in_file(path)
                .hint("resume with the options it began with, or name another `--output`"));
            }
        }
        let failed = |doing, error| Error::io(doing, path, error);
        let file = OpenOptions::new().read(true).append(true).create(true).open(path);
        let file = file.map_err(|error| failed("open", error))?;
        let (mut rows, mut len, mut failures) = (0, 0, Vec::new());
        let mut reader = BufReader::new(&file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(|e| failed("read", e))?;
            if line.last() != Some(&b'\n') {
                break;
            }
            let value: Value = serde_json::from_slice(&line).unwrap_or_default();
            if value["row"].as_u64() != Some(rows) {
                return Err(Error::data(format!("not the result of row `{rows}`"))
                    .at(path, rows as usize + 1)
                    .hint("the file was changed; name another `--output`"));
            }
            failures.extend(value["error"].as_str().map(str::to_string));
            rows += 1;
            len += read as u64;
        }
        // What a killed program or a full disk left of a line.
        file.set_len(len).map_err(|error| failed("truncate", error))?;
        Ok(Self { path: path.into(), file, rows, len, failures })
    }

    /// Rows that are there.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Why rows had no result that were there when the file was opened: their `error`.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Adds the next row.
    ///
    /// # Errors
    /// A full disk; the rows before are whole.
    pub fn append(&mut self, row: &impl Serialize) -> Result<()> {
        let line = line(row)?;
        if let Err(error) = self.file.write_all(&line) {
            // Resuming does the same, should this fail too.
            let _ = self.file.set_len(self.len);
            return Err(Error::io("write", &self.path, error)
                .hint(format!("the first {} rows are whole: `--resume` goes on", self.rows)));
        }
        self.rows += 1;
        self.len += line.len() as u64;
        Ok(())
    }

    /// Waits until all of it is on the disk.
    ///
    /// # Errors
    /// What the file system says.
    pub fn finish(self) -> Result<()> {
        self.file.sync_all().map_err(|error| Error::io("sync", &self.path, error))
    }
}

/// A row as a line of JSON.
///
/// # Errors
/// A value that JSON does not have.
pub fn line(row: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(row)
        .map_err(|error| Error::data("a result that is not JSON").because(error))?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use super::*;
    use serde_json::json;

    fn settings(seed: u64) -> Map<String, Value> {
        json!({ "seed": seed, "model": "tiny" }).as_object().unwrap().clone()
    }

    #[test]
    fn a_file_cut_anywhere_goes_on_after_its_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let row = |row: u64| json!({ "row": row, "text": "x\ny" });
        let mut file = ResultFile::create(&path, &settings(1)).unwrap();
        (0..3).for_each(|i| file.append(&row(i)).unwrap());
        file.finish().unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut file = ResultFile::resume(&path, &settings(1)).unwrap();
            let kept = whole[..cut].iter().filter(|&&byte| byte == b'\n').count() as u64;
            assert_eq!(file.rows(), kept);
            (kept..3).for_each(|i| file.append(&row(i)).unwrap());
            assert_eq!(fs::read(&path).unwrap(), whole, "cut at {cut}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(ResultFile::resume(&path, &settings(1)).unwrap().rows(), 0);
    }

    #[test]
    fn other_settings_and_other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let refused = |result: Result<ResultFile>| result.unwrap_err().message().to_string();
        let nothing = refused(ResultFile::resume(&path, &settings(1)));
        assert_eq!(nothing, "nothing to resume: it has no settings beside it");
        ResultFile::create(&path, &settings(1)).unwrap();
        let taken = refused(ResultFile::create(&path, &settings(1)));
        assert_eq!(taken, "the output is there already");
        let changed = refused(ResultFile::resume(&path, &settings(2)));
        assert_eq!(changed, "`seed` is `2`, but the output began with `1`");
        let mut more = settings(1);
        more.insert("top_k".into(), 3.into());
        let more = refused(ResultFile::resume(&path, &more));
        assert_eq!(more, "`top_k` is `3`, but the output began with `nothing`");
        for wrong in ["{\"row\":1}\n", "row\n", "{\"row\":0}\n{\"row\":0}\n"] {
            fs::write(&path, wrong).unwrap();
            assert!(ResultFile::resume(&path, &settings(1)).is_err(), "{wrong}");
            assert_eq!(fs::read_to_string(&path).unwrap(), wrong, "left as it was");
        }
    }
}
