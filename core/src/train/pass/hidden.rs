//! Passes whose leaf is the hidden states behind the final norm, and a reward model's scores of them.

use candle_core::{Tensor, Var};

use super::{Pass, PassOptions, Tap, Tapped, Top};
use crate::data::batch::PackedBatch;
use crate::memory::Buffer;
use crate::model::Decoder;
use crate::model::linear::PassMode;
use crate::model::param::Grads;
use crate::ops::{clear, embedding, on_a_worker, rms_norm};
use crate::{Error, Result};

/// Final hidden states of some rows, before and after the norm.
#[derive(Debug)]
pub(super) struct Normed {
    /// Rows of the batch.
    pub(super) rows: Vec<u32>,
    hidden: Buffer,
    pub(super) normed: Buffer,
    rstd: Buffer,
}

impl Decoder {
    /// Runs `batch` up to the final norm for [`Pass::hidden`] of `rows`, and keeps what
    /// [`Pass::backward`] needs.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn forward_hidden<'a>(
        &'a self,
        batch: &'a PackedBatch,
        rows: &[u32],
        options: PassOptions,
    ) -> Result<Pass<'a>> {
        on_a_worker(|| {
            self.run_forward(batch, options, |x| {
                let normed = Normed::new(self, x, rows.to_vec())?;
                let leaf = Var::from_tensor(&normed.normed)?;
                let score = self.score.as_ref().map(|score| -> Result<Var> {
                    Ok(Var::from_tensor(&*score.widened(&self.ctx)?)?)
                });
                Ok((Top::Hidden(normed, score.transpose()?), leaf))
            })
        })
    }

    /// Hidden states behind the final norm of `rows`, `(rows, hidden)`; nothing is kept.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn evaluate_hidden(
        &self,
        batch: &PackedBatch,
        rows: &[u32],
        mode: PassMode,
    ) -> Result<Tensor> {
        Ok(self.evaluate_tapped(batch, rows, mode, &[])?.0)
    }

    /// [`Self::evaluate_hidden`], and the values of `taps`, each `(tokens, hidden)`, in the order of
    /// the model.
    ///
    /// # Errors
    /// As [`Self::evaluate_hidden`], or a block that is not there.
    pub fn evaluate_tapped(
        &self,
        batch: &PackedBatch,
        rows: &[u32],
        mode: PassMode,
        taps: &[Tap],
    ) -> Result<(Tensor, Vec<(Tap, Tensor)>)> {
        on_a_worker(|| {
            let mut tapped = Tapped::new(self, taps)?;
            let x = self.hidden_states(batch, mode, &mut tapped)?;
            let normed = Normed::new(self, &x, rows.to_vec())?.normed;
            // A tensor of its own: the buffer goes back to the pool.
            Ok((normed.copy()?, tapped.values()))
        })
    }

    /// A reward model's scores `(rows,)` of [`Self::evaluate_hidden`].
    ///
    /// # Errors
    /// A model without a value head.
    pub fn scores(&self, hidden: &Tensor) -> Result<Tensor> {
        let score = self.score.as_ref().ok_or_else(no_score)?;
        scores(hidden, &*score.widened(&self.ctx)?)
    }
}

impl Pass<'_> {
    /// The hidden states behind the final norm, `(rows, hidden)`: the leaf of the loss of a pass by
    /// [`Decoder::forward_hidden`].
    pub fn hidden(&self) -> &Tensor {
        self.leaf.as_tensor()
    }

    /// A reward model's scores of the rows of [`Self::hidden`], `(rows,)`. A loss on them trains the
    /// value head as well.
    ///
    /// # Errors
    /// A model without a value head, or a pass of log-probs.
    pub fn scores(&self) -> Result<Tensor> {
        match &self.top {
            Top::Hidden(_, Some(score)) => scores(&self.leaf, score),
            _ => Err(no_score()),
        }
    }
}

/// A row's score is its product with the value head, summed in one order in any batch.
fn scores(hidden: &Tensor, score: &Tensor) -> Result<Tensor> {
    Ok(hidden.broadcast_mul(score)?.sum(1)?)
}

fn no_score() -> Error {
    Error::model("the model has no value head").hint("train one with `halter reward`")
}

impl Normed {
    /// `x` is the last block's output.
    pub(super) fn new(model: &Decoder, x: &Tensor, rows: Vec<u32>) -> Result<Self> {
        let ctx = &model.ctx;
        let hidden = embedding::forward(ctx, x, &rows)?;
        let norm = model.norm.widened(ctx)?;
        let (normed, rstd) = rms_norm::forward(ctx, &hidden, &norm, model.config.rms_norm_eps)?;
        Ok(Self { rows, hidden, normed, rstd })
    }

    /// Gradient of the last block's output of `tokens` rows, from that behind the norm.
    pub(super) fn backward(
        self,
        model: &Decoder,
        tokens: usize,
        dnormed: &Tensor,
        grads: &Grads,
    ) -> Result<Buffer> {
        let ctx = &model.ctx;
        let dhidden = ctx.empty(self.hidden.shape(), &self.hidden)?;
        clear(&dhidden)?;
        let norm = model.norm.widened(ctx)?;
        let dnorm = model.norm.grad(grads);
        rms_norm::backward(ctx, &self.hidden, &self.rstd, &norm, dnormed, &dhidden, dnorm)?;
        let d = ctx.empty((tokens, model.config.hidden_size), &self.hidden)?;
        clear(&d)?;
        embedding::backward(ctx, &self.rows, None, &dhidden, &d)?;
        Ok(d)
    }
}
