//! Sampling and scoring, side by side.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use halter_core::data::record::{Message, Record, Turn};
use halter_core::data::rows::Rows;
use halter_core::generate::Generator;
use halter_core::generate::engine::{EngineOptions, Finish, Request};
use halter_core::generate::output::ResultFile;
use halter_core::generate::sampling::Sampling;
use halter_core::generate::session::{Completion, Job, complete_rows};
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::{Progress, Unit};
use halter_core::{Error, Result};
use serde_json::{Map, Value};

use super::line::{Line, Scored};
use crate::scorer::{Item, Score, Scorer};

/// Prompts that may wait for their scores.
const WAITING: usize = 256;

/// Completions of every prompt that are drawn in one way.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// A system prompt before (or in place of) the conversation's own.
    pub system: Option<String>,
    /// How many of each prompt; at least one.
    pub completions: usize,
}

/// Everything that sampling needs.
pub struct Sampler<'a> {
    /// The model.
    pub generator: &'a Generator,
    /// The prompts.
    pub rows: &'a Rows,
    /// What gives scores.
    pub scorer: &'a dyn Scorer,
    /// Ways to draw completions; at least one.
    pub variants: &'a [Variant],
    /// Most tokens of a completion.
    pub max_new_tokens: usize,
    /// Tokens that end a completion beside the model's own.
    pub stop_tokens: &'a [u32],
    /// A completion ends before the first of them.
    pub stop: &'a [String],
    /// With the row, the variant and the completion, decides every draw.
    pub seed: u64,
    /// How much is generated at once.
    pub engine: EngineOptions,
}

/// How it went.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Tokens generated.
    pub tokens: usize,
    /// From begin to end.
    pub seconds: f64,
    /// Of these, not spent in the model: reading rows, handing completions on, waiting for scores.
    pub seconds_outside: f64,
    /// That scorers worked, beside the model.
    pub scoring_seconds: f64,
}

/// A row that is under way.
pub(super) struct Asked {
    pub line: Line,
    pub row: Map<String, Value>,
    pub turn: Turn,
}

impl Sampler<'_> {
    /// Completes the rows from `first` on, and appends a line of each to `file`.
    ///
    /// # Errors
    /// When the model cannot be computed, the file not be written, or `interrupt` is set; the lines
    /// written so far stay.
    pub fn run(
        &self,
        first: u64,
        file: &mut ResultFile,
        progress: &mut dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<Outcome> {
        let began = Instant::now();
        let total = self.rows.len();
        progress.begin("sampling", total, Unit::Rows);
        progress.advance(first, "");
        let mut reached = first;
        let (tokens, outside) = (Cell::new(0), Cell::new(Duration::ZERO));
        let (send, receive) = sync_channel(WAITING);
        let (generated, scored) = std::thread::scope(|scope| {
            let scoring = scope.spawn(move || self.score_all(&receive, file, interrupt));
            let mut open: Option<Asked> = None;
            let ways = self.variants.len() as u64;
            let jobs = (first * ways..total * ways).map(|at| timed(&outside, || self.ask(at)));
            let generated = complete_rows(
                self.generator,
                self.engine,
                jobs,
                |asked: (usize, Option<Asked>), outcome| {
                    timed(&outside, || {
                        let (variant, asked) = asked;
                        if let Some(asked) = asked {
                            open = Some(asked);
                        }
                        let Some(asked) = &mut open else { return Ok(()) };
                        self.add(&mut asked.line, variant, outcome);
                        if variant + 1 < self.variants.len() {
                            return Ok(());
                        }
                        reached += 1;
                        progress.advance(reached, &rate(tokens.get(), began));
                        let ended = || Error::data("scoring has ended");
                        open.take().map_or(Ok(()), |asked| send.send(asked).map_err(|_| ended()))
                    })
                },
                |more| {
                    tokens.set(tokens.get() + more);
                    interrupt.check()
                },
            );
            drop(send);
            let scored = timed(&outside, || scoring.join());
            (generated, scored)
        });
        progress.finish();
        // Where scoring failed, generation has failed for that reason.
        let scoring = scored
            .map_err(|_| Error::new(halter_core::ErrorKind::Numeric, "scoring has panicked"))??;
        generated?;
        Ok(Outcome {
            tokens: tokens.get(),
            seconds: began.elapsed().as_secs_f64(),
            seconds_outside: outside.get().as_secs_f64(),
            scoring_seconds: scoring.as_secs_f64(),
        })
    }

    /// Job `at`: of a row, in one of the ways. The first of a row brings the row.
    fn ask(&self, at: u64) -> ((usize, Option<Asked>), Result<Job>) {
        let ways = self.variants.len() as u64;
        let (row, variant) = (at / ways, (at % ways) as usize);
        let turn = Turn::Messages(Vec::new());
        let mut asked = Asked { line: Line { row, ..Line::default() }, row: Map::new(), turn };
        let job = self.job(row, variant, at, &mut asked);
        ((variant, (variant == 0).then_some(asked)), job)
    }

    fn job(&self, number: u64, variant: usize, at: u64, asked: &mut Asked) -> Result<Job> {
        let Some((set, row)) = self.rows.find(number) else {
            return Err(Error::data(format!("no row `{number}`")));
        };
        let origin = set.origin(row);
        let way = &self.variants[variant];
        let mut job = || {
            asked.row = set.row(row)?;
            asked.line.id = asked.row.get("id").cloned();
            let record = set.record(row)?;
            if let Record::Chat { tools, .. }
            | Record::PromptCompletion { tools, .. }
            | Record::Prompt { tools, .. } = &record
            {
                asked.line.tools = tools.clone();
            }
            let (turn, mut prompt) = self.generator.record_prompt(&record)?;
            let is_text = matches!(turn, Turn::Text(_));
            asked.line.prompt = turn.to_json();
            asked.turn.clone_from(&turn);
            if let Some(system) = &way.system {
                let Turn::Messages(messages) = turn else {
                    return Err(Error::data("a system prompt needs a conversation, not a text"));
                };
                let messages = with_system(messages, system);
                prompt = self.generator.chat_prompt(&messages, asked.line.tools.as_deref())?;
            }
            let room = self.generator.room_after(prompt.len(), &self.engine)?;
            let request = Request {
                id: 0,
                prompt,
                completions: way.completions,
                max_new_tokens: self.max_new_tokens.min(room),
                stop_tokens: self.stop_tokens.to_vec(),
                sampling: way.sampling,
                seed: self.seed,
                row: at,
                top_logprobs: 0,
            };
            Ok(Job { request, stop: self.stop.to_vec(), is_text })
        };
        job().map_err(|error: Error| error.at(&*origin.path, origin.line))
    }

    /// Adds the completions of one way, or why there are none.
    fn add(&self, line: &mut Line, variant: usize, outcome: Result<Vec<Completion>>) {
        let way = &self.variants[variant];
        match outcome {
            Err(error) => line.error = Some(error.to_string()),
            Ok(completions) => line.completions.extend(completions.into_iter().map(|c| Scored {
                logps: c.logps(),
                finish_reason: match c.finish {
                    Some(Finish::Stop) => "stop".into(),
                    Some(Finish::Length) | None => "length".into(),
                },
                num_tokens: c.tokens.len(),
                text: c.text,
                temperature: way.sampling.temperature,
                system: way.system.clone(),
                ..Scored::default()
            })),
        }
    }

    /// Scores rows as they come, and writes them; returns the time that scorers worked. When
    /// interrupted, rows that wait are not scored: there may be many, and a scorer that is slow.
    fn score_all(
        &self,
        rows: &Receiver<Asked>,
        file: &mut ResultFile,
        interrupt: &Interrupt,
    ) -> Result<Duration> {
        let mut worked = Duration::ZERO;
        for mut asked in rows {
            interrupt.check()?;
            let began = Instant::now();
            asked.score(self.scorer);
            worked += began.elapsed();
            file.append(&asked.line)?;
        }
        Ok(worked)
    }
}

/// Refuses a score that JSON has no number for.
fn finite(score: Score) -> Result<Score> {
    match score.value.is_finite() {
        true => Ok(score),
        false => Err(Error::data(format!("expected a finite score, got `{}`", score.value))),
    }
}

impl Asked {
    /// Scores the completions that have no score.
    pub fn score(&mut self, scorer: &dyn Scorer) {
        let unscored: Vec<&Scored> =
            self.line.completions.iter().filter(|c| c.score.is_none()).collect();
        let scores = self.scores(scorer, &unscored);
        let unscored = self.line.completions.iter_mut().filter(|c| c.score.is_none());
        for (completion, score) in unscored.zip(scores) {
            (completion.score, completion.detail, completion.error) = match score.and_then(finite) {
                Ok(Score { value, detail }) => (Some(value), detail, None),
                Err(error) => (None, None, Some(error.to_string())),
            };
        }
    }

    /// The scores of completions of the row. A scorer that panics costs all of them.
    fn scores(&self, scorer: &dyn Scorer, completions: &[&Scored]) -> Vec<Result<Score>> {
        let items: Vec<Item> = completions
            .iter()
            .map(|completion| Item {
                prompt: &self.turn,
                completion: &completion.text,
                num_tokens: completion.num_tokens,
                ended: completion.has_ended(),
                row: &self.row,
            })
            .collect();
        catch_unwind(AssertUnwindSafe(|| scorer.score_all(&items))).unwrap_or_else(|_| {
            let failed =
                |_| Err(Error::data(format!("the scorer `{}` has crashed", scorer.name())));
            items.iter().map(failed).collect()
        })
    }
}

fn timed<T>(total: &Cell<Duration>, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    total.set(total.get() + began.elapsed());
    done
}

fn rate(tokens: usize, began: Instant) -> String {
    format!("{:.0} tokens/s", tokens as f64 / began.elapsed().as_secs_f64().max(1e-9))
}

/// The conversation with `system` in place of its own system prompt.
fn with_system(mut messages: Vec<Message>, system: &str) -> Vec<Message> {
    let is_system = |message: &Message| message.0.get("role").is_some_and(|role| role == "system");
    if messages.first().is_some_and(is_system) {
        messages.remove(0);
    }
    let entry = |key: &str, value: &str| (key.to_string(), Value::from(value));
    messages.insert(
        0,
        Message([entry("role", "system"), entry("content", system)].into_iter().collect()),
    );
    messages
}
