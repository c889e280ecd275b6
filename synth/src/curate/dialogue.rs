//! What a row says, whatever its columns are called.

use halter_core::Result;
use halter_core::data::format::Format;
use halter_core::data::parse::parse;
use halter_core::data::record::{Message, Record, Turn};
use serde::Deserialize;

use crate::row::Row;

/// Something said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// `system`, `user`, `assistant`, `tool`; plain prompts count as the user's, plain completions
    /// and texts as the assistant's.
    pub role: String,
    /// The text; empty where there is none.
    pub text: String,
    /// Whether tools are called.
    pub calls: bool,
}

/// Which part of a row is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Everything but the system's instructions.
    #[default]
    All,
    /// What is not the assistant's.
    Prompt,
    /// What is the assistant's.
    Answer,
}

/// The turns of a row. Of a comparison, those of the prompt and of the better completion.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dialogue {
    /// In the row's order.
    pub turns: Vec<Said>,
}

impl Dialogue {
    /// The turns of a row of a pipeline.
    ///
    /// # Errors
    /// A row whose columns are those of no format, or that does not hold what they promise.
    pub fn of(row: &Row) -> Result<Self> {
        let format = Format::detect(&row.0)?;
        Ok(Self::of_record(&parse(format, row.0.clone())?))
    }

    /// The turns of a record; none of tokens.
    pub fn of_record(record: &Record) -> Self {
        let mut turns = Vec::new();
        match record {
            Record::Chat { messages, .. } => add_messages(&mut turns, messages),
            Record::PromptCompletion { prompt, completion, .. }
            | Record::Unpaired { prompt, completion, .. } => {
                add(&mut turns, "user", prompt);
                add(&mut turns, "assistant", completion);
            }
            Record::Prompt { prompt, .. } => add(&mut turns, "user", prompt),
            Record::Text { text } => turns.push(Said::plain("assistant", text)),
            Record::Preference { prompt, chosen, .. } => {
                prompt.iter().for_each(|prompt| add(&mut turns, "user", prompt));
                add(&mut turns, "assistant", chosen);
            }
            Record::Ranked { prompt, completions, .. } => {
                add(&mut turns, "user", prompt);
                completions.first().into_iter().for_each(|best| add(&mut turns, "assistant", best));
            }
            Record::Tokenized { .. } | Record::TokenizedPreference { .. } => {}
        }
        Self { turns }
    }

    /// The text of a part of it, turns on lines of their own.
    pub fn text(&self, part: Part) -> String {
        let wanted = |said: &&Said| match part {
            Part::All => said.role != "system",
            Part::Prompt => said.role != "system" && said.role != "assistant",
            Part::Answer => said.role == "assistant",
        };
        let texts = self.turns.iter().filter(wanted).map(|said| said.text.as_str());
        texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n")
    }

    /// Each of the assistant's turns with the last thing said to it before.
    pub fn answers(&self) -> impl Iterator<Item = (Option<&Said>, &Said)> {
        let mut asked = None;
        self.turns.iter().filter_map(move |said| match said.role.as_str() {
            "assistant" => Some((asked, said)),
            "system" => None,
            _ => {
                asked = Some(said);
                None
            }
        })
    }

    /// The dialogue as a teacher is shown it: each turn under its role.
    pub fn shown(&self) -> String {
        let turn = |said: &Said| format!("[{}]\n{}", said.role, said.text);
        self.turns.iter().map(turn).collect::<Vec<_>>().join("\n\n")
    }
}

impl Said {
    fn plain(role: &str, text: &str) -> Self {
        Self { role: role.to_string(), text: text.to_string(), calls: false }
    }
}

fn add(turns: &mut Vec<Said>, role: &str, turn: &Turn) {
    match turn {
        Turn::Text(text) => turns.push(Said::plain(role, text)),
        Turn::Messages(messages) => add_messages(turns, messages),
    }
}

fn add_messages(turns: &mut Vec<Said>, messages: &[Message]) {
    turns.extend(messages.iter().map(|message| {
        Said {
            role: message.role().to_string(),
            text: message.content().unwrap_or_default().to_string(),
            calls: message
                .0
                .get("tool_calls")
                .and_then(|calls| calls.as_array())
                .is_some_and(|calls| !calls.is_empty()),
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialogue(row: &str) -> Dialogue {
        Dialogue::of(&Row(serde_json::from_str(row).unwrap())).unwrap()
    }

    #[test]
    fn every_format_has_a_prompt_and_an_answer() {
        let rows = [
            r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
            r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#,
            r#"{"instruction": "q", "output": "a"}"#,
            r#"{"prompt": "q", "completion": "a"}"#,
            r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#,
            r#"{"prompt": "q", "completions": ["a", "b"]}"#,
        ];
        for row in rows {
            let dialogue = dialogue(row);
            assert_eq!(dialogue.text(Part::Prompt), "q", "{row}");
            assert_eq!(dialogue.text(Part::Answer), "a", "{row}");
            assert_eq!(dialogue.text(Part::All), "q\na", "{row}");
        }
        assert_eq!(dialogue(r#"{"text": "a"}"#).text(Part::All), "a");
        assert_eq!(dialogue(r#"{"prompt": "q"}"#).answers().count(), 0);
        assert!(Dialogue::of(&Row(serde_json::from_str("{\"x\": 1}").unwrap())).is_err());
    }

    #[test]
    fn answers_come_with_what_was_asked_last() {
        let dialogue = dialogue(
            r#"{"messages": [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"},
                {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}]}"#,
        );
        let pairs: Vec<_> = dialogue
            .answers()
            .map(|(asked, said)| (asked.unwrap().text.as_str(), said.text.as_str()))
            .collect();
        assert_eq!(pairs, [("q1", "a1"), ("q2", "a2")]);
        assert_eq!(
            dialogue.shown(),
            "[user]\nq1\n\n[assistant]\na1\n\n[user]\nq2\n\n[assistant]\na2"
        );
    }
}
