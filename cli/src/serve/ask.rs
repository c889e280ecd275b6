//! What a request asks for, checked field by field.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use halter_core::data::record::Message;
use halter_core::generate::Generator;
use halter_core::generate::engine::{EngineOptions, Request};
use halter_core::generate::sampling::Sampling;
use halter_core::generate::session::Job;
use serde_json::Value;

use super::fault::Fault;
use super::fields::{Fields, wrong};

/// Most completions of a request, over all of its prompts.
const MOST_COMPLETIONS: usize = 128;
/// Most of the likeliest tokens that are told, in conversations as OpenAI has it.
const MOST_TOP: usize = 20;
/// In texts, whose log-probs are distilled from.
const MOST_TOP_OF_TEXT: usize = 256;
/// Tokens of a text completion where nothing is said, as OpenAI has it.
const TEXT_TOKENS: usize = 16;
/// Fields that say who asks and what is kept: nothing is kept here.
const WITHOUT_EFFECT: [&str; 8] = [
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "service_tier",
    "verbosity",
    "reasoning_effort",
    "parallel_tool_calls",
];

/// A request, ready for the worker.
#[derive(Debug)]
pub struct Ask {
    /// One per prompt; `max_new_tokens` of 0 where the prompt alone is wanted.
    pub jobs: Vec<Job>,
    pub style: Style,
}

/// How the answer is to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Style {
    pub is_chat: bool,
    pub stream: bool,
    pub include_usage: bool,
    /// Log-probs are told, with so many of the likeliest tokens.
    pub logprobs: Option<usize>,
    /// Tokens are told by number, so that no two look alike.
    pub token_ids: bool,
    /// The text of each prompt, where it comes before its completions.
    pub echo: Option<Vec<String>>,
}

/// What the server has to say on every request.
pub struct Server<'a> {
    pub generator: &'a Generator,
    pub options: EngineOptions,
    pub model: &'a str,
    /// Tokens of a chat completion where nothing is said.
    pub max_new_tokens: Option<usize>,
}

/// What both kinds of request have.
struct Shared {
    request: Request,
    stop: Vec<String>,
    stream: bool,
    include_usage: bool,
    token_ids: bool,
    max_tokens: Option<usize>,
    /// Where the request does not say; what the context leaves limits it.
    default_tokens: usize,
    is_text: bool,
}

impl Server<'_> {
    /// A request for `/v1/chat/completions`.
    pub fn chat(&self, body: &[u8]) -> Result<Ask, Fault> {
        let mut fields = Fields::parse(body)?;
        let mut shared = self.shared(&mut fields, 1)?;
        let newer = fields.count("max_completion_tokens", 1..=usize::MAX)?;
        if newer.is_some() && shared.max_tokens.is_some_and(|older| Some(older) != newer) {
            let message = "`max_tokens` and `max_completion_tokens` are both given";
            return Err(Fault::field("max_tokens", message));
        }
        let logprobs = fields.flag("logprobs")?;
        let top = fields.count("top_logprobs", 0..=MOST_TOP)?;
        if top.is_some() && !logprobs {
            let message = "`top_logprobs` is given: expected `logprobs` to be true";
            return Err(Fault::field("top_logprobs", message));
        }
        let logprobs = logprobs.then_some(top.unwrap_or(0));
        let messages = match fields.take("messages") {
            Some(value) => messages(value)?,
            None => return Err(Fault::field("messages", "`messages` is missing")),
        };
        let tools = tools(&mut fields)?;
        fields.only("response_format", |format| format["type"] == "text")?;
        fields.only("modalities", |value| *value == serde_json::json!(["text"]))?;
        fields.finish()?;
        let ids = self.generator.chat_prompt(&messages, tools.as_deref());
        let ids = ids.map_err(|error| Fault::of("messages", &error))?;
        shared.max_tokens = newer.or(shared.max_tokens);
        shared.default_tokens = self.max_new_tokens.unwrap_or(usize::MAX);
        shared.is_text = false;
        shared.request.top_logprobs = logprobs.unwrap_or(0);
        let style = shared.style(true, logprobs);
        Ok(Ask { jobs: vec![self.job(&shared, ids, 0, "messages")?], style })
    }

    /// A request for `/v1/completions`.
    pub fn completions(&self, body: &[u8]) -> Result<Ask, Fault> {
        let mut fields = Fields::parse(body)?;
        let mut shared = self.shared(&mut fields, 0)?;
        let echo = fields.flag("echo")?;
        let logprobs = fields.count("logprobs", 0..=MOST_TOP_OF_TEXT)?;
        let prompts = self.prompts(&mut fields)?;
        let n = shared.request.completions;
        fields.only("best_of", |best| best.as_u64() == Some(n as u64))?;
        fields.only("suffix", |suffix| suffix == "")?;
        fields.finish()?;
        if shared.max_tokens == Some(0) && !echo {
            let message = "`max_tokens` is `0`: expected at least 1 without `echo`";
            return Err(Fault::field("max_tokens", message));
        }
        if prompts.len() * n > MOST_COMPLETIONS {
            let message = format!("more than {MOST_COMPLETIONS} completions in a request");
            return Err(Fault::field("prompt", message));
        }
        shared.request.top_logprobs = logprobs.unwrap_or(0);
        let mut style = shared.style(false, logprobs);
        style.echo = echo.then(|| prompts.iter().map(|(_, text)| text.clone()).collect());
        let prompts = prompts.into_iter().enumerate();
        let jobs = prompts.map(|(row, (ids, _))| self.job(&shared, ids, row, "prompt"));
        Ok(Ask { jobs: jobs.collect::<Result<_, _>>()?, style })
    }

    fn shared(&self, fields: &mut Fields, least_tokens: usize) -> Result<Shared, Fault> {
        match fields.text("model")? {
            None => return Err(Fault::field("model", "`model` is missing")),
            Some(model) if model != self.model => {
                let message =
                    format!("the model `{model}` does not exist: expected `{}`", self.model);
                let fault =
                    Fault { status: StatusCode::NOT_FOUND, ..Fault::field("model", message) };
                return Err(fault.code("model_not_found"));
            }
            Some(_) => {}
        }
        for name in WITHOUT_EFFECT {
            fields.take(name);
        }
        fields.only("store", |store| store == false)?;
        let is_zero = |value: &Value| value.as_f64() == Some(0.0);
        fields.only("frequency_penalty", is_zero)?;
        fields.only("presence_penalty", is_zero)?;
        fields
            .only("logit_bias", |bias| bias.as_object().is_some_and(serde_json::Map::is_empty))?;
        let plain = Sampling::default();
        let sampling = Sampling {
            temperature: fields.number("temperature", plain.temperature)?,
            top_p: fields.number("top_p", plain.top_p)?,
            min_p: fields.number("min_p", plain.min_p)?,
            repetition_penalty: fields.number("repetition_penalty", plain.repetition_penalty)?,
            top_k: fields.count("top_k", 0..=usize::MAX)?.unwrap_or(plain.top_k),
        };
        sampling.validate().map_err(|error| {
            // The message begins with the option's name; fields have underscores.
            let option = error.message().split('`').nth(1).unwrap_or_default();
            let field = option.replace('-', "_");
            Fault::field(&field, error.message().replacen(option, &field, 1))
        })?;
        let stream = fields.flag("stream")?;
        let request = Request {
            id: 0,
            prompt: Vec::new(),
            completions: fields.count("n", 1..=MOST_COMPLETIONS)?.unwrap_or(1),
            max_new_tokens: 0,
            stop_tokens: stop_tokens(fields)?,
            sampling,
            seed: seed(fields)?,
            row: 0,
            top_logprobs: 0,
        };
        Ok(Shared {
            request,
            stop: stop(fields)?,
            stream,
            include_usage: stream_options(fields, stream)?,
            token_ids: fields.flag("return_tokens_as_token_ids")?,
            max_tokens: fields.count("max_tokens", least_tokens..=usize::MAX)?,
            default_tokens: TEXT_TOKENS,
            is_text: true,
        })
    }

    /// Prompts as tokens, and the text that `echo` would show.
    fn prompts(&self, fields: &mut Fields) -> Result<Vec<(Vec<u32>, String)>, Fault> {
        let value = fields.take("prompt");
        let value = value.ok_or_else(|| Fault::field("prompt", "`prompt` is missing"))?;
        let is_token = |value: &Value| value.is_u64();
        let all = match value {
            Value::Array(items) if !items.is_empty() && items.iter().all(is_token) => {
                vec![Value::Array(items)]
            }
            Value::Array(items) => items,
            one => vec![one],
        };
        if all.is_empty() {
            return Err(Fault::field("prompt", "`prompt` is an empty list"));
        }
        all.iter().map(|prompt| self.prompt(prompt)).collect()
    }

    fn prompt(&self, prompt: &Value) -> Result<(Vec<u32>, String), Fault> {
        let fault = |error| Fault::of("prompt", &error);
        let wrong = || wrong("prompt", "a string, a list of tokens, or a list of these", prompt);
        let (ids, text) = match prompt {
            Value::String(text) => (self.generator.text_prompt(text).map_err(fault)?, text.clone()),
            Value::Array(items) => {
                let limit = self.generator.model.config.vocab_size as u64;
                let ids = items.iter().map(|item| {
                    let id = item.as_u64().ok_or_else(wrong)?;
                    if id >= limit {
                        let message = format!("token `{id}` is beyond the vocabulary of `{limit}`");
                        return Err(Fault::field("prompt", message));
                    }
                    Ok(id as u32)
                });
                let ids: Vec<u32> = ids.collect::<Result<_, _>>()?;
                let text = self.generator.tokenizer.decode(&ids, false).map_err(fault)?;
                (ids, text)
            }
            _ => return Err(wrong()),
        };
        match ids.is_empty() {
            true => Err(Fault::field("prompt", "the prompt is empty")),
            false => Ok((ids, text)),
        }
    }

    fn job(
        &self,
        shared: &Shared,
        prompt: Vec<u32>,
        row: usize,
        param: &str,
    ) -> Result<Job, Fault> {
        let too_long = |message| Fault::field(param, message).code("context_length_exceeded");
        let max_new_tokens = match shared.max_tokens {
            // Scored, not continued: all that is held may be full.
            Some(0) if prompt.len() <= self.generator.longest(&self.options) => 0,
            wanted => {
                let room = self.generator.room_after(prompt.len(), &self.options);
                let room = room.map_err(|error| too_long(error.to_string()))?;
                match wanted {
                    Some(wanted) if wanted > room => {
                        return Err(too_long(format!(
                            "the prompt has `{}` tokens, which leave room for `{room}`, not for \
                             `{wanted}`",
                            prompt.len()
                        )));
                    }
                    wanted => wanted.unwrap_or(shared.default_tokens.min(room)),
                }
            }
        };
        let request = Request { prompt, max_new_tokens, row: row as u64, ..shared.request.clone() };
        Ok(Job { request, stop: shared.stop.clone(), is_text: shared.is_text })
    }
}

impl Shared {
    fn style(&self, is_chat: bool, logprobs: Option<usize>) -> Style {
        Style {
            is_chat,
            stream: self.stream,
            include_usage: self.include_usage,
            logprobs,
            token_ids: self.token_ids,
            echo: None,
        }
    }
}

/// The messages, each with its content as one text.
fn messages(value: Value) -> Result<Vec<Message>, Fault> {
    let Value::Array(items) = value else {
        return Err(wrong("messages", "a list of messages", &value));
    };
    let message = |item: Value| match item {
        Value::Object(mut map) => {
            if let Some(Value::Array(parts)) = map.get("content") {
                let texts = parts.iter().map(|part| match (&part["type"], &part["text"]) {
                    (Value::String(kind), Value::String(text)) if kind == "text" => Ok(&**text),
                    _ => Err(wrong("messages", "parts of type `text`", part)),
                });
                let text = texts.collect::<Result<Vec<_>, _>>()?.concat();
                map.insert("content".into(), text.into());
            }
            Ok(Message(map))
        }
        other => Err(wrong("messages", "an object with `role` and `content`", &other)),
    };
    items.into_iter().map(message).collect()
}

/// Tool declarations for the template; calls are not read out of what the model says.
fn tools(fields: &mut Fields) -> Result<Option<Vec<Value>>, Fault> {
    let choice = fields.take("tool_choice");
    if let Some(choice) = choice.as_ref().filter(|choice| *choice != "auto" && *choice != "none") {
        return Err(wrong("tool_choice", "`auto` or `none`", choice));
    }
    match fields.take("tools") {
        None => Ok(None),
        Some(Value::Array(tools)) if tools.iter().all(Value::is_object) => {
            let is_used = !tools.is_empty() && choice.is_none_or(|choice| choice != "none");
            Ok(is_used.then_some(tools))
        }
        Some(other) => Err(wrong("tools", "a list of declarations", &other)),
    }
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, Fault> {
    let expected = "a string that is not empty, or up to 16 of them";
    let Some(value) = fields.take("stop") else { return Ok(Vec::new()) };
    let items = match &value {
        Value::Array(items) if items.len() <= 16 => items.as_slice(),
        one => std::slice::from_ref(one),
    };
    let text = |item: &Value| item.as_str().filter(|text| !text.is_empty()).map(str::to_string);
    let texts: Option<Vec<String>> = items.iter().map(text).collect();
    texts.ok_or_else(|| wrong("stop", expected, &value))
}

fn stop_tokens(fields: &mut Fields) -> Result<Vec<u32>, Fault> {
    let Some(value) = fields.take("stop_token_ids") else { return Ok(Vec::new()) };
    let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids =
        value.as_array().and_then(|items| items.iter().map(id).collect::<Option<BTreeSet<_>>>());
    let ids = ids.ok_or_else(|| wrong("stop_token_ids", "a list of tokens", &value))?;
    Ok(ids.into_iter().collect())
}

/// A seed of the client's, or one that nobody knows.
fn seed(fields: &mut Fields) -> Result<u64, Fault> {
    let Some(value) = fields.take("seed") else { return Ok(rand::random()) };
    let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
    seed.ok_or_else(|| wrong("seed", "a whole number", &value))
}

/// Whether the stream ends with its usage.
fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool, Fault> {
    let name = "stream_options";
    match fields.take(name) {
        None => Ok(false),
        Some(_) if !stream => {
            Err(Fault::field(name, "`stream_options` is given: expected `stream` to be true"))
        }
        Some(Value::Object(map)) => match map.get("include_usage") {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(wrong(name, "`include_usage` as true or false", other)),
        },
        Some(other) => Err(wrong(name, "an object", &other)),
    }
}
