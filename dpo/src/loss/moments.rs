//! Mean and variance of all numbers seen so far.

use serde::{Deserialize, Serialize};

/// Running mean and variance of rewards, part of a run's state: `bco_pair` shifts rewards by the
/// mean (BCO: Jung et al. 2024, arXiv 2404.04656).
///
/// Earlier releases of TRL update it with the mean reward of each batch, then shift that same batch
/// by it; 1.16 shifts by nothing. A step of several microbatches that is to equal a step of one
/// updates once, after its losses, with all of its rewards.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunningMoments {
    count: u64,
    mean: f64,
    /// Σ (x − mean)².
    deviations: f64,
}

impl RunningMoments {
    /// Takes in more numbers (Chan et al. 1979, "Updating formulae").
    pub fn update(&mut self, values: &[f64]) {
        if values.is_empty() {
            return;
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let deviations: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
        let (before, step) = (self.count as f64, mean - self.mean);
        let share = n / (before + n);
        self.deviations += deviations + step * step * before * share;
        self.mean += step * share;
        self.count += values.len() as u64;
    }

    /// Mean; zero at first.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Variance with n in the denominator; zero at first.
    pub fn variance(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.deviations / self.count as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_add_up_to_the_whole() {
        let mut moments = RunningMoments::default();
        assert_eq!((moments.mean(), moments.variance()), (0.0, 0.0));
        for batch in [[1.0, 3.0].as_slice(), &[], &[8.0]] {
            moments.update(batch);
        }
        // 1, 3, 8: mean 4, squared deviations 9 + 1 + 16.
        assert!((moments.mean() - 4.0).abs() < 1e-15);
        assert!((moments.variance() - 26.0 / 3.0).abs() < 1e-14);
    }

    #[test]
    fn state_survives_a_checkpoint() {
        let mut moments = RunningMoments::default();
        moments.update(&[0.1, 0.7]);
        let text = serde_json::to_string(&moments).unwrap();
        assert_eq!(serde_json::from_str::<RunningMoments>(&text).unwrap(), moments);
    }
}
