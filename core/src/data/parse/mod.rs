//! From the JSON object of a row to a [`Record`].
//!
//! The errors here say what is wrong with the row; the caller adds where it is.

mod chat;
mod preference;
mod prompt;
mod tokenized;
pub mod value;

#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use super::format::Format;
use super::record::Record;
use crate::{Error, Result};

/// Reads one row of a data set of `format`.
///
/// What is made alike on the way, so that a chat template sees one shape:
/// - keys of a message that are null are left out (Parquet fills them in);
/// - content given as parts is joined where every part is text, and refused otherwise;
/// - `tool_calls` whose arguments are JSON in a string get them as an object, or a template's
///   `tojson` would quote them twice;
/// - ShareGPT's speakers become roles, its `function_call` a message with `tool_calls`;
/// - Alpaca's `input` follows the `instruction` on a new line.
///
/// # Errors
/// If the row does not have what the format asks for; the message names the column, what was
/// expected and what was there.
pub fn parse(format: Format, row: Map<String, Value>) -> Result<Record> {
    let read = match format {
        Format::Messages | Format::ShareGpt => chat::conversation(&row, format),
        Format::Alpaca => chat::alpaca(&row),
        Format::PromptCompletion => prompt::prompt_completion(&row),
        Format::Prompt => prompt::alone(&row),
        Format::Text => text(&row),
        Format::Preference => preference::preference(&row),
        Format::Ranked => preference::ranked(&row),
        Format::Unpaired => preference::unpaired(&row),
        Format::Tokenized => tokenized::tokenized(&row),
        Format::TokenizedPreference => tokenized::tokenized_preference(&row),
    };
    // A row of another format is the likeliest reason: say so where the row has no remedy of its
    // own.
    read.map_err(|error| match Format::of_row(&row) {
        Some(other) if other != format && error.remedy().is_none() => error
            .hint(format!("the data set is read as `{format}`, but this row looks like `{other}`")),
        _ => error,
    })
}

fn text(row: &Map<String, Value>) -> Result<Record> {
    match value::string(row, "text")? {
        "" => Err(Error::data("`text` is empty")),
        text => Ok(Record::Text { text: text.to_string() }),
    }
}
