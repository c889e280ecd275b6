//! A judge as a file: `judge:FILE`.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

use halter_core::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Asked where no template is given.
const TEMPLATE: &str = "\
Rate how well the answer does what is asked, from 1 (useless) to 10 (could not be better).

[Asked]
{prompt}

[Answer]
{completion}

Give your reasons in a few sentences. End with a line `Rating: N`, where N is the rating.";

/// The longest time that can be set.
const MAX_SECONDS: f64 = 86_400.0;
/// Requests at once where no number is given.
const CONCURRENCY: NonZeroUsize = NonZeroUsize::new(8).unwrap();

/// What a judge needs. `url` and `model` have no default.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JudgeConfig {
    /// The endpoint, to which `/chat/completions` is added.
    pub url: String,
    /// The model's name there.
    pub model: String,
    /// The environment variable that holds the key; without one, none is sent.
    pub api_key_env: Option<String>,
    /// What the judge is asked, with the places `{prompt}`, `{completion}` and `{reference}`.
    pub template: String,
    /// The column of `{reference}`; else the one that `numeric` would look at.
    pub reference: Option<String>,
    /// A regular expression with one group; its last match holds the rating.
    pub pattern: String,
    /// The ratings that score 0 and 1.
    pub scale: [f64; 2],
    /// Further keys of the request.
    pub request: Map<String, Value>,
    /// Seconds for each try.
    pub timeout_seconds: f64,
    /// Further tries after no connection, no answer in time, or status 5xx.
    pub retries: u32,
    /// Seconds before the first further try; twice as many before each one after it.
    pub backoff_seconds: f64,
    /// Requests on their way at once.
    pub concurrency: NonZeroUsize,
}

impl Default for JudgeConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            model: String::new(),
            api_key_env: None,
            template: TEMPLATE.into(),
            reference: None,
            pattern: r"(?i)rating[\s:*\[]*(-?[0-9]+(?:\.[0-9]+)?)".into(),
            scale: [1.0, 10.0],
            request: Map::from_iter([
                ("temperature".to_string(), 0.into()),
                ("max_tokens".to_string(), 1024.into()),
            ]),
            timeout_seconds: 60.0,
            retries: 3,
            backoff_seconds: 1.0,
            concurrency: CONCURRENCY,
        }
    }
}

impl JudgeConfig {
    /// Reads a TOML file; keys that it does not know are refused.
    ///
    /// # Errors
    /// The file cannot be read, or is no such configuration.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
        toml::from_str(&text).map_err(|error| {
            let told = Error::config(format!("judge: {}", error.message().replace('\n', " ")));
            match error.span().and_then(|span| text.get(..span.start)) {
                Some(before) => told.at(path, before.matches('\n').count() + 1),
                None => told.in_file(path),
            }
        })
    }

    /// Checks every value that can be checked alone.
    ///
    /// # Errors
    /// Names the first value that cannot be used.
    pub fn validate(&self) -> Result<()> {
        let wrong = |key: &str, wanted: &str, got: String| {
            Err(Error::config(format!("judge: `{key}`: expected {wanted}, got `{got}`")))
        };
        if !["http://", "https://"].iter().any(|scheme| self.url.starts_with(scheme)) {
            return wrong("url", "`http://…` or `https://…`", self.url.clone());
        }
        if self.model.is_empty() {
            return wrong("model", "a name", String::new());
        }
        if !self.template.contains("{completion}") {
            return wrong("template", "a text with `{completion}`", self.template.clone());
        }
        let [worst, best] = self.scale;
        if !(best - worst).is_finite() || worst == best {
            return wrong("scale", "two numbers that differ", format!("{worst}, {best}"));
        }
        for (key, seconds, least) in [
            ("timeout_seconds", self.timeout_seconds, 0.001),
            ("backoff_seconds", self.backoff_seconds, 0.0),
        ] {
            if !(least..=MAX_SECONDS).contains(&seconds) {
                let wanted = format!("a number from {least} to {MAX_SECONDS}");
                return wrong(key, &wanted, seconds.to_string());
            }
        }
        match self.concurrency.get() > 256 {
            true => wrong("concurrency", "at most 256", self.concurrency.to_string()),
            false => Ok(()),
        }
    }
}
