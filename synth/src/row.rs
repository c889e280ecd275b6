//! A row on its way through a pipeline.

use halter_core::data::record::Message;
use serde_json::{Map, Value, json};

/// A line of a step's file: the columns of a data set (`messages`, or `prompt` and `completion`, or
/// `prompt`, `chosen` and `rejected`, or `text`), others that steps add (`score`, `tags`), and
/// `provenance`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Row(pub Map<String, Value>);

impl Row {
    /// A conversation.
    pub fn chat(messages: &[Message]) -> Self {
        let turns = messages.iter().map(|message| Value::Object(message.0.clone())).collect();
        Self(Map::from_iter([("messages".to_string(), Value::Array(turns))]))
    }

    /// What the row is known by in reports and as a parent: a hash of its columns without
    /// `provenance`, in the order of their names.
    pub fn id(&self) -> String {
        let columns = self.0.iter().filter(|(name, _)| *name != "provenance");
        let mut columns: Vec<_> = columns.collect();
        columns.sort_unstable_by_key(|(name, _)| *name);
        let hash = blake3::hash(json!(columns).to_string().as_bytes());
        hash.to_hex()[..16].to_string()
    }

    /// The conversation, where the row is one.
    pub fn messages(&self) -> Option<Vec<Message>> {
        let turns = self.0.get("messages")?.as_array()?;
        turns.iter().map(|turn| Some(Message(turn.as_object()?.clone()))).collect()
    }

    /// A column of text.
    pub fn text(&self, column: &str) -> Option<&str> {
        self.0.get(column)?.as_str()
    }

    /// Sets a column.
    pub fn set(&mut self, column: &str, value: impl Into<Value>) {
        self.0.insert(column.into(), value.into());
    }

    /// Adds to the newest entry of the provenance, where there is one.
    pub fn note(&mut self, part: &str, value: Value) {
        let entries = self.0.get_mut("provenance").and_then(Value::as_array_mut);
        if let Some(Value::Object(entry)) = entries.and_then(|entries| entries.last_mut()) {
            entry.insert(part.into(), value);
        }
    }
}
