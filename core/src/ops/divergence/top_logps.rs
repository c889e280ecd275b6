//! A teacher's likeliest tokens.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::{LEAST, Normalizer};
use crate::Result;
use crate::ops::slices;
use crate::ops::top::likeliest_few;

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
    /// Adds rows behind these, of as many tokens each.
    pub fn extend(&mut self, more: Self) {
        self.ids.extend(more.ids);
        self.logps.extend(more.logps);
        self.rest.extend(more.rest);
    }

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

    /// The same without the tokens from `vocabulary` on, which the student has not; the others' mass is
    /// one again.
    pub(super) fn within(self, vocabulary: usize) -> Self {
        let k = self.k.min(vocabulary);
        if k == self.k && self.ids.iter().all(|&id| (id as usize) < vocabulary) {
            return self;
        }
        let mut all = Self { k, ..Self::default() };
        for row in 0..self.rest.len() {
            let entries = row * self.k..(row + 1) * self.k;
            let told = self.ids[entries.clone()].iter().zip(&self.logps[entries]);
            let (mut known, foreign): (Vec<_>, Vec<_>) = told
                .map(|(&id, &logp)| (id, logp))
                .partition(|&(id, _)| (id as usize) < vocabulary);
            known.truncate(k);
            let lost: f64 = foreign.iter().map(|&(_, logp)| f64::from(logp).exp()).sum();
            let left = (1.0 - lost).max(f64::from(f32::EPSILON)).ln() as f32;
            let taken: Vec<u32> = known.iter().map(|&(id, _)| id).collect();
            let free = (0..vocabulary as u32).rev().filter(|id| !taken.contains(id));
            let filled = known.into_iter().chain(free.map(|id| (id, LEAST))).take(k);
            for (id, logp) in filled {
                all.ids.push(id);
                all.logps.push((logp - left).max(LEAST));
            }
            all.rest.push((self.rest[row] - left).max(LEAST));
        }
        all
    }
}
