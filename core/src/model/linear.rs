//! A linear layer: a matrix, perhaps a bias, perhaps a LoRA adapter.

use candle_core::Tensor;

use super::param::{Grads, Param};
use crate::Result;
use crate::memory::Buffer;
use crate::ops::linear::{self, Into};
use crate::ops::{Context, dropout, scale};

/// `y = x·Wᵀ + b + scale · dropout(x)·Aᵀ·Bᵀ`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `(out, in)`.
    pub weight: Param,
    /// `(out,)`.
    pub bias: Option<Param>,
    /// Low-rank update.
    pub lora: Option<Lora>,
}

/// A low-rank update of a frozen matrix (Hu et al. 2021).
#[derive(Debug, Clone)]
pub struct Lora {
    /// `(rank, in)`.
    pub a: Param,
    /// `(out, rank)`.
    pub b: Param,
    /// `alpha / rank`, or `alpha / √rank` for rsLoRA.
    pub scale: f32,
    /// Probability that an input of the adapter is dropped in training.
    pub dropout: f32,
    /// Tells this layer's dropout from the others'.
    pub id: u64,
}

/// What a pass decides for all layers.
#[derive(Debug, Clone, Copy)]
pub struct PassMode {
    /// Seed of this pass's dropout; `None` switches dropout off.
    pub dropout_seed: Option<u64>,
    /// Leaves the adapters out: the model as it was before LoRA.
    pub without_adapter: bool,
}

impl PassMode {
    /// No dropout, adapters on.
    pub const EVALUATE: Self = Self { dropout_seed: None, without_adapter: false };
}

impl Linear {
    /// Whether any of its parameters is trained.
    pub fn is_trained(&self) -> bool {
        self.params().any(Param::is_trained)
    }

    /// Its parameters.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        let lora = self.lora.iter().flat_map(|lora| [&lora.a, &lora.b]);
        std::iter::once(&self.weight).chain(&self.bias).chain(lora)
    }

    pub(super) fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let lora = self.lora.iter_mut().flat_map(|lora| [&mut lora.a, &mut lora.b]);
        std::iter::once(&mut self.weight).chain(&mut self.bias).chain(lora)
    }

    /// `(tokens, out)` from `x (tokens, in)`.
    pub fn forward(&self, ctx: &Context, mode: PassMode, x: &Tensor) -> Result<Buffer> {
        let y = ctx.empty((x.dim(0)?, self.weight.dims()[0]), x)?;
        self.forward_into(ctx, mode, x, Into::Overwrite, &y)?;
        Ok(y)
    }

    /// [`Self::forward`] into `y`.
    pub fn forward_into(
        &self,
        ctx: &Context,
        mode: PassMode,
        x: &Tensor,
        into: Into,
        y: &Tensor,
    ) -> Result<()> {
        linear::forward(ctx, x, &*self.weight.widened(ctx)?, into, y)?;
        if let Some(bias) = &self.bias {
            linear::add_bias(ctx, y, &*bias.widened(ctx)?)?;
        }
        if let Some(lora) = self.lora.as_ref().filter(|_| !mode.without_adapter) {
            let (_, low) = lora.down(ctx, mode, x)?;
            linear::forward(ctx, &low, &*lora.b.widened(ctx)?, Into::Accumulate, y)?;
        }
        Ok(())
    }

    /// Adds the gradients of what is trained to `grads`, and `dx` to (or over) what is given.
    pub fn backward(
        &self,
        ctx: &Context,
        mode: PassMode,
        x: &Tensor,
        dy: &Tensor,
        dx: Option<(Into, &Tensor)>,
        grads: &Grads,
    ) -> Result<()> {
        if let Some(dweight) = self.weight.grad(grads) {
            linear::backward_weight(ctx, dy, x, dweight)?;
        }
        if let Some(dbias) = self.bias.as_ref().and_then(|bias| bias.grad(grads)) {
            linear::backward_bias(ctx, dy, dbias)?;
        }
        if let Some((into, dx)) = dx {
            linear::backward_input(ctx, dy, &*self.weight.widened(ctx)?, into, dx)?;
        }
        if let Some(lora) = self.lora.as_ref().filter(|_| !mode.without_adapter) {
            lora.backward(ctx, mode, x, dy, dx.map(|(_, dx)| dx), grads)?;
        }
        Ok(())
    }
}

impl Lora {
    /// The adapter's input after dropout, where there is any, and `scale · input·Aᵀ`.
    fn down(&self, ctx: &Context, mode: PassMode, x: &Tensor) -> Result<(Option<Buffer>, Buffer)> {
        let dropped = match self.dropout_seed(mode) {
            Some(seed) => Some(dropout::apply(ctx, x, self.dropout, seed)?),
            None => None,
        };
        let low = ctx.empty((x.dim(0)?, self.a.dims()[0]), x)?;
        let input = dropped.as_deref().unwrap_or(x);
        linear::forward(ctx, input, &*self.a.widened(ctx)?, Into::Overwrite, &low)?;
        scale(ctx, &low, self.scale)?;
        Ok((dropped, low))
    }

    fn dropout_seed(&self, mode: PassMode) -> Option<u64> {
        mode.dropout_seed.filter(|_| self.dropout > 0.0).map(|seed| dropout::hash(seed, self.id))
    }

    fn backward(
        &self,
        ctx: &Context,
        mode: PassMode,
        x: &Tensor,
        dy: &Tensor,
        dx: Option<&Tensor>,
        grads: &Grads,
    ) -> Result<()> {
        let (dropped, low) = self.down(ctx, mode, x)?;
        if let Some(db) = self.b.grad(grads) {
            linear::backward_weight(ctx, dy, &low, db)?;
        }
        // d(low), in low's own memory.
        linear::backward_input(ctx, dy, &*self.b.widened(ctx)?, Into::Overwrite, &low)?;
        scale(ctx, &low, self.scale)?;
        if let Some(da) = self.a.grad(grads) {
            linear::backward_weight(ctx, &low, dropped.as_deref().unwrap_or(x), da)?;
        }
        let Some(dx) = dx else { return Ok(()) };
        let a = self.a.widened(ctx)?;
        match (self.dropout_seed(mode), dropped) {
            (Some(seed), Some(dropped)) => {
                linear::backward_input(ctx, &low, &a, Into::Overwrite, &dropped)?;
                dropout::apply_in_place(ctx, &dropped, self.dropout, seed)?;
                crate::ops::accumulate(dx, &dropped)
            }
            _ => linear::backward_input(ctx, &low, &a, Into::Accumulate, dx),
        }
    }
}
