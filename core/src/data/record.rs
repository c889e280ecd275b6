//! What a data set holds, whatever its file looked like.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

/// One turn of a conversation: the JSON object as it was read (`role`, `content`, perhaps
/// `tool_calls`, `name`, …), so that a template sees everything the row said.
#[derive(Debug, Clone, PartialEq)]
pub struct Message(pub Map<String, Value>);

impl Message {
    /// A message of plain text.
    pub fn new(role: &str, content: &str) -> Self {
        let mut map = Map::new();
        map.insert("role".into(), role.into());
        map.insert("content".into(), content.into());
        Self(map)
    }

    /// Who speaks: `system`, `user`, `assistant`, `tool`, …
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// The text, where the content is a string.
    pub fn content(&self) -> Option<&str> {
        self.0.get("content").and_then(Value::as_str)
    }

    /// What the row says of training on this turn, and the key that says it: OpenAI's `weight`, or
    /// `train`.
    pub fn training(&self) -> Option<(&'static str, &Value)> {
        let said = |key| Some((key, self.0.get(key).filter(|value| !value.is_null())?));
        said("weight").or_else(|| said("train"))
    }

    /// Whether the row says that this turn is trained (1, true) or not (0, false); `None` where it
    /// says neither.
    pub fn is_trained(&self) -> Option<bool> {
        let (_, value) = self.training()?;
        match value.as_f64() {
            Some(0.0) => Some(false),
            Some(1.0) => Some(true),
            _ => value.as_bool(),
        }
    }
}

/// A prompt or a completion: text, or messages that the chat template renders.
#[derive(Debug, Clone, PartialEq)]
pub enum Turn {
    /// Plain text, no template.
    Text(String),
    /// Messages.
    Messages(Vec<Message>),
}

impl Turn {
    /// As [`Self::to_json`] gave it. What is neither a text nor a list is no messages.
    pub fn from_json(value: &Value) -> Self {
        match value {
            Value::String(text) => Self::Text(text.clone()),
            messages => {
                let messages = messages.as_array().into_iter().flatten();
                Self::Messages(
                    messages.filter_map(Value::as_object).cloned().map(Message).collect(),
                )
            }
        }
    }

    /// A text, or a list of messages.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Text(text) => text.as_str().into(),
            Self::Messages(messages) => {
                messages.iter().map(|Message(map)| Value::Object(map.clone())).collect()
            }
        }
    }
}

/// What a row says of a comparison beyond its order, as it was read: only some methods look at it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Comparison {
    /// The column `strength`.
    pub strength: Option<Value>,
    /// The column `margin`.
    pub margin: Option<Value>,
}

impl Comparison {
    /// That of a row.
    pub fn of(row: &Map<String, Value>) -> Self {
        let column = |name: &str| row.get(name).filter(|value| !value.is_null()).cloned();
        Self { strength: column("strength"), margin: column("margin") }
    }
}

/// One row of a data set, normalised.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A conversation (`messages`, ShareGPT, Alpaca).
    Chat {
        /// The turns.
        messages: Vec<Message>,
        /// Tool declarations (JSON schemas) for the template.
        tools: Option<Vec<Value>>,
    },
    /// A prompt and what should follow it.
    PromptCompletion {
        /// Not trained.
        prompt: Turn,
        /// Trained.
        completion: Turn,
        /// Tool declarations.
        tools: Option<Vec<Value>>,
    },
    /// A prompt alone, to be completed.
    Prompt {
        /// What is asked.
        prompt: Turn,
        /// Tool declarations.
        tools: Option<Vec<Value>>,
    },
    /// Text, every token trained (pre-training).
    Text {
        /// The text.
        text: String,
    },
    /// Two completions of one prompt. `prompt` is `None` where it is implicit in both.
    Preference {
        /// What was asked.
        prompt: Option<Turn>,
        /// The better completion.
        chosen: Turn,
        /// The worse completion.
        rejected: Turn,
        /// How much better.
        comparison: Comparison,
    },
    /// Several completions of one prompt, best first.
    Ranked {
        /// What was asked.
        prompt: Turn,
        /// Best first; two or more.
        completions: Vec<Turn>,
        /// How much better each is than the next.
        comparison: Comparison,
    },
    /// A completion with a verdict (KTO).
    Unpaired {
        /// What was asked.
        prompt: Turn,
        /// What was answered.
        completion: Turn,
        /// Wanted or not.
        label: bool,
    },
    /// A row already tokenized.
    Tokenized {
        /// Tokens.
        input_ids: Vec<u32>,
        /// `true` where the token is trained; all of them where the row had no mask.
        completion_mask: Vec<bool>,
    },
    /// A preference pair already tokenized.
    TokenizedPreference {
        /// Prompt tokens.
        prompt_ids: Vec<u32>,
        /// Tokens of the better completion.
        chosen_ids: Vec<u32>,
        /// Tokens of the worse completion.
        rejected_ids: Vec<u32>,
        /// How much better.
        comparison: Comparison,
    },
}

/// Where a row came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// File, or name of the data set.
    pub path: Arc<PathBuf>,
    /// Line (JSONL) or row (Parquet, JSON array), from one.
    pub line: usize,
}

/// A row ready to be trained on: tokens, and which of them are trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Where it came from.
    pub origin: Origin,
    /// Tokens.
    pub input_ids: Vec<u32>,
    /// Same length; `true` where the token is trained (predicted from those before it).
    pub completion_mask: Vec<bool>,
    /// Whether the tokens before every trained part are those that generation would be given.
    pub prompt_is_prefix: bool,
}
