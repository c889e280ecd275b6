//! What is written of a prompt.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use halter_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A prompt with its completions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Number of the row.
    pub row: u64,
    /// The row's `id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    /// Text or messages.
    pub prompt: Value,
    /// Tools of the conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<Value>>,
    /// Why the row was not completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// In the order in which they were asked for.
    pub completions: Vec<Scored>,
}

/// A completion with its score.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// The text, without what ended it.
    pub text: String,
    /// `stop`, or `length` where it was cut off.
    pub finish_reason: String,
    /// Tokens, the one that ended it included.
    pub num_tokens: usize,
    /// Log-prob of the whole under the model.
    pub logps: f64,
    /// Temperature that it was drawn with.
    pub temperature: f32,
    /// System prompt that it was drawn with, where one was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Its score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// What the scorer says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Why it has no score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Scored {
    /// Whether a stop token or string ended it.
    pub fn has_ended(&self) -> bool {
        self.finish_reason == "stop"
    }

    /// Its score; not a number where it has none.
    pub fn value(&self) -> f64 {
        self.score.unwrap_or(f64::NAN)
    }
}

/// Hands the lines of `path` to `each`.
///
/// # Errors
/// A file that cannot be read, a line that is not one, or what `each` says.
pub fn read_lines(path: &Path, mut each: impl FnMut(Line) -> Result<()>) -> Result<()> {
    let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    for (number, text) in BufReader::new(file).lines().enumerate() {
        let text = text.map_err(|error| Error::io("read", path, error))?;
        let line = serde_json::from_str(&text).map_err(|error| {
            Error::data(format!("not a line of completions: {error}")).at(path, number + 1)
        })?;
        each(line)?;
    }
    Ok(())
}
