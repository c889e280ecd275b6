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
    let mut scoring = Scoring::new(model, tokens.to_vec(), top)?;
    while !scoring.step()? {}
    Ok(scoring.scores)
}

/// [`score`], a part of the tokens after the other.
pub struct Scoring<'m> {
    model: &'m Decoder,
    tokens: Vec<u32>,
    top: usize,
    pages: Pages,
    own: Vec<PageId>,
    /// What is there so far.
    pub scores: Vec<TokenScore>,
}

impl<'m> Scoring<'m> {
    /// Begins; nothing is computed yet.
    ///
    /// # Errors
    /// A token beyond the vocabulary.
    pub fn new(model: &'m Decoder, tokens: Vec<u32>, top: usize) -> Result<Self> {
        let vocabulary = model.config.vocab_size;
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocabulary) {
            let message = format!("token `{id}` is beyond the vocabulary of `{vocabulary}`");
            return Err(Error::data(message));
        }
        let shapes: Vec<Shape> = model.blocks.iter().map(|block| block.shape).collect();
        let needed = tokens.len().div_ceil(PAGE);
        let mut pages = Pages::new(&shapes, needed.max(1));
        let own = (0..needed).filter_map(|_| pages.take()).collect();
        let scores = Vec::with_capacity(tokens.len());
        Ok(Self { model, tokens, top, pages, own, scores })
    }

    /// Scores some more tokens; whether these were the last.
    ///
    /// # Errors
    /// A model that cannot be computed.
    pub fn step(&mut self) -> Result<bool> {
        on_a_worker(|| self.run_step())
    }

    fn run_step(&mut self) -> Result<bool> {
        // The last token predicts nothing that is wanted.
        let wanted = self.tokens.len().saturating_sub(1);
        let chunk = self.scores.len()..wanted.min(self.scores.len() + CHUNK);
        if chunk.is_empty() {
            return Ok(true);
        }
        let input = |position| Input { token: self.tokens[position], position, pages: &self.own };
        let inputs: Vec<Input> = chunk.clone().map(input).collect();
        let x = forward(self.model, &mut self.pages, &inputs)?;
        let rows: Vec<u32> = (0..inputs.len() as u32).collect();
        let logits = logits(self.model, &x, &rows)?;
        let logits = slices::on_host(&logits)?;
        let logits = slices::read(&logits)?;
        for (logits, position) in logits.chunks_exact(self.model.config.vocab_size).zip(chunk) {
            let lse = log_sum_exp(logits);
            let logprob = |id: u32| (f64::from(logits[id as usize]) - lse) as f32;
            let top = likeliest_few(logits, self.top).into_iter().map(|id| (id, logprob(id)));
            let top = top.collect();
            self.scores.push(TokenScore { logprob: logprob(self.tokens[position + 1]), top });
        }
        Ok(self.scores.len() == wanted)
    }
}
