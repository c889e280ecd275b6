//! Tokens of many sequences through the model, each at its own place: prompts and completions alike.

use candle_core::Tensor;

use super::pages::{PageId, Pages, Place};
use crate::Result;
use crate::memory::Buffer;
use crate::model::Decoder;
use crate::model::linear::Linear;
use crate::model::param::Param;
use crate::ops::linear::{self, Decode, Into};
use crate::ops::{Context, embedding, rms_norm, scale, slices, swiglu};

/// A token to be computed: its place, and the pages of its sequence up to it.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) token: u32,
    pub(super) position: usize,
    pub(super) pages: &'a [PageId],
}

/// The last block's output, `(inputs, hidden)`. Keys and values are written to the pages. The bits
/// of a row depend on its sequence up to it alone.
pub(super) fn forward(model: &Decoder, pages: &mut Pages, inputs: &[Input]) -> Result<Buffer> {
    let ctx = model.context();
    let tokens: Vec<u32> = inputs.iter().map(|input| input.token).collect();
    let positions: Vec<u32> = inputs.iter().map(|input| input.position as u32).collect();
    let angles = model.angles(&positions)?;
    let x = model.embed.rows(ctx, &tokens)?;
    let places: Vec<Place> = inputs
        .iter()
        .map(|input| Place { pages: input.pages, tokens: input.position + 1 })
        .collect();
    for (index, block) in model.blocks.iter().enumerate() {
        let norm = block.attention_norm.widened(ctx)?;
        let (normed, _) = rms_norm::forward(ctx, &x, &norm, block.eps)?;
        let [mut q, mut k, v] = outputs(ctx, &normed, [&block.q, &block.k, &block.v])?;
        if let Some((q_norm, k_norm)) = &block.qk_norm {
            q = norm_heads(ctx, q, q_norm, block.shape.head_dim, block.eps)?;
            k = norm_heads(ctx, k, k_norm, block.shape.head_dim, block.eps)?;
        }
        angles.rotate(ctx, &q)?;
        angles.rotate(ctx, &k)?;
        // Pages are on the host, in f32.
        let [q, k, v] = [slices::on_host(&q)?, slices::on_host(&k)?, slices::on_host(&v)?];
        let seen = ctx.pool().take(q.shape())?;
        let layer = pages.layer(index);
        layer.write(&places, &slices::read(&k)?, &slices::read(&v)?);
        let q = slices::read(&q)?;
        slices::write(&seen, |seen| layer.attend(&places, &q, seen))?;
        let attended = seen.to_device(x.device())?.to_dtype(x.dtype())?;
        apply(ctx, &attended, &[(&block.o, Into::Accumulate, &x)])?;
        let norm = block.ffn_norm.widened(ctx)?;
        let (normed, _) = rms_norm::forward(ctx, &x, &norm, block.eps)?;
        let [gate, up] = outputs(ctx, &normed, [&block.gate, &block.up])?;
        let s = swiglu::forward(ctx, &gate, &up)?;
        apply(ctx, &s, &[(&block.down, Into::Accumulate, &x)])?;
    }
    Ok(x)
}

/// Logits `(rows, vocabulary)` of rows of [`forward`]'s output.
pub(super) fn logits(model: &Decoder, x: &Tensor, rows: &[u32]) -> Result<Buffer> {
    let ctx = model.context();
    let hidden = embedding::forward(ctx, x, rows)?;
    let norm = model.norm.widened(ctx)?;
    let (normed, _) = rms_norm::forward(ctx, &hidden, &norm, model.config.rms_norm_eps)?;
    let logits = ctx.empty((rows.len(), model.config.vocab_size), &normed)?;
    let head = Decode { weight: model.head(), into: Into::Overwrite, y: &logits };
    linear::decode(ctx, &normed, &[head])?;
    Ok(logits)
}

/// The outputs of layers that share their input.
fn outputs<const N: usize>(ctx: &Context, x: &Tensor, layers: [&Linear; N]) -> Result<[Buffer; N]> {
    let mut made = Vec::with_capacity(N);
    for layer in layers {
        made.push(ctx.empty((x.dim(0)?, layer.weight.dims()[0]), x)?);
    }
    let into: Vec<(&Linear, Into, &Tensor)> =
        layers.iter().zip(&made).map(|(&layer, y)| (layer, Into::Overwrite, &**y)).collect();
    apply(ctx, x, &into)?;
    made.try_into().map_err(|_| crate::Error::model("as many outputs as layers"))
}

/// Layers with their biases and adapters, without dropout.
fn apply(ctx: &Context, x: &Tensor, layers: &[(&Linear, Into, &Tensor)]) -> Result<()> {
    let all: Vec<Decode> =
        layers.iter().map(|&(layer, into, y)| Decode { weight: &layer.weight, into, y }).collect();
    linear::decode(ctx, x, &all)?;
    for &(layer, _, y) in layers {
        if let Some(bias) = &layer.bias {
            linear::add_bias(ctx, y, &*bias.widened(ctx)?)?;
        }
        if let Some(lora) = &layer.lora {
            let low = ctx.empty((x.dim(0)?, lora.a.dims()[0]), x)?;
            let down = Decode { weight: &lora.a, into: Into::Overwrite, y: &low };
            linear::decode(ctx, x, &[down])?;
            scale(ctx, &low, lora.scale)?;
            let up = Decode { weight: &lora.b, into: Into::Accumulate, y };
            linear::decode(ctx, &low, &[up])?;
        }
    }
    Ok(())
}

/// RMSNorm of every head (Qwen3).
fn norm_heads(ctx: &Context, x: Buffer, norm: &Param, dim: usize, eps: f64) -> Result<Buffer> {
    let flat = x.reshape(((), dim))?;
    let (normed, _) = rms_norm::forward(ctx, &flat, &*norm.widened(ctx)?, eps)?;
    normed.reshaped(x.shape())
}
