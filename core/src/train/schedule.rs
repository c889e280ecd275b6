//! Learning rate by step.

use serde::{Deserialize, Serialize};

/// Shape of the decay after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Straight to zero.
    #[default]
    Linear,
    /// Half a cosine to zero.
    Cosine,
    /// None; with warm-up, transformers' `constant_with_warmup`.
    Constant,
}

/// Warm-up from zero, then decay: transformers' schedulers of the same names, but that `constant`
/// warms up as well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Learning rate at the end of warm-up.
    pub peak: f64,
    /// Shape of the decay.
    pub decay: Decay,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// Steps in all.
    pub total_steps: u64,
}

impl Schedule {
    /// Learning rate of the step after `done` steps.
    pub fn at(&self, done: u64) -> f64 {
        if done < self.warmup_steps {
            return self.peak * done as f64 / self.warmup_steps as f64;
        }
        let left = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let progress = ((done - self.warmup_steps) as f64 / left).min(1.0);
        self.peak
            * match self.decay {
                Decay::Linear => 1.0 - progress,
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
                Decay::Constant => 1.0,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_to_its_peak_and_falls_to_zero() {
        let schedule =
            Schedule { peak: 1.0, decay: Decay::Linear, warmup_steps: 4, total_steps: 12 };
        let rates: Vec<f64> = (0..13).map(|step| schedule.at(step)).collect();
        assert_eq!(rates[..5], [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(rates[8], 0.5);
        assert_eq!(rates[12], 0.0);
        let cosine = Schedule { decay: Decay::Cosine, ..schedule };
        assert!((cosine.at(8) - 0.5).abs() < 1e-12);
        assert!(cosine.at(12).abs() < 1e-12);
        assert_eq!(Schedule { decay: Decay::Constant, ..schedule }.at(12), 1.0);
    }

    #[test]
    fn without_warmup_the_first_step_has_the_peak_rate() {
        let schedule =
            Schedule { peak: 2e-5, decay: Decay::Linear, warmup_steps: 0, total_steps: 20 };
        assert_eq!(schedule.at(0), 2e-5);
        assert!((schedule.at(19) - 1e-6).abs() < 1e-18);
    }
}
