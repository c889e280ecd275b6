//! Prompts of a task as rows that `halter sample` completes and scores.

use halter_core::data::dataset::{DataOptions, Dataset};
use halter_core::data::format::Format;
use halter_core::data::reader::DataFile;
use halter_core::data::record::{Message, Turn};
use halter_core::data::rows::Rows;
use halter_core::generate::Generator;
use halter_core::generate::engine::EngineOptions;
use halter_core::generate::output::line;
use halter_core::{Error, Result};
use serde_json::Value;

use crate::question::{Open, Row};
use crate::task::Task;

/// The rows of a task with what is asked: a conversation in `messages` where `chat` says so, else a
/// `text` to go on from. The right answer is in `answer`. Every prompt is checked.
///
/// # Errors
/// A conversation where there are to be none, or one that the model cannot be asked; with its place.
pub fn rows(
    task: &Task,
    questions: &[Open],
    chat: bool,
    generator: &Generator,
    engine: &EngineOptions,
) -> Result<Rows> {
    let mut text = Vec::new();
    for (at, question) in questions.iter().enumerate() {
        let mut row = task.set.row(at)?;
        ask(&mut row, question, chat).map_err(|error| located(error, task, at))?;
        text.extend(line(&row)?);
    }
    let file = DataFile::from_jsonl(task.set.name(), text)?;
    let format = if chat { Format::Messages } else { Format::Text };
    let options = DataOptions { format: Some(format), ..DataOptions::default() };
    let set = Dataset::from_files(task.set.name(), vec![file], &options)?;
    for at in 0..set.len() {
        let fits = || {
            let (_, prompt) = generator.record_prompt(&set.record(at)?)?;
            generator.room_after(prompt.len(), engine)
        };
        fits().map_err(|error| located(error, task, at))?;
    }
    Ok(Rows::from(vec![set]))
}

fn ask(row: &mut Row, question: &Open, chat: bool) -> Result<()> {
    if let Some(target) = &question.target {
        row.insert("answer".into(), target.as_str().into());
    }
    match &question.prompt {
        Turn::Messages(messages) if chat => {
            // It stands among the messages.
            row.shift_remove("system");
            row.insert("messages".into(), as_json(messages));
        }
        Turn::Messages(_) => {
            return Err(Error::data(
                "the row is a conversation: expected a model with a chat template",
            )
            .hint("leave out `--no-chat-template`, or give one with `--chat-template`"));
        }
        Turn::Text(text) if chat => {
            let asked = question.instruction.as_ref().unwrap_or(text);
            row.insert("messages".into(), as_json(&[Message::new("user", asked)]));
        }
        Turn::Text(text) => {
            row.insert("text".into(), text.as_str().into());
        }
    }
    Ok(())
}

fn as_json(messages: &[Message]) -> Value {
    messages.iter().map(|Message(map)| Value::Object(map.clone())).collect()
}

fn located(error: Error, task: &Task, row: usize) -> Error {
    let origin = task.set.origin(row);
    error.at(&*origin.path, origin.line)
}
