//! Log-probs of tokens that are there already.

use super::forward::{Input, forward, logits};
use super::pages::{PAGE, PageId, Pages};
use super::sampling::log_sum_exp;
use crate::model::Decoder;
use crate::ops::attention::Shape;
use crate::ops::top::likeliest_few;
use crate::ops::{on_a_worker, slices};
use crate::{Error, Result};

/// Tokens that are computed at once: their logits are held.
const CHUNK: usize = 64;

/// What the model says of a token, given those before it.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// Its log-prob.
    pub logprob: f32,
    /// The likeliest tokens in its place, with theirs.
    pub top: Vec<(u32, f32)>,
}

/// Scores of all tokens but the first, the bits that an engine gives when it generates them.
///
/// # Errors
/// A token beyond the vocabulary, or a model that cannot be computed.
pub fn score(model: &Decoder, tokens: &[u32], top: usize) -> Result<Vec<TokenScore>> {
    let vocabulary = model.config.vocab_size;
    if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocabulary) {
        let message = format!("token `{id}` is beyond the vocabulary of `{vocabulary}`");
        return Err(Error::data(message));
    }
    on_a_worker(|| {
        let shapes: Vec<Shape> = model.blocks.iter().map(|block| block.shape).collect();
        let mut pages = Pages::new(&shapes, tokens.len().div_ceil(PAGE).max(1));
        let own: Vec<PageId> =
            (0..tokens.len().div_ceil(PAGE)).filter_map(|_| pages.take()).collect();
        let mut scores = Vec::with_capacity(tokens.len());
        // The last token predicts nothing that is wanted.
        let places: Vec<usize> = (0..tokens.len().saturating_sub(1)).collect();
        for chunk in places.chunks(CHUNK) {
            let inputs: Vec<Input> = chunk
                .iter()
                .map(|&position| Input { token: tokens[position], position, pages: &own })
                .collect();
            let x = forward(model, &mut pages, &inputs)?;
            let rows: Vec<u32> = (0..inputs.len() as u32).collect();
            let logits = logits(model, &x, &rows)?;
            let logits = slices::read(&logits)?;
            for (logits, &position) in logits.chunks_exact(vocabulary).zip(chunk) {
                let lse = log_sum_exp(logits);
                let logprob = |id: u32| (f64::from(logits[id as usize]) - lse) as f32;
                let top =
                    likeliest_few(logits, top).into_iter().map(|id| (id, logprob(id))).collect();
                scores.push(TokenScore { logprob: logprob(tokens[position + 1]), top });
            }
        }
        Ok(scores)
    })
}
