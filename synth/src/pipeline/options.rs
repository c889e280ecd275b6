//! The options of a step, with the lines of the file that they stand in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use halter_core::{Error, Result};
use serde::de::DeserializeOwned;

/// A table of the pipeline. Options are taken out one by one; what is left in the end is unknown.
#[derive(Debug, Clone, Default)]
pub struct Options {
    path: PathBuf,
    line: usize,
    lines: BTreeMap<String, usize>,
    left: toml::Table,
    known: Vec<String>,
}

impl Options {
    /// The options in `table`; `line` is the table's own, `lines` those of its keys.
    pub fn new(
        path: &Path,
        line: usize,
        lines: BTreeMap<String, usize>,
        table: toml::Table,
    ) -> Self {
        Self { path: path.into(), line, lines, left: table, known: Vec::new() }
    }

    /// An option, where it is set.
    ///
    /// # Errors
    /// A value of another type.
    pub fn get<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        self.known.push(key.into());
        let Some(value) = self.left.remove(key) else { return Ok(None) };
        let told = value.to_string();
        value.try_into().map(Some).map_err(|error: toml::de::Error| {
            let message = error.message().replace('\n', " ");
            self.wrong(key, &format!("{message}, in `{told}`"))
        })
    }

    /// An option, or what it is where nothing is said.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn or<T: DeserializeOwned>(&mut self, key: &str, default: T) -> Result<T> {
        Ok(self.get(key)?.unwrap_or(default))
    }

    /// An option that must be set.
    ///
    /// # Errors
    /// As [`get`](Self::get), and where it is not.
    pub fn need<T: DeserializeOwned>(&mut self, key: &str) -> Result<T> {
        self.get(key)?.ok_or_else(|| {
            Error::config(format!("expected the key `{key}`, got none")).at(&self.path, self.line)
        })
    }

    /// A number in a range, or what it is where nothing is said.
    ///
    /// # Errors
    /// As [`get`](Self::get), and where it lies outside.
    pub fn within<T>(
        &mut self,
        key: &str,
        default: T,
        range: std::ops::RangeInclusive<T>,
    ) -> Result<T>
    where
        T: DeserializeOwned + PartialOrd + std::fmt::Display,
    {
        let value = self.or(key, default)?;
        match range.contains(&value) {
            true => Ok(value),
            false => {
                let (least, most) = range.into_inner();
                let expected = format!("expected {least} to {most}, got `{value}`");
                Err(self.wrong(key, &expected))
            }
        }
    }

    /// An error about the value of `key`.
    pub fn wrong(&self, key: &str, why: &str) -> Error {
        let line = self.lines.get(key).copied().unwrap_or(self.line);
        Error::config(format!("`{key}`: {why}")).at(&self.path, line)
    }

    /// An error about the whole table.
    pub fn fault(&self, why: impl Into<String>) -> Error {
        Error::config(why).at(&self.path, self.line)
    }

    /// An error of a step that reads its own options, at the line of the key that it names first.
    pub fn about(&self, kind: &str, error: &Error) -> Error {
        let key = error.message().split('`').nth(1).and_then(|key| key.split('.').next());
        let line = key.and_then(|key| self.lines.get(key)).copied().unwrap_or(self.line);
        let told = Error::config(format!("{kind}: {}", error.message())).at(&self.path, line);
        error.remedy().map(str::to_string).into_iter().fold(told, Error::hint)
    }

    /// What is left, for a step that reads its own options.
    pub fn take_rest(&mut self) -> toml::Table {
        std::mem::take(&mut self.left)
    }

    /// Refuses what nothing asked for.
    ///
    /// # Errors
    /// The first key that is left, with the nearest that is known.
    pub fn finish(self) -> Result<()> {
        let Some(unknown) = self.left.keys().next() else { return Ok(()) };
        let line = self.lines.get(unknown).copied().unwrap_or(self.line);
        let error = Error::config(format!("no key is called `{unknown}`")).at(&self.path, line);
        let known: Vec<&str> = self.known.iter().map(String::as_str).collect();
        Err(with_nearest(error, unknown, &known))
    }
}

/// Adds the name nearest to `unknown` as a hint; all of them where none is near.
pub(super) fn with_nearest(error: Error, unknown: &str, names: &[&str]) -> Error {
    let nearest = names.iter().min_by_key(|name| edits(unknown, name));
    match nearest.filter(|name| edits(unknown, name) <= name.len().div_ceil(3)) {
        Some(name) => error.hint(format!("did you mean `{name}`?")),
        None if names.is_empty() => error,
        None => error.hint(format!("there are: {}", names.join(", "))),
    }
}

/// Levenshtein's distance: letters to add, take away or change.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
