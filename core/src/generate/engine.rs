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

use std::collections::VecDeque;

use rayon::prelude::*;

use super::forward::{Input, forward, logits};
use super::pages::{Name, PAGE, PageId, Pages, name};
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

impl Request {
    /// Pages that a completion has beside the full ones of its prompt.
    fn pages_of_a_completion(&self) -> usize {
        let prompt = self.prompt.len();
        (prompt + self.max_new_tokens).div_ceil(PAGE) - prompt / PAGE
    }
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
    waiting: VecDeque<Prompt>,
    running: Vec<Completion>,
}

/// A request whose completions have not all begun.
struct Prompt {
    request: Request,
    /// Pages of the tokens that are computed.
    pages: Vec<PageId>,
    /// Tokens that are computed.
    done: usize,
    /// Name of the last full page.
    name: Option<Name>,
    /// Logits of the last token, once all are computed.
    logits: Option<Vec<f32>>,
    /// Completions that have begun.
    begun: usize,
}

/// A completion under way.
struct Completion {
    request: Request,
    index: usize,
    /// Prompt and completion.
    tokens: Vec<u32>,
    pages: Vec<PageId>,
    /// Pages that it may still take.
    reserved: usize,
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
        let (pages, logits) = (Vec::new(), None);
        self.waiting.push_back(Prompt { request, pages, done: 0, name: None, logits, begun: 0 });
        Ok(())
    }

    /// Forgets a request; no event of it comes any more.
    pub fn cancel(&mut self, id: u64) {
        let pages = &mut self.pages;
        self.waiting.retain(|prompt| {
            let stays = prompt.request.id != id;
            if !stays {
                prompt.pages.iter().for_each(|&page| pages.give_back(page));
            }
            stays
        });
        self.end(|completion| completion.request.id == id);
    }

    /// Forgets a completion that something outside has ended, such as a stop string.
    pub fn cancel_completion(&mut self, id: u64, index: usize) {
        self.end(|completion| completion.request.id == id && completion.index == index);
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
        let chunks = self.take_chunks();
        for completion in &mut self.running {
            if completion.tokens.len() > completion.pages.len() * PAGE {
                // It was reserved.
                completion.pages.extend(self.pages.take());
                completion.reserved -= 1;
            }
        }
        let mut inputs: Vec<Input> = self.running.iter().map(Completion::input).collect();
        let mut wanted: Vec<u32> = (0..inputs.len() as u32).collect();
        for (prompt, &end) in self.waiting.iter().zip(&chunks) {
            inputs.extend((prompt.done..end).map(|position| Input {
                token: prompt.request.prompt[position],
                position,
                pages: &prompt.pages,
            }));
            if end == prompt.request.prompt.len() && end > prompt.done {
                wanted.push(inputs.len() as u32 - 1);
            }
        }
        if inputs.is_empty() {
            return Ok(events);
        }
        let x = forward(self.model, &mut self.pages, &inputs)?;
        let vocabulary = self.model.config.vocab_size;
        let logits = logits(self.model, &x, &wanted)?;
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
            let computed = end > prompt.done;
            prompt.done = end;
            prompt.christen(&mut self.pages);
            if computed && end == prompt.request.prompt.len() {
                prompt.logits = of_prompts.next().map(<[f32]>::to_vec);
            }
        }
        self.begin_completions(&mut events)?;
        let finished: Vec<(u64, usize)> = events
            .iter()
            .filter(|event| event.finish.is_some())
            .map(|event| (event.request, event.completion))
            .collect();
        self.end(|completion| finished.contains(&(completion.request.id, completion.index)));
        Ok(events)
    }

    /// How far each waiting prompt is computed in this step. Pages are taken for it, but for those
    /// that a completion of any prompt computed so far needs: the first of them can always begin.
    fn take_chunks(&mut self) -> Vec<usize> {
        let mut left = self.options.prefill_tokens;
        let reserved = self.reserved();
        let mut kept = 0;
        let mut chunks = Vec::with_capacity(self.waiting.len());
        for prompt in &mut self.waiting {
            kept = kept.max(prompt.request.pages_of_a_completion());
            if prompt.done == 0 && left > 0 {
                prompt.take_known_pages(&mut self.pages, reserved + kept);
            }
            let free = self.pages.available().saturating_sub(reserved + kept);
            let wanted = (prompt.request.prompt.len() - prompt.done).min(left);
            let room = (prompt.pages.len() + free) * PAGE - prompt.done;
            let end = prompt.done + wanted.min(room);
            while prompt.pages.len() * PAGE < end {
                prompt.pages.extend(self.pages.take());
            }
            left -= end - prompt.done;
            chunks.push(end);
            // Prompts are computed in their order: one that has no room lets none pass.
            if end < prompt.request.prompt.len() {
                break;
            }
        }
        chunks.extend(self.waiting.iter().skip(chunks.len()).map(|prompt| prompt.done));
        chunks
    }

    /// Pages that completions under way may still take.
    fn reserved(&self) -> usize {
        self.running.iter().map(|completion| completion.reserved).sum()
    }

    /// Begins completions of computed prompts, in their order, while there is room for all of each.
    fn begin_completions(&mut self, events: &mut Vec<Event>) -> Result<()> {
        while let Some(prompt) = self.waiting.front_mut() {
            let Some(logits) = &prompt.logits else { break };
            let Request { prompt: tokens, completions, .. } = &prompt.request;
            let whole = tokens.len() / PAGE;
            let wanted = prompt.request.pages_of_a_completion();
            let reserved: usize = self.running.iter().map(|other| other.reserved).sum();
            let is_full = self.running.len() >= self.options.completions;
            if is_full || self.pages.available() < reserved + wanted {
                break;
            }
            let mut pages = prompt.pages[..whole].to_vec();
            pages.iter().for_each(|&page| self.pages.share(page));
            let mut reserved = wanted;
            if let Some(&partial) = prompt.pages.get(whole)
                && let Some(own) = self.pages.take()
            {
                self.pages.copy(partial, own);
                pages.push(own);
                reserved -= 1;
            }
            let mut completion = Completion {
                request: prompt.request.clone(),
                index: prompt.begun,
                tokens: tokens.clone(),
                pages,
                reserved,
            };
            let event = completion.extend(logits, &mut Vec::new())?;
            let goes_on = event.finish.is_none();
            events.push(event);
            prompt.begun += 1;
            let all = prompt.begun == *completions;
            if goes_on {
                self.running.push(completion);
            } else {
                completion.pages.iter().for_each(|&page| self.pages.give_back(page));
            }
            if all && let Some(done) = self.waiting.pop_front() {
                done.pages.iter().for_each(|&page| self.pages.give_back(page));
            }
        }
        Ok(())
    }

    /// Ends completions and gives their pages back.
    fn end(&mut self, ends: impl Fn(&Completion) -> bool) {
        let pages = &mut self.pages;
        self.running.retain(|completion| {
            let stays = !ends(completion);
            if !stays {
                completion.pages.iter().for_each(|&page| pages.give_back(page));
            }
            stays
        });
    }
}

impl Prompt {
    /// Takes pages that an earlier prompt left, but for the last token, whose logits are wanted.
    /// At least `kept` stay available.
    fn take_known_pages(&mut self, pages: &mut Pages, kept: usize) {
        let tokens = &self.request.prompt;
        for page in tokens[..tokens.len() - 1].chunks_exact(PAGE) {
            if pages.available() <= kept {
                return;
            }
            let name = name(self.name.as_ref(), page);
            let Some(found) = pages.find(&name) else { return };
            self.pages.push(found);
            self.done += PAGE;
            self.name = Some(name);
        }
    }

    /// Names the pages that have become full.
    fn christen(&mut self, pages: &mut Pages) {
        let tokens = &self.request.prompt[..self.done];
        let mut before = None;
        for (page, tokens) in self.pages.iter().zip(tokens.chunks_exact(PAGE)) {
            let name = name(before.as_ref(), tokens);
            pages.christen(*page, name);
            before = Some(name);
        }
        self.name = before;
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
