//! Token embedding: rows of a matrix, and their gradient.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{Context, accumulate, slices};
use crate::memory::Buffer;
use crate::{Error, Result};

/// `(tokens, hidden)` from `weight (vocabulary, hidden)`.
///
/// # Errors
/// A token that has no row.
pub fn forward(ctx: &Context, weight: &Tensor, tokens: &[u32]) -> Result<Buffer> {
    let (vocabulary, hidden) = weight.dims2()?;
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
        return Err(Error::model(format!(
            "token `{token}` has no row in the embedding of {vocabulary} rows"
        )));
    }
    if !ctx.is_fused(weight) {
        let ids = Tensor::from_slice(tokens, tokens.len(), weight.device())?;
        return Ok(weight.index_select(&ids, 0)?.into());
    }
    let x = ctx.empty((tokens.len(), hidden), weight)?;
    let weight = slices::read(weight)?;
    slices::write(&x, |x| {
        x.par_chunks_mut(hidden).zip(tokens).for_each(|(row, &token)| {
            row.copy_from_slice(&weight[token as usize * hidden..][..hidden]);
        });
    })?;
    Ok(x)
}

/// `dweight[token] += dx`, in the order of the tokens. The row of `padding` gets nothing, as in
/// transformers, whose embedding is made with `padding_idx`.
pub fn backward(
    ctx: &Context,
    tokens: &[u32],
    padding: Option<u32>,
    dx: &Tensor,
    dweight: &Tensor,
) -> Result<()> {
    if !ctx.is_fused(dx) {
        let kept = |token: &u32| if Some(*token) == padding { 0f32 } else { 1.0 };
        let kept: Vec<f32> = tokens.iter().map(kept).collect();
        let kept = Tensor::from_vec(kept, (tokens.len(), 1), dx.device())?;
        let dx = dx.to_dtype(dweight.dtype())?;
        let dx = dx.broadcast_mul(&kept.to_dtype(dx.dtype())?)?;
        let ids = Tensor::from_slice(tokens, tokens.len(), dx.device())?;
        return accumulate(dweight, &dweight.zeros_like()?.index_add(&ids, &dx, 0)?);
    }
    let hidden = dx.dim(1)?;
    let dx = slices::read(dx)?;
    slices::write(dweight, |dweight| {
        for (&token, dx) in tokens.iter().zip(dx.chunks_exact(hidden)) {
            if Some(token) == padding {
                continue;
            }
            for (total, dx) in dweight[token as usize * hidden..][..hidden].iter_mut().zip(dx) {
                *total += dx;
            }
        }
    })
}
