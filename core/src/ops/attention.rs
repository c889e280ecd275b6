//! Causal attention over packed spans that form trees: forward and backward.
//!
//! A query sees its own span up to itself and the whole of every ancestor span; a sliding window
//! bounds how far back. Queries and keys meet in tiles; no mask and no score matrix is ever held.
//! Forward keeps a running maximum and sum (Milakov & Gimelshein 2018); backward recomputes the
//! probabilities from the log-sum-exp (Dao et al. 2022, FlashAttention, algorithm 4).

use candle_core::Tensor;

use super::Context;
use crate::Result;
use crate::data::batch::Span;
use crate::memory::Buffer;

mod composed;
mod fused;

/// Heads and reach of one attention layer.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// How many positions back a query sees, itself included; all where `None`.
    pub window: Option<usize>,
}

impl Shape {
    fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Returns the output `(tokens, heads · head_dim)` and the log-sum-exp of the scores
/// `(heads, tokens)`, from `q (tokens, heads · head_dim)` and `k`, `v (tokens, kv_heads ·
/// head_dim)`. The spans cover the batch in order.
pub fn forward(
    ctx: &Context,
    shape: Shape,
    spans: &[Span],
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<(Buffer, Buffer)> {
    if ctx.is_fused(q) {
        fused::forward(ctx, shape, spans, q, k, v)
    } else {
        composed::forward(shape, spans, q, k, v)
    }
}

/// What [`forward`] was given and gave.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// Queries.
    pub q: &'a Tensor,
    /// Keys.
    pub k: &'a Tensor,
    /// Values.
    pub v: &'a Tensor,
    /// Output.
    pub output: &'a Tensor,
    /// Log-sum-exp.
    pub lse: &'a Tensor,
}

/// Returns `(dq, dk, dv)`.
pub fn backward(
    ctx: &Context,
    shape: Shape,
    spans: &[Span],
    saved: Saved,
    doutput: &Tensor,
) -> Result<(Buffer, Buffer, Buffer)> {
    if ctx.is_fused(doutput) {
        fused::backward(ctx, shape, spans, saved, doutput)
    } else {
        composed::backward(shape, spans, saved, doutput)
    }
}

/// The spans that span `index` sees, from the root down to itself.
fn chain(spans: &[Span], index: usize) -> Vec<usize> {
    let mut chain = vec![index];
    let mut at = index;
    while let Some(parent) = spans[at].parent {
        chain.push(parent);
        at = parent;
    }
    chain.reverse();
    chain
}
