//! A teacher as a table of a TOML file.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::kept::Kept;
use super::local::Local;
use super::{Source, Teacher, Usage};
use crate::{Error, Result};

/// The longest time that can be set.
const MAX_SECONDS: f64 = 86_400.0;
/// The most requests at once that can be set.
const MOST_AT_ONCE: usize = 1024;

/// `[teachers.NAME]`: either `local`, or `model` with `endpoints`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TeacherConfig {
    /// A model in this process: directory, `.gguf` file, hub id, or `bundled`.
    pub local: Option<String>,
    /// PEFT adapter on the local model.
    pub adapter: Option<PathBuf>,
    /// Where the local model is computed: `cpu`, `cuda` or `cuda:N`.
    pub device: Option<String>,
    /// Most completions that the local model generates at once.
    pub batch_size: Option<NonZeroUsize>,
    /// Most tokens whose keys and values the local model holds.
    pub cache_tokens: Option<NonZeroUsize>,
    /// The model's name at the endpoints.
    pub model: Option<String>,
    /// What may be spent.
    pub budget: Budget,
    /// Servers that have the model.
    pub endpoints: Vec<EndpointConfig>,
}

/// What a teacher may spend, counted over everything that its cache holds. `None`: without limit.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Requests, those that failed and were sent again included.
    pub requests: Option<u64>,
    /// Tokens of prompts and completions.
    pub tokens: Option<u64>,
    /// Money, in the unit of the prices.
    pub money: Option<f64>,
}

/// A server with OpenAI's API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointConfig {
    /// Its address, to which `/chat/completions` or `/completions` is added.
    pub url: String,
    /// Its share of the questions beside those of the others.
    pub weight: f64,
    /// Most requests on their way at once.
    pub concurrency: NonZeroUsize,
    /// The environment variable that holds the key.
    pub api_key_env: Option<String>,
    /// The file that holds the key.
    pub api_key_file: Option<PathBuf>,
    /// Seconds for each try.
    pub timeout_seconds: f64,
    /// Further tries of a question after one that failed.
    pub retries: u32,
    /// Seconds before the first further try; twice as many before each one after it.
    pub backoff_seconds: f64,
    /// Price of a million tokens of prompts.
    pub price_per_million_prompt_tokens: f64,
    /// Price of a million tokens of completions.
    pub price_per_million_completion_tokens: f64,
    /// Keys of the body that the server does not take.
    pub omit: Vec<String>,
    /// Further keys of the body, which go before those of the question.
    pub request: Map<String, Value>,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            weight: 1.0,
            concurrency: const { NonZeroUsize::new(8).unwrap() },
            api_key_env: None,
            api_key_file: None,
            timeout_seconds: 600.0,
            retries: 5,
            backoff_seconds: 1.0,
            price_per_million_prompt_tokens: 0.0,
            price_per_million_completion_tokens: 0.0,
            omit: Vec::new(),
            request: Map::new(),
        }
    }
}

impl TeacherConfig {
    /// A teacher that keeps its answers under `cache`, in the directory `name`.
    ///
    /// # Errors
    /// A value that cannot be used, a model that cannot be opened, a key that is not there, or a
    /// cache that another process uses.
    pub fn open(&self, name: &str, cache: &Path) -> Result<Box<dyn Teacher>> {
        self.validate(name)?;
        let kept = Kept::open(name, &cache.join(name), self.budget, |began_at| {
            match (&self.local, &self.model) {
                (Some(local), _) => Ok(Box::new(Local::open(local, self, began_at)?)),
                (None, model) => self.open_remote(name, model.as_deref().unwrap_or_default()),
            }
        })?;
        Ok(Box::new(kept))
    }

    #[cfg(feature = "endpoint")]
    fn open_remote(&self, name: &str, model: &str) -> Result<Box<dyn Source>> {
        Ok(Box::new(super::remote::Remote::open(name, model, &self.endpoints)?))
    }

    #[cfg(not(feature = "endpoint"))]
    fn open_remote(&self, name: &str, _: &str) -> Result<Box<dyn Source>> {
        Err(Error::config(format!("teacher `{name}`: this build asks no servers"))
            .hint("build with the feature `endpoint`, or name a `local` model"))
    }

    /// Checks every value that can be checked alone. `name` is told in errors.
    ///
    /// # Errors
    /// Names the first value that cannot be used.
    pub fn validate(&self, name: &str) -> Result<()> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
            return Err(Error::config(format!(
                "teacher `{name}`: expected a name of letters, digits, `-`, `_` and `.`"
            ))
            .hint("it becomes the name of a directory"));
        }
        let outcome = match (&self.local, &self.model) {
            (Some(local), None) => self.validate_local(local),
            (None, Some(model)) => self.validate_remote(model),
            (both, _) => {
                let got = if both.is_some() { "both" } else { "neither" };
                Err(wrong("local", "either `local`, or `model` with `endpoints`", got))
            }
        };
        outcome.and_then(|()| self.budget.validate()).map_err(|Wrong { key, wanted, got }| {
            Error::config(format!("teacher `{name}`: `{key}`: expected {wanted}, got `{got}`"))
        })
    }

    fn validate_local(&self, local: &str) -> Result<(), Wrong> {
        if local.is_empty() {
            return Err(wrong("local", "a directory, a `.gguf` file, a hub id or `bundled`", ""));
        }
        if let Some(first) = self.endpoints.first() {
            return Err(wrong("endpoints", "none beside `local`", first.url_shown()));
        }
        match self.budget.money {
            Some(money) => Err(wrong("budget.money", "none of a local model", money)),
            None => Ok(()),
        }
    }

    fn validate_remote(&self, model: &str) -> Result<(), Wrong> {
        if model.is_empty() {
            return Err(wrong("model", "a name", ""));
        }
        let of_local = [
            ("adapter", self.adapter.is_some()),
            ("device", self.device.is_some()),
            ("batch_size", self.batch_size.is_some()),
            ("cache_tokens", self.cache_tokens.is_some()),
        ];
        if let Some((key, _)) = of_local.iter().find(|(_, is_set)| *is_set) {
            return Err(wrong(key, "none without `local`", "one"));
        }
        if self.endpoints.is_empty() {
            return Err(wrong("endpoints", "at least one", "none"));
        }
        let named = |at: usize| move |wrong: Wrong| wrong.under(&format!("endpoints[{at}]"));
        for (at, endpoint) in self.endpoints.iter().enumerate() {
            endpoint.validate().map_err(named(at))?;
            if self.budget.money.is_some() && endpoint.is_free() {
                let key = "price_per_million_completion_tokens";
                return Err(named(at)(wrong(key, "a price, as `budget.money` is set", 0)));
            }
        }
        Ok(())
    }
}

impl Budget {
    fn validate(&self) -> Result<(), Wrong> {
        match self.money {
            Some(money) if !(money.is_finite() && money >= 0.0) => {
                Err(wrong("budget.money", "a number from 0", money))
            }
            _ => Ok(()),
        }
    }
}

impl EndpointConfig {
    /// What a number of tokens costs.
    pub fn cost(&self, usage: Usage) -> f64 {
        let prompt = usage.prompt_tokens as f64 * self.price_per_million_prompt_tokens;
        let completion = usage.completion_tokens as f64 * self.price_per_million_completion_tokens;
        (prompt + completion) / 1e6
    }

    fn is_free(&self) -> bool {
        self.price_per_million_prompt_tokens == 0.0
            && self.price_per_million_completion_tokens == 0.0
    }

    /// The address without what may be secret in it: all before its last `@`, as a password may hold
    /// whatever else ends one.
    pub(super) fn url_shown(&self) -> String {
        let (scheme, rest) = match self.url.split_once("://") {
            Some((scheme, rest)) if !scheme.contains('@') => (format!("{scheme}://"), rest),
            _ => (String::new(), self.url.as_str()),
        };
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        scheme + host.split(['?', '#']).next().unwrap_or_default()
    }

    pub(super) fn validate(&self) -> Result<(), Wrong> {
        let shown = self.url_shown();
        if !["http://", "https://"].iter().any(|scheme| self.url.starts_with(scheme)) {
            return Err(wrong("url", "`http://…` or `https://…`", shown));
        }
        if shown != self.url {
            let wanted = "an address without a user, a password, `?` or `#`";
            return Err(wrong("url", wanted, shown));
        }
        if self.api_key_env.is_some() && self.api_key_file.is_some() {
            return Err(wrong("api_key_file", "none beside `api_key_env`", "both"));
        }
        if self.concurrency.get() > MOST_AT_ONCE {
            let wanted = format!("at most {MOST_AT_ONCE}");
            return Err(wrong("concurrency", &wanted, self.concurrency));
        }
        if !(self.weight.is_finite() && self.weight > 0.0) {
            return Err(wrong("weight", "a number above 0", self.weight));
        }
        for (key, seconds, least) in [
            ("timeout_seconds", self.timeout_seconds, 0.001),
            ("backoff_seconds", self.backoff_seconds, 0.0),
        ] {
            if !(least..=MAX_SECONDS).contains(&seconds) {
                let wanted = format!("a number from {least} to {MAX_SECONDS}");
                return Err(wrong(key, &wanted, seconds));
            }
        }
        let prices = [
            ("price_per_million_prompt_tokens", self.price_per_million_prompt_tokens),
            ("price_per_million_completion_tokens", self.price_per_million_completion_tokens),
        ];
        match prices.into_iter().find(|&(_, price)| !(price.is_finite() && price >= 0.0)) {
            Some((key, price)) => Err(wrong(key, "a number from 0", price)),
            None => Ok(()),
        }
    }
}

/// A value that cannot be used.
pub(super) struct Wrong {
    pub key: String,
    pub wanted: String,
    pub got: String,
}

impl Wrong {
    fn under(self, place: &str) -> Self {
        Self { key: format!("{place}.{}", self.key), ..self }
    }
}

fn wrong(key: &str, wanted: &str, got: impl ToString) -> Wrong {
    Wrong { key: key.into(), wanted: wanted.into(), got: got.to_string() }
}
