//! `y = x·Wᵀ + b` and its three gradients.

use candle_core::Tensor;
use rayon::prelude::*;

pub use super::matmul::Into;
use super::matmul::{Mat, MatMut, parallel};
use super::{Context, accumulate, assign, slices};
use crate::Result;

/// `y = x·Wᵀ`, or `y += x·Wᵀ`. Shapes: `x (tokens, in)`, `weight (out, in)`, `y (tokens, out)`.
pub fn forward(ctx: &Context, x: &Tensor, weight: &Tensor, into: Into, y: &Tensor) -> Result<()> {
    if !ctx.is_fused(x) {
        return put(y, &x.matmul(&weight.t()?)?, into);
    }
    let ((tokens, input), output) = (x.dims2()?, weight.dim(0)?);
    let (x, weight) = (slices::read(x)?, slices::read(weight)?);
    slices::write(y, |y| {
        parallel(
            Mat::new(&x, tokens, input),
            Mat::new(&weight, output, input).t(),
            into,
            MatMut::new(y, tokens, output),
        );
    })
}

/// `dx = dy·W`, or `dx += dy·W`.
pub fn backward_input(
    ctx: &Context,
    dy: &Tensor,
    weight: &Tensor,
    into: Into,
    dx: &Tensor,
) -> Result<()> {
    if !ctx.is_fused(dy) {
        return put(dx, &dy.matmul(weight)?, into);
    }
    let (tokens, (output, input)) = (dy.dim(0)?, weight.dims2()?);
    let (dy, weight) = (slices::read(dy)?, slices::read(weight)?);
    slices::write(dx, |dx| {
        parallel(
            Mat::new(&dy, tokens, output),
            Mat::new(&weight, output, input),
            into,
            MatMut::new(dx, tokens, input),
        );
    })
}

/// `dW += dyᵀ·x`.
pub fn backward_weight(ctx: &Context, dy: &Tensor, x: &Tensor, dweight: &Tensor) -> Result<()> {
    if !ctx.is_fused(dy) {
        return accumulate(dweight, &dy.t()?.matmul(x)?);
    }
    let ((tokens, output), input) = (dy.dims2()?, x.dim(1)?);
    let (dy, x) = (slices::read(dy)?, slices::read(x)?);
    slices::write(dweight, |dweight| {
        parallel(
            Mat::new(&dy, tokens, output).t(),
            Mat::new(&x, tokens, input),
            Into::Accumulate,
            MatMut::new(dweight, output, input),
        );
    })
}

/// `y += bias` on every row.
pub fn add_bias(ctx: &Context, y: &Tensor, bias: &Tensor) -> Result<()> {
    if !ctx.is_fused(y) {
        return assign(y, &y.broadcast_add(bias)?);
    }
    let bias = slices::read(bias)?;
    slices::write(y, |y| {
        y.par_chunks_mut(bias.len()).for_each(|row| {
            for (y, b) in row.iter_mut().zip(bias.iter()) {
                *y += b;
            }
        });
    })
}

/// `db += Σ_tokens dy`.
pub fn backward_bias(ctx: &Context, dy: &Tensor, dbias: &Tensor) -> Result<()> {
    if !ctx.is_fused(dy) {
        return accumulate(dbias, &dy.sum(0)?);
    }
    let dy = slices::read(dy)?;
    slices::write(dbias, |dbias| {
        for row in dy.chunks_exact(dbias.len()) {
            for (total, dy) in dbias.iter_mut().zip(row) {
                *total += dy;
            }
        }
    })
}

fn put(dst: &Tensor, value: &Tensor, into: Into) -> Result<()> {
    match into {
        Into::Overwrite => assign(dst, value),
        Into::Accumulate => accumulate(dst, value),
    }
}
