//! What a row of a benchmark asks.

use halter_core::data::record::Turn;
use serde_json::{Map, Value};

/// A row of a data set as it was read.
pub type Row = Map<String, Value>;

/// Which of several texts follows a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Stands once before the examples and the context; mostly empty.
    pub description: String,
    /// What the choices continue, after a space.
    pub context: String,
    /// The texts; at least one, none empty.
    pub choices: Vec<String>,
    /// The right one.
    pub gold: usize,
}

/// A prompt that the model completes.
#[derive(Debug, Clone, PartialEq)]
pub struct Open {
    /// A text to go on from, or a conversation.
    pub prompt: Turn,
    /// What a user asks in a conversation, where that is not the text of the prompt.
    pub instruction: Option<String>,
    /// The right answer, where the row has one.
    pub target: Option<String>,
}

impl Choice {
    /// The row with its answer, as an example for others.
    pub fn shown(&self) -> String {
        format!("{} {}", self.context, self.choices[self.gold])
    }
}

impl Open {
    /// The row with its answer, as an example for others; `None` where it cannot be one.
    pub fn shown(&self) -> Option<String> {
        match (&self.prompt, &self.instruction, &self.target) {
            (Turn::Text(text), None, Some(target)) => Some(format!("{text} {target}")),
            _ => None,
        }
    }
}
