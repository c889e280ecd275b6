//! One pass of a batch through the decoder: per-token log-probs (or final hidden states) forward,
//! gradients backward.
//!
//! ```text
//! let pass = model.forward(&batch, &options)?;
//! let logps = pass.per_token_logps();                  // a leaf
//! let loss = logps.neg()?.sum_all()?;                  // any candle graph on it
//! pass.backward(&loss, &grads)?;                       // fused, block by block
//! ```

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};

use crate::data::batch::{PackedBatch, Target};
use crate::memory::Buffer;
use crate::model::Decoder;
use crate::model::block::{Kept, Surroundings};
use crate::model::config::Head as HeadKind;
use crate::model::linear::PassMode;
use crate::model::param::{Grads, Param};
use crate::ops::logps::{self, Gradients, Logps};
use crate::ops::rope::Angles;
use crate::ops::{Context, accumulate, embedding, linear, on_a_worker, rms_norm};
use crate::{Error, ErrorKind, Result};

mod distilled;
mod hidden;
mod layered;
mod on_logits;
mod taps;

use distilled::Distilled;
use hidden::Normed;
pub use on_logits::Logits;
pub use taps::Tap;
use taps::Tapped;

/// How a training pass is run.
#[derive(Debug, Clone, Copy)]
pub struct PassOptions<'t> {
    /// This many of the last blocks keep what backward needs; the others compute it again.
    pub keep_blocks: usize,
    /// Dropout and adapters.
    pub mode: PassMode,
    /// Values inside the model that the loss uses as well.
    pub taps: &'t [Tap],
}

impl Default for PassOptions<'_> {
    fn default() -> Self {
        Self { keep_blocks: 0, mode: PassMode::EVALUATE, taps: &[] }
    }
}

/// A forward pass that waits for its loss.
#[derive(Debug)]
pub struct Pass<'a> {
    model: &'a Decoder,
    batch: &'a PackedBatch,
    mode: PassMode,
    angles: Angles,
    /// Each block's input, and what it kept.
    blocks: Vec<(Buffer, Option<Kept>)>,
    tapped: Vec<(Tap, Var)>,
    top: Top,
    leaf: Var,
}

/// What stands on the last block of a pass.
#[derive(Debug)]
enum Top {
    /// The leaf is the log-probs of the batch's targets.
    Logps(Head),
    /// The leaf is what each target is charged, and its gradient is known.
    Distilled(Distilled),
    /// The leaf is the hidden states behind the final norm; a reward model's value head is a second
    /// one.
    Hidden(Normed, Option<Var>),
}

/// The head's side of a pass: only the rows that predict a target, rising, each once.
#[derive(Debug)]
struct Head {
    normed: Normed,
    /// The targets by row, `row` counting in the rows of `normed`.
    entries: Vec<Target>,
    /// Where entry `i` stands in the batch's targets.
    order: Vec<usize>,
    logps: Logps,
    /// Where the loss's gradient was known beforehand: it, in the batch's order, and that of
    /// `normed`, which follows from it.
    known: Option<(Vec<f64>, Buffer)>,
}

impl Decoder {
    /// Runs `batch` and keeps what [`Pass::backward`] needs.
    ///
    /// # Errors
    /// A token outside the vocabulary, no target, or a reward model.
    pub fn forward<'a>(&'a self, batch: &'a PackedBatch, options: PassOptions) -> Result<Pass<'a>> {
        on_a_worker(|| self.run_forward(batch, options, |x| Head::leaf(self, batch, x, None)))
    }

    /// [`Self::forward`] for a loss whose gradient with respect to the log-probs is known beforehand
    /// to be `dlogps`, as that of a cross-entropy is: the logits are used up as soon as they are
    /// there. The gradients of the head are added to `grads` now, the others by [`Pass::backward`].
    ///
    /// # Errors
    /// As [`Self::forward`], and not one number per target.
    pub fn forward_with_dlogps<'a>(
        &'a self,
        batch: &'a PackedBatch,
        options: PassOptions,
        dlogps: &[f64],
        grads: &Grads,
    ) -> Result<Pass<'a>> {
        if dlogps.len() != batch.targets.len() {
            let (got, expected) = (dlogps.len(), batch.targets.len());
            let message = format!("expected the gradient of {expected} log-probs, got {got}");
            return Err(Error::new(ErrorKind::Tensor, message));
        }
        let known = Some((dlogps, grads));
        on_a_worker(|| self.run_forward(batch, options, |x| Head::leaf(self, batch, x, known)))
    }

    fn run_forward<'a>(
        &'a self,
        batch: &'a PackedBatch,
        options: PassOptions,
        top: impl FnOnce(&Tensor) -> Result<(Top, Var)>,
    ) -> Result<Pass<'a>> {
        let angles = self.angles(&batch.positions)?;
        let at = self.surroundings(batch, &angles, options.mode);
        let mut x = self.embed.rows(&self.ctx, &batch.tokens)?;
        let lowest = self.lowest_trained_block().unwrap_or(0);
        let mut tapped = Tapped::new(self, options.taps)?;
        let keep_from = self.blocks.len().saturating_sub(options.keep_blocks);
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (index, block) in self.blocks.iter().enumerate() {
            let (y, kept) = block.forward(at, &x)?;
            tapped.take(index, &x, &y, &kept)?;
            // Below the lowest trained block nothing is needed again.
            if index >= lowest {
                blocks.push((x, (index >= keep_from).then_some(kept)));
            }
            x = y;
        }
        let (top, leaf) = top(&x)?;
        let tapped = tapped.leaves()?;
        Ok(Pass { model: self, batch, mode: options.mode, angles, blocks, tapped, top, leaf })
    }

    /// Per-token log-probs of the batch's targets, `(targets,)`, and for each whether no token is
    /// likelier; nothing is kept.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn evaluate(&self, batch: &PackedBatch, mode: PassMode) -> Result<(Tensor, Vec<bool>)> {
        on_a_worker(|| {
            let x = self.hidden_states(batch, mode, &mut Tapped::default())?;
            let head = Head::new(self, batch, &x, None)?;
            Ok((head.logps_in_order()?, head.is_best_in_order()))
        })
    }

    /// Logits of every position, `(tokens, vocabulary)`: for small batches, tests and exports.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn logits(&self, batch: &PackedBatch) -> Result<Tensor> {
        on_a_worker(|| {
            let mut untapped = Tapped::default();
            self.logits_of(&*self.hidden_states(batch, PassMode::EVALUATE, &mut untapped)?)
        })
    }

    /// Logits `(rows, vocabulary)` of the last block's output `x (rows, hidden)`.
    pub(crate) fn logits_of(&self, x: &Tensor) -> Result<Tensor> {
        self.refuse_score()?;
        let ctx = &self.ctx;
        let norm = self.norm.widened(ctx)?;
        let (normed, _) = rms_norm::forward(ctx, x, &norm, self.config.rms_norm_eps)?;
        let weight = self.head().widened(ctx)?;
        let shape = (x.dim(0)?, self.config.vocab_size);
        let logits = Tensor::zeros(shape, x.dtype(), x.device())?;
        linear::forward(ctx, &normed, &weight, linear::Into::Overwrite, &logits)?;
        Ok(logits)
    }

    /// A reward model says nothing of the next token.
    fn refuse_score(&self) -> Result<()> {
        match self.config.head {
            HeadKind::Language => Ok(()),
            HeadKind::Score => Err(Error::model("a reward model has no logits")
                .hint("give a language model; this one scores completions")),
        }
    }

    fn hidden_states(
        &self,
        batch: &PackedBatch,
        mode: PassMode,
        tapped: &mut Tapped,
    ) -> Result<Buffer> {
        let angles = self.angles(&batch.positions)?;
        let at = self.surroundings(batch, &angles, mode);
        let mut x = self.embed.rows(&self.ctx, &batch.tokens)?;
        for (index, block) in self.blocks.iter().enumerate() {
            let (y, kept) = block.forward(at, &x)?;
            tapped.take(index, &x, &y, &kept)?;
            x = y;
        }
        Ok(x)
    }

    pub(crate) fn angles(&self, positions: &[u32]) -> Result<Angles> {
        let dtype = self.norm.dense().map_or(DType::F32, Tensor::dtype);
        Angles::new(&self.frequencies, positions, dtype, self.device())
    }

    /// What the blocks need for `batch` where nothing is trained.
    pub(crate) fn evaluated<'a>(
        &'a self,
        batch: &'a PackedBatch,
        angles: &'a Angles,
    ) -> Surroundings<'a> {
        self.surroundings(batch, angles, PassMode::EVALUATE)
    }

    fn surroundings<'a>(
        &'a self,
        batch: &'a PackedBatch,
        angles: &'a Angles,
        mode: PassMode,
    ) -> Surroundings<'a> {
        Surroundings { ctx: &self.ctx, spans: &batch.spans, angles, mode }
    }
}

/// The targets of a batch by the rows that predict them.
struct ByRow {
    /// The rows, rising, each once.
    rows: Vec<u32>,
    /// The targets, `row` counting in `rows`.
    entries: Vec<Target>,
    /// Where entry `i` stands in the batch's targets.
    order: Vec<usize>,
}

impl ByRow {
    fn new(batch: &PackedBatch) -> Result<Self> {
        if batch.targets.is_empty() {
            return Err(Error::data("a batch with no trained token"));
        }
        let mut order: Vec<usize> = (0..batch.targets.len()).collect();
        order.sort_by_key(|&i| batch.targets[i].row);
        let mut rows: Vec<u32> = order.iter().map(|&i| batch.targets[i].row).collect();
        rows.dedup();
        let mut entries = Vec::with_capacity(order.len());
        let mut at = 0;
        for &i in &order {
            let Target { row, token } = batch.targets[i];
            while rows[at] != row {
                at += 1;
            }
            entries.push(Target { row: at as u32, token });
        }
        Ok(Self { rows, entries, order })
    }
}

impl Head {
    /// The top of a pass whose leaf is log-probs, and that leaf.
    fn leaf(
        model: &Decoder,
        batch: &PackedBatch,
        x: &Tensor,
        known: Option<(&[f64], &Grads)>,
    ) -> Result<(Top, Var)> {
        let head = Self::new(model, batch, x, known)?;
        let leaf = Var::from_tensor(&head.logps_in_order()?)?;
        Ok((Top::Logps(head), leaf))
    }

    fn new(
        model: &Decoder,
        batch: &PackedBatch,
        x: &Tensor,
        known: Option<(&[f64], &Grads)>,
    ) -> Result<Self> {
        model.refuse_score()?;
        let ByRow { rows, entries, order } = ByRow::new(batch)?;
        let ctx = &model.ctx;
        let of_rows = Normed::new(model, x, rows)?;
        let normed = &of_rows.normed;
        let weight = model.head().widened(ctx)?;
        let (logps, known) = match known {
            None => (logps::forward(ctx, normed, &weight, &entries)?, None),
            Some((dlogps, grads)) => {
                let dnormed = ctx.empty(normed.shape(), normed)?;
                let gradients = Gradients { dhidden: &dnormed, dweight: model.head().grad(grads) };
                let by_row: Vec<f64> = order.iter().map(|&target| dlogps[target]).collect();
                let logps = logps::forward_and_backward(
                    ctx, normed, &weight, &entries, &by_row, gradients,
                )?;
                (logps, Some((dlogps.to_vec(), dnormed)))
            }
        };
        Ok(Self { normed: of_rows, entries, order, logps, known })
    }

    /// From the order by rows to that of the batch's targets.
    fn logps_in_order(&self) -> Result<Tensor> {
        let mut place = vec![0u32; self.order.len()];
        for (entry, &target) in self.order.iter().enumerate() {
            place[target] = entry as u32;
        }
        let place = Tensor::from_vec(place, self.order.len(), self.logps.logps.device())?;
        Ok(self.logps.logps.index_select(&place, 0)?)
    }

    fn is_best_in_order(&self) -> Vec<bool> {
        let mut is_best = vec![false; self.order.len()];
        for (&target, &best) in self.order.iter().zip(&self.logps.is_best) {
            is_best[target] = best;
        }
        is_best
    }

    /// Gradient of the last block's output, from that of the log-probs in the batch's order.
    fn backward(
        self,
        model: &Decoder,
        tokens: usize,
        dlogps: &[f64],
        grads: &Grads,
    ) -> Result<Buffer> {
        let ctx: &Context = &model.ctx;
        let normed = &self.normed.normed;
        let dnormed = match self.known {
            Some((known, dnormed)) => {
                refuse_other(dlogps, &known)?;
                dnormed
            }
            None => {
                let dlogps: Vec<f64> = self.order.iter().map(|&target| dlogps[target]).collect();
                let head = model.head();
                let dnormed = ctx.empty(normed.shape(), normed)?;
                let gradients = Gradients { dhidden: &dnormed, dweight: head.grad(grads) };
                let weight = head.widened(ctx)?;
                logps::backward(
                    ctx,
                    normed,
                    &weight,
                    &self.entries,
                    self.logps,
                    &dlogps,
                    gradients,
                )?;
                dnormed
            }
        };
        self.normed.backward(model, tokens, &dnormed, grads)
    }
}

/// Refuses a loss of another gradient than the one that the pass was told, but for rounding.
fn refuse_other(dlogps: &[f64], known: &[f64]) -> Result<()> {
    let differs = |(got, expected): &(&f64, &f64)| (*got - *expected).abs() > 1e-5 * expected.abs();
    let Some((got, expected)) = dlogps.iter().zip(known).find(differs) else { return Ok(()) };
    let message = format!("the loss has the gradient `{got}` where the pass was told `{expected}`");
    Err(Error::new(ErrorKind::Tensor, message))
}

impl Pass<'_> {
    /// The log-probabilities of the batch's targets, `(targets,)`: the leaf of the loss of a pass by
    /// [`Decoder::forward`].
    pub fn per_token_logps(&self) -> &Tensor {
        self.leaf.as_tensor()
    }

    /// For each target: whether no token is likelier.
    pub fn is_best(&self) -> Vec<bool> {
        match &self.top {
            Top::Logps(head) => head.is_best_in_order(),
            Top::Distilled(distilled) => {
                distilled.distances.iter().map(|found| found.is_best).collect()
            }
            Top::Hidden(..) => Vec::new(),
        }
    }

    /// Adds d(loss)/d(parameter) to `grads` for every trained parameter. Returns candle's gradients,
    /// for what else the loss was computed from.
    ///
    /// # Errors
    /// A loss that is not a scalar computed from [`Self::per_token_logps`], [`Self::charged`] or
    /// [`Self::hidden`], or whose gradient is not finite.
    pub fn backward(self, loss: &Tensor, grads: &Grads) -> Result<GradStore> {
        self.backward_each(loss, grads, |_| Ok(()))
    }

    /// [`Self::backward`] that calls `done` with trained parameters as soon as their gradients are
    /// complete and nothing of the pass needs their values any more: an update inside backward.
    ///
    /// # Errors
    /// As [`Self::backward`], and those of `done`.
    pub fn backward_each(
        self,
        loss: &Tensor,
        grads: &Grads,
        done: impl FnMut(&[&Param]) -> Result<()> + Send,
    ) -> Result<GradStore> {
        let store = loss.backward()?;
        let (leaf, from) = match &self.top {
            Top::Logps(_) => ("log-prob", "per_token_logps()"),
            Top::Distilled(_) => ("target", "charged()"),
            Top::Hidden(..) => ("hidden state", "hidden()` or `scores()"),
        };
        let dleaf = store.get(&self.leaf).ok_or_else(|| {
            Error::new(ErrorKind::Tensor, format!("the loss does not depend on the pass's {leaf}s"))
                .hint(format!("compute it from `{from}` with operations that keep the graph"))
        })?;
        let host = dleaf.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        if let Some(bad) = host.iter().find(|g| !g.is_finite()) {
            return Err(Error::new(
                ErrorKind::Numeric,
                format!("the loss has the gradient `{bad}` with respect to a {leaf}"),
            ));
        }
        if let (Top::Hidden(_, Some(var)), Some(score)) = (&self.top, &self.model.score)
            && let (Some(dscore), Some(grad)) = (store.get(var), score.grad(grads))
        {
            accumulate(grad, dscore)?;
        }
        on_a_worker(|| self.run_backward(&store, dleaf, &host, grads, done))?;
        Ok(store)
    }

    fn run_backward(
        self,
        store: &GradStore,
        dleaf: &Tensor,
        host: &[f64],
        grads: &Grads,
        mut done: impl FnMut(&[&Param]) -> Result<()>,
    ) -> Result<()> {
        let Self { model, batch, mode, angles, mut blocks, tapped, top, .. } = self;
        let at = model.surroundings(batch, &angles, mode);
        let mut finished = |params: &mut dyn Iterator<Item = &Param>| {
            let trained: Vec<&Param> = params.filter(|param| param.is_trained()).collect();
            done(&trained)
        };
        let d = match top {
            Top::Logps(head) => head.backward(model, batch.len(), host, grads)?,
            Top::Distilled(distilled) => distilled.backward(model, batch.len(), host, grads)?,
            Top::Hidden(normed, _) => normed.backward(model, batch.len(), dleaf, grads)?,
        };
        finished(&mut std::iter::once(&model.norm).chain(model.top()))?;
        let lowest = model.lowest_trained_block();
        let first = lowest.unwrap_or(0);
        for (index, block) in model.blocks.iter().enumerate().skip(first).rev() {
            let Some((x, kept)) = blocks.pop() else { break };
            let kept = match kept {
                Some(kept) => kept,
                None => block.forward(at, &x)?.1,
            };
            if let Some(dhidden) = taps::gradient(&tapped, store, Tap::Hidden(index)) {
                accumulate(&d, dhidden)?;
            }
            let dadded = taps::gradient(&tapped, store, Tap::Attention(index));
            block.backward(at, &x, kept, (&d, dadded), grads, lowest == Some(index))?;
            finished(&mut block.params().into_iter())?;
        }
        if let Some(dembed) = model.embed.grad(grads) {
            embedding::backward(&model.ctx, &batch.tokens, model.padding, &d, dembed)?;
        }
        finished(&mut std::iter::once(&model.embed))
    }
}

/// The value of a scalar tensor.
///
/// # Errors
/// A value that is not finite.
pub fn scalar(x: &Tensor) -> Result<f64> {
    let value = x.to_dtype(DType::F64)?.to_scalar::<f64>()?;
    if value.is_finite() {
        return Ok(value);
    }
    Err(Error::new(ErrorKind::Numeric, format!("the loss is `{value}`"))
        .hint("lower `--learning-rate`, or look for damaged rows with `halter data inspect`"))
}
