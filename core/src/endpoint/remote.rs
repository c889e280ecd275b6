//! Questions as requests to servers.

use serde_json::{Map, Value, json};

use super::budget::Meter;
use super::cache::Key;
use super::pool::{Ask, Pool, PoolOptions};
use super::reply::Api;
use super::{EndpointConfig, Listener, Question, Source};
use crate::data::record::{Message, Turn};
use crate::generate::sampling::Sampling;
use crate::{Error, Result};

/// A model behind servers.
pub(super) struct Remote {
    pool: Pool,
    model: String,
    /// What the servers' own parts of the request are, so that other answers are kept apart.
    requests: Vec<Value>,
}

impl Remote {
    pub fn open(teacher: &str, model: &str, endpoints: &[EndpointConfig]) -> Result<Self> {
        let label = format!("teacher `{teacher}`");
        let mut requests: Vec<Value> =
            endpoints.iter().map(|config| json!([config.omit, config.request])).collect();
        requests.sort_by_key(Value::to_string);
        requests.dedup();
        let pool = Pool::new(&label, endpoints, PoolOptions::default())?;
        Ok(Self { pool, model: model.into(), requests })
    }

    fn request(&self, question: &Question) -> Result<Ask> {
        let mut body = Map::new();
        body.insert("model".into(), self.model.as_str().into());
        let api = match &question.prompt {
            Turn::Messages(messages) if messages.is_empty() => {
                return Err(Error::data("the conversation is empty"));
            }
            Turn::Messages(messages) => {
                body.insert("messages".into(), messages.iter().map(said).collect());
                Api::Chat
            }
            Turn::Text(text) => {
                body.insert("prompt".into(), text.as_str().into());
                Api::Text
            }
        };
        if let Some(tools) = &question.tools {
            if api == Api::Text {
                return Err(Error::data("tools are declared to a text: expected a conversation"));
            }
            body.insert("tools".into(), tools.clone().into());
        }
        add_sampling(&mut body, &question.sampling)?;
        body.insert("max_tokens".into(), question.max_new_tokens.into());
        if !question.stop.is_empty() {
            body.insert("stop".into(), question.stop.clone().into());
        }
        match (question.top_logprobs, api) {
            (None, _) => {}
            (Some(top), Api::Text) => _ = body.insert("logprobs".into(), top.into()),
            (Some(top), Api::Chat) => {
                body.insert("logprobs".into(), true.into());
                if top > 0 {
                    body.insert("top_logprobs".into(), top.into());
                }
            }
        }
        if let Some(format) = &question.response_format {
            body.insert("response_format".into(), format.clone());
        }
        body.insert("seed".into(), seed(&body, question.draw).into());
        Ok(Ask { api, body, logprobs: question.top_logprobs.is_some() })
    }
}

impl Source for Remote {
    fn name(&self) -> &str {
        &self.model
    }

    fn key(&self, question: &Question) -> Result<Key> {
        let Ask { api, body, .. } = self.request(question)?;
        let key = json!(["halter request 1", api.path(), body, question.draw, self.requests]);
        Ok(blake3::hash(key.to_string().as_bytes()))
    }

    fn ask(
        &self,
        questions: &[&Question],
        meter: &Meter,
        listener: &mut dyn Listener,
    ) -> Result<()> {
        let asks: Result<Vec<Ask>> = questions.iter().map(|one| self.request(one)).collect();
        self.pool.ask_all(&asks?, meter, listener)
    }

    fn take_notes(&self) -> Vec<String> {
        self.pool.take_notes()
    }
}

/// A message without what only says how it is trained.
fn said(message: &Message) -> Value {
    let keys = message.0.iter().filter(|(key, _)| *key != "weight" && *key != "train");
    Value::Object(keys.map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// Servers have defaults of their own: what OpenAI's API knows is always said, what only some servers
/// know where it changes something.
fn add_sampling(body: &mut Map<String, Value>, sampling: &Sampling) -> Result<()> {
    sampling.validate()?;
    let &Sampling { temperature, top_p, top_k, min_p, repetition_penalty } = sampling;
    body.insert("temperature".into(), number(temperature));
    body.insert("top_p".into(), number(top_p));
    if top_k > 0 {
        body.insert("top_k".into(), top_k.into());
    }
    if min_p > 0.0 {
        body.insert("min_p".into(), number(min_p));
    }
    if repetition_penalty != 1.0 {
        body.insert("repetition_penalty".into(), number(repetition_penalty));
    }
    Ok(())
}

/// As many digits as the number has.
fn number(x: f32) -> Value {
    x.to_string().parse::<f64>().unwrap_or(f64::from(x)).into()
}

/// A seed of the question and its draw alone. Servers take it in 32 bits, with a sign.
fn seed(body: &Map<String, Value>, draw: u64) -> u32 {
    let hash = blake3::hash(json!([body, draw]).to_string().as_bytes());
    let bytes = hash.as_bytes();
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) >> 1
}
