//! Attention from candle operations, for any device and float type: span by span.

use candle_core::{DType, Tensor};

use super::{Saved, Shape, chain};
use crate::Result;
use crate::data::batch::Span;
use crate::memory::Buffer;

pub(super) fn forward(
    shape: Shape,
    spans: &[Span],
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<(Buffer, Buffer)> {
    let mut outputs = Vec::new();
    let mut lses = Vec::new();
    for index in 0..spans.len() {
        if spans[index].len == 0 {
            continue;
        }
        let view = View::new(shape, spans, index, q, k, v)?;
        let scores = view.scores()?;
        let max = scores.max_keepdim(2)?;
        let exp = scores.broadcast_sub(&max)?.exp()?;
        let total = exp.sum_keepdim(2)?;
        let probs = exp.broadcast_div(&total)?.to_dtype(q.dtype())?;
        outputs.push(rows(&probs.matmul(&view.values)?)?);
        lses.push((max + total.log()?)?.squeeze(2)?);
    }
    Ok((Tensor::cat(&outputs, 0)?.into(), Tensor::cat(&lses, 1)?.contiguous()?.into()))
}

pub(super) fn backward(
    shape: Shape,
    spans: &[Span],
    saved: Saved,
    doutput: &Tensor,
) -> Result<(Buffer, Buffer, Buffer)> {
    let mut dq = Vec::new();
    let wide = if saved.k.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let mut dk = saved.k.zeros_like()?.to_dtype(wide)?;
    let mut dv = dk.clone();
    for index in 0..spans.len() {
        let span = &spans[index];
        if span.len == 0 {
            continue;
        }
        let view = View::new(shape, spans, index, saved.q, saved.k, saved.v)?;
        let lse = saved.lse.narrow(1, span.start, span.len)?.unsqueeze(2)?;
        let probs = view.scores()?.broadcast_sub(&lse)?.exp()?;
        let dout = heads(&doutput.narrow(0, span.start, span.len)?, shape.heads)?;
        let dprobs = dout.matmul(&view.values.t()?)?.to_dtype(probs.dtype())?;
        let mean = (&probs * &dprobs)?.sum_keepdim(2)?;
        let dscores = ((&probs * dprobs.broadcast_sub(&mean)?)? * shape.scale())?;
        let dscores = dscores.to_dtype(saved.q.dtype())?;
        let probs = probs.to_dtype(saved.q.dtype())?;
        dq.push(rows(&dscores.matmul(&view.keys)?)?);
        let transposed = dscores.transpose(1, 2)?.contiguous()?;
        let span_dk = sum_groups(&transposed.matmul(&view.queries)?, shape)?.to_dtype(wide)?;
        let span_dv = probs.transpose(1, 2)?.contiguous()?.matmul(&dout)?;
        let span_dv = sum_groups(&span_dv, shape)?.to_dtype(wide)?;
        dk = dk.index_add(&view.key_rows, &span_dk, 0)?;
        dv = dv.index_add(&view.key_rows, &span_dv, 0)?;
    }
    let dtype = saved.k.dtype();
    Ok((Tensor::cat(&dq, 0)?.into(), dk.to_dtype(dtype)?.into(), dv.to_dtype(dtype)?.into()))
}

/// One span's queries with all the keys it can see; `(heads, rows, head_dim)`, keys and values
/// repeated for every query head of their group.
struct View {
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    /// Rows of the batch that the keys are.
    key_rows: Tensor,
    /// 0 where a query sees a key, −∞ where not.
    mask: Tensor,
    scale: f64,
}

impl View {
    fn new(
        shape: Shape,
        spans: &[Span],
        index: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<Self> {
        let span = &spans[index];
        let mut key_rows = Vec::new();
        let mut key_positions = Vec::new();
        for at in chain(spans, index) {
            let span = &spans[at];
            key_rows.extend(span.start as u32..(span.start + span.len) as u32);
            key_positions.extend(span.position..span.position + span.len);
        }
        let window = shape.window.unwrap_or(usize::MAX);
        let mask: Vec<f32> = (span.position..span.position + span.len)
            .flat_map(|query| {
                key_positions.iter().map(move |&key| {
                    if key <= query && query - key < window { 0.0 } else { f32::NEG_INFINITY }
                })
            })
            .collect();
        let device = q.device();
        let mask = Tensor::from_vec(mask, (1, span.len, key_rows.len()), device)?;
        let key_rows = Tensor::from_slice(&key_rows, key_rows.len(), device)?;
        let gathered = |x: &Tensor| -> Result<Tensor> {
            let x = heads(&x.index_select(&key_rows, 0)?, shape.kv_heads)?;
            let (kv_heads, rows, dim) = x.dims3()?;
            let repeated = x.unsqueeze(1)?.expand((kv_heads, shape.group(), rows, dim))?;
            Ok(repeated.reshape((shape.heads, rows, dim))?.contiguous()?)
        };
        Ok(Self {
            queries: heads(&q.narrow(0, span.start, span.len)?, shape.heads)?,
            keys: gathered(k)?,
            values: gathered(v)?,
            mask,
            scale: shape.scale(),
            key_rows,
        })
    }

    /// `(heads, queries, keys)`, in f32 at least.
    fn scores(&self) -> Result<Tensor> {
        let scores = self.queries.matmul(&self.keys.t()?)?;
        let wide = if scores.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let scores = (scores.to_dtype(wide)? * self.scale)?;
        Ok(scores.broadcast_add(&self.mask.to_dtype(wide)?)?)
    }
}

/// `(rows, heads · dim)` to `(heads, rows, dim)`.
fn heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    Ok(x.reshape((rows, heads, width / heads))?.transpose(0, 1)?.contiguous()?)
}

/// `(heads, rows, dim)` to `(rows, heads · dim)`.
fn rows(x: &Tensor) -> Result<Tensor> {
    let (heads, rows, dim) = x.dims3()?;
    Ok(x.transpose(0, 1)?.reshape((rows, heads * dim))?)
}

/// `(heads, rows, dim)`, summed over the query heads that share a key head, to `(rows, kv_heads ·
/// dim)`.
fn sum_groups(x: &Tensor, shape: Shape) -> Result<Tensor> {
    let (_, n, dim) = x.dims3()?;
    rows(&x.reshape((shape.kv_heads, shape.group(), n, dim))?.sum(1)?)
}
