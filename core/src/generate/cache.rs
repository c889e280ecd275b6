//! Keys and values of the sequences being decoded.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::Result;
use crate::memory::Buffer;
use crate::ops::attention::Shape;
use crate::ops::simd::{exp, max, sum, vectorize};
use crate::ops::{Context, slices};

/// One layer's keys and values, a run of rows for each sequence.
#[derive(Debug, Default)]
pub(super) struct LayerCache {
    sequences: Vec<Rows>,
}

#[derive(Debug, Default)]
struct Rows {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl LayerCache {
    /// Adds a sequence with the rows `start..start + len` of a prompt's keys and values.
    pub(super) fn push(&mut self, k: &Tensor, v: &Tensor, start: usize, len: usize) -> Result<()> {
        let rows = |x: &Tensor| -> Result<Vec<f32>> {
            Ok(slices::read(&x.narrow(0, start, len)?)?.to_vec())
        };
        self.sequences.push(Rows { keys: rows(k)?, values: rows(v)? });
        Ok(())
    }

    /// Keeps the sequences for which `keep` is true.
    pub(super) fn retain(&mut self, keep: &[bool]) {
        let mut keep = keep.iter();
        self.sequences.retain(|_| keep.next().copied().unwrap_or(false));
    }

    /// Appends one row per sequence, and attends with one query per sequence.
    pub(super) fn attend(
        &mut self,
        ctx: &Context,
        shape: Shape,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<Buffer> {
        let output = ctx.empty(q.shape(), q)?;
        let (q, k, v) = (slices::read(q)?, slices::read(k)?, slices::read(v)?);
        let (width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        slices::write(&output, |output| {
            self.sequences
                .par_iter_mut()
                .zip(output.par_chunks_mut(width))
                .zip(q.par_chunks(width))
                .zip(k.par_chunks(kv_width).zip(v.par_chunks(kv_width)))
                .for_each_init(Vec::new, |scores, (((rows, output), q), (k, v))| {
                    rows.keys.extend_from_slice(k);
                    rows.values.extend_from_slice(v);
                    vectorize!(rows.attend(shape, q, output, scores));
                });
        })?;
        Ok(output)
    }
}

impl Rows {
    #[inline(always)]
    fn attend(&self, shape: Shape, q: &[f32], output: &mut [f32], scores: &mut Vec<f32>) {
        let (dim, kv_width) = (shape.head_dim, shape.kv_heads * shape.head_dim);
        let group = shape.heads / shape.kv_heads;
        let scale = 1.0 / (dim as f32).sqrt();
        let rows = self.keys.len() / kv_width;
        let first = rows - rows.min(shape.window.unwrap_or(rows));
        for head in 0..shape.heads {
            let column = head / group * dim;
            let q = &q[head * dim..][..dim];
            scores.clear();
            scores.extend((first..rows).map(|row| {
                let k = &self.keys[row * kv_width + column..][..dim];
                sum(dim, |i| q[i] * k[i]) * scale
            }));
            let largest = max(scores);
            scores.iter_mut().for_each(|s| *s = exp(*s - largest));
            let total = sum(scores.len(), |i| scores[i]);
            let output = &mut output[head * dim..][..dim];
            output.fill(0.0);
            for (row, score) in (first..rows).zip(scores.iter()) {
                let weight = score / total;
                let v = &self.values[row * kv_width + column..][..dim];
                for (o, v) in output.iter_mut().zip(v) {
                    *o += weight * v;
                }
            }
        }
    }
}
