//! The likeliest token, again and again.

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

/// Most tokens whose keys and values [`greedy`] holds at once, for prompts of these lengths.
pub fn cached_tokens(lengths: impl IntoIterator<Item = usize>, max_new_tokens: usize) -> usize {
    let mut lengths: Vec<usize> = lengths.into_iter().collect();
    lengths.sort_unstable_by_key(|&length| Reverse(length));
    lengths.iter().take(SEQUENCES).map(|length| length + max_new_tokens).sum()
}

/// The greedy completion of each prompt. Between tokens, `done` is told how many are finished; an
/// error of its ends the work.
///
/// # Errors
/// An empty prompt, a token outside the vocabulary, or what `done` says.
pub fn greedy(
    model: &Decoder,
    prompts: &[Vec<u32>],
    limits: Limits,
    mut done: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<Vec<u32>>> {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + limits.max_new_tokens;
    let cache_tokens = cached_tokens(prompts.iter().map(Vec::len), limits.max_new_tokens);
    let options = EngineOptions {
        // Pages that are begun, and the prompt's last one beside its copy.
        cache_tokens: (cache_tokens + 2 * PAGE * SEQUENCES).max(longest + 2 * PAGE),
        completions: SEQUENCES,
        prefill_tokens: PREFILL_TOKENS,
    };
    let mut engine = Engine::new(model, options);
    for (row, prompt) in prompts.iter().enumerate() {
        engine.submit(Request {
            id: row as u64,
            prompt: prompt.clone(),
            completions: 1,
            max_new_tokens: limits.max_new_tokens,
            stop_tokens: limits.stop_tokens.to_vec(),
            sampling: Sampling::GREEDY,
            seed: 0,
            row: row as u64,
            top_logprobs: 0,
        })?;
    }
    let mut completions = vec![Vec::new(); prompts.len()];
    let mut finished = 0;
    while !engine.is_idle() {
        for event in engine.step()? {
            completions[event.request as usize].push(event.token);
            finished += usize::from(event.finish.is_some());
        }
        done(finished)?;
    }
    Ok(completions)
}
