//! A server of a pool: how much it is sent, and whether it rests.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::EndpointConfig;
use super::client::{Client, Failure, FailureKind};
use super::limit::{Limit, Ticket};
use crate::Result;

/// Failures in a row after which a server rests, if another can do its work.
const REST_AFTER: u32 = 5;
/// The shortest first pause, in seconds.
const LEAST_PAUSE: f64 = 0.001;
/// The longest pause, of a server and between two tries.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(60);

pub(super) struct Server {
    pub config: EndpointConfig,
    pub client: Arc<Client>,
    state: Arc<Mutex<State>>,
}

struct State {
    limit: Limit,
    under_way: usize,
    /// Requests that it was given.
    given: f64,
    /// It is sent nothing before.
    rests_until: Option<Instant>,
    failures_in_a_row: u32,
    rests_in_a_row: u32,
    /// Since its last answer it had no room so often; those sent together count once.
    full_in_a_row: u32,
    /// It has answered something.
    has_answered: bool,
    /// Why it is sent nothing any more, and what can be done about it.
    out: Option<(String, &'static str)>,
}

/// A request on its way; its place is free when it is dropped.
pub(super) struct Seat {
    state: Arc<Mutex<State>>,
    pub ticket: Ticket,
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.state).under_way -= 1;
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn is_awake(&self, now: Instant) -> bool {
        self.out.is_none() && self.rests_until.is_none_or(|until| until <= now)
    }

    fn has_room(&self, now: Instant) -> bool {
        // After a rest, one request tells whether it was long enough.
        let allowed = if self.rests_in_a_row > 0 { 1 } else { self.limit.allowed() };
        self.is_awake(now) && self.under_way < allowed
    }
}

impl Server {
    pub fn new(config: EndpointConfig, max_bytes: usize) -> Result<Self> {
        let client = Arc::new(Client::new(&config, max_bytes)?);
        let state = Arc::new(Mutex::new(State {
            limit: Limit::new(config.concurrency.get()),
            under_way: 0,
            given: 0.0,
            rests_until: None,
            failures_in_a_row: 0,
            rests_in_a_row: 0,
            full_in_a_row: 0,
            has_answered: false,
            out: None,
        }));
        Ok(Self { config, client, state })
    }

    /// How much it was given for its weight, where it has room for one more.
    pub fn load(&self, now: Instant) -> Option<f64> {
        let state = lock(&self.state);
        state.has_room(now).then_some(state.given / self.config.weight)
    }

    /// The first pause; never none, as what fails at once would be sent again at once.
    pub fn backoff_seconds(&self) -> f64 {
        self.config.backoff_seconds.max(LEAST_PAUSE)
    }

    pub fn take_seat(&self, now: Instant) -> Option<Seat> {
        let mut state = lock(&self.state);
        if !state.has_room(now) {
            return None;
        }
        state.under_way += 1;
        state.given += 1.0;
        Some(Seat { state: Arc::clone(&self.state), ticket: state.limit.ticket() })
    }

    pub fn is_awake(&self, now: Instant) -> bool {
        lock(&self.state).is_awake(now)
    }

    /// When it may be sent something again, where it was to rest.
    pub fn rests_until(&self) -> Option<Instant> {
        let state = lock(&self.state);
        state.rests_until.filter(|until| state.out.is_none() && *until > Instant::now())
    }

    pub fn has_answered(&self) -> bool {
        lock(&self.state).has_answered
    }

    /// Requests that may be on their way to it at once.
    pub fn allowed(&self) -> usize {
        lock(&self.state).limit.allowed()
    }

    /// An answer of so many tokens came.
    pub fn answered(&self, ticket: Ticket, seconds: f64, tokens: u64) {
        let mut state = lock(&self.state);
        state.limit.answered(ticket, seconds, tokens);
        (state.failures_in_a_row, state.rests_in_a_row, state.full_in_a_row) = (0, 0, 0);
        state.has_answered = true;
    }

    /// A try failed. The server rests if that was one too many and others are awake, for how long is
    /// returned.
    pub fn failed(
        &self,
        ticket: Ticket,
        failure: &Failure,
        now: Instant,
        others_are_awake: bool,
    ) -> Option<Duration> {
        let mut state = lock(&self.state);
        match failure.kind {
            FailureKind::Refused => {
                (state.failures_in_a_row, state.rests_in_a_row) = (0, 0);
                return None;
            }
            FailureKind::Denied { .. } => return None,
            FailureKind::Full => {
                state.full_in_a_row += u32::from(state.limit.overloaded(ticket));
            }
            FailureKind::Away | FailureKind::Late => _ = state.limit.overloaded(ticket),
            FailureKind::Broken => {}
        }
        if state.rests_in_a_row > 0 && !state.is_awake(now) {
            // It was sent before the rest, which it says nothing of.
            return None;
        }
        state.failures_in_a_row += 1;
        if failure.kind == FailureKind::Full {
            let times = state.full_in_a_row.saturating_sub(1);
            let pause = doubled(self.backoff_seconds(), times).mul_f64(0.5);
            let wait = pause.max(failure.wait.unwrap_or_default());
            state.rests_until = state.rests_until.max(Some(now + wait));
        }
        if state.rests_in_a_row == 0 && state.failures_in_a_row < REST_AFTER {
            return None;
        }
        if !others_are_awake {
            state.rests_in_a_row = 0;
            return None;
        }
        let rest = doubled(self.config.backoff_seconds.max(0.01), state.rests_in_a_row);
        state.rests_in_a_row += 1;
        state.rests_until = state.rests_until.max(Some(now + rest));
        Some(rest)
    }

    /// It is sent nothing any more.
    pub fn put_out(&self, reason: String, remedy: &'static str) {
        lock(&self.state).out = Some((reason, remedy));
    }

    pub fn why_out(&self) -> Option<(String, &'static str)> {
        lock(&self.state).out.clone()
    }
}

/// `seconds`, doubled so many times.
pub(super) fn doubled(seconds: f64, times: u32) -> Duration {
    let seconds = seconds * 2f64.powi(times.min(30) as i32);
    Duration::try_from_secs_f64(seconds).map_or(MAX_PAUSE, |pause| pause.min(MAX_PAUSE))
}
