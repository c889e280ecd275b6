//! The head: per-token log-probabilities, without ever holding the logits of a batch.
//!
//! Rows go through in chunks. Where the gradient of the loss is known beforehand, a chunk's logits
//! are turned into their gradient in place and used up at once. Otherwise forward keeps one number
//! per row, the log-sum-exp, and the logits of the last chunk, whose memory is there anyway; backward
//! begins with these and computes those of the other chunks again.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::linear::{self, Into};
use super::simd::{exp, max, sum_exp, vectorize};
use super::{Context, slices};
use crate::Result;
use crate::data::batch::Target;
use crate::memory::Buffer;

/// Most logits of a chunk: 128 MiB in f32.
const CHUNK_LOGITS: usize = 1 << 25;

/// What [`forward`] found.
#[derive(Debug)]
pub struct Logps {
    /// One log-probability per entry, `(entries,)`, f32 or f64.
    pub logps: Tensor,
    /// Log-sum-exp of each row's logits.
    lse: Vec<f64>,
    /// For each entry: whether no token is likelier.
    pub is_best: Vec<bool>,
    /// Logits of the last chunk.
    last: Option<Buffer>,
}

/// Most rows of a chunk for a vocabulary of this size.
pub fn chunk_rows(vocabulary: usize) -> usize {
    (CHUNK_LOGITS / vocabulary.max(1)).clamp(16, 1024)
}

/// Where the gradients of the head go.
#[derive(Clone, Copy)]
pub struct Gradients<'a> {
    /// `(rows, hidden)`, written.
    pub dhidden: &'a Tensor,
    /// `(vocabulary, hidden)`, if wanted, added to.
    pub dweight: Option<&'a Tensor>,
}

/// Log-probabilities of `entries`, sorted by row, under `softmax(hidden · weightᵀ)`. Shapes:
/// `hidden (rows, hidden)`, `weight (vocabulary, hidden)`.
pub fn forward(
    ctx: &Context,
    hidden: &Tensor,
    weight: &Tensor,
    entries: &[Target],
) -> Result<Logps> {
    let mut last = None;
    let mut found = each_chunk(ctx, hidden, weight, entries, |_, logits, _| {
        last = Some(logits);
        Ok(())
    })?;
    found.last = last;
    Ok(found)
}

/// [`forward`], and [`backward`] with it, for `dlogps` that are known beforehand.
pub fn forward_and_backward(
    ctx: &Context,
    hidden: &Tensor,
    weight: &Tensor,
    entries: &[Target],
    dlogps: &[f64],
    gradients: Gradients,
) -> Result<Logps> {
    let mut rest = dlogps;
    each_chunk(ctx, hidden, weight, entries, |chunk, logits, lse| {
        let (dlogps, after) = rest.split_at(chunk.entries.len());
        rest = after;
        chunk.backward(ctx, (hidden, weight), logits, lse, dlogps, gradients)
    })
}

/// Given d(loss)/d(logps) of what [`forward`] found.
pub fn backward(
    ctx: &Context,
    hidden: &Tensor,
    weight: &Tensor,
    entries: &[Target],
    mut saved: Logps,
    dlogps: &[f64],
    gradients: Gradients,
) -> Result<()> {
    let mut rest = dlogps;
    let chunks: Vec<Chunk> = Chunks::new(hidden.dim(0)?, weight.dim(0)?, entries).collect();
    for chunk in chunks.into_iter().rev() {
        let (before, dlogps) = rest.split_at(rest.len() - chunk.entries.len());
        rest = before;
        let logits = match saved.last.take() {
            Some(logits) => logits,
            None => chunk.logits(ctx, hidden, weight)?,
        };
        let lse = &saved.lse[chunk.start..chunk.start + chunk.rows];
        chunk.backward(ctx, (hidden, weight), logits, lse, dlogps, gradients)?;
    }
    Ok(())
}

/// Log-probs chunk by chunk; `use_up` gets each chunk's logits and log-sum-exps.
fn each_chunk(
    ctx: &Context,
    hidden: &Tensor,
    weight: &Tensor,
    entries: &[Target],
    mut use_up: impl FnMut(&Chunk, Buffer, &[f64]) -> Result<()>,
) -> Result<Logps> {
    let (rows, vocabulary) = (hidden.dim(0)?, weight.dim(0)?);
    let mut lse = Vec::with_capacity(rows);
    let mut logps = Vec::with_capacity(entries.len());
    let mut is_best = Vec::with_capacity(entries.len());
    for chunk in Chunks::new(rows, vocabulary, entries) {
        let logits = chunk.logits(ctx, hidden, weight)?;
        let (statistics, picked) = if ctx.is_fused(&logits) {
            let logits = slices::read(&logits)?;
            let pick = |e: &Target| {
                f64::from(logits[(e.row as usize - chunk.start) * vocabulary + e.token as usize])
            };
            (row_statistics(&logits, vocabulary), chunk.entries.iter().map(pick).collect())
        } else {
            composed_statistics(&logits, &chunk)?
        };
        for (entry, logit) in chunk.entries.iter().zip::<Vec<f64>>(picked) {
            let (max, lse) = statistics[entry.row as usize - chunk.start];
            logps.push(logit - lse);
            is_best.push(logit >= max);
        }
        lse.extend(statistics.iter().map(|&(_, lse)| lse));
        use_up(&chunk, logits, &lse[chunk.start..])?;
    }
    let dtype = if hidden.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let logps = Tensor::from_vec(logps, entries.len(), hidden.device())?.to_dtype(dtype)?;
    Ok(Logps { logps, lse, is_best, last: None })
}

/// Consecutive rows and the entries that they predict.
pub(crate) struct Chunk<'a> {
    pub(crate) start: usize,
    pub(crate) rows: usize,
    pub(crate) entries: &'a [Target],
}

impl Chunk<'_> {
    pub(crate) fn logits(&self, ctx: &Context, hidden: &Tensor, weight: &Tensor) -> Result<Buffer> {
        let hidden = hidden.narrow(0, self.start, self.rows)?;
        let logits = ctx.empty((self.rows, weight.dim(0)?), &hidden)?;
        linear::forward(ctx, &hidden, weight, Into::Overwrite, &logits)?;
        Ok(logits)
    }

    /// The chunk's part of the gradients. `logits` become their own gradient: that of a row is
    /// Σ_entries g·(onehot − softmax).
    fn backward(
        &self,
        ctx: &Context,
        (hidden, weight): (&Tensor, &Tensor),
        logits: Buffer,
        lse: &[f64],
        dlogps: &[f64],
        gradients: Gradients,
    ) -> Result<()> {
        let vocabulary = weight.dim(0)?;
        let mut row_weights = vec![0f64; self.rows];
        for (entry, g) in self.entries.iter().zip(dlogps) {
            row_weights[entry.row as usize - self.start] += g;
        }
        let dlogits = if ctx.is_fused(&logits) {
            slices::write(&logits, |logits| {
                logits.par_chunks_mut(vocabulary).zip(lse).zip(&row_weights).for_each(
                    |((row, &lse), &weight)| {
                        let (lse, weight) = (lse as f32, weight as f32);
                        vectorize!(for x in row.iter_mut() {
                            *x = -weight * exp(*x - lse);
                        });
                    },
                );
                for (entry, g) in self.entries.iter().zip(dlogps) {
                    let row = entry.row as usize - self.start;
                    logits[row * vocabulary + entry.token as usize] += *g as f32;
                }
            })?;
            logits
        } else {
            composed_gradient(&logits, self, lse, &row_weights, dlogps)?.into()
        };
        self.gradients(ctx, (hidden, weight), &dlogits, gradients)
    }

    /// The chunk's part of the gradients, from that of its logits.
    pub(crate) fn gradients(
        &self,
        ctx: &Context,
        (hidden, weight): (&Tensor, &Tensor),
        dlogits: &Tensor,
        gradients: Gradients,
    ) -> Result<()> {
        let hidden = hidden.narrow(0, self.start, self.rows)?;
        let dhidden = gradients.dhidden.narrow(0, self.start, self.rows)?;
        linear::backward_input(ctx, dlogits, weight, Into::Overwrite, &dhidden)?;
        match gradients.dweight {
            Some(dweight) => linear::backward_weight(ctx, dlogits, &hidden, dweight),
            None => Ok(()),
        }
    }
}

pub(crate) struct Chunks<'a> {
    next: usize,
    rows: usize,
    per_chunk: usize,
    entries: &'a [Target],
}

impl<'a> Chunks<'a> {
    pub(crate) fn new(rows: usize, vocabulary: usize, entries: &'a [Target]) -> Self {
        let chunks = rows.div_ceil(chunk_rows(vocabulary)).max(1);
        Self { next: 0, rows, per_chunk: rows.div_ceil(chunks), entries }
    }
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    fn next(&mut self) -> Option<Chunk<'a>> {
        if self.next >= self.rows {
            return None;
        }
        let start = self.next;
        let rows = self.per_chunk.min(self.rows - start);
        self.next = start + rows;
        let split = self.entries.partition_point(|entry| (entry.row as usize) < self.next);
        let (entries, rest) = self.entries.split_at(split);
        self.entries = rest;
        Some(Chunk { start, rows, entries })
    }
}

/// Maximum and log-sum-exp of a row.
type Statistics = (f64, f64);

/// Those of each row.
fn row_statistics(logits: &[f32], vocabulary: usize) -> Vec<Statistics> {
    let row = |row: &[f32]| {
        vectorize!({
            let max = max(row);
            let total = sum_exp(row, max);
            (f64::from(max), f64::from(max) + f64::from(total).ln())
        })
    };
    logits.par_chunks(vocabulary).map(row).collect()
}

/// [`row_statistics`] and each entry's logit, on any device.
fn composed_statistics(logits: &Tensor, chunk: &Chunk) -> Result<(Vec<Statistics>, Vec<f64>)> {
    let wide = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let logits = logits.to_dtype(wide)?;
    let max = logits.max_keepdim(1)?;
    let lse = (logits.broadcast_sub(&max)?.exp()?.sum_keepdim(1)?.log()? + &max)?;
    let host = |x: Tensor| -> Result<Vec<f64>> {
        Ok(x.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?)
    };
    let statistics = host(max)?.into_iter().zip(host(lse)?).collect();
    let flat = flat_index(chunk, logits.dim(1)?, &logits)?;
    Ok((statistics, host(logits.flatten_all()?.index_select(&flat, 0)?)?))
}

fn composed_gradient(
    logits: &Tensor,
    chunk: &Chunk,
    lse: &[f64],
    row_weights: &[f64],
    dlogps: &[f64],
) -> Result<Tensor> {
    let wide = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let column = |values: &[f64]| -> Result<Tensor> {
        Ok(Tensor::from_slice(values, (values.len(), 1), logits.device())?.to_dtype(wide)?)
    };
    let probs = logits.to_dtype(wide)?.broadcast_sub(&column(lse)?)?.exp()?;
    let grad = probs.broadcast_mul(&column(row_weights)?)?.neg()?;
    let flat = flat_index(chunk, logits.dim(1)?, logits)?;
    let onehot = column(dlogps)?.flatten_all()?;
    let grad = grad.flatten_all()?.index_add(&flat, &onehot, 0)?;
    Ok(grad.reshape(logits.shape())?.to_dtype(logits.dtype())?)
}

fn flat_index(chunk: &Chunk, vocabulary: usize, like: &Tensor) -> Result<Tensor> {
    let index: Vec<i64> = chunk
        .entries
        .iter()
        .map(|e| ((e.row as usize - chunk.start) * vocabulary + e.token as usize) as i64)
        .collect();
    Ok(Tensor::from_slice(&index, index.len(), like.device())?)
}
