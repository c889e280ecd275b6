//! Requests with a bound on time and size, sent again where that may help.

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use halter_core::{Error, Result};
use reqwest::blocking::{self, Response};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{StatusCode, Url};

use super::{EXCERPT, JudgeConfig};
use crate::verifier::shortened;

/// Bytes of the longest answer.
const MAX_BYTES: usize = 4 << 20;
/// The longest pause between two tries.
const MAX_PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Client {
    http: blocking::Client,
    url: String,
    key: Option<String>,
    timeout: Duration,
    retries: u32,
    backoff: Duration,
}

/// Why a try failed.
struct Failure {
    reason: String,
    /// Whether it may go better later.
    passes: bool,
    /// How long the server asked to wait.
    wait: Option<Duration>,
}

impl Failure {
    fn passing(reason: String) -> Self {
        Self { reason, passes: true, wait: None }
    }
}

impl Client {
    pub(super) fn new(config: &JudgeConfig) -> Result<Self> {
        let timeout = Duration::from_secs_f64(config.timeout_seconds);
        // a redirected POST would lose its body, and might take the key elsewhere
        let mut builder = blocking::Client::builder().timeout(timeout).redirect(Policy::none());
        let url = Url::parse(&config.url).map_err(|error| {
            Error::config(format!("judge: `url`: expected an address, got `{}`", config.url))
                .because(error)
        })?;
        if is_this_machine(&url) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| {
            Error::config(format!("judge `{}`: no client for HTTP", config.url)).because(error)
        })?;
        let read_key = |name: &String| {
            let key = std::env::var(name).ok().map(|key| key.trim().to_string());
            key.filter(|key| !key.is_empty()).ok_or_else(|| {
                Error::config(format!(
                    "judge: `api_key_env`: expected the key in the environment variable `{name}`"
                ))
            })
        };
        let key = config.api_key_env.as_ref().map(read_key).transpose()?;
        Ok(Self {
            http,
            url: format!("{}/chat/completions", config.url.trim_end_matches('/')),
            key,
            timeout,
            retries: config.retries,
            backoff: Duration::from_secs_f64(config.backoff_seconds),
        })
    }

    /// The body of the answer to `request`.
    pub(super) fn ask(&self, request: &str) -> Result<Vec<u8>> {
        let mut pause = self.backoff;
        let mut left = self.retries;
        loop {
            let failure = match self.try_once(request) {
                Ok(body) => return Ok(body),
                Err(failure) => failure,
            };
            if !failure.passes || left == 0 {
                return Err(Error::data(format!("judge `{}`: {}", self.url, failure.reason)));
            }
            left -= 1;
            // not all waiting threads at the same moment
            let drawn = pause.mul_f64(rand::random_range(0.5..=1.0));
            thread::sleep(failure.wait.unwrap_or(drawn).min(MAX_PAUSE));
            pause = pause.saturating_mul(2).min(MAX_PAUSE);
        }
    }

    fn try_once(&self, body: &str) -> Result<Vec<u8>, Failure> {
        let deadline = Instant::now() + self.timeout;
        let request = self.http.post(&self.url).header(CONTENT_TYPE, "application/json");
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = request.body(body.to_string()).send().map_err(|error| Failure {
            passes: !error.is_builder(),
            reason: if error.is_timeout() { self.too_late() } else { cause(&error) },
            wait: None,
        })?;
        let status = response.status();
        let header = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let wait = header.and_then(|value| value.trim().parse().ok()).map(Duration::from_secs);
        let body = self.read(response, deadline)?;
        if status == StatusCode::OK {
            return Ok(body);
        }
        let said = shortened(String::from_utf8_lossy(&body).trim(), EXCERPT);
        Err(Failure {
            reason: format!("status {status}: `{said}`"),
            passes: status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error(),
            wait,
        })
    }

    fn read(&self, mut response: Response, deadline: Instant) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        let mut part = vec![0; 16 << 10];
        while Instant::now() < deadline {
            match response.read(&mut part) {
                Ok(0) => return Ok(body),
                Ok(count) => body.extend_from_slice(&part[..count]),
                Err(error) => return Err(Failure::passing(error.to_string())),
            }
            if body.len() > MAX_BYTES {
                let reason = format!("an answer of more than {} MiB", MAX_BYTES >> 20);
                return Err(Failure { reason, passes: false, wait: None });
            }
        }
        Err(Failure::passing(self.too_late()))
    }

    fn too_late(&self) -> String {
        format!("no whole answer within {} s", self.timeout.as_secs_f64())
    }
}

/// Whether `url` leads to this machine, where no proxy is wanted.
fn is_this_machine(url: &Url) -> bool {
    url.host_str()
        .is_some_and(|host| host == "localhost" || host.starts_with("127.") || host == "[::1]")
}

/// The innermost reason: the outer ones only say that a request failed.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
