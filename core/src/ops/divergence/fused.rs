//! The distances of f32 on the CPU: a row of logits becomes its gradient in place.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{
    Charge, Comparison, Distance, Divergence, LEAST, Normalizer, Rows, TeacherRows, TopLogps, sums,
};
use crate::Result;
use crate::data::batch::Target;
use crate::ops::simd::{exp, ln, vectorize};
use crate::ops::slices;

impl Rows<'_> {
    /// Turns `logits` into the gradient.
    pub(super) fn fused(&self, logits: &Tensor) -> Result<Vec<Distance>> {
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
}

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
        // A loop, as what `for_each` calls may not be inlined, and is scalar then.
        vectorize!(for s in &mut self.logits[shared..] {
            *s = ce_weight * exp(plain.logp(*s));
        });
        self.subtract_targets();
        distances
    }

    /// `scratch` is used again.
    fn against_top(mut self, top: &TopLogps, row: usize, scratch: &mut Vec<f32>) -> Vec<Distance> {
        let ids = &top.ids[row * top.k..(row + 1) * top.k];
        let logps = &top.logps[row * top.k..(row + 1) * top.k];
        let inverse = (1.0 / self.comparison.temperature) as f32;
        let all = match self.comparison.temperature == 1.0 {
            true => self.plain,
            false => Normalizer::of(self.logits, inverse),
        };
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
            let logits = &mut *self.logits;
            match ce_weight == 0.0 {
                true => vectorize!(for s in logits.iter_mut() {
                    *s = outside * exp(all.logp(*s));
                }),
                false => vectorize!(for s in logits.iter_mut() {
                    *s = outside * exp(all.logp(*s)) + ce_weight * exp(plain.logp(*s));
                }),
            }
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
