//! From logits to a token.

use std::cmp::Ordering;
use std::collections::HashSet;

use crate::ops::dropout::hash;
use crate::ops::simd::{exp, max, sum, sum_exp, vectorize};
use crate::{Error, Result};

/// How tokens are drawn. The filters apply in the order of the fields, as in transformers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits of tokens that stand in the prompt or the completion are divided by it where positive
    /// and multiplied where negative; 1: unchanged (Keskar et al. 2019).
    pub repetition_penalty: f32,
    /// Logits are divided by it; 0: the likeliest token is taken.
    pub temperature: f32,
    /// So many of the likeliest tokens stay; 0: all.
    pub top_k: usize,
    /// The likeliest tokens stay whose probabilities add up to it; 1: all (Holtzman et al. 2020).
    pub top_p: f32,
    /// Tokens stay whose probability is at least this share of the likeliest one's; 0: all.
    pub min_p: f32,
}

impl Default for Sampling {
    /// The model's own distribution.
    fn default() -> Self {
        Self { repetition_penalty: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 }
    }
}

impl Sampling {
    /// The likeliest token, always.
    pub const GREEDY: Self =
        Self { repetition_penalty: 1.0, temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

    /// Refuses values without a meaning.
    ///
    /// # Errors
    /// Names the value, and what was expected.
    pub fn validate(&self) -> Result<()> {
        let checks = [
            ("temperature", self.temperature, self.temperature >= 0.0, "0 or more"),
            ("top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "in [0, 1]"),
            (
                "repetition-penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0,
                "above zero",
            ),
        ];
        match checks.into_iter().find(|&(_, value, fits, _)| !(fits && value.is_finite())) {
            Some((name, value, _, expected)) => {
                Err(Error::config(format!("`{name}` is `{value}`: expected {expected}")))
            }
            None => Ok(()),
        }
    }

    /// A token from `logits (vocabulary,)`. `seen` are the tokens so far; `draw` decides, uniform in
    /// [0, 1). `weights` is scratch.
    pub(super) fn pick(
        &self,
        logits: &[f32],
        seen: &[u32],
        draw: f64,
        weights: &mut Vec<f32>,
    ) -> u32 {
        weights.clear();
        weights.extend_from_slice(logits);
        if self.repetition_penalty != 1.0 {
            let penalty = self.repetition_penalty;
            for id in seen.iter().copied().collect::<HashSet<u32>>() {
                if let Some(logit) = weights.get_mut(id as usize) {
                    *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                }
            }
        }
        // Infinite beside zero where it is next to it.
        let inverse = 1.0 / self.temperature;
        if inverse.is_infinite() {
            return likeliest(weights);
        }
        vectorize!({
            let largest = max(weights);
            weights.iter_mut().for_each(|w| *w = exp((*w - largest) * inverse));
        });
        if self.top_k == 0 && self.top_p >= 1.0 && self.min_p == 0.0 {
            return draw_from_all(weights, draw);
        }
        let left = self.filter(weights);
        draw_from(&left, draw * left.iter().map(|&(_, weight)| f64::from(weight)).sum::<f64>())
    }

    /// The tokens that may be drawn, with their weights, of which the largest is 1.
    fn filter(&self, weights: &[f32]) -> Vec<(u32, f32)> {
        // Likeliest first; equal ones by their id.
        let by_rank = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let with_id = || (0..).zip(weights.iter().copied());
        let limits_k = self.top_k > 0 && self.top_k < weights.len();
        let mut left: Vec<(u32, f32)>;
        if limits_k {
            left = with_id().collect();
            left.select_nth_unstable_by(self.top_k - 1, by_rank);
            left.truncate(self.top_k);
        } else if self.top_p < 1.0 {
            // All tokens below this together have less than `1 − top_p` of the mass: none is among
            // those that reach `top_p`.
            let total: f64 = block_sums(weights).sum();
            let least = (1.0 - f64::from(self.top_p)) * total / weights.len() as f64 * 0.999;
            left = with_id().filter(|&(_, weight)| f64::from(weight) >= least).collect();
            self.keep_top_p(&mut left, total, by_rank);
        } else {
            left = with_id().collect();
        }
        if limits_k && self.top_p < 1.0 {
            let total = left.iter().map(|&(_, weight)| f64::from(weight)).sum();
            self.keep_top_p(&mut left, total, by_rank);
        }
        if self.min_p > 0.0 {
            left.retain(|&(_, weight)| weight >= self.min_p);
        }
        left
    }

    /// Keeps the likeliest tokens that reach `top_p` of the mass `total`.
    fn keep_top_p(
        &self,
        left: &mut Vec<(u32, f32)>,
        total: f64,
        by_rank: impl Fn(&(u32, f32), &(u32, f32)) -> Ordering,
    ) {
        left.sort_unstable_by(by_rank);
        let mut mass = 0.0;
        let kept = left.iter().take_while(|&&(_, weight)| {
            let before = mass;
            mass += f64::from(weight) / total;
            before < f64::from(self.top_p)
        });
        let kept = kept.count().max(1);
        left.truncate(kept);
    }
}

/// The first token at which the weights add up to more than `rest`.
fn draw_from(weights: &[(u32, f32)], mut rest: f64) -> u32 {
    let mut last = 0;
    for &(id, weight) in weights.iter().filter(|&&(_, weight)| weight > 0.0) {
        rest -= f64::from(weight);
        last = id;
        if rest < 0.0 {
            break;
        }
    }
    last
}

/// Weights that are added up first, so that few of them are looked at alone.
const BLOCK: usize = 256;

fn block_sums(weights: &[f32]) -> impl Iterator<Item = f64> {
    weights.chunks(BLOCK).map(|block| f64::from(vectorize!(sum(block.len(), |i| block[i]))))
}

/// A token drawn by the weights of all.
fn draw_from_all(weights: &[f32], draw: f64) -> u32 {
    let mut rest = draw * block_sums(weights).sum::<f64>();
    let blocks = weights.len().div_ceil(BLOCK);
    for (block, mass) in block_sums(weights).enumerate() {
        if rest < mass || block + 1 == blocks {
            let ids = block * BLOCK..weights.len().min((block + 1) * BLOCK);
            let of_block: Vec<_> = ids.map(|id| (id as u32, weights[id])).collect();
            return draw_from(&of_block, rest);
        }
        rest -= mass;
    }
    0
}

/// The first of the largest.
pub(super) fn likeliest(logits: &[f32]) -> u32 {
    let largest = vectorize!(max(logits));
    logits.iter().position(|&x| x == largest).unwrap_or(0) as u32
}

/// Log of the sum of exponentials: a token's log-prob is its logit less this.
pub(super) fn log_sum_exp(logits: &[f32]) -> f64 {
    vectorize!({
        let max = max(logits);
        f64::from(max) + f64::from(sum_exp(logits, max)).ln()
    })
}

/// The number that decides token `position` of a completion: the same whatever else is generated.
pub fn draw(seed: u64, row: u64, completion: u64, position: u64) -> f64 {
    let key = hash(hash(hash(seed, row), completion), position);
    (key >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use super::*;

    /// Shares of so many draws, evenly spaced.
    fn shares(sampling: Sampling, logits: &[f32], seen: &[u32]) -> Vec<f64> {
        let n = 20_000;
        let mut counts = vec![0; logits.len()];
        for i in 0..n {
            let draw = (f64::from(i) + 0.5) / f64::from(n);
            counts[sampling.pick(logits, seen, draw, &mut Vec::new()) as usize] += 1;
        }
        counts.into_iter().map(|count| f64::from(count) / f64::from(n)).collect()
    }

    #[track_caller]
    fn assert_shares(sampling: Sampling, seen: &[u32], want: &[f64]) {
        // Probabilities 0.4, 0.3, 0.2, 0.1.
        let logits = [0.2f32, 0.4, 0.1, 0.3].map(f32::ln);
        for (got, want) in shares(sampling, &logits, seen).iter().zip(want) {
            assert!((got - want).abs() < 1e-3, "{sampling:?}: {got} {want}");
        }
    }

    #[test]
    fn shares_are_those_of_the_filtered_distribution() {
        let plain = Sampling::default();
        assert_shares(plain, &[], &[0.2, 0.4, 0.1, 0.3]);
        assert_shares(Sampling { top_k: 2, ..plain }, &[], &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        // 0.4 + 0.3 do not reach 0.75: the third one stays as well.
        let three = [2.0 / 9.0, 4.0 / 9.0, 0.0, 3.0 / 9.0];
        assert_shares(Sampling { top_p: 0.75, ..plain }, &[], &three);
        assert_shares(Sampling { top_p: 1e-6, ..plain }, &[], &[0.0, 1.0, 0.0, 0.0]);
        assert_shares(Sampling { min_p: 0.45, ..plain }, &[], &three);
        // Squares of the probabilities: 4, 16, 1, 9 of 30.
        let half = Sampling { temperature: 0.5, ..plain };
        assert_shares(half, &[], &[4.0 / 30.0, 16.0 / 30.0, 1.0 / 30.0, 9.0 / 30.0]);
        for temperature in [0.0, 1e-45, 2.9e-39, 3e-39] {
            assert_shares(Sampling { temperature, ..plain }, &[], &[0.0, 1.0, 0.0, 0.0]);
        }
        // The logits are negative: what was seen is squared, 0.16 for 0.4.
        let penalty = Sampling { repetition_penalty: 2.0, ..plain };
        assert_shares(penalty, &[1, 1], &[0.2, 0.16, 0.1, 0.3].map(|p| p / 0.76));
    }

    #[test]
    fn equal_logits_go_by_their_id() {
        let logits = vec![1.0f32; 9];
        assert_eq!(Sampling::GREEDY.pick(&logits, &[], 0.0, &mut Vec::new()), 0);
        let two = Sampling { top_k: 2, ..Sampling::default() };
        let ids: Vec<u32> =
            [0.1, 0.9].map(|draw| two.pick(&logits, &[], draw, &mut Vec::new())).to_vec();
        assert_eq!(ids, [0, 1]);
    }

    #[test]
    fn draws_are_even_and_differ_in_every_key() {
        let n = 4096u64;
        let mean: f64 = (0..n).map(|at| draw(7, 1, 2, at)).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        let keys =
            [(7, 1, 2, 3), (8, 1, 2, 3), (7, 2, 2, 3), (7, 1, 3, 3), (7, 1, 2, 4), (7, 2, 1, 3)];
        let draws: HashSet<u64> =
            keys.iter().map(|&(s, r, c, p)| draw(s, r, c, p).to_bits()).collect();
        assert_eq!(draws.len(), keys.len());
    }

    #[test]
    fn values_without_a_meaning_are_refused() {
        let plain = Sampling::default();
        for (sampling, message) in [
            (Sampling { temperature: -1.0, ..plain }, "`temperature` is `-1`: expected 0 or more"),
            (
                Sampling { temperature: f32::NAN, ..plain },
                "`temperature` is `NaN`: expected 0 or more",
            ),
            (Sampling { top_p: 0.0, ..plain }, "`top-p` is `0`: expected above 0 and at most 1"),
            (Sampling { min_p: 1.5, ..plain }, "`min-p` is `1.5`: expected in [0, 1]"),
            (
                Sampling { repetition_penalty: 0.0, ..plain },
                "`repetition-penalty` is `0`: expected above zero",
            ),
        ] {
            assert_eq!(sampling.validate().unwrap_err().message(), message);
        }
        plain.validate().unwrap();
        Sampling::GREEDY.validate().unwrap();
    }
}
