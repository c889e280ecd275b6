//! Attention in f32 on the CPU, in tiles that stay in cache.

use candle_core::Tensor;
use rayon::prelude::*;

use super::super::Context;
use super::super::matmul::{Into, Mat, MatMut, serial};
use super::super::simd::{exp, max, sum, vectorize};
use super::super::slices::{self, Shared};
use super::{Saved, Shape, chain};
use crate::Result;
use crate::data::batch::Span;
use crate::memory::Buffer;

/// Queries of one tile: a whole number of rows of the product kernels.
const QUERIES: usize = 56;
/// Keys of one tile.
const KEYS: usize = 128;
/// Keys and values are turned in panels of this many.
const PANEL: usize = 32;

/// Consecutive queries of one span, and the keys they may see.
struct QueryTile {
    /// First row in the batch.
    start: usize,
    len: usize,
    /// Position of the first query.
    position: usize,
    /// From the root span down.
    keys: Vec<KeyTile>,
}

/// Consecutive keys of one span.
#[derive(Clone, Copy)]
struct KeyTile {
    /// First row in the batch.
    start: usize,
    len: usize,
    /// Position of the first.
    position: usize,
    /// Its first panel among those of the batch.
    panel: usize,
}

/// The first panel of each span.
fn first_panels(spans: &[Span]) -> Vec<usize> {
    let mut total = 0;
    let first = spans.iter().map(|span| {
        let first = total;
        total += span.len.div_ceil(PANEL);
        first
    });
    first.collect()
}

/// Keys, or values, turned: for each head the panels of all spans, `(head_dim, PANEL)` each.
struct Turned {
    buffer: Buffer,
    panels: usize,
    dim: usize,
}

impl Turned {
    fn new(ctx: &Context, shape: Shape, spans: &[Span], x: &Tensor) -> Result<Self> {
        let (dim, heads) = (shape.head_dim, shape.kv_heads);
        let rows: Vec<(usize, usize)> = spans
            .iter()
            .flat_map(|span| {
                let skips = (0..span.len).step_by(PANEL);
                skips.map(|skip| (span.start + skip, PANEL.min(span.len - skip)))
            })
            .collect();
        let panels = rows.len();
        let buffer = ctx.empty((heads * panels, PANEL * dim), x)?;
        let x = slices::read(x)?;
        slices::write(&buffer, |out| {
            let all = out.par_chunks_mut(PANEL * dim).enumerate().with_min_len(8);
            all.for_each(|(index, out)| {
                let (start, len) = rows[index % panels];
                head_rows(&x, start, len, index / panels, heads, dim).pack_rows(PANEL, out);
            });
        })?;
        Ok(Self { buffer, panels, dim })
    }

    fn read(&self) -> Result<TurnedSlice<'_>> {
        Ok(TurnedSlice { all: slices::read(&self.buffer)?, panels: self.panels, dim: self.dim })
    }
}

/// The elements of [`Turned`].
struct TurnedSlice<'a> {
    all: slices::Slice<'a>,
    panels: usize,
    dim: usize,
}

impl TurnedSlice<'_> {
    /// `out[i·KEYS + j] = rows[i]·keys[j]` for the keys of a tile and one of their heads. Columns up
    /// to the end of the last panel are written.
    fn products(&self, rows: Mat, tile: KeyTile, head: usize, out: &mut [f32]) {
        let size = PANEL * self.dim;
        let first = (head * self.panels + tile.panel) * size;
        let turned = self.all[first..].chunks_exact(size).take(tile.len.div_ceil(PANEL));
        for (panel, turned) in turned.enumerate() {
            let out = MatMut::strided(&mut out[panel * PANEL..], rows.shape().0, PANEL, KEYS);
            serial(rows, Mat::new(turned, self.dim, PANEL), Into::Overwrite, out);
        }
    }
}

fn query_tiles(
    spans: &[Span],
    first_panels: &[usize],
    index: usize,
    window: usize,
) -> Vec<QueryTile> {
    let span = &spans[index];
    let chain = chain(spans, index);
    let mut tiles = Vec::new();
    for offset in (0..span.len).step_by(QUERIES) {
        let len = QUERIES.min(span.len - offset);
        let (first, last) = (span.position + offset, span.position + offset + len - 1);
        let mut keys = Vec::new();
        for &at in &chain {
            let seen = &spans[at];
            for skip in (0..seen.len).step_by(KEYS) {
                let key_len = KEYS.min(seen.len - skip);
                let position = seen.position + skip;
                let too_late = position > last;
                let too_early = first.saturating_sub(position + key_len - 1) >= window;
                if !too_late && !too_early {
                    keys.push(KeyTile {
                        start: seen.start + skip,
                        // Keys after the last query are seen by none.
                        len: key_len.min(last + 1 - position),
                        position,
                        panel: first_panels[at] + skip / PANEL,
                    });
                }
            }
        }
        tiles.push(QueryTile { start: span.start + offset, len, position: first, keys });
    }
    tiles
}

/// The keys of a tile of `len` keys from position `key` on that a query at `query` sees; a range,
/// since causality and the window both are bounds on the position.
#[inline(always)]
fn visible(query: usize, key: usize, len: usize, window: usize) -> (usize, usize) {
    let end = (query + 1).saturating_sub(key).min(len);
    let start = (query + 1).saturating_sub(window.min(query + 1)).saturating_sub(key).min(end);
    (start, end)
}

pub(super) fn forward(
    ctx: &Context,
    shape: Shape,
    spans: &[Span],
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<(Buffer, Buffer)> {
    let tokens = q.dim(0)?;
    let output = ctx.empty(q.shape(), q)?;
    let lse = ctx.empty((shape.heads, tokens), q)?;
    let window = shape.window.unwrap_or(usize::MAX);
    let first_panels = first_panels(spans);
    let tiles: Vec<QueryTile> =
        (0..spans.len()).flat_map(|span| query_tiles(spans, &first_panels, span, window)).collect();
    let keys = Turned::new(ctx, shape, spans, k)?;
    let (q, keys, v) = (slices::read(q)?, keys.read()?, slices::read(v)?);
    slices::write2(&output, &lse, |output, lse| {
        let (output, lse) = (Shared::new(output), Shared::new(lse));
        (0..tiles.len() * shape.heads).into_par_iter().for_each_init(
            || Scratch::new(shape.head_dim),
            |scratch, task| {
                // Long tiles first: the last ones of a span see the most keys.
                let tile = &tiles[tiles.len() - 1 - task / shape.heads];
                let head = task % shape.heads;
                scratch.forward_tile(shape, tile, head, window, &q, &keys, &v);
                let dim = shape.head_dim;
                let width = shape.heads * dim;
                // SAFETY: this tile's rows and this head's columns belong to this task.
                let out = unsafe { output.from(tile.start * width + head * dim) };
                for (i, row) in scratch.acc.chunks_exact(dim).take(tile.len).enumerate() {
                    out[i * width..][..dim].copy_from_slice(row);
                }
                // SAFETY: likewise.
                let lse = unsafe { lse.from(head * tokens + tile.start) };
                lse[..tile.len].copy_from_slice(&scratch.lse[..tile.len]);
            },
        );
    })?;
    Ok((output, lse))
}

/// What one task needs besides its operands.
struct Scratch {
    /// Scores, then probabilities: `(QUERIES, KEYS)`.
    scores: Vec<f32>,
    /// Gradient of the probabilities, then of the scores.
    dscores: Vec<f32>,
    /// Output, or gradient of the queries: `(QUERIES, head_dim)`.
    acc: Vec<f32>,
    max: [f32; QUERIES],
    total: [f32; QUERIES],
    lse: [f32; QUERIES],
}

impl Scratch {
    fn new(head_dim: usize) -> Self {
        Self {
            scores: vec![0.0; QUERIES * KEYS],
            dscores: vec![0.0; QUERIES * KEYS],
            acc: vec![0.0; QUERIES * head_dim],
            max: [0.0; QUERIES],
            total: [0.0; QUERIES],
            lse: [0.0; QUERIES],
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn forward_tile(
        &mut self,
        shape: Shape,
        tile: &QueryTile,
        head: usize,
        window: usize,
        q: &[f32],
        k: &TurnedSlice,
        v: &[f32],
    ) {
        let dim = shape.head_dim;
        let queries = head_rows(q, tile.start, tile.len, head, shape.heads, dim);
        let kv_head = head / shape.group();
        self.acc.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.total.fill(0.0);
        for &keys in &tile.keys {
            let KeyTile { start, len, position, .. } = keys;
            let values = head_rows(v, start, len, kv_head, shape.kv_heads, dim);
            k.products(queries, keys, kv_head, &mut self.scores);
            let scale = shape.scale() as f32;
            vectorize!(self.softmax_step(tile, (position, len), window, dim, scale));
            let probs = Mat::strided(&self.scores, tile.len, len, KEYS);
            serial(probs, values, Into::Accumulate, MatMut::new(&mut self.acc, tile.len, dim));
        }
        for i in 0..tile.len {
            let scale = 1.0 / self.total[i];
            self.acc[i * dim..][..dim].iter_mut().for_each(|x| *x *= scale);
            self.lse[i] = self.max[i] + self.total[i].ln();
        }
    }

    /// Turns the scores of one key tile into probabilities relative to the running maximum, and
    /// rescales what was accumulated under the old one.
    #[inline(always)]
    fn softmax_step(
        &mut self,
        tile: &QueryTile,
        (position, len): (usize, usize),
        window: usize,
        dim: usize,
        scale: f32,
    ) {
        for i in 0..tile.len {
            let row = &mut self.scores[i * KEYS..][..len.next_multiple_of(PANEL)];
            let (from, to) = visible(tile.position + i, position, len, window);
            if from == to {
                row.fill(0.0);
                continue;
            }
            row[..from].fill(f32::NEG_INFINITY);
            row[to..].fill(f32::NEG_INFINITY);
            let new_max = (max(row) * scale).max(self.max[i]);
            let rescale = exp(self.max[i] - new_max);
            row.iter_mut().for_each(|x| *x = exp(*x * scale - new_max));
            self.total[i] = self.total[i] * rescale + sum(row.len(), |j| row[j]);
            self.max[i] = new_max;
            self.acc[i * dim..][..dim].iter_mut().for_each(|x| *x *= rescale);
        }
    }

    /// Turns the scores of one key tile into probabilities, and `dscores`, which holds their
    /// gradient, into that of the scores.
    #[inline(always)]
    fn softmax_gradient(
        &mut self,
        tile: &QueryTile,
        (position, len): (usize, usize),
        window: usize,
        lse: &[f32],
        scale: f32,
    ) {
        let width = len.next_multiple_of(PANEL);
        for (i, &lse) in lse.iter().enumerate() {
            let probs = &mut self.scores[i * KEYS..][..width];
            let dscores = &mut self.dscores[i * KEYS..][..width];
            let (from, to) = visible(tile.position + i, position, len, window);
            probs[..from].fill(f32::NEG_INFINITY);
            probs[to..].fill(f32::NEG_INFINITY);
            let mean = self.total[i];
            for (p, d) in probs.iter_mut().zip(dscores) {
                *p = exp(*p * scale - lse);
                *d = *p * (*d - mean) * scale;
            }
        }
    }
}

/// Rows of one head.
fn head_rows(
    x: &[f32],
    start: usize,
    len: usize,
    head: usize,
    heads: usize,
    dim: usize,
) -> Mat<'_> {
    Mat::strided(&x[start * heads * dim + head * dim..], len, dim, heads * dim)
}

pub(super) fn backward(
    ctx: &Context,
    shape: Shape,
    spans: &[Span],
    saved: Saved,
    doutput: &Tensor,
) -> Result<(Buffer, Buffer, Buffer)> {
    let dq = ctx.empty(saved.q.shape(), doutput)?;
    let dk = ctx.empty(saved.k.shape(), doutput)?;
    let dv = ctx.empty(saved.v.shape(), doutput)?;
    // Every query head has its own sum over the queries; heads of a group are added afterwards, so
    // that heads can run in parallel and still add in a fixed order.
    let dk_heads = ctx.empty(saved.q.shape(), doutput)?;
    let dv_heads = ctx.empty(saved.q.shape(), doutput)?;
    let tokens = doutput.dim(0)?;
    let window = shape.window.unwrap_or(usize::MAX);
    let first_panels = first_panels(spans);
    let tiles = |tree: Vec<usize>| -> Vec<QueryTile> {
        tree.into_iter().flat_map(|span| query_tiles(spans, &first_panels, span, window)).collect()
    };
    let trees: Vec<Vec<QueryTile>> = trees(spans).into_iter().map(tiles).collect();
    let turned_k = Turned::new(ctx, shape, spans, saved.k)?;
    let turned_v = Turned::new(ctx, shape, spans, saved.v)?;
    let operands = Operands {
        shape,
        tokens,
        q: &slices::read(saved.q)?,
        k: &slices::read(saved.k)?,
        turned_k: &turned_k.read()?,
        turned_v: &turned_v.read()?,
        output: &slices::read(saved.output)?,
        lse: &slices::read(saved.lse)?,
        doutput: &slices::read(doutput)?,
    };
    slices::write3(&dq, &dk_heads, &dv_heads, |dq, dk, dv| {
        dk.par_chunks_mut(1 << 16).for_each(|chunk| chunk.fill(0.0));
        dv.par_chunks_mut(1 << 16).for_each(|chunk| chunk.fill(0.0));
        let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
        (0..trees.len() * shape.heads).into_par_iter().for_each_init(
            || Scratch::new(shape.head_dim),
            |scratch, task| {
                let head = task % shape.heads;
                for tile in &trees[task / shape.heads] {
                    // SAFETY: this head's columns of this tree's rows belong to this task.
                    unsafe { scratch.backward_tile(&operands, tile, head, window, &dq, &dk, &dv) };
                }
            },
        );
    })?;
    sum_groups(shape, &dk_heads, &dk)?;
    sum_groups(shape, &dv_heads, &dv)?;
    Ok((dq, dk, dv))
}

/// The spans of each tree, in order.
fn trees(spans: &[Span]) -> Vec<Vec<usize>> {
    let mut trees = Vec::new();
    let mut tree_of = Vec::with_capacity(spans.len());
    for (index, span) in spans.iter().enumerate() {
        let tree = match span.parent {
            Some(parent) => tree_of[parent],
            None => {
                trees.push(Vec::new());
                trees.len() - 1
            }
        };
        tree_of.push(tree);
        trees[tree].push(index);
    }
    trees
}

struct Operands<'a> {
    shape: Shape,
    tokens: usize,
    q: &'a [f32],
    k: &'a [f32],
    turned_k: &'a TurnedSlice<'a>,
    turned_v: &'a TurnedSlice<'a>,
    output: &'a [f32],
    lse: &'a [f32],
    doutput: &'a [f32],
}

impl Scratch {
    /// # Safety
    /// The caller alone writes the columns of `head` in the rows of the tile's tree.
    #[allow(clippy::too_many_arguments)]
    unsafe fn backward_tile(
        &mut self,
        operands: &Operands,
        tile: &QueryTile,
        head: usize,
        window: usize,
        dq: &Shared,
        dk: &Shared,
        dv: &Shared,
    ) {
        let Operands { shape, tokens, q, k, turned_k, turned_v, output, lse, doutput } = *operands;
        let (dim, heads) = (shape.head_dim, shape.heads);
        let width = heads * dim;
        let kv_head = head / shape.group();
        let scale = shape.scale() as f32;
        let queries = head_rows(q, tile.start, tile.len, head, heads, dim);
        let dout = head_rows(doutput, tile.start, tile.len, head, heads, dim);
        let first = tile.start * width + head * dim;
        // Σ_keys probs·dprobs = Σ_dim output·doutput; kept in `total`.
        vectorize!({
            for i in 0..tile.len {
                let (o, d) = (&output[first + i * width..], &doutput[first + i * width..]);
                self.total[i] = sum(dim, |c| o[c] * d[c]);
            }
        });
        self.acc.fill(0.0);
        let lse = &lse[head * tokens + tile.start..][..tile.len];
        for &key_tile in &tile.keys {
            let KeyTile { start, len, position, .. } = key_tile;
            let keys = head_rows(k, start, len, kv_head, shape.kv_heads, dim);
            let at = start * width + head * dim;
            turned_k.products(queries, key_tile, kv_head, &mut self.scores);
            turned_v.products(dout, key_tile, kv_head, &mut self.dscores);
            vectorize!(self.softmax_gradient(tile, (position, len), window, lse, scale));
            let probs = Mat::strided(&self.scores, tile.len, len, KEYS);
            let dscores = Mat::strided(&self.dscores, tile.len, len, KEYS);
            // SAFETY: the caller's promise.
            let (dk, dv) = unsafe { (dk.from(at), dv.from(at)) };
            serial(probs.t(), dout, Into::Accumulate, MatMut::strided(dv, len, dim, width));
            serial(dscores.t(), queries, Into::Accumulate, MatMut::strided(dk, len, dim, width));
            serial(dscores, keys, Into::Accumulate, MatMut::new(&mut self.acc, tile.len, dim));
        }
        // SAFETY: likewise.
        let dq = unsafe { dq.from(first) };
        for (i, row) in self.acc.chunks_exact(dim).take(tile.len).enumerate() {
            dq[i * width..][..dim].copy_from_slice(row);
        }
    }
}

/// `dst (tokens, kv_heads · dim)` from `src (tokens, heads · dim)`.
fn sum_groups(shape: Shape, src: &Tensor, dst: &Tensor) -> Result<()> {
    let (dim, group) = (shape.head_dim, shape.group());
    let src = slices::read(src)?;
    slices::write(dst, |dst| {
        dst.par_chunks_mut(dim).zip(src.par_chunks(dim * group)).with_min_len(64).for_each(
            |(dst, heads)| {
                dst.copy_from_slice(&heads[..dim]);
                for head in heads.chunks_exact(dim).skip(1) {
                    for (total, x) in dst.iter_mut().zip(head) {
                        *total += x;
                    }
                }
            },
        );
    })
}
