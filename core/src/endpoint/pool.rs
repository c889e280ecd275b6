//! Servers that share the work.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Map, Value};
use tokio::runtime::{Builder, Runtime};

use super::budget::Meter;
use super::reply::Api;
use super::round::Round;
use super::server::Server;
use super::{Answer, EndpointConfig, Listener, Told, again};
use crate::{Error, Result};

/// A request without what is the server's own.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// Where it goes.
    pub api: Api,
    /// Its body.
    pub body: Map<String, Value>,
    /// Log-probs must come back.
    pub logprobs: bool,
}

/// What a pool takes from servers.
#[derive(Debug, Clone, Copy)]
pub struct PoolOptions {
    /// Bytes of the longest answer.
    pub max_bytes: usize,
    /// Whether an answer that cannot be read is asked for again.
    pub ask_again_for_garbage: bool,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { max_bytes: 64 << 20, ask_again_for_garbage: true }
    }
}

/// Servers with one model. Requests go to those that have had the fewest for their weight and have
/// room; how many are on their way to each follows how it keeps up. Those that fail go again, to
/// another server where there is one.
pub struct Pool {
    pub(super) label: String,
    pub(super) servers: Vec<Server>,
    pub(super) options: PoolOptions,
    notes: Mutex<Vec<String>>,
    /// Its one thread drives the connections.
    runtime: Runtime,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let urls: Vec<&str> = self.servers.iter().map(|s| s.config.url.as_str()).collect();
        f.debug_struct("Pool").field("label", &self.label).field("urls", &urls).finish()
    }
}

impl Pool {
    /// A pool of one or more endpoints. `label` begins every error. Nothing is sent yet.
    ///
    /// # Errors
    /// An address that is none, or a key that is not there.
    pub fn new(label: &str, endpoints: &[EndpointConfig], options: PoolOptions) -> Result<Self> {
        let server = |config: &EndpointConfig| Server::new(config.clone(), options.max_bytes);
        let servers = endpoints.iter().map(server).collect::<Result<Vec<_>>>();
        let labelled = |error: Error| {
            let told = Error::config(format!("{label}: {error}"));
            error.remedy().map(str::to_string).into_iter().fold(told, Error::hint)
        };
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Ok(Self {
            label: label.into(),
            servers: servers.map_err(labelled)?,
            options,
            notes: Mutex::default(),
            runtime: runtime.map_err(|error| {
                Error::config(format!("{label}: no thread starts")).because(error)
            })?,
        })
    }

    /// The answer to each request, or why there is none, in their order. What ends the work, such as a
    /// key that no server takes, is the reason of all that have none.
    pub fn ask(&self, asks: &[Ask]) -> Vec<Result<Answer>> {
        let mut collected = Collected(asks.iter().map(|_| None).collect());
        let outcome = self.ask_all(asks, &Meter::default(), &mut collected);
        let reason = || match &outcome {
            Ok(()) => Error::data(format!("{}: no answer", self.label)),
            Err(error) => again(error),
        };
        collected.0.into_iter().map(|answer| answer.unwrap_or_else(|| Err(reason()))).collect()
    }

    /// Tells `listener` the answer to each request, or why there is none, as they come.
    pub(super) fn ask_all(
        &self,
        asks: &[Ask],
        meter: &Meter,
        listener: &mut dyn Listener,
    ) -> Result<()> {
        self.runtime.block_on(Round::new(self, asks, meter).run(listener))
    }

    /// Requests that may be on their way to each server at once, as it is now.
    pub fn limits(&self) -> Vec<usize> {
        self.servers.iter().map(Server::allowed).collect()
    }

    pub(super) fn note(&self, note: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
    }

    pub(super) fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a server other than the one at `at` could be sent something.
    pub(super) fn others_are_awake(&self, at: usize, now: Instant) -> bool {
        let mut others = self.servers.iter().enumerate().filter(|&(other, _)| other != at);
        others.any(|(_, server)| server.is_awake(now))
    }
}

/// The answers, where they belong.
struct Collected(Vec<Option<Result<Answer>>>);

impl Listener for Collected {
    fn settled(&mut self, index: usize, outcome: Result<Told>) -> Result<()> {
        self.0[index] = Some(outcome.map(|told| told.answer));
        Ok(())
    }

    fn tick(&mut self) -> Result<()> {
        Ok(())
    }
}
