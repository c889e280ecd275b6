//! One request to a server, with a bound on its time and on the size of what comes back.

use std::time::{Duration, SystemTime};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Response, StatusCode, Url};

use super::EndpointConfig;
use super::key::Key;
use super::reply::{Api, shortened};
use crate::{Error, Result};

/// The longest pause that a server can ask for.
const MAX_WAIT: Duration = Duration::from_secs(300);

pub(super) struct Client {
    http: reqwest::Client,
    /// Without a `/` at its end.
    url: String,
    key: Option<Key>,
    timeout: Duration,
    max_bytes: usize,
}

/// Why a try failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub kind: FailureKind,
    pub reason: String,
    /// How long the server asked to wait.
    pub wait: Option<Duration>,
}

/// What a failed try says of the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The server has no room (429, 503).
    Full,
    /// Nothing is there: no connection, or a gateway says so (502, 504).
    Away,
    /// No whole answer in time.
    Late,
    /// Something broke, or the answer is none.
    Broken,
    /// The question is refused, and would be again.
    Refused,
    /// The server refuses whoever asks so: no key, no credit, no such model, another address.
    Denied { status: u16 },
}

impl Failure {
    pub fn new(kind: FailureKind, reason: String) -> Self {
        Self { kind, reason, wait: None }
    }
}

impl Client {
    /// # Errors
    /// An address that is none, or a key that is not there.
    pub fn new(config: &EndpointConfig, max_bytes: usize) -> Result<Self> {
        let url = Url::parse(&config.url).map_err(|error| {
            let shown = config.url_shown();
            Error::config(format!("`url`: expected an address, got `{shown}`")).because(error)
        })?;
        // A redirected POST would lose its body, and might take the key elsewhere.
        let mut builder = reqwest::Client::builder()
            .redirect(Policy::none())
            .user_agent(concat!("halter/", env!("CARGO_PKG_VERSION")));
        if is_this_machine(&url) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| {
            let shown = config.url_shown();
            Error::config(format!("`{shown}`: no client for HTTP")).because(error)
        })?;
        Ok(Self {
            http,
            url: config.url.trim_end_matches('/').to_string(),
            key: Key::of(config)?,
            timeout: Duration::from_secs_f64(config.timeout_seconds),
            max_bytes,
        })
    }

    /// The body of the answer to `body`.
    pub async fn ask(&self, api: Api, body: Vec<u8>) -> Result<String, Failure> {
        match tokio::time::timeout(self.timeout, self.exchange(api, body)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let seconds = self.timeout.as_secs_f64();
                let reason = format!("no whole answer within {seconds} s");
                Err(Failure::new(FailureKind::Late, reason))
            }
        }
    }

    async fn exchange(&self, api: Api, body: Vec<u8>) -> Result<String, Failure> {
        let request = self.http.post(format!("{}/{}", self.url, api.path()));
        let request = request.header(CONTENT_TYPE, "application/json");
        let request = match self.key.as_ref().and_then(Key::header) {
            Some(header) => request.header(AUTHORIZATION, header),
            None => request,
        };
        let response = request.body(body).send().await.map_err(|error| {
            let kind = match (error.is_builder(), error.is_connect()) {
                (true, _) => FailureKind::Refused,
                (_, true) => FailureKind::Away,
                _ => FailureKind::Broken,
            };
            Failure::new(kind, cause(&error))
        })?;
        let status = response.status();
        let wait = wanted_wait(response.headers(), SystemTime::now());
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.map(str::to_string);
        let body = self.read(response).await?;
        if status.is_success() {
            return Ok(self.hide_key(body, false));
        }
        let mut reason = format!("status {status}: `{}`", shortened(&self.hide_key(body, true)));
        if let Some(location) = location {
            reason += &format!(", to `{}`", shortened(&self.hide_key(location, true)));
        }
        Err(Failure { kind: kind_of(status), reason, wait })
    }

    async fn read(&self, mut response: Response) -> Result<String, Failure> {
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(part)) => body.extend_from_slice(&part),
                Ok(None) => break,
                Err(error) => {
                    let reason = format!("the answer broke off: {}", cause(&error));
                    return Err(Failure::new(FailureKind::Broken, reason));
                }
            }
            if body.len() > self.max_bytes {
                let reason = format!("an answer of more than {} MiB", self.max_bytes >> 20);
                return Err(Failure::new(FailureKind::Refused, reason));
            }
        }
        Ok(String::from_utf8(body)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    fn hide_key(&self, text: String, is_shown: bool) -> String {
        match &self.key {
            Some(key) => key.hide_in(text, is_shown),
            None => text,
        }
    }

    /// What can be done about a server that refuses.
    pub fn remedy(&self, status: u16) -> &'static str {
        match (status, &self.key) {
            (401 | 403, None) => "name the key's variable with `api_key_env`",
            (401, Some(_)) => "the server does not take the key: look at what holds it",
            (403, Some(_)) => "the key may not be used for this model",
            (402, _) => "pay what is due, and run it again: what was answered is kept",
            (404, _) => "look at `model`, and at `url`: many end in `/v1`",
            _ => "give `url` the address that answers",
        }
    }
}

fn kind_of(status: StatusCode) -> FailureKind {
    match status.as_u16() {
        429 | 503 => FailureKind::Full,
        502 | 504 => FailureKind::Away,
        408 | 425 | 500.. => FailureKind::Broken,
        status @ (300..=399 | 401..=404) => FailureKind::Denied { status },
        _ => FailureKind::Refused,
    }
}

/// `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3).
fn wanted_wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<f64>() {
        Ok(seconds) if seconds.is_nan() => return None,
        Ok(seconds) => Duration::try_from_secs_f64(seconds.min(1e9)).ok()?,
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(MAX_WAIT))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_in_seconds_or_until_a_date_and_never_long() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2026 07:28:00 GMT").unwrap();
        for (text, seconds) in [
            ("0", Some(0.0)),
            (" 7 ", Some(7.0)),
            ("1.5", Some(1.5)),
            ("99999999999999999999", Some(300.0)),
            ("inf", Some(300.0)),
            ("Wed, 21 Oct 2026 07:28:30 GMT", Some(30.0)),
            ("Wed, 21 Oct 2026 07:27:00 GMT", Some(0.0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(300.0)),
            ("-1", None),
            ("nan", None),
            ("soon", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            let wait = wanted_wait(&headers, now).map(|wait| wait.as_secs_f64());
            assert_eq!(wait, seconds, "{text}");
        }
        assert_eq!(wanted_wait(&HeaderMap::new(), now), None);
    }
}
