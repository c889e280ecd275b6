//! SwiGLU: `s = silu(gate) · up`, `silu(x) = x·σ(x)` (Shazeer 2020).

use candle_core::Tensor;
use rayon::prelude::*;

use super::simd::{sigmoid, vectorize};
use super::{Context, assign, slices};
use crate::Result;
use crate::memory::Buffer;

/// Elements per task.
const CHUNK: usize = 8192;

/// `s` from `gate` and `up`, all `(tokens, ffn)`.
pub fn forward(ctx: &Context, gate: &Tensor, up: &Tensor) -> Result<Buffer> {
    if !ctx.is_fused(gate) {
        return Ok((gate * gate_sigmoid(gate)? * up)?.into());
    }
    let s = ctx.empty(gate.shape(), gate)?;
    let (gate, up) = (slices::read(gate)?, slices::read(up)?);
    slices::write(&s, |s| {
        s.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(
            |((s, gate), up)| {
                vectorize!({
                    for ((s, &g), &u) in s.iter_mut().zip(gate).zip(up) {
                        *s = g * sigmoid(g) * u;
                    }
                });
            },
        );
    })?;
    Ok(s)
}

/// Replaces `gate` by `d gate` and `up` by `d up`, given `ds`:
/// `d up = ds·silu(g)`, `d gate = ds·u·σ(g)·(1 + g·(1 − σ(g)))`.
pub fn backward_in_place(ctx: &Context, gate: &Tensor, up: &Tensor, ds: &Tensor) -> Result<()> {
    if !ctx.is_fused(gate) {
        let sig = gate_sigmoid(gate)?;
        let dup = (ds * gate * &sig)?;
        let slope = (&sig * (gate * sig.affine(-1.0, 1.0)?)?.affine(1.0, 1.0)?)?;
        let dgate = (ds * up * slope)?;
        assign(gate, &dgate)?;
        return assign(up, &dup);
    }
    let ds = slices::read(ds)?;
    slices::write2(gate, up, |gate, up| {
        gate.par_chunks_mut(CHUNK)
            .zip(up.par_chunks_mut(CHUNK))
            .zip(ds.par_chunks(CHUNK))
            .for_each(|((gate, up), ds)| {
                vectorize!({
                    for ((gate, up), &ds) in gate.iter_mut().zip(up).zip(ds) {
                        let (g, u, sig) = (*gate, *up, sigmoid(*gate));
                        *up = ds * (g * sig);
                        *gate = ds * u * (sig * (1.0 + g * (1.0 - sig)));
                    }
                });
            });
    })
}

/// σ, from operations that every device has.
fn gate_sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((x.neg()?.exp()? + 1.0)?.recip()?)
}
