//! One decoder block: attention and feed-forward, each after a norm and added to the stream.

use candle_core::Tensor;

use super::linear::{Linear, PassMode};
use super::param::{Grads, Param};
use crate::Result;
use crate::data::batch::Span;
use crate::memory::Buffer;
use crate::ops::attention::{self, Shape};
use crate::ops::linear::Into;
use crate::ops::rope::Angles;
use crate::ops::{Context, accumulate, rms_norm, swiglu};

/// The parameters of one block.
#[derive(Debug, Clone)]
pub struct Block {
    /// Norm before attention, `(hidden,)`.
    pub attention_norm: Param,
    /// Queries.
    pub q: Linear,
    /// Keys.
    pub k: Linear,
    /// Values.
    pub v: Linear,
    /// Norms on every query and key head, `(head_dim,)` (Qwen3).
    pub qk_norm: Option<(Param, Param)>,
    /// Output projection.
    pub o: Linear,
    /// Norm before the feed-forward layer.
    pub ffn_norm: Param,
    /// Gate.
    pub gate: Linear,
    /// Up.
    pub up: Linear,
    /// Down.
    pub down: Linear,
    /// Heads and window.
    pub shape: Shape,
    /// RMSNorm's epsilon.
    pub eps: f64,
}

/// What a block's pass needs besides its input.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// Scratch.
    pub ctx: &'a Context,
    /// The batch's spans.
    pub spans: &'a [Span],
    /// The batch's rotary angles.
    pub angles: &'a Angles,
    /// Dropout and adapters.
    pub mode: PassMode,
}

/// What a block keeps of its forward pass besides its input; norms' and SwiGLU's outputs are
/// computed again from these.
#[derive(Debug)]
pub struct Kept {
    pub(super) rstd: Buffer,
    /// Queries and keys before their norms, and the norms' statistics (Qwen3).
    raw: Option<Raw>,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    pub(super) attended: Buffer,
    lse: Buffer,
    pub(crate) middle: Buffer,
    pub(super) middle_rstd: Buffer,
    pub(super) gate: Buffer,
    pub(super) up: Buffer,
}

#[derive(Debug)]
struct Raw {
    q: Buffer,
    q_rstd: Buffer,
    k: Buffer,
    k_rstd: Buffer,
}

impl Block {
    /// Its linear layers, in the order of the computation.
    pub(super) fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    /// [`Self::linears`], to be changed.
    pub(super) fn linears_mut(&mut self) -> [&mut Linear; 7] {
        let Self { q, k, v, o, gate, up, down, .. } = self;
        [q, k, v, o, gate, up, down]
    }

    /// Its parameters, in the order of [`super::config::ModelConfig::params`] with each layer's
    /// adapter behind it.
    pub fn params(&self) -> Vec<&Param> {
        let mut params = vec![&self.attention_norm];
        params.extend([&self.q, &self.k, &self.v].into_iter().flat_map(Linear::params));
        params.extend(self.qk_norm.iter().flat_map(|(q, k)| [q, k]));
        params.extend(self.o.params());
        params.push(&self.ffn_norm);
        params.extend([&self.gate, &self.up, &self.down].into_iter().flat_map(Linear::params));
        params
    }

    pub(super) fn params_mut(&mut self) -> Vec<&mut Param> {
        let mut params = vec![&mut self.attention_norm];
        for linear in [&mut self.q, &mut self.k, &mut self.v] {
            params.extend(linear.params_mut());
        }
        params.extend(self.qk_norm.iter_mut().flat_map(|(q, k)| [q, k]));
        params.extend(self.o.params_mut());
        params.push(&mut self.ffn_norm);
        for linear in [&mut self.gate, &mut self.up, &mut self.down] {
            params.extend(linear.params_mut());
        }
        params
    }

    /// Itself in memory, as [`Param::resident`] says.
    pub(crate) fn resident(&self, ctx: &Context) -> Result<Self> {
        let mut block = self.clone();
        for param in block.params_mut() {
            *param = param.resident(ctx)?;
        }
        Ok(block)
    }

    /// Whether any of its parameters is trained.
    pub fn is_trained(&self) -> bool {
        self.params().into_iter().any(Param::is_trained)
    }

    /// `(tokens, hidden)` from `x` of the same shape, and what backward needs.
    pub fn forward(&self, at: Surroundings, x: &Tensor) -> Result<(Buffer, Kept)> {
        let Surroundings { ctx, spans, angles, mode } = at;
        let norm = self.attention_norm.widened(ctx)?;
        let (normed, rstd) = rms_norm::forward(ctx, x, &norm, self.eps)?;
        let mut q = self.q.forward(ctx, mode, &normed)?;
        let mut k = self.k.forward(ctx, mode, &normed)?;
        let v = self.v.forward(ctx, mode, &normed)?;
        drop(normed);
        let mut raw = None;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            let (q_normed, q_rstd) = self.norm_heads(ctx, &q, q_norm)?;
            let (k_normed, k_rstd) = self.norm_heads(ctx, &k, k_norm)?;
            let (q_raw, k_raw) =
                (std::mem::replace(&mut q, q_normed), std::mem::replace(&mut k, k_normed));
            raw = Some(Raw { q: q_raw, q_rstd, k: k_raw, k_rstd });
        }
        angles.rotate(ctx, &q)?;
        angles.rotate(ctx, &k)?;
        let (attended, lse) = attention::forward(ctx, self.shape, spans, &q, &k, &v)?;
        let middle = ctx.copy(x)?;
        self.o.forward_into(ctx, mode, &attended, Into::Accumulate, &middle)?;

        let norm = self.ffn_norm.widened(ctx)?;
        let (normed, middle_rstd) = rms_norm::forward(ctx, &middle, &norm, self.eps)?;
        let gate = self.gate.forward(ctx, mode, &normed)?;
        let up = self.up.forward(ctx, mode, &normed)?;
        drop(normed);
        let s = swiglu::forward(ctx, &gate, &up)?;
        let y = ctx.copy(&middle)?;
        self.down.forward_into(ctx, mode, &s, Into::Accumulate, &y)?;
        Ok((y, Kept { rstd, raw, q, k, v, attended, lse, middle, middle_rstd, gate, up }))
    }

    /// Adds this block's gradients to `grads` and turns `d`, the gradient of its output, into that
    /// of its input `x`. With `stop`, nothing below needs the latter and it is left unfinished.
    /// What attention adds may have a gradient of its own beside.
    pub fn backward(
        &self,
        at: Surroundings,
        x: &Tensor,
        kept: Kept,
        (d, dadded): (&Tensor, Option<&Tensor>),
        grads: &Grads,
        stop: bool,
    ) -> Result<()> {
        self.backward_ffn(at, &kept, d, grads)?;
        self.backward_attention(at, x, kept, (d, dadded), grads, stop)
    }

    fn backward_ffn(&self, at: Surroundings, kept: &Kept, d: &Tensor, grads: &Grads) -> Result<()> {
        let Surroundings { ctx, mode, .. } = at;
        let Kept { middle, middle_rstd, gate, up, .. } = kept;
        let s = swiglu::forward(ctx, gate, up)?;
        let ds = ctx.empty(s.shape(), d)?;
        self.down.backward(ctx, mode, &s, d, Some((Into::Overwrite, &ds)), grads)?;
        drop(s);
        swiglu::backward_in_place(ctx, gate, up, &ds)?;
        drop(ds);
        let norm = self.ffn_norm.widened(ctx)?;
        let normed = rms_norm::apply(ctx, middle, middle_rstd, &norm)?;
        let dnormed = ctx.empty(normed.shape(), d)?;
        self.gate.backward(ctx, mode, &normed, gate, Some((Into::Overwrite, &dnormed)), grads)?;
        self.up.backward(ctx, mode, &normed, up, Some((Into::Accumulate, &dnormed)), grads)?;
        let dnorm = self.ffn_norm.grad(grads);
        rms_norm::backward(ctx, middle, middle_rstd, &norm, &dnormed, d, dnorm)
    }

    fn backward_attention(
        &self,
        at: Surroundings,
        x: &Tensor,
        kept: Kept,
        (d, dadded): (&Tensor, Option<&Tensor>),
        grads: &Grads,
        stop: bool,
    ) -> Result<()> {
        let Surroundings { ctx, spans, angles, mode } = at;
        let Kept { rstd, raw, q, k, v, attended, lse, .. } = kept;
        let dattended = ctx.empty(attended.shape(), d)?;
        let both;
        let dout = match dadded {
            Some(dadded) => {
                both = ctx.copy(d)?;
                accumulate(&both, dadded)?;
                &*both
            }
            None => d,
        };
        self.o.backward(ctx, mode, &attended, dout, Some((Into::Overwrite, &dattended)), grads)?;
        let saved = attention::Saved { q: &q, k: &k, v: &v, output: &attended, lse: &lse };
        let (mut dq, mut dk, dv) = attention::backward(ctx, self.shape, spans, saved, &dattended)?;
        drop((q, k, v, attended, lse, dattended));
        angles.rotate_back(ctx, &dq)?;
        angles.rotate_back(ctx, &dk)?;
        if let (Some((q_norm, k_norm)), Some(raw)) = (&self.qk_norm, &raw) {
            dq = self.norm_heads_backward(ctx, &raw.q, &raw.q_rstd, q_norm, &dq, grads)?;
            dk = self.norm_heads_backward(ctx, &raw.k, &raw.k_rstd, k_norm, &dk, grads)?;
        }
        let norm = self.attention_norm.widened(ctx)?;
        let normed = rms_norm::apply(ctx, x, &rstd, &norm)?;
        let needs_dnormed = !stop || self.attention_norm.is_trained();
        let dnormed = ctx.empty(normed.shape(), d)?;
        let mut into = Into::Overwrite;
        for (linear, dy) in [(&self.q, &dq), (&self.k, &dk), (&self.v, &dv)] {
            let dx = needs_dnormed.then_some((into, &*dnormed));
            linear.backward(ctx, mode, &normed, dy, dx, grads)?;
            into = Into::Accumulate;
        }
        if needs_dnormed {
            let dnorm = self.attention_norm.grad(grads);
            rms_norm::backward(ctx, x, &rstd, &norm, &dnormed, d, dnorm)?;
        }
        Ok(())
    }

    /// RMSNorm of every head of `x (tokens, heads · head_dim)`.
    fn norm_heads(&self, ctx: &Context, x: &Tensor, norm: &Param) -> Result<(Buffer, Buffer)> {
        let flat = x.reshape(((), self.shape.head_dim))?;
        let (y, rstd) = rms_norm::forward(ctx, &flat, &*norm.widened(ctx)?, self.eps)?;
        Ok((y.reshaped(x.shape())?, rstd))
    }

    fn norm_heads_backward(
        &self,
        ctx: &Context,
        x: &Tensor,
        rstd: &Tensor,
        norm: &Param,
        dy: &Tensor,
        grads: &Grads,
    ) -> Result<Buffer> {
        let flat = (x.elem_count() / self.shape.head_dim, self.shape.head_dim);
        let dx = ctx.empty(flat, x)?;
        crate::ops::clear(&dx)?;
        let (x_flat, dy_flat) = (x.reshape(flat)?, dy.reshape(flat)?);
        let weight = norm.widened(ctx)?;
        rms_norm::backward(ctx, &x_flat, rstd, &weight, &dy_flat, &dx, norm.grad(grads))?;
        dx.reshaped(x.shape())
    }
}
