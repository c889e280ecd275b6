//! Dialogues in which an assistant calls tools ("The Llama 3 Herd of Models", section 4.3.5): one
//! teacher is the user, one the assistant, one the tools.

mod call;
mod declared;

use std::path::PathBuf;
use std::sync::Arc;

use halter_core::Result;
use halter_core::data::record::Message;
use halter_core::endpoint::{Answer, Question};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde_json::{Value, json};

use super::asking::{Asking, excerpt, remove, said, whole};
use super::template::Template;
use super::{Made, Questions, number, reply};
use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Outcome, Run, Step};
use call::Said;
use declared::{Call, Tools};

const REQUEST: &str = include_str!("../../prompts/tools-request.txt");
const SYSTEM: &str = include_str!("../../prompts/tools-system.txt");
const REPAIR: &str = include_str!("../../prompts/tools-repair.txt");
const RESULT: &str = include_str!("../../prompts/tools-result.txt");

/// How the assistant is told of the tools and of its own calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Style {
    /// By the server or the chat template.
    #[default]
    Native,
    /// In plain text.
    Text,
}

/// Has requests written, calls made, and results simulated.
#[derive(Debug)]
pub(super) struct UseTools {
    assistant: Asking,
    user: Asking,
    simulator: Asking,
    tools: Option<Arc<Tools>>,
    count: usize,
    needed: usize,
    steps: usize,
    repairs: usize,
    style: Style,
    request: Template,
    system: Template,
    repair: Template,
    result: Template,
}

impl UseTools {
    pub fn made(options: &mut Options, teachers: &[&str]) -> Result<Made> {
        let assistant = Asking::read(options, teachers, 0.7)?;
        let mut names = vec![assistant.teacher.clone()];
        let mut other = |options: &mut Options, key: &str| -> Result<Asking> {
            let name = options.or(key, assistant.teacher.clone())?;
            if !names.contains(&name) {
                names.push(name.clone());
            }
            Ok(assistant.of(&name))
        };
        let (user, simulator) = (other(options, "user")?, other(options, "simulator")?);
        let (tools, file): (_, Option<PathBuf>) = Tools::read(options)?;
        let count = options.within("count", 0, 0..=10_000_000)?;
        if count > 0 && tools.is_none() {
            return Err(options.wrong("count", "expected `tools` beside it, got none"));
        }
        // A request, a call, its result and the answer.
        let questions = match count {
            0 => Questions::PerRow(3),
            count => Questions::Fixed(4 * count),
        };
        let step = Self {
            user,
            simulator,
            tools: tools.map(Arc::new),
            count,
            needed: options.within("needed", 1, 1..=16)?,
            steps: options.within("steps", 4, 1..=100)?,
            repairs: options.within("repairs", 2, 0..=100)?,
            style: options.or("style", Style::default())?,
            request: Template::read(options, "request_prompt", REQUEST)?,
            system: Template::read(options, "system_prompt", SYSTEM)?,
            repair: Template::read(options, "repair_prompt", REPAIR)?,
            result: Template::read(options, "result_prompt", RESULT)?,
            assistant,
        };
        Ok(Made {
            step: Box::new(step),
            teachers: names,
            files: file.into_iter().collect(),
            needs_rows: count == 0,
            questions,
        })
    }

    /// A talk for each row with tools, and for each request that is to be written beside them.
    fn begin(&self, rows: Vec<Row>, outcome: &mut Outcome) -> Vec<Talk> {
        let mut talks = Vec::new();
        let more = (0..self.count).map(|_| None);
        for row in rows.into_iter().map(Some).chain(more) {
            let is_row = row.is_some();
            let row = row.unwrap_or_default();
            let tools = match (Tools::of(&row), &self.tools) {
                (Some(Ok(tools)), _) => Arc::new(tools),
                (Some(Err(why)), _) => {
                    remove(outcome, &row, "bad tools", &why);
                    continue;
                }
                (None, Some(tools)) => Arc::clone(tools),
                (None, None) => {
                    remove(outcome, &row, "no tools", "expected a column `tools`");
                    continue;
                }
            };
            let turns = reply::prompt(&row).unwrap_or_default();
            talks.push(Talk { at: talks.len(), row, is_row, tools, turns, ..Talk::default() });
        }
        talks
    }

    /// Has the requests written that are not there.
    fn write_requests(
        &self,
        talks: Vec<Talk>,
        run: &mut Run,
        outcome: &mut Outcome,
    ) -> Result<Vec<Talk>> {
        let mut questions = Vec::new();
        for talk in talks.iter().filter(|talk| talk.turns.is_empty()) {
            let seed = number(&format!("{} {}", run.seed, talk.at));
            let mut needed = talk.tools.names();
            needed.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
            needed.truncate(self.needed);
            let text = self.request.render(&json!({
                "tools": talk.tools.declared, "needed": needed, "persona": talk.row.text("persona"),
            }))?;
            questions.push(self.user.user(&text, run.seed, format!("user {}", talk.at)));
        }
        let mut answers = self.user.ask(&questions, run, &mut outcome.figures)?.into_iter();
        let mut asked = Vec::new();
        for mut talk in talks {
            if talk.turns.is_empty() {
                let Some(answer) = answers.next() else { break };
                let Some(text) = said(answer, &talk.row, outcome) else { continue };
                talk.turns = vec![Message::new("user", reply::bare(&text))];
            }
            asked.push(talk);
        }
        Ok(asked)
    }

    /// What the assistant is shown: the talk so far, and a reply that could not be used.
    fn question(&self, talk: &Talk, seed: u64, draw: String) -> Result<Question> {
        let mut shown = talk.turns.clone();
        if self.style == Style::Text {
            shown = shown.into_iter().map(plain).collect();
            let system = self.system.render(&json!({"tools": talk.tools.declared}))?;
            let before = shown.first().filter(|turn| turn.role() == "system").cloned();
            let text = match before.as_ref().and_then(Message::content) {
                Some(before) => format!("{before}\n\n{system}"),
                None => system,
            };
            shown.splice(0..usize::from(before.is_some()), [Message::new("system", &text)]);
        }
        if let Some((said, fault)) = &talk.fault {
            let text = self.repair.render(&json!({"error": fault}))?;
            shown.push(Message::new("assistant", said));
            shown.push(Message::new("user", &text));
        }
        let mut question = self.assistant.chat(shown, seed, draw);
        if self.style == Style::Native {
            question.tools = Some(talk.tools.declared.clone());
        }
        Ok(question)
    }

    /// The next reply of each talk: calls that fit, or an answer. Others are asked for again, and in
    /// the end removed.
    fn advance(
        &self,
        mut talks: Vec<Talk>,
        step: usize,
        run: &mut Run,
        outcome: &mut Outcome,
    ) -> Result<Vec<(Talk, Reply)>> {
        let mut done = Vec::new();
        for attempt in 0..=self.repairs {
            let questions: Vec<_> = talks
                .iter()
                .map(|talk| self.question(talk, run.seed, format!("{} {step} {attempt}", talk.at)))
                .collect::<Result<_>>()?;
            let answers = self.assistant.ask(&questions, run, &mut outcome.figures)?;
            let mut again = Vec::new();
            for (mut talk, answer) in talks.into_iter().zip(answers) {
                let Some(message) = usable(answer, &talk.row, outcome) else { continue };
                let (calls, beside) = match call::read(&message) {
                    Said::Answer(text) => {
                        talk.fault = None;
                        done.push((talk, Reply::Answer(text)));
                        continue;
                    }
                    Said::Calls(calls, beside) => (Ok(calls), beside),
                    Said::Fault(why) => (Err(why), String::new()),
                };
                let calls = calls.and_then(|calls| {
                    match calls.iter().find_map(|call| talk.tools.fault(call)) {
                        Some(fault) => Err(fault),
                        None => Ok(calls),
                    }
                });
                match calls {
                    Ok(calls) => {
                        talk.fault = None;
                        done.push((talk, Reply::Calls(calls, beside)));
                    }
                    Err(fault) => {
                        talk.fault = Some((shown(&message), fault));
                        again.push(talk);
                    }
                }
            }
            talks = again;
            if attempt < self.repairs {
                let before = outcome.figures.get("repairs").and_then(Value::as_u64).unwrap_or(0);
                outcome.figures.insert("repairs".into(), json!(before + talks.len() as u64));
            }
        }
        for talk in talks {
            let (_, fault) = talk.fault.unwrap_or_default();
            remove(outcome, &talk.row, "bad call", &fault);
        }
        done.sort_by_key(|(talk, _)| talk.at);
        Ok(done)
    }

    /// Adds the calls and their simulated results to each talk.
    fn simulate(
        &self,
        talks: Vec<(Talk, Vec<Call>, String)>,
        run: &mut Run,
        outcome: &mut Outcome,
    ) -> Result<Vec<Talk>> {
        let mut questions = Vec::new();
        for (talk, calls, _) in &talks {
            for (at, call) in calls.iter().enumerate() {
                let text = self.result.render(&json!({
                    "tool": talk.tools.declaration(&call.name), "request": talk.request(),
                    "earlier": talk.earlier, "arguments": call.text(),
                }))?;
                let draw = format!("{} {} {at}", talk.at, talk.earlier.len());
                questions.push(self.simulator.user(&text, run.seed, draw));
            }
        }
        let mut answers = self.simulator.ask(&questions, run, &mut outcome.figures)?.into_iter();
        let mut open = Vec::new();
        for (mut talk, calls, beside) in talks {
            let answers: Vec<_> = answers.by_ref().take(calls.len()).collect();
            let mut results = Vec::new();
            for answer in answers {
                let Some(said) = said(answer, &talk.row, outcome) else { break };
                let Some(result) = reply::json(&said) else {
                    remove(outcome, &talk.row, "no result", &said);
                    break;
                };
                results.push(result.to_string());
            }
            if results.len() == calls.len() {
                talk.add(&calls, &results, &beside);
                open.push(talk);
            }
        }
        Ok(open)
    }

    fn row(&self, talk: &Talk, answer: &str, run: &Run) -> Row {
        let mut turns = talk.turns.clone();
        turns.push(Message::new("assistant", answer));
        let mut made = Row::chat(&turns);
        let asks = ["messages", "prompt", "completion", "instruction", "input", "output"];
        for (name, value) in talk.row.0.iter().filter(|(name, _)| !asks.contains(&name.as_str())) {
            made.set(name, value.clone());
        }
        made.set("tools", talk.tools.declared.clone());
        let parents: Vec<&Row> = Some(&talk.row).filter(|_| talk.is_row).into_iter().collect();
        self.assistant.sign(&mut made, "tools", run, &self.result.hash, &parents);
        if !talk.is_row {
            self.user.sign_as(&mut made, "user", run);
        }
        self.simulator.sign_as(&mut made, "simulator", run);
        made
    }
}

impl Step for UseTools {
    fn run(&self, rows: Vec<Row>, run: &mut Run) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let talks = self.begin(rows, &mut outcome);
        let mut open = self.write_requests(talks, run, &mut outcome)?;
        let (mut made, mut calls_made) = (Vec::new(), 0);
        for step in 0..=self.steps {
            let mut called = Vec::new();
            for (talk, reply) in self.advance(open, step, run, &mut outcome)? {
                match reply {
                    Reply::Answer(_) if talk.earlier.is_empty() => {
                        remove(&mut outcome, &talk.row, "no call", talk.request());
                    }
                    Reply::Answer(text) => {
                        calls_made += talk.earlier.len();
                        made.push((talk.at, self.row(&talk, &text, run)));
                    }
                    Reply::Calls(..) if step == self.steps => {
                        let detail = format!("{} without an answer", talk.earlier.len());
                        remove(&mut outcome, &talk.row, "too many calls", &detail);
                    }
                    Reply::Calls(calls, beside) => called.push((talk, calls, beside)),
                }
            }
            open = self.simulate(called, run, &mut outcome)?;
        }
        made.sort_by_key(|(at, _)| *at);
        outcome.rows = made.into_iter().map(|(_, row)| row).collect();
        outcome.figures.insert("calls".into(), json!(calls_made));
        Ok(outcome)
    }
}

/// A dialogue on its way.
#[derive(Debug, Default)]
struct Talk {
    at: usize,
    row: Row,
    /// Whether the row was there before.
    is_row: bool,
    tools: Arc<Tools>,
    turns: Vec<Message>,
    /// The last reply, where it cannot be used, and why.
    fault: Option<(String, String)>,
    /// Calls with their results.
    earlier: Vec<Value>,
}

enum Reply {
    Calls(Vec<Call>, String),
    Answer(String),
}

impl Talk {
    fn request(&self) -> &str {
        let last = self.turns.iter().rev().find(|turn| turn.role() == "user");
        last.and_then(Message::content).unwrap_or_default()
    }

    fn add(&mut self, calls: &[Call], results: &[String], beside: &str) {
        // Nine letters and digits, which is what every template takes.
        let ids: Vec<String> =
            (1..=calls.len()).map(|at| format!("call{:05}", self.earlier.len() + at)).collect();
        let native = calls.iter().zip(&ids).map(|(call, id)| call.native(id));
        let mut message = Message::new("assistant", beside);
        message.0.insert("tool_calls".into(), native.collect());
        self.turns.push(message);
        for ((call, result), id) in calls.iter().zip(results).zip(&ids) {
            let mut message = Message::new("tool", result);
            message.0.insert("name".into(), call.name.as_str().into());
            message.0.insert("tool_call_id".into(), id.as_str().into());
            self.turns.push(message);
            self.earlier
                .push(json!({"name": call.name, "arguments": call.text(), "result": result}));
        }
    }
}

/// The message of an answer that is there, is whole and says or calls something.
fn usable(answer: Result<Answer>, row: &Row, outcome: &mut Outcome) -> Option<Message> {
    match answer {
        Ok(answer) if answer.is_whole() && answer.message.0.contains_key("tool_calls") => {
            Some(answer.message)
        }
        Ok(answer) => {
            let message = answer.message.clone();
            whole(Ok(answer), row, outcome).map(|_| message)
        }
        failed => whole(failed, row, outcome).map(|_| Message::new("assistant", "")),
    }
}

/// A reply as a text, to be shown again.
fn shown(message: &Message) -> String {
    match message.0.get("tool_calls") {
        Some(calls) => excerpt(&calls.to_string()),
        None => excerpt(message.content().unwrap_or_default()),
    }
}

/// A message without what only servers and templates for tools know.
fn plain(message: Message) -> Message {
    match (message.role(), message.0.get("tool_calls").and_then(Value::as_array)) {
        ("tool", _) => {
            let name = message.0.get("name").and_then(Value::as_str).unwrap_or("the tool");
            let text = message.content().unwrap_or_default();
            Message::new("user", &format!("Result of {name}: {text}"))
        }
        (_, Some(calls)) => {
            let told = calls.iter().map(|call| {
                let function = &call["function"];
                let arguments = function["arguments"].as_str().unwrap_or_default();
                let arguments: Value = serde_json::from_str(arguments).unwrap_or_default();
                json!({"name": function["name"], "arguments": arguments})
            });
            Message::new("assistant", &told.collect::<Value>().to_string())
        }
        _ => message,
    }
}
