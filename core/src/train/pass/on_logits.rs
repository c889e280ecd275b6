//! Passes whose loss is any function of the logits.

use std::ops::Range;

use candle_core::{DType, Tensor, Var};

use super::distilled::Distilled;
use super::hidden::Normed;
use super::taps::Tapped;
use super::{ByRow, Pass, PassOptions, Top};
use crate::Result;
use crate::data::batch::{PackedBatch, Target};
use crate::memory::Buffer;
use crate::model::Decoder;
use crate::model::linear::PassMode;
use crate::model::param::Grads;
use crate::ops::logps::{Chunk, Chunks, Gradients};
use crate::ops::on_a_worker;

/// Some rows of logits.
#[derive(Debug)]
pub struct Logits<'c> {
    /// `(rows, vocabulary)`: a leaf, for any candle graph.
    pub logits: &'c Tensor,
    /// Which of [`PackedBatch::target_rows`] they are.
    pub rows: Range<usize>,
    /// What they predict: a row of `logits` and a token, by rows.
    pub targets: Vec<Target>,
}

impl<'c> Logits<'c> {
    fn of(chunk: &Chunk, logits: &'c Tensor) -> Self {
        let start = chunk.start as u32;
        let within = |e: &Target| Target { row: e.row - start, token: e.token };
        let targets = chunk.entries.iter().map(within).collect();
        Self { logits, rows: chunk.start..chunk.start + chunk.rows, targets }
    }
}

impl Decoder {
    /// The logits of `batch`'s targets' rows without gradients, chunk by chunk, to `part`.
    ///
    /// # Errors
    /// A token outside the vocabulary, no target, a reward model, or those of `part`.
    pub fn evaluate_on_logits(
        &self,
        batch: &PackedBatch,
        mut part: impl FnMut(Logits) -> Result<()> + Send,
    ) -> Result<()> {
        self.refuse_score()?;
        on_a_worker(|| {
            let x = self.hidden_states(batch, PassMode::EVALUATE, &mut Tapped::default())?;
            let ByRow { rows, entries, .. } = ByRow::new(batch)?;
            let normed = Normed::new(self, &x, rows)?;
            let weight = self.head().widened(&self.ctx)?;
            for chunk in Chunks::new(normed.rows.len(), weight.dim(0)?, &entries) {
                let logits = chunk.logits(&self.ctx, &normed.normed, &weight)?;
                part(Logits::of(&chunk, &logits))?;
            }
            Ok(())
        })
    }

    /// Runs `batch` for a loss that is the sum of what `part` says of the logits of its targets' rows,
    /// chunk by chunk: a scalar of each, as a candle graph. They are [`Pass::charged`], `(chunks,)`.
    /// The gradients of the head are added to `grads` now, the others by [`Pass::backward`].
    ///
    /// # Errors
    /// A token outside the vocabulary, no target, a reward model, or those of `part`.
    pub fn forward_on_logits<'a>(
        &'a self,
        batch: &'a PackedBatch,
        options: PassOptions,
        mut part: impl FnMut(Logits) -> Result<Tensor> + Send,
        grads: &Grads,
    ) -> Result<Pass<'a>> {
        self.refuse_score()?;
        on_a_worker(|| {
            self.run_forward(batch, options, |x| {
                let ByRow { rows, entries, .. } = ByRow::new(batch)?;
                let normed = Normed::new(self, x, rows)?;
                let dnormed = self.ctx.empty(normed.normed.shape(), &normed.normed)?;
                let dweight = self.head().grad(grads);
                let weight = self.head().widened(&self.ctx)?;
                let of_head = (&*normed.normed, &*weight);
                let mut parts = Vec::new();
                for chunk in Chunks::new(normed.rows.len(), weight.dim(0)?, &entries) {
                    let logits = chunk.logits(&self.ctx, of_head.0, of_head.1)?;
                    let leaf = Var::from_tensor(&logits)?;
                    let value = part(Logits::of(&chunk, &leaf))?;
                    parts.push(value.to_dtype(DType::F64)?.to_scalar::<f64>()?);
                    let dlogits: Buffer = match value.backward()?.remove(&leaf) {
                        Some(gradient) => gradient.into(),
                        None => logits.zeros_like()?.into(),
                    };
                    let gradients = Gradients { dhidden: &dnormed, dweight };
                    chunk.gradients(&self.ctx, of_head, &dlogits, gradients)?;
                }
                let chunks = parts.len();
                let leaf = Var::from_vec(parts, chunks, self.device())?;
                let distilled = Distilled { normed, dnormed, distances: Vec::new() };
                Ok((Top::Distilled(distilled), leaf))
            })
        })
    }
}
