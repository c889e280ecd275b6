//! Every kind of wrong input, each with the whole text of its error.

mod configs;
mod ggufs;
mod models;
mod safetensors;

use std::fmt::Write;
use std::path::Path;

use halter_core::{Error, Result};

/// A table of errors, one paragraph each.
pub struct Table {
    dir: tempfile::TempDir,
    text: String,
    count: usize,
}

impl Table {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), text: String::new(), count: 0 }
    }

    /// A new directory for one case.
    pub fn dir(&self) -> tempfile::TempDir {
        tempfile::Builder::new().prefix("case").tempdir_in(&self.dir).unwrap()
    }

    /// Adds a case: `result` must be an error.
    pub fn case<T>(&mut self, name: &str, dir: Option<&Path>, result: Result<T>) {
        let error = match result {
            Ok(_) => panic!("`{name}` was accepted"),
            Err(error) => error,
        };
        let text = whole(&error);
        let text = match dir {
            Some(dir) => text.replace(dir.to_str().unwrap(), "[dir]"),
            None => text,
        };
        assert!(!text.contains(self.dir.path().to_str().unwrap()), "{text}");
        writeln!(self.text, "{name}\n    {}", text.replace('\n', "\n    ")).unwrap();
        self.count += 1;
    }

    /// The table, and how many cases it has at least.
    pub fn finish(self, at_least: usize) -> String {
        assert!(self.count >= at_least, "only {} cases", self.count);
        self.text
    }
}

/// What a user sees: message, causes, hint.
fn whole(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        write!(text, "\nbecause: {error}").unwrap();
        cause = error.source();
    }
    if let Some(hint) = error.remedy() {
        write!(text, "\nhint: {hint}").unwrap();
    }
    text
}
