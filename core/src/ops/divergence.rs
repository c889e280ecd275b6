//! How far a student's next tokens are from its teacher's, and the gradient of that.
//!
//! With the teacher's probabilities p and the student's q, both under a temperature τ, a divergence is
//! a sum over classes; its gradient in the logit of class j is (h_j − q_j Σ h) / τ with
//! h = q · ∂divergence/∂q. A class is a token, or, where only the teacher's likeliest tokens are
//! known, one of these or all others together.

use std::ops::Range;

use candle_core::Tensor;

use super::Context;
use super::logps::{Chunk, Chunks, Gradients};
use super::simd::{LANES, exp, max, vectorize};
use crate::Result;
use crate::data::batch::Target;
use crate::memory::Buffer;

mod composed;
mod fused;
mod top_logps;

pub use top_logps::TopLogps;

/// A distance between distributions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Divergence {
    /// KL(p ‖ q): Hinton et al. 2015 (arXiv 1503.02531).
    ForwardKl,
    /// KL(q ‖ p): MiniLLM, Gu et al. 2024 (arXiv 2306.08543).
    ReverseKl,
    /// β KL(p ‖ m) + (1 − β) KL(q ‖ m) with m = β p + (1 − β) q, for β in (0, 1): GKD, Agarwal et al.
    /// 2024 (arXiv 2306.13649).
    Jsd(f32),
    /// Σ |p − q| / 2: Wen et al. 2023 (arXiv 2307.15190).
    TotalVariation,
}

/// How student and teacher are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// The distance.
    pub divergence: Divergence,
    /// Logits of both are divided by it first.
    pub temperature: f64,
}

/// What a target is charged for.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Charge {
    /// Weight of the divergence at its row.
    pub divergence: f64,
    /// Weight of its cross-entropy, which knows no temperature.
    pub cross_entropy: f64,
}

/// What a teacher says of some rows.
#[derive(Debug)]
pub enum TeacherRows {
    /// Logits `(rows, vocabulary)`. Tokens that only one of the two models has are left out.
    Logits(Buffer),
    /// The likeliest tokens. Those that the student has not are left out.
    Top(TopLogps),
}

/// What was found of a target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distance {
    /// The divergence at its row.
    pub divergence: f64,
    /// Its log-prob, at temperature 1.
    pub logp: f64,
    /// Whether no token is likelier.
    pub is_best: bool,
}

impl Charge {
    /// What is charged.
    pub fn of(&self, found: &Distance) -> f64 {
        self.divergence * found.divergence - self.cross_entropy * found.logp
    }
}

/// The distances of `entries`, sorted by row, and where `gradients` are wanted those of what `charges`
/// add up to. Shapes: `hidden (rows, hidden)`, `weight (vocabulary, hidden)`; `teacher` is asked for
/// rows in their order, chunk by chunk.
///
/// # Errors
/// Those of the teacher, or when a tensor operation fails.
pub fn forward_and_backward(
    ctx: &Context,
    (hidden, weight): (&Tensor, &Tensor),
    entries: &[Target],
    charges: &[Charge],
    comparison: Comparison,
    teacher: &mut dyn FnMut(Range<usize>) -> Result<TeacherRows>,
    gradients: Option<Gradients>,
) -> Result<Vec<Distance>> {
    let mut found = Vec::with_capacity(entries.len());
    let mut rest = charges;
    for chunk in Chunks::new(hidden.dim(0)?, weight.dim(0)?, entries) {
        let (charges, after) = rest.split_at(chunk.entries.len());
        rest = after;
        let logits = chunk.logits(ctx, hidden, weight)?;
        let teacher = match teacher(chunk.start..chunk.start + chunk.rows)? {
            TeacherRows::Top(top) => TeacherRows::Top(top.within(weight.dim(0)?)),
            logits => logits,
        };
        let rows = Rows { chunk: &chunk, charges, comparison, teacher: &teacher };
        let dlogits = if ctx.is_fused(&logits) {
            found.extend(rows.fused(&logits)?);
            logits
        } else {
            let (distances, gradient) = rows.composed(&logits)?;
            found.extend(distances);
            gradient.into()
        };
        if let Some(gradients) = gradients {
            chunk.gradients(ctx, (hidden, weight), &dlogits, gradients)?;
        }
    }
    Ok(found)
}

/// A chunk of the student's logits, and what they are compared with.
struct Rows<'a> {
    chunk: &'a Chunk<'a>,
    charges: &'a [Charge],
    comparison: Comparison,
    teacher: &'a TeacherRows,
}

impl Rows<'_> {
    /// Targets of each row, as a range of the chunk's.
    fn targets(&self) -> Vec<Range<usize>> {
        let mut at = 0;
        let of_row = |row: usize| {
            let begin = at;
            let here = self.chunk.entries[begin..].iter();
            at += here.take_while(|e| e.row as usize - self.chunk.start == row).count();
            begin..at
        };
        (0..self.chunk.rows).map(of_row).collect()
    }
}

/// Log-probs below it count as it: a token that the teacher excludes is not infinitely far.
const LEAST: f32 = -1e4;

/// What turns logits into log-probs under a temperature. Logits are taken from the largest first, so
/// that no digits go where all of them are large.
#[derive(Clone, Copy)]
struct Normalizer {
    best: f32,
    /// One by the temperature.
    inverse: f32,
    /// Log of Σ exp((x − best) · inverse).
    log_total: f32,
}

impl Normalizer {
    fn of(x: &[f32], inverse: f32) -> Self {
        vectorize!({
            let best = max(x);
            let (total, _) = sums(x.len(), |i| (exp((x[i] - best) * inverse), 0.0));
            Self { best, inverse, log_total: total.ln() }
        })
    }

    #[inline(always)]
    fn logp(&self, x: f32) -> f32 {
        (x - self.best) * self.inverse - self.log_total
    }

    /// Log of the share that the logits of this have of those of `all`.
    fn logp_within(&self, all: Self) -> f32 {
        (self.best - all.best) * self.inverse + (self.log_total - all.log_total)
    }
}

/// Sums of both parts of `f(i)`, in the order of [`super::simd::sum`].
#[inline(always)]
fn sums(n: usize, f: impl Fn(usize) -> (f32, f32)) -> (f32, f32) {
    const BLOCK: usize = 16 * LANES;
    let (mut first, mut second) = ([0f32; BLOCK], [0f32; BLOCK]);
    let mut lanes = ([0f32; LANES], [0f32; LANES]);
    let mut start = 0;
    while start < n {
        let len = BLOCK.min(n - start);
        for (at, (a, b)) in first.iter_mut().zip(&mut second).enumerate().take(len) {
            (*a, *b) = f(start + at);
        }
        for (lanes, values) in [(&mut lanes.0, &first), (&mut lanes.1, &second)] {
            for values in values[..len].chunks(LANES) {
                lanes.iter_mut().zip(values).for_each(|(lane, value)| *lane += value);
            }
        }
        start += len;
    }
    (lanes.0.iter().sum(), lanes.1.iter().sum())
}
