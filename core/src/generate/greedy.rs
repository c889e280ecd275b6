//! The likeliest token, again and again.

use std::cmp::Reverse;

use candle_core::Tensor;

use super::cache::LayerCache;
use crate::data::batch::PackedBatch;
use crate::model::Decoder;
use crate::model::block::Surroundings;
use crate::model::linear::PassMode;
use crate::ops::{embedding, on_a_worker};
use crate::{Error, Result};

/// Prompts are read in packed batches of about this many tokens.
pub(crate) const PREFILL_TOKENS: usize = 2048;
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
    if prompts.iter().any(Vec::is_empty) {
        return Err(Error::data("an empty prompt"));
    }
    // Longest first, so that the sequences decoded together are of about the same length.
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|&i| Reverse(prompts[i].len()));
    let mut completions = vec![Vec::new(); prompts.len()];
    let mut finished = 0;
    for group in order.chunks(SEQUENCES) {
        let mut group = on_a_worker(|| Group::prefill(model, prompts, group))?;
        while on_a_worker(|| group.step(model, limits, &mut completions))? {
            done(finished + group.finished)?;
        }
        finished += group.finished;
        done(finished)?;
    }
    Ok(completions)
}

/// Sequences decoded together.
struct Group {
    /// Index of each prompt still going.
    prompts: Vec<usize>,
    /// Tokens of each so far.
    lengths: Vec<usize>,
    /// Token to come next of each.
    next: Vec<u32>,
    layers: Vec<LayerCache>,
    finished: usize,
}

impl Group {
    fn prefill(model: &Decoder, prompts: &[Vec<u32>], members: &[usize]) -> Result<Self> {
        let layers = model.blocks.iter().map(|_| LayerCache::default()).collect();
        let lengths = members.iter().map(|&i| prompts[i].len()).collect();
        let prompts_of = members.to_vec();
        let mut group =
            Self { prompts: prompts_of, lengths, next: Vec::new(), layers, finished: 0 };
        let sizes = members.iter().map(|&i| prompts[i].len());
        for part in crate::data::pack::microbatches(sizes, PREFILL_TOKENS) {
            let mut builder = PackedBatch::builder();
            for &member in &part {
                builder.row(&prompts[members[member]]);
            }
            group.read(model, &builder.build()?)?;
        }
        Ok(group)
    }

    /// Runs prompts through the model and keeps their keys and values.
    fn read(&mut self, model: &Decoder, batch: &PackedBatch) -> Result<()> {
        let ctx = model.context();
        let angles = model.angles(&batch.positions)?;
        let mode = PassMode::EVALUATE;
        let at = Surroundings { ctx, spans: &batch.spans, angles: &angles, mode };
        let mut x = embedding::forward(ctx, &*model.embed.widened(ctx)?, &batch.tokens)?;
        for (block, cache) in model.blocks.iter().zip(&mut self.layers) {
            let (y, kept) = block.forward(at, &x)?;
            let (k, v) = kept.keys_and_values();
            for span in &batch.spans {
                cache.push(k, v, span.start, span.len)?;
            }
            x = y;
        }
        let last: Vec<u32> =
            batch.spans.iter().map(|span| (span.start + span.len - 1) as u32).collect();
        let x = embedding::forward(ctx, &x, &last)?;
        self.next.extend(likeliest(&model.logits_of(&x)?)?);
        Ok(())
    }

    /// Takes the next token of every sequence and computes the one after. `false` when all are
    /// finished.
    fn step(
        &mut self,
        model: &Decoder,
        limits: Limits,
        completions: &mut [Vec<u32>],
    ) -> Result<bool> {
        let keep: Vec<bool> = self
            .prompts
            .iter()
            .zip(&self.next)
            .map(|(&prompt, &token)| {
                let completion = &mut completions[prompt];
                completion.push(token);
                !limits.stop_tokens.contains(&token) && completion.len() < limits.max_new_tokens
            })
            .collect();
        self.retain(&keep);
        if self.prompts.is_empty() {
            return Ok(false);
        }
        let ctx = model.context();
        let positions: Vec<u32> = self.lengths.iter().map(|&length| length as u32).collect();
        let angles = model.angles(&positions)?;
        let at = Surroundings { ctx, spans: &[], angles: &angles, mode: PassMode::EVALUATE };
        let mut x = embedding::forward(ctx, &*model.embed.widened(ctx)?, &self.next)?;
        for (block, cache) in model.blocks.iter().zip(&mut self.layers) {
            let (y, _) = block.forward_with(at, &x, |q, k, v| {
                let output = cache.attend(ctx, block.shape, q, k, v)?;
                let no_lse = ctx.empty(0, q)?;
                Ok((output, no_lse))
            })?;
            x = y;
        }
        self.next = likeliest(&model.logits_of(&x)?)?;
        self.lengths.iter_mut().for_each(|length| *length += 1);
        Ok(true)
    }

    fn retain(&mut self, keep: &[bool]) {
        self.finished += keep.iter().filter(|&&keep| !keep).count();
        for layer in &mut self.layers {
            layer.retain(keep);
        }
        filter(&mut self.prompts, keep);
        filter(&mut self.lengths, keep);
        filter(&mut self.next, keep);
    }
}

fn filter<T>(all: &mut Vec<T>, keep: &[bool]) {
    let mut keep = keep.iter();
    all.retain(|_| keep.next().copied().unwrap_or(false));
}

/// The first of the largest logits of each row.
fn likeliest(logits: &Tensor) -> Result<Vec<u32>> {
    Ok(logits.argmax(1)?.to_vec1::<u32>()?)
}
