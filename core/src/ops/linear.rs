//! `y = x·Wᵀ + b` and its three gradients.

use candle_core::Tensor;
use rayon::prelude::*;

pub use super::matmul::Into;
use super::matmul::{Mat, MatMut, Product, Rows, parallel, products};
use super::{Context, accumulate, assign, slices};
use crate::Result;
use crate::model::param::{Param, Value};

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

/// One of several products that share `x`, for [`decode`].
#[derive(Debug, Clone, Copy)]
pub struct Decode<'a> {
    /// `(out, in)`; read as it is held.
    pub weight: &'a Param,
    /// What becomes of the content of `y`.
    pub into: Into,
    /// `(tokens, out)`.
    pub y: &'a Tensor,
}

/// `y = x·Wᵀ`, or `y += x·Wᵀ`, for each of `all`, as generation needs it: the bits of a row of `y`
/// depend on that row of `x (tokens, in)` and the values of `W` alone, whatever the other rows, the
/// threads and the processor, and however `W` is held. Fastest for few rows.
pub fn decode(ctx: &Context, x: &Tensor, all: &[Decode]) -> Result<()> {
    if !ctx.is_fused(x) {
        return all
            .iter()
            .try_for_each(|one| put(one.y, &x.matmul(&one.weight.widened(ctx)?.t()?)?, one.into));
    }
    let (_, input) = x.dims2()?;
    let x = slices::read(x)?;
    let mut dense = Vec::new();
    for one in all {
        dense.push(one.weight.dense().map(slices::read).transpose()?);
    }
    let weights = all.iter().zip(&dense).map(|(one, dense)| match one.weight.value() {
        Value::Stored(stored) => Rows::Stored(stored),
        Value::Dense(_) => Rows::Plain(dense.as_deref().unwrap_or_default()),
    });
    let ys: Vec<&Tensor> = all.iter().map(|one| one.y).collect();
    slices::write_all(&ys, |ys| {
        let product =
            |((one, weights), y): ((&Decode, _), _)| Product { weights, into: one.into, y };
        products(&x, input, all.iter().zip(weights).zip(ys).map(product).collect())
    })?
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
