//! How far a student's next tokens are from its teacher's, and the gradient of that.
//!
//! With the teacher's probabilities p and the student's q, both under a temperature τ, a divergence is
//! a sum over classes; its gradient in the logit of class j is (h_j − q_j Σ h) / τ with
//! h = q · ∂divergence/∂q. A class is a token, or, where only the teacher's likeliest tokens are
//! known, one of these or all others together.

use std::ops::Range;

use candle_core::{D, DType, Device, Tensor, Var};
use rayon::prelude::*;

use super::logps::{Chunk, Chunks, Gradients};
use super::simd::{LANES, exp, ln, max, vectorize};
use super::top::likeliest_few;
use super::{Context, slices};
use crate::Result;
use crate::data::batch::Target;
use crate::memory::Buffer;

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
    /// The likeliest tokens.
    Top(TopLogps),
}

/// The likeliest tokens of some rows, under the temperature of the objective.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopLogps {
    /// Tokens of a row.
    pub k: usize,
    /// `(rows, k)`.
    pub ids: Vec<u32>,
    /// Their log-probs, `(rows, k)`.
    pub logps: Vec<f32>,
    /// Log-prob of all other tokens together, `(rows,)`.
    pub rest: Vec<f32>,
}

impl TopLogps {
    /// The `k` likeliest of `logits (rows, vocabulary)` under a temperature; the more likely first.
    ///
    /// # Errors
    /// When the logits cannot be read.
    pub fn of(logits: &Tensor, k: usize, temperature: f64) -> Result<Self> {
        let vocabulary = logits.dim(1)?;
        let k = k.min(vocabulary);
        let wide;
        let logits = match logits.dtype() == DType::F32 && logits.device().is_cpu() {
            true => slices::read(logits)?,
            false => {
                wide = logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
                slices::read(&wide)?
            }
        };
        let inverse = (1.0 / temperature) as f32;
        let row = |row: &[f32]| {
            let ids = likeliest_few(row, k);
            let all = Normalizer::of(row, inverse);
            let logps: Vec<f32> = ids.iter().map(|&id| all.logp(row[id as usize])).collect();
            let mut others = row.to_vec();
            ids.iter().for_each(|&id| others[id as usize] = f32::NEG_INFINITY);
            let rest = match k < vocabulary {
                true => Normalizer::of(&others, inverse).logp_within(all),
                false => LEAST,
            };
            (ids, logps, rest)
        };
        let rows: Vec<(Vec<u32>, Vec<f32>, f32)> = logits.par_chunks(vocabulary).map(row).collect();
        let mut all = Self { k, ..Self::default() };
        for (ids, logps, rest) in rows {
            all.ids.extend(ids);
            all.logps.extend(logps);
            all.rest.push(rest);
        }
        Ok(all)
    }
}

impl TopLogps {
    /// Some of the rows.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let entries = rows.start * self.k..rows.end * self.k;
        Self {
            k: self.k,
            ids: self.ids[entries.clone()].to_vec(),
            logps: self.logps[entries].to_vec(),
            rest: self.rest[rows].to_vec(),
        }
    }
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
        let teacher = teacher(chunk.start..chunk.start + chunk.rows)?;
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

    /// Turns `logits` into the gradient.
    fn fused(&self, logits: &Tensor) -> Result<Vec<Distance>> {
        let vocabulary = logits.dim(1)?;
        let targets = self.targets();
        let teacher = match self.teacher {
            TeacherRows::Logits(logits) => Some((slices::read(logits)?, logits.dim(1)?)),
            TeacherRows::Top(_) => None,
        };
        let found: Vec<Vec<Distance>> = slices::write(logits, |logits| {
            let rows = logits.par_chunks_mut(vocabulary).zip(&targets).enumerate();
            let each = rows.map_init(Vec::new, |scratch, (row, (student, targets))| {
                let entries = &self.chunk.entries[targets.clone()];
                let charges = &self.charges[targets.clone()];
                let student = Student::new(student, self.comparison, entries, charges);
                match (&teacher, self.teacher) {
                    (Some((logits, width)), _) => {
                        student.against_logits(&logits[row * width..(row + 1) * width])
                    }
                    (None, TeacherRows::Top(top)) => student.against_top(top, row, scratch),
                    (None, TeacherRows::Logits(_)) => Vec::new(),
                }
            });
            each.collect()
        })?;
        Ok(found.into_iter().flatten().collect())
    }

    /// The distances and the gradient, by candle's operations and its autograd.
    fn composed(&self, logits: &Tensor) -> Result<(Vec<Distance>, Tensor)> {
        let wide = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let leaf = Var::from_tensor(&logits.to_dtype(wide)?)?;
        let Comparison { divergence, temperature } = self.comparison;
        let divergences = match self.teacher {
            TeacherRows::Logits(teacher) => {
                let shared = teacher.dim(1)?.min(logits.dim(1)?);
                let part = |x: &Tensor| -> Result<Tensor> {
                    Ok((x.narrow(1, 0, shared)?.to_dtype(wide)? / temperature)?)
                };
                divergence.between(&log_softmax(&part(teacher)?)?, &log_softmax(&part(&leaf)?)?)?
            }
            TeacherRows::Top(top) => {
                let rows = self.chunk.rows;
                let ids = Tensor::from_slice(&top.ids, (rows, top.k), logits.device())?;
                let of_top = Tensor::from_slice(&top.logps, (rows, top.k), logits.device())?;
                let rest = Tensor::from_slice(&top.rest, (rows, 1), logits.device())?;
                let (of_top, rest) = (of_top.to_dtype(wide)?, rest.to_dtype(wide)?);
                let scaled = (leaf.as_tensor() / temperature)?;
                let logq = log_softmax(&scaled)?.gather(&ids, 1)?;
                if top.k == logits.dim(1)? {
                    divergence.between(&of_top, &logq)?
                } else {
                    let nowhere = Tensor::full(-1e30, (rows, top.k), logits.device())?;
                    let others =
                        scaled.zeros_like()?.scatter_add(&ids, &nowhere.to_dtype(wide)?, 1)?;
                    let (max, total) = log_total(&(&scaled + others)?)?;
                    let (max_of_all, total_of_all) = log_total(&scaled)?;
                    let q_rest = ((max - max_of_all)? + (total - total_of_all)?)?;
                    let student = Tensor::cat(&[logq, q_rest], 1)?;
                    divergence.between(&Tensor::cat(&[of_top, rest], 1)?, &student)?
                }
            }
        };
        let logps = log_softmax(&leaf)?;
        let index: Vec<u32> =
            self.chunk.entries.iter().map(|e| e.row - self.chunk.start as u32).collect();
        let tokens: Vec<u32> = self.chunk.entries.iter().map(|e| e.token).collect();
        let n = index.len();
        let index = Tensor::from_vec(index, n, logits.device())?;
        let tokens = Tensor::from_vec(tokens, (n, 1), logits.device())?;
        let best = logps.max_keepdim(1)?.index_select(&index, 0)?;
        let logps = logps.index_select(&index, 0)?.gather(&tokens, 1)?;
        let divergences = divergences.index_select(&index, 0)?;
        let weights = |of: fn(&Charge) -> f64| -> Result<Tensor> {
            let weights: Vec<f64> = self.charges.iter().map(of).collect();
            Ok(Tensor::from_vec(weights, n, logits.device())?.to_dtype(wide)?)
        };
        let loss = ((&divergences * weights(|charge| charge.divergence)?)?
            - (logps.flatten_all()? * weights(|charge| charge.cross_entropy)?)?)?
        .sum_all()?;
        let gradient = match loss.backward()?.get(&leaf) {
            Some(gradient) => gradient.to_dtype(logits.dtype())?,
            None => logits.zeros_like()?,
        };
        let host = |x: &Tensor| -> Result<Vec<f64>> {
            Ok(x.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
        };
        let each = host(&divergences)?.into_iter().zip(host(&logps)?).zip(host(&best)?);
        let distance =
            |((divergence, logp), best)| Distance { divergence, logp, is_best: logp >= best };
        Ok((each.map(distance).collect(), gradient))
    }
}

/// Maximum along the last dimension, which stays, and `log Σ e^(x − maximum)`, with a graph.
fn log_total(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let max = x.max_keepdim(D::Minus1)?.detach();
    let total = x.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok((max, total))
}

fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let (max, total) = log_total(x)?;
    Ok(x.broadcast_sub(&max)?.broadcast_sub(&total)?)
}

impl Divergence {
    /// The divergence of each row, `(rows,)`, from log-probs `(rows, classes)`, as a candle graph.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn between(self, teacher: &Tensor, student: &Tensor) -> Result<Tensor> {
        let kl = |from: &Tensor, to: &Tensor| -> Result<Tensor> {
            let from = from.maximum(LEAST)?;
            Ok((from.exp()? * (&from - to)?)?.sum(D::Minus1)?)
        };
        match self {
            Self::ForwardKl => kl(teacher, student),
            Self::ReverseKl => kl(student, &teacher.maximum(LEAST)?),
            Self::Jsd(beta) => {
                let beta = f64::from(beta);
                let m = ((teacher.exp()? * beta)? + (student.exp()? * (1.0 - beta))?)?;
                let m = m.maximum(f64::from(f32::MIN_POSITIVE))?.log()?;
                Ok(((kl(teacher, &m)? * beta)? + (kl(student, &m)? * (1.0 - beta))?)?)
            }
            Self::TotalVariation => {
                Ok(((teacher.exp()? - student.exp()?)?.abs()?.sum(D::Minus1)? / 2.0)?)
            }
        }
    }
}

/// Log-probs below it count as it: a token that the teacher excludes is not infinitely far.
const LEAST: f32 = -1e4;

/// A class's part of the divergence, and its h.
trait Terms: Copy {
    /// From the log-probs of teacher and student.
    fn of(self, logp: f32, logq: f32) -> (f32, f32);
}

#[derive(Clone, Copy)]
struct ForwardKl;

impl Terms for ForwardKl {
    #[inline(always)]
    fn of(self, logp: f32, logq: f32) -> (f32, f32) {
        let p = exp(logp);
        (p * (logp - logq), -p)
    }
}

#[derive(Clone, Copy)]
struct ReverseKl;

impl Terms for ReverseKl {
    #[inline(always)]
    fn of(self, logp: f32, logq: f32) -> (f32, f32) {
        let term = exp(logq) * (logq - logp);
        (term, term)
    }
}

#[derive(Clone, Copy)]
struct Jsd(f32);

impl Terms for Jsd {
    #[inline(always)]
    fn of(self, logp: f32, logq: f32) -> (f32, f32) {
        let (beta, other) = (self.0, 1.0 - self.0);
        let (p, q) = (exp(logp), exp(logq));
        let m = beta * p + other * q;
        let logm = ln(if m < f32::MIN_POSITIVE { f32::MIN_POSITIVE } else { m });
        let of_student = other * q * (logq - logm);
        (beta * p * (logp - logm) + of_student, of_student)
    }
}

#[derive(Clone, Copy)]
struct TotalVariation;

impl Terms for TotalVariation {
    #[inline(always)]
    fn of(self, logp: f32, logq: f32) -> (f32, f32) {
        let q = exp(logq);
        let difference = q - exp(logp);
        let h = if difference > 0.0 { 0.5 * q } else { -0.5 * q };
        (0.5 * difference.abs(), if difference == 0.0 { 0.0 } else { h })
    }
}

/// Calls `$body` with the terms of a divergence as `$terms`.
macro_rules! with_terms {
    ($divergence:expr, $terms:ident => $body:expr) => {
        match $divergence {
            Divergence::ForwardKl => {
                let $terms = ForwardKl;
                $body
            }
            Divergence::ReverseKl => {
                let $terms = ReverseKl;
                $body
            }
            Divergence::Jsd(beta) => {
                let $terms = Jsd(beta);
                $body
            }
            Divergence::TotalVariation => {
                let $terms = TotalVariation;
                $body
            }
        }
    };
}

/// A row of the student's logits, which becomes its gradient.
struct Student<'a> {
    logits: &'a mut [f32],
    comparison: Comparison,
    entries: &'a [Target],
    charges: &'a [Charge],
    /// At temperature 1.
    plain: Normalizer,
}

impl<'a> Student<'a> {
    fn new(
        logits: &'a mut [f32],
        comparison: Comparison,
        entries: &'a [Target],
        charges: &'a [Charge],
    ) -> Self {
        let plain = Normalizer::of(logits, 1.0);
        Self { logits, comparison, entries, charges, plain }
    }

    /// What its targets are told, with the divergence of the row.
    fn distances(&self, divergence: f64) -> Vec<Distance> {
        let distance = |entry: &Target| {
            let logit = self.logits[entry.token as usize];
            let logp = f64::from(logit - self.plain.best) - f64::from(self.plain.log_total);
            Distance { divergence, logp, is_best: logit >= self.plain.best }
        };
        self.entries.iter().map(distance).collect()
    }

    /// Weights of the row's divergence, by the temperature, and of its cross-entropy.
    fn row_weights(&self) -> (f32, f32) {
        let divergence: f64 = self.charges.iter().map(|charge| charge.divergence).sum();
        let cross_entropy: f64 = self.charges.iter().map(|charge| charge.cross_entropy).sum();
        ((divergence / self.comparison.temperature) as f32, cross_entropy as f32)
    }

    /// Takes the cross-entropy's share from the targets themselves.
    fn subtract_targets(&mut self) {
        for (entry, charge) in self.entries.iter().zip(self.charges) {
            self.logits[entry.token as usize] -= charge.cross_entropy as f32;
        }
    }

    fn against_logits(mut self, teacher: &[f32]) -> Vec<Distance> {
        let shared = self.logits.len().min(teacher.len());
        let teacher = &teacher[..shared];
        let inverse = (1.0 / self.comparison.temperature) as f32;
        let of_teacher = Normalizer::of(teacher, inverse);
        let of_student = match self.comparison.temperature == 1.0 && shared == self.logits.len() {
            true => self.plain,
            false => Normalizer::of(&self.logits[..shared], inverse),
        };
        let (weight, ce_weight) = self.row_weights();
        let plain = self.plain;
        let log_probs = |t: f32, s: f32| {
            let logp = of_teacher.logp(t);
            (if logp < LEAST { LEAST } else { logp }, of_student.logp(s))
        };
        let distances = with_terms!(self.comparison.divergence, terms => {
            let (divergence, h) = {
                let student = &self.logits[..shared];
                vectorize!(sums(shared, |i| {
                    let (logp, logq) = log_probs(teacher[i], student[i]);
                    terms.of(logp, logq)
                }))
            };
            let distances = self.distances(f64::from(divergence));
            let student = &mut self.logits[..shared];
            vectorize!(for (s, &t) in student.iter_mut().zip(teacher) {
                let (logp, logq) = log_probs(t, *s);
                let (_, own) = terms.of(logp, logq);
                *s = weight * (own - exp(logq) * h) + ce_weight * exp(plain.logp(*s));
            });
            distances
        });
        let beyond = &mut self.logits[shared..];
        vectorize!(beyond.iter_mut().for_each(|s| *s = ce_weight * exp(plain.logp(*s))));
        self.subtract_targets();
        distances
    }

    /// `scratch` is used again.
    fn against_top(mut self, top: &TopLogps, row: usize, scratch: &mut Vec<f32>) -> Vec<Distance> {
        let ids = &top.ids[row * top.k..(row + 1) * top.k];
        let logps = &top.logps[row * top.k..(row + 1) * top.k];
        let inverse = (1.0 / self.comparison.temperature) as f32;
        let all = Normalizer::of(self.logits, inverse);
        let logq = |logit: f32| all.logp(logit);
        // The mass outside, added up apart: one less the mass inside would cancel.
        scratch.clear();
        scratch.extend(ids.iter().map(|&id| self.logits[id as usize]));
        ids.iter().for_each(|&id| self.logits[id as usize] = f32::NEG_INFINITY);
        let rest = match ids.len() < self.logits.len() {
            true => Normalizer::of(self.logits, inverse).logp_within(all).max(LEAST),
            false => LEAST,
        };
        ids.iter().zip(&*scratch).for_each(|(&id, &logit)| self.logits[id as usize] = logit);
        let (weight, ce_weight) = self.row_weights();
        let plain = self.plain;
        with_terms!(self.comparison.divergence, terms => {
            let of = |logp: f32, logq: f32| terms.of(logp.max(LEAST), logq);
            let (mut divergence, mut h) = of(top.rest[row], rest);
            let h_rest = h;
            for (&logp, &logit) in logps.iter().zip(&*scratch) {
                let (term, own) = of(logp, logq(logit));
                divergence += term;
                h += own;
            }
            let distances = self.distances(f64::from(divergence));
            // Each token outside has its share of what the class is charged.
            let outside = weight * (h_rest / exp(rest).max(f32::MIN_POSITIVE) - h);
            vectorize!(self.logits.iter_mut().for_each(|s| {
                *s = outside * exp(logq(*s)) + ce_weight * exp(plain.logp(*s));
            }));
            for ((&id, &logp), &logit) in ids.iter().zip(logps).zip(&*scratch) {
                let (_, own) = of(logp, logq(logit));
                self.logits[id as usize] =
                    weight * (own - exp(logq(logit)) * h) + ce_weight * exp(plain.logp(logit));
            }
            self.subtract_targets();
            distances
        })
    }
}

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
