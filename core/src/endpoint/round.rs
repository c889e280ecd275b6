//! Requests on their way through a pool, each until it is answered or refused.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};

use super::budget::Meter;
use super::client::{Failure, FailureKind};
use super::limit::Ticket;
use super::pool::{Ask, Pool};
use super::reply::{Unusable, read, usage_in};
use super::server::{Seat, Server, doubled};
use super::{Answer, Listener, Told, Usage};
use crate::{Error, ErrorKind, Result};

/// How often the listener is told that time passes.
const TICK: Duration = Duration::from_millis(50);
/// Time for what is on its way after an interruption.
const GRACE: Duration = Duration::from_secs(30);
/// So many times its `backoff_seconds` a server without room is asked again while none answers.
const PATIENCE: f64 = 900.0;
/// Waits that a server asks for, one after the other, before it is told to have no room.
const ASKED_WAITS: u32 = 3;
/// Bytes of a token where a server does not say how many there were.
const BYTES_OF_A_TOKEN: u64 = 3;

/// Requests that are asked together.
pub(super) struct Round<'a> {
    pool: &'a Pool,
    asks: &'a [Ask],
    meter: &'a Meter,
    ready: VecDeque<Try>,
    /// By when they may go again; the number tells those of one moment apart.
    waiting: BTreeMap<(Instant, u64), Try>,
    waited: u64,
    under_way: JoinSet<Finished>,
    /// Nothing more is sent: the reason, and until when answers may still come.
    stop: Option<(Error, Option<Instant>)>,
    /// When a server last showed that it works.
    heard_at: Option<Instant>,
    /// Since when servers have had no room, without any sign that one works.
    full_since: Option<Instant>,
}

/// A request that is to be sent.
#[derive(Debug, Default)]
struct Try {
    index: usize,
    failures: u32,
    /// How often a server had no room, which is no failure.
    refused_for_room: u32,
    began: Option<Instant>,
    /// The server that failed last.
    failed_at: Option<usize>,
    /// A server was there in one of the tries.
    was_heard: bool,
}

/// A request that came to an end.
struct Finished {
    attempt: Try,
    server: usize,
    /// Free only when the outcome has been looked at: it may say that nothing more is to be sent.
    seat: Seat,
    seconds: f64,
    outcome: Result<String, Failure>,
}

impl<'a> Round<'a> {
    pub fn new(pool: &'a Pool, asks: &'a [Ask], meter: &'a Meter) -> Self {
        let ready = (0..asks.len()).map(|index| Try { index, ..Try::default() }).collect();
        Self {
            pool,
            asks,
            meter,
            ready,
            waiting: BTreeMap::new(),
            waited: 0,
            under_way: JoinSet::new(),
            stop: None,
            heard_at: None,
            full_since: None,
        }
    }

    /// Until all are settled, or something ends the work. What is under way when it is dropped is
    /// broken off.
    pub async fn run(mut self, listener: &mut dyn Listener) -> Result<()> {
        loop {
            self.start();
            let nothing_is_left = self.ready.is_empty() && self.waiting.is_empty();
            if self.under_way.is_empty() && (self.stop.is_some() || nothing_is_left) {
                break;
            }
            if self.under_way.is_empty() {
                sleep(self.pause()).await;
            } else if let Ok(Some(finished)) =
                timeout(self.pause(), self.under_way.join_next()).await
            {
                self.finish(finished, listener)?;
                while let Some(finished) = self.under_way.try_join_next() {
                    self.finish(finished, listener)?;
                }
            }
            let ticked = listener.tick();
            match (&self.stop, ticked) {
                (Some((_, Some(until))), _) if *until <= Instant::now() => break,
                (Some((_, Some(_))), _) | (_, Ok(())) => {}
                // Whatever ended the work, it is not waited for any longer.
                (_, Err(error)) => self.stop = Some((error, Some(Instant::now() + GRACE))),
            }
        }
        self.stop.map_or(Ok(()), |(error, _)| Err(error))
    }

    /// How long nothing happens at most.
    fn pause(&self) -> Duration {
        let next = self.waiting.first_key_value().map(|(&(when, _), _)| when);
        // Those that are ready wait for a server.
        let servers = self.pool.servers.iter().filter(|_| !self.ready.is_empty());
        let next = servers.filter_map(Server::rests_until).chain(next).min();
        let until_next = next.map(|when| when.saturating_duration_since(Instant::now()));
        until_next.map_or(TICK, |pause| pause.clamp(Duration::from_millis(1), TICK))
    }

    /// Sends what may be sent now.
    fn start(&mut self) {
        let outs = self.pool.servers.iter().map(Server::why_out).collect::<Option<Vec<_>>>();
        if let Some((message, remedy)) = outs.and_then(|outs| outs.into_iter().next_back())
            && !self.ready.is_empty()
        {
            let error = Error::new(ErrorKind::Network, message).hint(remedy);
            self.stop.get_or_insert((error, None));
        }
        if self.stop.is_some() {
            return;
        }
        let now = Instant::now();
        while let Some(first) = self.waiting.first_entry().filter(|first| first.key().0 <= now) {
            self.ready.push_back(first.remove());
        }
        while let Some(mut attempt) = self.ready.pop_front() {
            let Some((server, seat)) = self.choose(&attempt, now) else {
                self.ready.push_front(attempt);
                return;
            };
            if let Err(error) = self.meter.take() {
                self.stop = Some((error, None));
                return;
            }
            attempt.began.get_or_insert(now);
            let ask = &self.asks[attempt.index];
            let (api, body) = (ask.api, body(ask, &self.pool.servers[server]));
            let client = self.pool.servers[server].client.clone();
            self.under_way.spawn(async move {
                let began = Instant::now();
                let outcome = client.ask(api, body).await;
                let seconds = began.elapsed().as_secs_f64();
                Finished { attempt, server, seat, seconds, outcome }
            });
        }
    }

    /// The server with the fewest requests for its weight, rather not the one that failed before.
    fn choose(&self, attempt: &Try, now: Instant) -> Option<(usize, Seat)> {
        let servers = self.pool.servers.iter().enumerate();
        let free = servers.filter_map(|(at, server)| Some((at, server.load(now)?)));
        let key = |&(at, load): &(usize, f64)| (attempt.failed_at == Some(at), load);
        let best = free.min_by(|a, b| {
            let ((failed_a, load_a), (failed_b, load_b)) = (key(a), key(b));
            failed_a.cmp(&failed_b).then(load_a.total_cmp(&load_b))
        });
        let (at, _) = best?;
        Some((at, self.pool.servers[at].take_seat(now)?))
    }

    fn finish(
        &mut self,
        finished: Result<Finished, JoinError>,
        listener: &mut dyn Listener,
    ) -> Result<()> {
        let Finished { attempt, server, seat, seconds, outcome } = finished.map_err(|error| {
            let message = format!("{}: a request was broken off", self.pool.label);
            Error::new(ErrorKind::Network, message).because(error)
        })?;
        let ask = &self.asks[attempt.index];
        let answer = outcome.and_then(|body| {
            read(ask.api, &body, ask.logprobs).map_err(|unusable| {
                if let Some(usage) = usage_in(&body) {
                    // Paid for all the same.
                    self.meter.pay(usage, self.pool.servers[server].config.cost(usage));
                }
                let (kind, reason) = match unusable {
                    Unusable::Wrong(reason) if self.pool.options.ask_again_for_garbage => {
                        (FailureKind::Broken, reason)
                    }
                    Unusable::Wrong(reason) | Unusable::Final(reason) => {
                        (FailureKind::Refused, reason)
                    }
                };
                Failure::new(kind, reason)
            })
        });
        match answer {
            Ok((mut answer, has_usage)) => {
                let server = &self.pool.servers[server];
                server.answered(seat.ticket, seconds, answer.usage.completion_tokens);
                (self.heard_at, self.full_since) = (Some(Instant::now()), None);
                if answer.model.is_empty() {
                    answer.model = ask.body["model"].as_str().unwrap_or_default().to_string();
                }
                let usage = if has_usage { answer.usage } else { guessed(ask, &answer) };
                let cost = server.config.cost(usage);
                self.meter.pay(usage, cost);
                listener.settled(attempt.index, Ok(Told { answer, usage, cost }))
            }
            Err(failure) => self.fail(attempt, server, seat.ticket, failure, listener),
        }
    }

    fn fail(
        &mut self,
        mut attempt: Try,
        at: usize,
        ticket: Ticket,
        mut failure: Failure,
        listener: &mut dyn Listener,
    ) -> Result<()> {
        let (pool, now) = (self.pool, Instant::now());
        let server = &pool.servers[at];
        failure.kind = match failure.kind {
            // A server that has answered takes the key and knows the model.
            FailureKind::Denied { status: 403 } if server.has_answered() => FailureKind::Refused,
            FailureKind::Denied { status: 404 } if server.has_answered() => FailureKind::Broken,
            kind => kind,
        };
        let others_are_awake = pool.others_are_awake(at, now);
        if let Some(rest) = server.failed(ticket, &failure, now, others_are_awake) {
            let (url, reason, seconds) = (&server.config.url, &failure.reason, rest.as_secs_f64());
            pool.note(format!("{}: `{url}` rests for {seconds:.0} s: {reason}", pool.label));
        }
        if !matches!(failure.kind, FailureKind::Full | FailureKind::Away) {
            (self.heard_at, self.full_since) = (Some(now), None);
            attempt.was_heard = true;
        }
        match failure.kind {
            FailureKind::Refused => {
                // It would be refused again, which the kind of the error tells.
                let refused = refusal(ErrorKind::Data, pool, server, &failure);
                listener.settled(attempt.index, Err(refused))
            }
            FailureKind::Denied { status } => {
                self.put_out(at, status, &failure);
                self.ready.push_front(attempt);
                Ok(())
            }
            _ => {
                attempt.failed_at = Some(at);
                let times = match failure.kind {
                    FailureKind::Full => &mut attempt.refused_for_room,
                    _ => &mut attempt.failures,
                };
                *times += 1;
                let times = *times;
                let is_enough = match failure.kind {
                    FailureKind::Full => self.is_out_of_patience(server, &failure, now),
                    _ => times > server.config.retries,
                };
                if is_enough {
                    return self.give_up(&attempt, server, &failure, listener);
                }
                // Another server need not wait for what this one asks.
                let asked = failure.wait.filter(|_| !others_are_awake).unwrap_or_default();
                let pause = doubled(server.backoff_seconds(), times - 1);
                // Not all that wait at the same moment.
                let apart = pause.mul_f64(rand::random_range(0.0..=0.5));
                let when = now + asked.max(pause.mul_f64(0.5)) + apart;
                self.waited += 1;
                self.waiting.insert((when, self.waited), attempt);
                Ok(())
            }
        }
    }

    /// Whether servers have had no room for long.
    fn is_out_of_patience(&mut self, server: &Server, failure: &Failure, now: Instant) -> bool {
        let patience = Duration::from_secs_f64(PATIENCE * server.backoff_seconds());
        let asked = failure.wait.unwrap_or_default() * ASKED_WAITS;
        let since = *self.full_since.get_or_insert(now);
        now.saturating_duration_since(since) >= patience.max(asked)
    }

    /// A question is out of tries. Where no server was there in any of them, nor has been heard of in
    /// the meantime, the other questions would fare no better.
    fn give_up(
        &mut self,
        attempt: &Try,
        server: &Server,
        failure: &Failure,
        listener: &mut dyn Listener,
    ) -> Result<()> {
        let label = &self.pool.label;
        if attempt.was_heard || self.heard_at > attempt.began {
            let refused = refusal(ErrorKind::Network, self.pool, server, failure);
            return listener.settled(attempt.index, Err(refused));
        }
        let (url, reason) = (&server.config.url, &failure.reason);
        let what = match failure.kind {
            FailureKind::Full => "no server has room",
            _ => "no server is there",
        };
        let message = format!("{label}: {what}: `{url}`: {reason}");
        let error = Error::new(ErrorKind::Network, message)
            .hint("run it again when one is: what was answered is kept, and not asked again");
        self.stop.get_or_insert((error, None));
        Ok(())
    }

    /// Sends a server nothing any more.
    fn put_out(&mut self, at: usize, status: u16, failure: &Failure) {
        let (pool, server) = (self.pool, &self.pool.servers[at]);
        let was_out = server.why_out().is_some();
        let (url, remedy) = (&server.config.url, server.client.remedy(status));
        let message = format!("{}: `{url}`: {}", pool.label, failure.reason);
        server.put_out(message.clone(), remedy);
        if !was_out {
            pool.note(format!("{message}; it is asked nothing any more ({remedy})"));
        }
    }
}

/// The request as this server takes it.
fn body(ask: &Ask, server: &Server) -> Vec<u8> {
    let mut body = ask.body.clone();
    server.config.omit.iter().for_each(|key| _ = body.shift_remove(key));
    body.extend(server.config.request.clone());
    Value::Object(body).to_string().into_bytes()
}

fn refusal(kind: ErrorKind, pool: &Pool, server: &Server, failure: &Failure) -> Error {
    let (label, url, reason) = (&pool.label, &server.config.url, &failure.reason);
    Error::new(kind, format!("{label}: `{url}`: {reason}"))
}

/// What an answer took at most, where the server does not say.
fn guessed(ask: &Ask, answer: &Answer) -> Usage {
    let tokens = |text: &dyn ToString| text.to_string().len() as u64 / BYTES_OF_A_TOKEN;
    let asked = ask.body.get("messages").or(ask.body.get("prompt"));
    let said = Value::Object(answer.message.0.clone());
    Usage {
        prompt_tokens: asked.map_or(0, |asked| tokens(asked)),
        completion_tokens: tokens(&said),
    }
}
