//! RMSNorm: `y = x · rstd · w`, `rstd = 1 / √(mean(x²) + eps)` per row (Zhang & Sennrich 2019).

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::simd::{sum, vectorize};
use super::{Context, accumulate, assign, slices};
use crate::Result;
use crate::memory::Buffer;

/// Rows per task; also the span over which `dw` is first summed, so that its order is fixed.
const ROWS: usize = 32;

/// Returns `y (rows, hidden)` and `rstd (rows,)`. Statistics are kept in f32 or wider.
pub fn forward(ctx: &Context, x: &Tensor, weight: &Tensor, eps: f64) -> Result<(Buffer, Buffer)> {
    let (rows, hidden) = x.dims2()?;
    if !ctx.is_fused(x) {
        let wide = widen(x)?;
        let rstd = ((wide.sqr()?.mean(1)? + eps)?.sqrt()?.recip())?;
        return Ok((apply(ctx, x, &rstd, weight)?, rstd.into()));
    }
    let rstd = ctx.empty(rows, x)?;
    {
        let x = slices::read(x)?;
        slices::write(&rstd, |rstd| {
            rstd.par_chunks_mut(ROWS).zip(x.par_chunks(ROWS * hidden)).for_each(|(rstd, x)| {
                vectorize!({
                    for (rstd, x) in rstd.iter_mut().zip(x.chunks_exact(hidden)) {
                        let mean = sum(hidden, |i| x[i] * x[i]) / hidden as f32;
                        *rstd = 1.0 / (mean + eps as f32).sqrt();
                    }
                });
            });
        })?;
    }
    Ok((apply(ctx, x, &rstd, weight)?, rstd))
}

/// `y` again, from a kept `rstd`.
pub fn apply(ctx: &Context, x: &Tensor, rstd: &Tensor, weight: &Tensor) -> Result<Buffer> {
    if !ctx.is_fused(x) {
        let normed = widen(x)?.broadcast_mul(&rstd.unsqueeze(1)?)?.to_dtype(x.dtype())?;
        return Ok(normed.broadcast_mul(weight)?.into());
    }
    let hidden = x.dim(1)?;
    let y = ctx.empty(x.shape(), x)?;
    let (x, rstd, weight) = (slices::read(x)?, slices::read(rstd)?, slices::read(weight)?);
    slices::write(&y, |y| {
        y.par_chunks_mut(ROWS * hidden)
            .zip(x.par_chunks(ROWS * hidden))
            .zip(rstd.par_chunks(ROWS))
            .for_each(|((y, x), rstd)| {
                vectorize!({
                    let rows = y.chunks_exact_mut(hidden).zip(x.chunks_exact(hidden)).zip(rstd);
                    for ((y, x), &rstd) in rows {
                        for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight.iter()) {
                            *y = x * rstd * w;
                        }
                    }
                });
            });
    })?;
    Ok(y)
}

/// With `x̂ = x·rstd` and `g = dy·w`: `dx += rstd · (g − x̂ · mean(g·x̂))`, `dw += Σ_rows dy·x̂`.
pub fn backward(
    ctx: &Context,
    x: &Tensor,
    rstd: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
    dx: &Tensor,
    dweight: Option<&Tensor>,
) -> Result<()> {
    if !ctx.is_fused(x) {
        let rstd = rstd.unsqueeze(1)?;
        let normed = widen(x)?.broadcast_mul(&rstd)?;
        let dy = widen(dy)?;
        if let Some(dweight) = dweight {
            accumulate(dweight, &(&dy * &normed)?.sum(0)?)?;
        }
        let scaled = dy.broadcast_mul(&widen(weight)?)?;
        let mean = (&scaled * &normed)?.mean_keepdim(1)?;
        let grad = (scaled - normed.broadcast_mul(&mean)?)?.broadcast_mul(&rstd)?;
        return assign(dx, &(widen(dx)? + grad)?.to_dtype(dx.dtype())?);
    }
    let (rows, hidden) = x.dims2()?;
    let (x, rstd, dy) = (slices::read(x)?, slices::read(rstd)?, slices::read(dy)?);
    let weight = slices::read(weight)?;
    if let Some(dweight) = dweight {
        let partial = ctx.pool().take((rows.div_ceil(ROWS), hidden))?;
        slices::write(&partial, |partial| {
            partial
                .par_chunks_mut(hidden)
                .zip(dy.par_chunks(ROWS * hidden))
                .zip(x.par_chunks(ROWS * hidden))
                .zip(rstd.par_chunks(ROWS))
                .for_each(|(((total, dy), x), rstd)| {
                    total.fill(0.0);
                    vectorize!({
                        let rows = dy.chunks_exact(hidden).zip(x.chunks_exact(hidden)).zip(rstd);
                        for ((dy, x), &rstd) in rows {
                            for ((total, &dy), &x) in total.iter_mut().zip(dy).zip(x) {
                                *total += dy * (x * rstd);
                            }
                        }
                    });
                });
            slices::write(dweight, |dweight| {
                for partial in partial.chunks_exact(hidden) {
                    for (total, partial) in dweight.iter_mut().zip(partial) {
                        *total += partial;
                    }
                }
            })
        })??;
    }
    slices::write(dx, |dx| {
        dx.par_chunks_mut(ROWS * hidden)
            .zip(dy.par_chunks(ROWS * hidden))
            .zip(x.par_chunks(ROWS * hidden))
            .zip(rstd.par_chunks(ROWS))
            .for_each(|(((dx, dy), x), rstd)| {
                vectorize!({
                    let rows = dx
                        .chunks_exact_mut(hidden)
                        .zip(dy.chunks_exact(hidden))
                        .zip(x.chunks_exact(hidden))
                        .zip(rstd);
                    for (((dx, dy), x), &rstd) in rows {
                        backward_row(dx, dy, x, rstd, &weight);
                    }
                });
            });
    })
}

#[inline(always)]
fn backward_row(dx: &mut [f32], dy: &[f32], x: &[f32], rstd: f32, weight: &[f32]) {
    let n = weight.len();
    let mean = sum(n, |i| dy[i] * weight[i] * x[i]) * rstd / n as f32;
    for i in 0..n {
        dx[i] += rstd * (dy[i] * weight[i] - x[i] * rstd * mean);
    }
}

/// At least f32.
fn widen(x: &Tensor) -> Result<Tensor> {
    Ok(match x.dtype() {
        DType::F16 | DType::BF16 => x.to_dtype(DType::F32)?,
        _ => x.clone(),
    })
}
