//! Passes whose targets are charged for the distance from a teacher.

use std::ops::Range;

use candle_core::{DType, Tensor, Var};

use super::hidden::Normed;
use super::{ByRow, Pass, PassOptions, Tapped, Top, refuse_other};
use crate::data::batch::PackedBatch;
use crate::memory::Buffer;
use crate::model::Decoder;
use crate::model::linear::PassMode;
use crate::model::param::{Grads, Value, Widened};
use crate::ops::divergence::{self, Charge, Comparison, Distance, TeacherRows};
use crate::ops::logps::{self, Gradients};
use crate::ops::{linear, on_a_worker, slices};
use crate::{Error, ErrorKind, Result};

/// What a teacher says of rows of [`PackedBatch::target_rows`], asked for in their order.
pub type Teacher<'t> = &'t mut (dyn FnMut(Range<usize>) -> Result<TeacherRows> + Send);

/// The head's side of such a pass: its gradient was known as soon as the logits were there.
#[derive(Debug)]
pub(super) struct Distilled {
    pub(super) normed: Normed,
    pub(super) dnormed: Buffer,
    /// In the batch's order.
    pub(super) distances: Vec<Distance>,
}

impl PackedBatch {
    /// The rows that predict a target, rising, each once.
    ///
    /// # Errors
    /// A batch without a target.
    pub fn target_rows(&self) -> Result<Vec<u32>> {
        ByRow::new(self).map(|by_row| by_row.rows)
    }
}

impl Decoder {
    /// Runs `batch` for a loss that is the sum of [`Pass::charged`]. Logits of this model and of the
    /// teacher are there chunk by chunk and never all. The gradients of the head are added to `grads`
    /// now, the others by [`Pass::backward`].
    ///
    /// # Errors
    /// A token outside the vocabulary, no target, not one charge per target, a reward model, or those
    /// of the teacher.
    pub fn forward_distilled<'a>(
        &'a self,
        batch: &'a PackedBatch,
        options: PassOptions,
        comparison: Comparison,
        charges: &[Charge],
        teacher: Teacher,
        grads: &Grads,
    ) -> Result<Pass<'a>> {
        on_a_worker(|| {
            self.run_forward(batch, options, |x| {
                let (found, normed, dnormed) =
                    self.distances(batch, x, comparison, charges, teacher, Some(grads))?;
                let each = charges.iter().zip(&found);
                let charged: Vec<f64> = each.map(|(charge, found)| charge.of(found)).collect();
                let charged = Tensor::from_vec(charged, found.len(), self.device())?;
                let leaf = Var::from_tensor(&charged)?;
                let distilled = Distilled { normed, dnormed, distances: found };
                Ok((Top::Distilled(distilled), leaf))
            })
        })
    }

    /// The distances of the batch's targets; nothing is kept.
    ///
    /// # Errors
    /// As [`Self::forward_distilled`].
    pub fn evaluate_distilled(
        &self,
        batch: &PackedBatch,
        mode: PassMode,
        comparison: Comparison,
        teacher: Teacher,
    ) -> Result<Vec<Distance>> {
        let charges = vec![Charge::default(); batch.targets.len()];
        on_a_worker(|| {
            let x = self.hidden_states(batch, mode, &mut Tapped::default())?;
            Ok(self.distances(batch, &x, comparison, &charges, teacher, None)?.0)
        })
    }

    /// What this model, as a teacher, says of rows of `hidden`, which comes from
    /// [`Self::evaluate_hidden`]; `head` from [`Self::widened_head`].
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn teacher_rows(
        &self,
        hidden: &Tensor,
        head: &Tensor,
        rows: Range<usize>,
    ) -> Result<TeacherRows> {
        let hidden = hidden.narrow(0, rows.start, rows.len())?;
        let logits = self.ctx.empty((rows.len(), self.config.vocab_size), &hidden)?;
        linear::forward(&self.ctx, &hidden, head, linear::Into::Overwrite, &logits)?;
        Ok(TeacherRows::Logits(logits))
    }

    /// The head's matrix for [`Self::teacher_rows`], in the type of the computation.
    ///
    /// # Errors
    /// A reward model.
    pub fn widened_head(&self) -> Result<Widened<'_>> {
        self.refuse_score()?;
        let head = self.head();
        match head.value() {
            // It stays in its file: no more of it than that.
            Value::Stored(stored) if self.device().is_cpu() => {
                let copy = self.ctx.pool().take(stored.shape())?;
                slices::write(&copy, |out| stored.read_passing(out))??;
                Ok(Widened::Copy(copy))
            }
            _ => head.widened(&self.ctx),
        }
    }

    /// Log-probs of the batch's targets, at temperature 1, from its [`Self::evaluate_hidden`] of
    /// [`PackedBatch::target_rows`].
    ///
    /// # Errors
    /// A reward model, or hidden states of other rows.
    pub fn target_logps(&self, batch: &PackedBatch, hidden: &Tensor) -> Result<Vec<f64>> {
        self.refuse_score()?;
        let ByRow { rows, entries, order } = ByRow::new(batch)?;
        if hidden.dim(0)? != rows.len() {
            let message =
                format!("expected `{}` hidden states, got `{}`", rows.len(), hidden.dim(0)?);
            return Err(Error::new(ErrorKind::Tensor, message));
        }
        let weight = self.head().widened(&self.ctx)?;
        let found = on_a_worker(|| logps::forward(&self.ctx, hidden, &weight, &entries))?;
        let by_row = found.logps.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let mut logps = vec![0.0; by_row.len()];
        order.iter().zip(by_row).for_each(|(&target, logp)| logps[target] = logp);
        Ok(logps)
    }

    fn distances(
        &self,
        batch: &PackedBatch,
        x: &Tensor,
        comparison: Comparison,
        charges: &[Charge],
        teacher: Teacher,
        grads: Option<&Grads>,
    ) -> Result<(Vec<Distance>, Normed, Buffer)> {
        self.refuse_score()?;
        if charges.len() != batch.targets.len() {
            let (got, expected) = (charges.len(), batch.targets.len());
            let message = format!("expected the charges of {expected} targets, got {got}");
            return Err(Error::new(ErrorKind::Tensor, message));
        }
        let ByRow { rows, entries, order } = ByRow::new(batch)?;
        let normed = Normed::new(self, x, rows)?;
        let dnormed = self.ctx.empty(normed.normed.shape(), &normed.normed)?;
        let gradients =
            grads.map(|grads| Gradients { dhidden: &dnormed, dweight: self.head().grad(grads) });
        let by_row: Vec<Charge> = order.iter().map(|&target| charges[target]).collect();
        let weight = self.head().widened(&self.ctx)?;
        let found = divergence::forward_and_backward(
            &self.ctx,
            (&normed.normed, &weight),
            &entries,
            &by_row,
            comparison,
            teacher,
            gradients,
        )?;
        let mut in_order = found.clone();
        order.iter().zip(found).for_each(|(&target, found)| in_order[target] = found);
        Ok((in_order, normed, dnormed))
    }
}

impl Pass<'_> {
    /// What each of the batch's targets is charged, `(targets,)` in f64: the leaf of the loss of a
    /// pass by [`Decoder::forward_distilled`], which must be their sum.
    pub fn charged(&self) -> &Tensor {
        self.leaf.as_tensor()
    }

    /// What such a pass found of each target.
    pub fn distances(&self) -> &[Distance] {
        match &self.top {
            Top::Distilled(distilled) => &distilled.distances,
            _ => &[],
        }
    }
}

impl Distilled {
    /// Gradient of the last block's output.
    pub(super) fn backward(
        self,
        model: &Decoder,
        tokens: usize,
        dcharged: &[f64],
        grads: &Grads,
    ) -> Result<Buffer> {
        refuse_other(dcharged, &vec![1.0; dcharged.len()])?;
        self.normed.backward(model, tokens, &self.dnormed, grads)
    }
}
