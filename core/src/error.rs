//! The one error type of the library crates: what went wrong, where, and what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result of every fallible function in halter's libraries.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an error is about, so that a program can tell kinds apart without reading messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A configuration value, flag or recipe key that cannot be used.
    Config,
    /// A data file or row.
    Data,
    /// A model's configuration or weights.
    Model,
    /// A tokenizer or chat template.
    Text,
    /// The file system.
    Io,
    /// A value that is not finite, or a gate of the training run that refused to go on.
    Numeric,
    /// More memory wanted than there is.
    Memory,
    /// A hub or another server.
    Network,
    /// The run was interrupted and can be resumed.
    Interrupted,
    /// A tensor operation failed: a defect in halter, or a device out of memory.
    Tensor,
}

/// A place in a file; lines count from one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file.
    pub path: PathBuf,
    /// Line or row number, where there is one.
    pub line: Option<usize>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.path.display()),
            None => write!(f, "{}", self.path.display()),
        }
    }
}

/// An error with its kind, its place and, where there is a remedy, a hint.
///
/// `Display` gives `path:line: message` on one line; the hint is kept apart so that a program can
/// print it on a line of its own.
#[derive(Debug)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    at: Option<Location>,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind`. `message` is in lower case, without a full stop, values in backticks.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                message: message.into(),
                at: None,
                hint: None,
                source: None,
            }),
        }
    }

    /// A configuration error.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// A data error.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Data, message)
    }

    /// An error in a model's configuration or weights.
    pub fn model(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Model, message)
    }

    /// An error in a tokenizer or template.
    pub fn text(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Text, message)
    }

    /// A file system error at `path`; `doing` says what was tried, e.g. `"read"`.
    pub fn io(doing: &str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, format!("cannot {doing}: {source}")).in_file(path)
    }

    /// Adds the file and the line (from one).
    #[must_use]
    pub fn at(mut self, path: impl AsRef<Path>, line: usize) -> Self {
        self.inner.at = Some(Location { path: path.as_ref().to_path_buf(), line: Some(line) });
        self
    }

    /// Adds the file.
    #[must_use]
    pub fn in_file(mut self, path: impl AsRef<Path>) -> Self {
        self.inner.at = Some(Location { path: path.as_ref().to_path_buf(), line: None });
        self
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.inner.hint = Some(hint.into());
        self
    }

    /// Adds the error underneath.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// What the error is about.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The message without its place.
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// Where it happened.
    pub fn location(&self) -> Option<&Location> {
        self.inner.at.as_ref()
    }

    /// The remedy, if there is one.
    pub fn remedy(&self) -> Option<&str> {
        self.inner.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inner.at {
            Some(at) => write!(f, "{at}: {}", self.inner.message),
            None => f.write_str(&self.inner.message),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_deref().map(|source| source as _)
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::new(ErrorKind::Tensor, "a tensor operation failed").because(error)
    }
}
