//! What does another model think of the completion?

mod config;
#[cfg(test)]
mod tests;

use halter_core::data::record::{Message, Turn};
use halter_core::endpoint::{Answer, Api, Ask, EndpointConfig, Pool, PoolOptions};
use halter_core::{Error, Result};
use regex::Regex;
use serde_json::{Value, json};

pub use config::JudgeConfig;

use super::answer::after_thinking;
use super::pattern;
use super::reference::Reference;
use crate::scorer::{Item, Score, Scorer, hashed};

/// Characters of a judge's answer in an error.
const EXCERPT: usize = 120;
/// Bytes of the longest answer.
const MAX_BYTES: usize = 4 << 20;

/// Asks a language model behind an OpenAI-compatible endpoint for a rating, and brings it from its
/// scale to 0 to 1. A judge can be wrong, and a completion can talk it into a rating.
#[derive(Debug)]
pub struct Judge {
    config: JudgeConfig,
    reference: Reference,
    pattern: Regex,
    pool: Pool,
}

impl Judge {
    /// A judge as `config` describes it; nothing is sent yet.
    ///
    /// # Errors
    /// Names the first value that cannot be used.
    pub fn new(config: JudgeConfig) -> Result<Self> {
        config.validate()?;
        let pattern = pattern::compile("judge", &config.pattern)?;
        if pattern.captures_len() != 2 {
            return Err(Error::config(format!(
                "judge: `pattern`: expected one group, around the rating, got `{}`",
                config.pattern
            )));
        }
        Ok(Self {
            pool: pool(&config)?,
            reference: Reference::new(config.reference.as_deref()),
            pattern,
            config,
        })
    }

    fn request(&self, item: &Item) -> Result<Ask> {
        let mut request = self.config.request.clone();
        request.insert("model".into(), self.config.model.as_str().into());
        let question = self.question(item)?;
        request.insert("messages".into(), json!([{"role": "user", "content": question}]));
        Ok(Ask { api: Api::Chat, body: request, logprobs: false })
    }

    /// The template with its places filled in. What is filled in is not searched for places.
    fn question(&self, item: &Item) -> Result<String> {
        let mut question = String::new();
        let mut rest = self.config.template.as_str();
        while let Some(at) = rest.find('{') {
            question.push_str(&rest[..at]);
            rest = &rest[at..];
            let (place, text) = if rest.starts_with("{prompt}") {
                ("{prompt}", conversation(item.prompt))
            } else if rest.starts_with("{completion}") {
                ("{completion}", item.completion.to_string())
            } else if rest.starts_with("{reference}") {
                ("{reference}", self.reference.text(item.row)?)
            } else {
                ("{", "{".to_string())
            };
            question.push_str(&text);
            rest = &rest[place.len()..];
        }
        Ok(question + rest)
    }

    /// The score that an answer holds.
    fn read(&self, answer: &Answer) -> Result<Score> {
        let rating = self.rating(answer.text())?;
        let [worst, best] = self.config.scale;
        let value = (rating - worst) / (best - worst);
        if !(0.0..=1.0).contains(&value) {
            return Err(Error::data(format!(
                "judge: expected a rating from {worst} to {best}, got {rating}"
            )));
        }
        Ok(Score::because(value, format!("rated {rating}")))
    }

    /// The last rating in what the judge said after its thinking.
    fn rating(&self, said: &str) -> Result<f64> {
        let last = self.pattern.captures_iter(after_thinking(said)).last();
        let group = last.as_ref().and_then(|found| found.get(1));
        let rating = group.and_then(|rating| rating.as_str().parse::<f64>().ok());
        rating.filter(|rating| rating.is_finite()).ok_or_else(|| {
            let end: String = said.trim().chars().rev().take(EXCERPT).collect();
            let end: String = end.chars().rev().collect();
            Error::data(format!("judge: expected a rating, got an answer that ends `{end}`"))
        })
    }
}

/// A text, the text of one message, or several under their roles.
fn conversation(prompt: &Turn) -> String {
    let text = |message: &Message| match message.0.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let messages = match prompt {
        Turn::Text(text) => return text.clone(),
        Turn::Messages(messages) => messages,
    };
    match &messages[..] {
        [only] => text(only),
        messages => {
            let turn = |message: &Message| format!("{}: {}", message.role(), text(message));
            messages.iter().map(turn).collect::<Vec<_>>().join("\n\n")
        }
    }
}

/// The judge's server.
fn pool(config: &JudgeConfig) -> Result<Pool> {
    let endpoint = EndpointConfig {
        url: config.url.clone(),
        concurrency: config.concurrency,
        api_key_env: config.api_key_env.clone(),
        timeout_seconds: config.timeout_seconds,
        retries: config.retries,
        backoff_seconds: config.backoff_seconds,
        ..EndpointConfig::default()
    };
    // What is no answer costs its row: another try would rate the same.
    let options = PoolOptions {
        max_bytes: MAX_BYTES,
        ask_again_for_garbage: false,
        ..PoolOptions::default()
    };
    Pool::new("judge", &[endpoint], options)
}

impl Scorer for Judge {
    fn name(&self) -> &str {
        "judge"
    }

    /// Of what the ratings follow from: not of the server's address, key, and how it is asked.
    fn fingerprint(&self) -> Result<Option<String>> {
        let JudgeConfig { model, template, reference, pattern, scale, request, .. } = &self.config;
        let asked = json!([model, template, reference, pattern, scale, request]);
        Ok(Some(hashed(asked.to_string().as_bytes())))
    }

    fn score(&self, item: &Item) -> Result<Score> {
        let mut scores = self.score_all(std::slice::from_ref(item));
        scores.pop().unwrap_or_else(|| Err(Error::data("judge: no answer")))
    }

    fn score_all(&self, items: &[Item]) -> Vec<Result<Score>> {
        let requests: Vec<Result<Ask>> = items.iter().map(|item| self.request(item)).collect();
        let asks: Vec<Ask> = requests.iter().flatten().cloned().collect();
        let mut answers = self.pool.ask(&asks).into_iter();
        let none = || Err(Error::data("judge: no answer"));
        let mut score = |_| self.read(&answers.next().unwrap_or_else(none)?);
        requests.into_iter().map(|request| request.and_then(&mut score)).collect()
    }
}
