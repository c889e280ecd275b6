//! Continuous batching: requests join and leave at every step.
//!
//! ```text
//! let mut engine = Engine::new(&model, EngineOptions::default())?;
//! engine.submit(request)?;
//! while !engine.is_idle() {
//!     for event in engine.step()? { … }
//! }
//! ```
//!
//! A step computes the next token of every completion under way and, beside them, a chunk of the
//! prompts that wait. A prompt is computed once for all of its completions, and full pages of it for
//! every later request that begins alike.
//!
//! A prompt begins when there are pages for it and a little more; completions take theirs as they
//! grow. Where none is left, the youngest goes back to those that wait, and what it had is computed
//! again as if it were a prompt: to the same bits, since these depend on the sequence alone. What runs
//! and what waits stand in one order, that of the requests, and a page is only ever taken from what
//! comes later: the oldest always goes on.

use std::collections::VecDeque;
use std::ops::Range;

use rayon::prelude::*;

use super::forward::{Input, forward, logits};
use super::pages::{Name, PAGE, PageId, Pages, names};
use super::sampling::{Sampling, draw, log_sum_exp};
use crate::model::Decoder;
use crate::ops::attention::Shape;
use crate::ops::top::likeliest_few;
use crate::ops::{on_a_worker, slices};
use crate::{Error, Result};

/// How much an engine takes on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Most tokens whose keys and values are held.
    pub cache_tokens: usize,
    /// Most completions under way.
    pub completions: usize,
    /// Most tokens of prompts in a step.
    pub prefill_tokens: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { cache_tokens: 1 << 16, completions: 64, prefill_tokens: 256 }
    }
}

/// A prompt and what is wanted of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Tells its events from those of others.
    pub id: u64,
    /// Tokens; one or more.
    pub prompt: Vec<u32>,
    /// Completions wanted; at least one.
    pub completions: usize,
    /// Most tokens of a completion; at least one.
    pub max_new_tokens: usize,
    /// Tokens that end a completion; it contains the one that did.
    pub stop_tokens: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// With `row`, the completion and the position, decides every draw.
    pub seed: u64,
    /// See `seed`.
    pub row: u64,
    /// So many of the likeliest tokens are told beside each that is taken.
    pub top_logprobs: usize,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// By a stop token.
    Stop,
    /// By its length.
    Length,
}

/// A token of a completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Of which request.
    pub request: u64,
    /// Of which of its completions.
    pub completion: usize,
    /// The token.
    pub token: u32,
    /// Its log-prob under the model, before temperature and filters.
    pub logprob: f32,
    /// The likeliest tokens with theirs, where they were asked for.
    pub top: Vec<(u32, f32)>,
    /// Whether it was the last one.
    pub finish: Option<Finish>,
}

/// Completes prompts with a model that stays as it is.
pub struct Engine<'m> {
    model: &'m Decoder,
    options: EngineOptions,
    pages: Pages,
    waiting: VecDeque<Waiting>,
    running: Vec<Completion>,
}

/// Tokens that completions follow: a request's prompt, or a completion that was set back.
struct Waiting {
    request: Request,
    /// Completions that are to begin.
    left: Range<usize>,
    tokens: Vec<u32>,
    /// Names of the full pages.
    names: Vec<Name>,
    /// Pages of all tokens, once there was room for them.
    pages: Vec<PageId>,
    /// Tokens that are computed.
    done: usize,
    /// Logits of the last token, once all are computed.
    logits: Option<Vec<f32>>,
}

/// A completion under way.
struct Completion {
    request: Request,
    index: usize,
    /// Prompt and completion.
    tokens: Vec<u32>,
    pages: Vec<PageId>,
}

impl<'m> Engine<'m> {
    /// An engine that holds no more than `options` allow.
    pub fn new(model: &'m Decoder, options: EngineOptions) -> Self {
        let shapes: Vec<Shape> = model.blocks.iter().map(|block| block.shape).collect();
        let pages = Pages::new(&shapes, options.cache_tokens.div_ceil(PAGE).max(1));
        Self { model, options, pages, waiting: VecDeque::new(), running: Vec::new() }
    }

    /// Takes on a request, behind those before it.
    ///
    /// # Errors
    /// An empty prompt, a token beyond the vocabulary, no completion, or a request that does not fit
    /// the cache.
    pub fn submit(&mut self, request: Request) -> Result<()> {
        request.sampling.validate()?;
        if request.prompt.is_empty() {
            return Err(Error::data("an empty prompt"));
        }
        let vocabulary = self.model.config.vocab_size;
        if let Some(&id) = request.prompt.iter().find(|&&id| id as usize >= vocabulary) {
            let message = format!("token `{id}` is beyond the vocabulary of `{vocabulary}`");
            return Err(Error::data(message));
        }
        if request.completions == 0 || request.max_new_tokens == 0 {
            return Err(Error::config(
                "no token is wanted: expected at least one completion of one",
            ));
        }
        let tokens = request.prompt.len() + request.max_new_tokens;
        // The prompt's last page is held beside its copy.
        if tokens.div_ceil(PAGE) + 1 > self.options.cache_tokens.div_ceil(PAGE) {
            return Err(Error::config(format!(
                "prompt and completion may have `{tokens}` tokens, more than the cache of `{}` holds",
                self.options.cache_tokens
            ))
            .hint("lower `--max-new-tokens`, or shorten the prompt"));
        }
        let (left, tokens) = (0..request.completions, request.prompt.clone());
        self.waiting.push_back(Waiting::new(request, left, tokens));
        Ok(())
    }

    /// Forgets a request; no event of it comes any more.
    pub fn cancel(&mut self, id: u64) {
        self.end(|request, _| request == id);
    }

    /// Forgets a completion that something outside has ended, such as a stop string.
    pub fn cancel_completion(&mut self, id: u64, index: usize) {
        self.end(|request, left| request == id && *left == (index..index + 1));
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Computes one more token of everything under way, in the order of the requests.
    ///
    /// # Errors
    /// When the model cannot be computed.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        on_a_worker(|| self.run_step())
    }

    fn run_step(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        self.begin_completions(&mut events)?;
        self.grow();
        let chunks = self.take_chunks();
        let mut inputs: Vec<Input> = self.running.iter().map(Completion::input).collect();
        let mut wanted: Vec<u32> = (0..inputs.len() as u32).collect();
        for (prompt, &end) in self.waiting.iter().zip(&chunks) {
            inputs.extend((prompt.done..end).map(|position| Input {
                token: prompt.tokens[position],
                position,
                pages: &prompt.pages,
            }));
            if end == prompt.tokens.len() && end > prompt.done {
                wanted.push(inputs.len() as u32 - 1);
            }
        }
        if inputs.is_empty() {
            return Ok(events);
        }
        let x = forward(self.model, &mut self.pages, &inputs)?;
        let vocabulary = self.model.config.vocab_size;
        let logits = logits(self.model, &x, &wanted)?;
        let logits = slices::on_host(&logits)?;
        let logits = slices::read(&logits)?;
        let (of_running, of_prompts) = logits.split_at(self.running.len() * vocabulary);
        let drawn: Result<Vec<Event>> = self
            .running
            .par_iter_mut()
            .zip(of_running.par_chunks_exact(vocabulary))
            .map_init(Vec::new, |scratch, (completion, logits)| completion.extend(logits, scratch))
            .collect();
        events.extend(drawn?);
        let mut of_prompts = of_prompts.chunks_exact(vocabulary);
        for (prompt, &end) in self.waiting.iter_mut().zip(&chunks) {
            let computed = prompt.done / PAGE..end / PAGE;
            let pages = prompt.pages[computed.clone()].iter().zip(&prompt.names[computed]);
            pages.for_each(|(&page, &name)| self.pages.christen(page, name));
            if end == prompt.tokens.len() && end > prompt.done {
                prompt.logits = of_prompts.next().map(<[f32]>::to_vec);
            }
            prompt.done = end;
        }
        self.begin_completions(&mut events)?;
        let finished: Vec<(u64, usize)> = events
            .iter()
            .filter(|event| event.finish.is_some())
            .map(|event| (event.request, event.completion))
            .collect();
        self.end(|request, left| finished.contains(&(request, left.start)) && left.len() == 1);
        Ok(events)
    }

    /// A page for each completion that has filled its last one.
    fn grow(&mut self) {
        let mut at = 0;
        while let Some(completion) = self.running.get_mut(at) {
            if completion.tokens.len() <= completion.pages.len() * PAGE {
                at += 1;
            } else if let Some(page) = self.pages.take() {
                completion.pages.push(page);
            } else if !self.release_after(0) {
                self.set_back();
            }
        }
    }

    /// Takes its pages from the last of the waiting prompts that has any, but for the first `kept`.
    fn release_after(&mut self, kept: usize) -> bool {
        let last = self.waiting.iter().skip(kept).rposition(|prompt| !prompt.pages.is_empty());
        let Some(prompt) = last.and_then(|last| self.waiting.get_mut(kept + last)) else {
            return false;
        };
        self.pages.give_all_back(&std::mem::take(&mut prompt.pages));
        (prompt.done, prompt.logits) = (0, None);
        true
    }

    /// Lets the youngest completion wait. Its pages keep their names: what nobody has needed until it
    /// goes on is not computed again.
    fn set_back(&mut self) {
        let Some(Completion { request, index, tokens, pages }) = self.running.pop() else { return };
        let prompt = Waiting::new(request, index..index + 1, tokens);
        let computed = (prompt.tokens.len() - 1) / PAGE;
        let full = pages.iter().zip(&prompt.names).take(computed);
        full.for_each(|(&page, &name)| self.pages.christen(page, name));
        self.pages.give_all_back(&pages);
        self.waiting.push_front(prompt);
    }

    /// How far each waiting prompt is computed in this step, in their order: the first one, and others
    /// that will have a place. Beside their pages, one stays for each completion before; a prompt that
    /// has no room lets none pass.
    fn take_chunks(&mut self) -> Vec<usize> {
        let mut left = self.options.prefill_tokens;
        let mut before = self.running.len();
        let mut chunks: Vec<usize> = self.waiting.iter().map(|prompt| prompt.done).collect();
        for (at, (prompt, end)) in self.waiting.iter_mut().zip(&mut chunks).enumerate() {
            let has_place = at == 0 || before < self.options.completions;
            if left == 0 || !has_place || !prompt.take_pages(&mut self.pages, before + 1) {
                break;
            }
            *end = prompt.tokens.len().min(prompt.done + left);
            left -= *end - prompt.done;
            before += prompt.left.len();
        }
        chunks
    }

    /// Begins completions of computed prompts, in their order, while there is room for another one.
    fn begin_completions(&mut self, events: &mut Vec<Event>) -> Result<()> {
        while self.waiting.front().is_some_and(|prompt| prompt.logits.is_some())
            && self.running.len() < self.options.completions
        {
            // One for each completion under way, and one of its own.
            if self.pages.available() <= self.running.len() {
                if self.release_after(1) {
                    continue;
                }
                break;
            }
            let Some(prompt) = self.waiting.front_mut() else { break };
            let (Some(logits), Some(index)) = (&prompt.logits, prompt.left.next()) else { break };
            let whole = prompt.tokens.len() / PAGE;
            let mut pages = prompt.pages[..whole].to_vec();
            pages.iter().for_each(|&page| self.pages.share(page));
            if let Some(&partial) = prompt.pages.get(whole)
                && let Some(own) = self.pages.take()
            {
                self.pages.copy(partial, own);
                pages.push(own);
            }
            let (request, tokens) = (prompt.request.clone(), prompt.tokens.clone());
            let mut completion = Completion { request, index, tokens, pages };
            let event = completion.extend(logits, &mut Vec::new())?;
            if event.finish.is_some() {
                self.pages.give_all_back(&completion.pages);
            } else {
                self.running.push(completion);
            }
            events.push(event);
            if prompt.left.is_empty()
                && let Some(done) = self.waiting.pop_front()
            {
                self.pages.give_all_back(&done.pages);
            }
        }
        Ok(())
    }

    /// Ends what `ends` tells, by request and completions, and gives its pages back.
    fn end(&mut self, ends: impl Fn(u64, &Range<usize>) -> bool) {
        let pages = &mut self.pages;
        let mut stays = |request: &Request, left: &Range<usize>, held: &[PageId]| {
            let stays = !ends(request.id, left);
            if !stays {
                pages.give_all_back(held);
            }
            stays
        };
        self.waiting.retain(|prompt| stays(&prompt.request, &prompt.left, &prompt.pages));
        self.running.retain(|one| stays(&one.request, &(one.index..one.index + 1), &one.pages));
    }
}

impl Waiting {
    fn new(request: Request, left: Range<usize>, tokens: Vec<u32>) -> Self {
        let names = names(&tokens);
        Self { request, left, tokens, names, pages: Vec::new(), done: 0, logits: None }
    }

    /// Takes pages for all tokens, unless it has them: first those that are there already, but for the
    /// last token, whose logits are wanted. Takes none where fewer than `kept` would stay available.
    fn take_pages(&mut self, pages: &mut Pages, kept: usize) -> bool {
        if !self.pages.is_empty() {
            return true;
        }
        let needed = self.tokens.len().div_ceil(PAGE);
        let known = &self.names[..(self.tokens.len() - 1) / PAGE];
        let (known, idle) = pages.known(known);
        if pages.available() < needed - known + idle + kept {
            return false;
        }
        self.pages = self.names[..known].iter().filter_map(|name| pages.find(name)).collect();
        self.pages.extend((known..needed).filter_map(|_| pages.take()));
        self.done = known * PAGE;
        true
    }
}

impl Completion {
    /// Its last token, which is still to be computed.
    fn input(&self) -> Input<'_> {
        let position = self.tokens.len() - 1;
        Input { token: self.tokens[position], position, pages: &self.pages }
    }

    /// Draws the next token from `logits`; `scratch` is used again.
    fn extend(&mut self, logits: &[f32], scratch: &mut Vec<f32>) -> Result<Event> {
        let Request { id, prompt, max_new_tokens, stop_tokens, sampling, seed, row, .. } =
            &self.request;
        let lse = log_sum_exp(logits);
        if !lse.is_finite() {
            return Err(Error::model("the model's logits are not finite numbers")
                .hint("a weight may be NaN or infinite, or training diverged"));
        }
        let logprob = |token: u32| (f64::from(logits[token as usize]) - lse) as f32;
        let top = likeliest_few(logits, self.request.top_logprobs);
        let top = top.into_iter().map(|token| (token, logprob(token))).collect();
        let position = (self.tokens.len() - prompt.len()) as u64;
        let draw = draw(*seed, *row, self.index as u64, position);
        let token = sampling.pick(logits, &self.tokens, draw, scratch);
        let logprob = logprob(token);
        self.tokens.push(token);
        let finish = if stop_tokens.contains(&token) {
            Some(Finish::Stop)
        } else if self.tokens.len() - prompt.len() == *max_new_tokens {
            Some(Finish::Length)
        } else {
            None
        };
        Ok(Event { request: *id, completion: self.index, token, logprob, top, finish })
    }
}
