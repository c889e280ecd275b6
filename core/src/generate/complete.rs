//! Completions of many prompts at once, as tokens.

use std::cmp::Reverse;

use super::engine::{Engine, EngineOptions, Request};
use super::pages::PAGE;
use super::sampling::Sampling;
use crate::Result;
use crate::model::Decoder;

/// Tokens of prompts that are computed in a step.
pub(crate) const PREFILL_TOKENS: usize = 512;
/// This many sequences are decoded together.
pub(crate) const SEQUENCES: usize = 64;

/// When a completion ends.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// Most tokens of a completion.
    pub max_new_tokens: usize,
    /// Tokens that end it; the completion contains the one that did.
    pub stop_tokens: &'a [u32],
}

/// A completion.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tokens {
    /// Its tokens, the one that ended it included.
    pub ids: Vec<u32>,
    /// Their log-probs under the model, before temperature and filters.
    pub logps: Vec<f32>,
}

/// Most tokens whose keys and values [`complete`] holds at once, for prompts of these lengths.
pub fn cached_tokens(lengths: impl IntoIterator<Item = usize>, max_new_tokens: usize) -> usize {
    let mut lengths: Vec<usize> = lengths.into_iter().collect();
    lengths.sort_unstable_by_key(|&length| Reverse(length));
    lengths.iter().take(SEQUENCES).map(|length| length + max_new_tokens).sum()
}

/// The completion of each request, of which each wants one; their ids are given anew. Between tokens,
/// `done` is told how many are finished; an error of its ends the work.
///
/// # Errors
/// An empty prompt, a token outside the vocabulary, or what `done` says.
pub fn complete(
    model: &Decoder,
    requests: Vec<Request>,
    mut done: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<Tokens>> {
    let tokens = |request: &Request| request.prompt.len() + request.max_new_tokens;
    let longest = requests.iter().map(tokens).max().unwrap_or(0);
    let cache_tokens = cached_tokens(requests.iter().map(tokens), 0);
    let options = EngineOptions {
        // Pages that are begun, and the prompt's last one beside its copy.
        cache_tokens: (cache_tokens + 2 * PAGE * SEQUENCES).max(longest + 2 * PAGE),
        completions: SEQUENCES,
        prefill_tokens: PREFILL_TOKENS,
    };
    let mut engine = Engine::new(model, options);
    let mut completions = vec![Tokens::default(); requests.len()];
    for (id, request) in (0..).zip(requests) {
        engine.submit(Request { id, ..request })?;
    }
    let mut finished = 0;
    while !engine.is_idle() {
        for event in engine.step()? {
            let completion = &mut completions[event.request as usize];
            completion.ids.push(event.token);
            completion.logps.push(event.logprob);
            finished += usize::from(event.finish.is_some());
        }
        done(finished)?;
    }
    Ok(completions)
}

/// [`complete`] with the likeliest token, again and again.
///
/// # Errors
/// As [`complete`].
pub fn greedy(
    model: &Decoder,
    prompts: &[Vec<u32>],
    limits: Limits,
    done: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<Vec<u32>>> {
    let request = |prompt: &Vec<u32>| Request {
        id: 0,
        prompt: prompt.clone(),
        completions: 1,
        max_new_tokens: limits.max_new_tokens,
        stop_tokens: limits.stop_tokens.to_vec(),
        sampling: Sampling::GREEDY,
        seed: 0,
        row: 0,
        top_logprobs: 0,
    };
    let completions = complete(model, prompts.iter().map(request).collect(), done)?;
    Ok(completions.into_iter().map(|completion| completion.ids).collect())
}
