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
use super::{Answer, Budget, EndpointConfig, Listener, Spent, Told, again};
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
    /// What may be spent until the pool is dropped.
    pub budget: Budget,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { max_bytes: 64 << 20, ask_again_for_garbage: true, budget: Budget::default() }
    }
}

/// Servers with one model. Requests go to those that have had the fewest for their weight and have
/// room; how many are on their way to each follows how it keeps up. Those that fail go again, to
/// another server where there is one.
pub struct Pool {
    pub(super) label: String,
    pub(super) servers: Vec<Server>,
    pub(super) options: PoolOptions,
    meter: Meter,
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
            meter: Meter::new(label, options.budget, Spent::default()),
            notes: Mutex::default(),
            runtime: runtime.map_err(|error| {
                Error::config(format!("{label}: no thread starts")).because(error)
            })?,
        })
    }

    /// The answer to each request, or why there is none, in their order. What ends the work, such as a
    /// key that no server takes, is the reason of all that have none.
    pub fn ask(&self, asks: &[Ask]) -> Vec<Result<Answer>> {
        let mut answers: Vec<Option<Result<Answer>>> = asks.iter().map(|_| None).collect();
        let settled = &mut |index: usize, answer| {
            answers[index] = Some(answer);
            Ok(())
        };
        let outcome = self.ask_each(asks, settled, &mut || Ok(()));
        let reason = || match &outcome {
            Ok(()) => Error::data(format!("{}: no answer", self.label)),
            Err(error) => again(error),
        };
        answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(reason()))).collect()
    }

    /// Tells `settled` each request's number with its answer, or why there is none, as they come, and
    /// `tick` that time passes.
    ///
    /// # Errors
    /// What ends the work: a budget that is spent, no server, or an error of `settled` or `tick`. What
    /// was not told until then has no answer.
    pub fn ask_each(
        &self,
        asks: &[Ask],
        settled: &mut dyn FnMut(usize, Result<Answer>) -> Result<()>,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        self.ask_all(asks, &self.meter, &mut Each { settled, tick })
    }

    /// What was spent since the pool began; requests of a [`super::Teacher`] are not counted.
    pub fn spent(&self) -> Spent {
        self.meter.spent()
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

    /// What is worth telling the user since the last call.
    pub fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a server other than the one at `at` could be sent something.
    pub(super) fn others_are_awake(&self, at: usize, now: Instant) -> bool {
        let mut others = self.servers.iter().enumerate().filter(|&(other, _)| other != at);
        others.any(|(_, server)| server.is_awake(now))
    }
}

/// Two functions that listen.
struct Each<'a> {
    settled: &'a mut dyn FnMut(usize, Result<Answer>) -> Result<()>,
    tick: &'a mut dyn FnMut() -> Result<()>,
}

impl Listener for Each<'_> {
    fn settled(&mut self, index: usize, outcome: Result<Told>) -> Result<()> {
        (self.settled)(index, outcome.map(|told| told.answer))
    }

    fn tick(&mut self) -> Result<()> {
        (self.tick)()
    }
}
