//! The formats of a data set: how they are told apart, named and described.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::parse::value::{excerpt, present};
use crate::{Error, Result};

/// What the rows of a data set look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// OpenAI's `messages` with `role` and `content`, perhaps `tool_calls` and a `tools` column.
    Messages,
    /// ShareGPT's `conversations` with `from` and `value`, perhaps `system` and `tools` columns.
    ShareGpt,
    /// `instruction`, `input`, `output`, perhaps `system` and `history`.
    Alpaca,
    /// `prompt` and `completion`: text or messages.
    PromptCompletion,
    /// `prompt` alone: text or messages, to be completed.
    Prompt,
    /// `text`, every token trained.
    Text,
    /// `chosen` and `rejected`, with a prompt of their own or one that both begin with.
    Preference,
    /// `prompt` and `completions`, best first.
    Ranked,
    /// `prompt`, `completion`, `label` (or a conversation with `label` or `kto_tag`).
    Unpaired,
    /// `input_ids`, perhaps `completion_mask` (or `labels` with −100).
    Tokenized,
    /// `prompt_ids`, `chosen_ids`, `rejected_ids`.
    TokenizedPreference,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 11] = [
        Self::Messages,
        Self::ShareGpt,
        Self::Alpaca,
        Self::PromptCompletion,
        Self::Prompt,
        Self::Text,
        Self::Preference,
        Self::Ranked,
        Self::Unpaired,
        Self::Tokenized,
        Self::TokenizedPreference,
    ];

    /// The name that [`FromStr`] reads.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::ShareGpt => "sharegpt",
            Self::Alpaca => "alpaca",
            Self::PromptCompletion => "prompt-completion",
            Self::Prompt => "prompt",
            Self::Text => "text",
            Self::Preference => "preference",
            Self::Ranked => "ranked",
            Self::Unpaired => "unpaired",
            Self::Tokenized => "tokenized",
            Self::TokenizedPreference => "tokenized-preference",
        }
    }

    /// What a row of the format holds, for people.
    pub fn description(self) -> &'static str {
        match self {
            Self::Messages => "conversations in `messages` with `role` and `content`",
            Self::ShareGpt => "conversations in `conversations` with `from` and `value`",
            Self::Alpaca => "`instruction`, `input` and `output`",
            Self::PromptCompletion => "`prompt` and `completion`",
            Self::Prompt => "`prompt` alone, to be completed",
            Self::Text => "plain `text`, every token trained",
            Self::Preference => "preference pairs, `chosen` over `rejected`",
            Self::Ranked => "`prompt` and `completions`, best first",
            Self::Unpaired => "a completion with a `label`, wanted or not",
            Self::Tokenized => "tokens in `input_ids`, trained by `completion_mask`",
            Self::TokenizedPreference => "tokens in `prompt_ids`, `chosen_ids` and `rejected_ids`",
        }
    }

    /// The format that one row's columns speak for, or `None`. Columns that are null count as
    /// missing. The most particular format wins: a `chosen` beside a `prompt` is a preference.
    pub fn of_row(row: &Map<String, Value>) -> Option<Self> {
        let has = |column: &str| present(row, column).is_some();
        let conversation = ["conversations", "conversation", "messages"]
            .into_iter()
            .find(|column| matches!(present(row, column), Some(Value::Array(_))));
        if has("prompt_ids") || (has("chosen_ids") && has("rejected_ids")) {
            return Some(Self::TokenizedPreference);
        }
        if has("input_ids") {
            return Some(Self::Tokenized);
        }
        if (has("chosen") && has("rejected"))
            || (has("chosen_messages") && has("rejected_messages"))
        {
            return Some(Self::Preference);
        }
        let answered = conversation.is_some()
            || (has("prompt") && has("completion"))
            || (has("instruction") && has("output"));
        if answered && (has("kto_tag") || present(row, "label").is_some_and(is_verdict)) {
            return Some(Self::Unpaired);
        }
        if has("prompt") && matches!(present(row, "completions"), Some(Value::Array(_))) {
            return Some(Self::Ranked);
        }
        if let Some(column) = conversation {
            let first = present(row, column).and_then(|turns| turns.get(0));
            let sharegpt = first.is_some_and(|turn| turn.get("from").is_some());
            let plain = column == "messages" && !sharegpt;
            return Some(if plain { Self::Messages } else { Self::ShareGpt });
        }
        if has("prompt") && has("completion") {
            return Some(Self::PromptCompletion);
        }
        if has("instruction") && has("output") {
            return Some(Self::Alpaca);
        }
        if has("text") {
            return Some(Self::Text);
        }
        // Not an array: reading it says so.
        if has("messages") {
            return Some(Self::Messages);
        }
        // Beside another column it may be half of a pair that has to be renamed.
        let others = ["completion", "chosen", "rejected", "completions"];
        let is_alone = !others.iter().any(|column| row.contains_key(*column));
        (has("prompt") && is_alone).then_some(Self::Prompt)
    }

    /// The format of a row, or an error that lists its columns.
    ///
    /// # Errors
    /// If the columns are those of no format.
    pub fn detect(row: &Map<String, Value>) -> Result<Self> {
        Self::of_row(row).ok_or_else(|| {
            let columns: Vec<_> = row.iter().map(column).collect();
            let got = match columns.len() {
                0 => "none".to_string(),
                1..=12 => columns.join(", "),
                more => format!("{} and {} more", columns[..12].join(", "), more - 12),
            };
            Error::data(format!("expected the columns of a known format, got {got}")).hint(
                "formats are told by their columns, e.g. `messages`, `prompt` and `completion`, \
                 `chosen` and `rejected`, `text`; rename a column with `--column prompt=question`",
            )
        })
    }
}

/// A column of a row, for an error message.
fn column((name, value): (&String, &Value)) -> String {
    let null = if value.is_null() { " (null)" } else { "" };
    format!("`{}`{null}", excerpt(name))
}

/// Whether a `label` is a yes or no, rather than a class or a rating.
fn is_verdict(label: &Value) -> bool {
    matches!(label, Value::Bool(_)) || matches!(label.as_u64(), Some(0 | 1))
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wanted = text.trim().to_ascii_lowercase().replace('_', "-");
        Self::ALL.into_iter().find(|format| format.name() == wanted).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|format| format.name()).collect();
            Error::config(format!("unknown data format `{text}`"))
                .hint(format!("expected one of {}", names.join(", ")))
        })
    }
}

/// Column renames: which of a data set's own columns stands for one that a format asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    /// Pairs of wanted name and the data set's own name.
    renames: Vec<(String, String)>,
}

impl Columns {
    /// Reads renames of the form `prompt=question`.
    ///
    /// # Errors
    /// If one has no `=`, an empty side, or names a target twice.
    pub fn parse<S: AsRef<str>>(renames: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut columns = Self::default();
        for rename in renames {
            let rename = rename.as_ref();
            let (wanted, own) = rename
                .split_once('=')
                .map(|(wanted, own)| (wanted.trim(), own.trim()))
                .filter(|(wanted, own)| !wanted.is_empty() && !own.is_empty())
                .ok_or_else(|| {
                    Error::config(format!("expected `wanted=own` for a column, got `{rename}`"))
                        .hint("for example `--column prompt=question`")
                })?;
            if columns.renames.iter().any(|(before, _)| before == wanted) {
                return Err(Error::config(format!("column `{wanted}` is renamed twice")));
            }
            columns.renames.push((wanted.to_string(), own.to_string()));
        }
        Ok(columns)
    }

    /// The names of the data set's own columns that are asked for.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.renames.iter().map(|(_, own)| own.as_str())
    }

    /// Renames the columns of one row. A column that the row lacks is left out.
    pub fn apply(&self, row: &mut Map<String, Value>) {
        if self.renames.is_empty() {
            return;
        }
        // All are taken before any is put back, so that two columns can change places.
        let taken: Vec<_> =
            self.renames.iter().map(|(wanted, own)| (wanted, row.get(own).cloned())).collect();
        for (_, own) in &self.renames {
            row.shift_remove(own);
        }
        for (wanted, value) in taken {
            if let Some(value) = value {
                row.insert(wanted.clone(), value);
            }
        }
    }
}
