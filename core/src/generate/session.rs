//! Completions as text: an engine, and what becomes of its tokens.

use std::collections::{BTreeMap, VecDeque};

use super::engine::{Engine, EngineOptions, Event, Finish, Request};
use super::generator::Generator;
use super::text::TextStream;
use crate::Result;

/// A request, and the strings that end its completions.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// What is wanted. Its `stop_tokens` go beside the model's own.
    pub request: Request,
    /// A completion ends before the first of them.
    pub stop: Vec<String>,
    /// The prompt is a text, which completions go on from: a space that they begin with is theirs.
    pub is_text: bool,
}

/// A token of a completion, and the text that may be shown since.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// The token. Its `finish` tells of stop strings as well.
    pub event: Event,
    /// Whole characters; none that may belong to a stop string. A stop token has no text.
    pub text: String,
}

/// Completes prompts with a generator's model.
pub struct Session<'g> {
    generator: &'g Generator,
    engine: Engine<'g>,
    /// Completions under way, by request.
    open: BTreeMap<u64, Open>,
}

struct Open {
    stop_tokens: Vec<u32>,
    /// `None`: ended.
    texts: Vec<Option<TextStream>>,
}

impl<'g> Session<'g> {
    /// A session that holds no more than `options` allow.
    pub fn new(generator: &'g Generator, options: EngineOptions) -> Self {
        let engine = Engine::new(&generator.model, options);
        Self { generator, engine, open: BTreeMap::new() }
    }

    /// Takes on a job, behind those before it. No two under way have the same id.
    ///
    /// # Errors
    /// As [`Engine::submit`], or a prompt that cannot be decoded.
    pub fn submit(&mut self, job: Job) -> Result<()> {
        let Job { mut request, stop, is_text } = job;
        request.stop_tokens.extend(&self.generator.stop_tokens);
        let id = request.id;
        let text = match is_text {
            true => TextStream::after(&request.prompt, &self.generator.tokenizer, stop)?,
            false => TextStream::new(stop),
        };
        let texts = vec![Some(text); request.completions];
        let open = Open { stop_tokens: request.stop_tokens.clone(), texts };
        self.engine.submit(request)?;
        self.open.insert(id, open);
        Ok(())
    }

    /// Forgets a request; no update of it comes any more.
    pub fn cancel(&mut self, id: u64) {
        self.engine.cancel(id);
        self.open.remove(&id);
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.engine.is_idle()
    }

    /// One more token of everything under way.
    ///
    /// # Errors
    /// When the model cannot be computed or a token not decoded.
    pub fn step(&mut self) -> Result<Vec<Update>> {
        let mut updates = Vec::new();
        for mut event in self.engine.step()? {
            let (request, completion) = (event.request, event.completion);
            let Some(open) = self.open.get_mut(&request) else { continue };
            // A stop string ended it earlier in this step.
            let Some(stream) = &mut open.texts[completion] else { continue };
            let tokenizer = &self.generator.tokenizer;
            let mut text = match open.stop_tokens.contains(&event.token) {
                true => String::new(),
                false => stream.push(tokenizer, event.token)?,
            };
            if event.finish.is_some() {
                text += &stream.finish(tokenizer)?;
            }
            if stream.is_stopped() && event.finish != Some(Finish::Stop) {
                if event.finish.is_none() {
                    self.engine.cancel_completion(request, completion);
                }
                event.finish = Some(Finish::Stop);
            }
            if event.finish.is_some() {
                open.texts[completion] = None;
                if open.texts.iter().all(Option::is_none) {
                    self.open.remove(&request);
                }
            }
            updates.push(Update { event, text });
        }
        Ok(updates)
    }
}

/// A completion as far as it came.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Completion {
    /// The text, without what ended it.
    pub text: String,
    /// All tokens, the one that ended it included.
    pub tokens: Vec<u32>,
    /// Their log-probs under the model, before temperature and filters.
    pub logprobs: Vec<f32>,
    /// The likeliest tokens in the place of each, where they were asked for.
    pub top: Vec<Vec<(u32, f32)>>,
    /// Why it ended; `None` while it goes on.
    pub finish: Option<Finish>,
}

impl Completion {
    /// Adds a token.
    pub fn add(&mut self, update: Update) {
        let Update { event, text } = update;
        self.text += &text;
        self.tokens.push(event.token);
        self.logprobs.push(event.logprob);
        self.top.push(event.top);
        self.finish = event.finish;
    }

    /// Log-prob of the whole.
    pub fn logps(&self) -> f64 {
        self.logprobs.iter().copied().map(f64::from).sum()
    }
}

/// Completes the prompts of many rows; `done` gets the completions of each, in the order of `rows`,
/// and after every step `tick` the number of tokens generated since the last. A row that is an error
/// is handed on in its place, as is one that the engine refuses.
///
/// # Errors
/// When the model cannot be computed, or what `done` or `tick` say.
pub fn complete_rows<T>(
    generator: &Generator,
    options: EngineOptions,
    rows: impl IntoIterator<Item = (T, Result<Job>)>,
    mut done: impl FnMut(T, Result<Vec<Completion>>) -> Result<()>,
    mut tick: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    let mut session = Session::new(generator, options);
    let mut rows = rows.into_iter();
    // In the order of the rows, each with its number and completions.
    let mut open: VecDeque<(u64, T, Result<Vec<Completion>>)> = VecDeque::new();
    // The engine's batch stays full although some rows take long.
    let most = 4 * options.completions;
    let (mut next, mut all_taken) = (0, false);
    loop {
        while open.len() < most {
            let Some((row, job)) = rows.next() else {
                all_taken = true;
                break;
            };
            let outcome = job.and_then(|mut job| {
                job.request.id = next;
                let completions = job.request.completions;
                session.submit(job).map(|()| vec![Completion::default(); completions])
            });
            open.push_back((next, row, outcome));
            next += 1;
        }
        while let Some((_, _, outcome)) = open.front() {
            let goes_on = outcome.as_ref().is_ok_and(|all| all.iter().any(|c| c.finish.is_none()));
            if goes_on {
                break;
            }
            if let Some((_, row, outcome)) = open.pop_front() {
                done(row, outcome)?;
            }
        }
        let first = match open.front() {
            Some(&(first, _, _)) => first,
            None if all_taken => return Ok(()),
            None => continue,
        };
        let updates = session.step()?;
        tick(updates.len())?;
        for update in updates {
            let at = (update.event.request - first) as usize;
            if let Some((_, _, Ok(completions))) = open.get_mut(at) {
                completions[update.event.completion].add(update);
            }
        }
    }
}
