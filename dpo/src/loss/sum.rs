//! A weighted sum of losses.

use std::fmt;
use std::str::FromStr;

use candle_core::Tensor;
use halter_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{LossConfig, PairLogps, PairLoss};

/// Losses with weights, written `sigmoid:1.0,sft:0.2`; a weight of 1 may be left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PairLosses(Vec<(PairLoss, f64)>);

impl PairLosses {
    /// The losses and their weights; at least one.
    pub fn terms(&self) -> &[(PairLoss, f64)] {
        &self.0
    }

    /// Whether any of them compares the policy with a reference.
    pub fn needs_reference(&self) -> bool {
        self.0.iter().any(|(loss, _)| loss.needs_reference())
    }

    /// Whether a step's pairs must be in one batch; see [`PairLoss::compares_pairs`].
    pub fn compares_pairs(&self) -> bool {
        self.0.iter().any(|(loss, _)| loss.compares_pairs())
    }

    /// Refuses constants with which a loss has no meaning.
    ///
    /// # Errors
    /// Names the constant, and what was expected.
    pub fn validate(&self, config: &LossConfig) -> Result<()> {
        let beta = config.beta;
        if !(beta.is_finite() && beta > 0.0) {
            return Err(Error::config(format!("`beta`: expected above zero, got `{beta}`")));
        }
        let others = [("simpo_gamma", config.simpo_gamma), ("cpo_alpha", config.cpo_alpha)];
        if let Some((name, value)) = others.into_iter().find(|(_, x)| !(x.is_finite() && *x >= 0.0))
        {
            let message = format!("`{name}`: expected at least zero, got `{value}`");
            return Err(Error::config(message));
        }
        self.0.iter().try_for_each(|(loss, _)| loss.validate(config))
    }

    /// The weighted sum of the losses of each pair, `(pairs,)`; see [`PairLoss::loss`].
    ///
    /// # Errors
    /// See [`PairLoss::loss`].
    pub fn loss(&self, logps: &PairLogps, config: &LossConfig, reward_mean: f64) -> Result<Tensor> {
        let mut sum = logps.chosen.logps.zeros_like()?;
        for (loss, weight) in &self.0 {
            sum = (sum + (loss.loss(logps, config, reward_mean)? * *weight)?)?;
        }
        Ok(sum)
    }

    /// The rewards of the first loss; see [`PairLoss::rewards`].
    ///
    /// # Errors
    /// See [`PairLoss::rewards`].
    pub fn rewards(&self, logps: &PairLogps, beta: f64) -> Result<(Tensor, Tensor)> {
        self.0[0].0.rewards(logps, beta)
    }
}

impl Default for PairLosses {
    /// DPO.
    fn default() -> Self {
        Self(vec![(PairLoss::Sigmoid, 1.0)])
    }
}

impl fmt::Display for PairLosses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (loss, weight)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{loss}")?;
            if *weight != 1.0 {
                write!(f, ":{weight}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for PairLosses {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut terms: Vec<(PairLoss, f64)> = Vec::new();
        for term in text.split(',') {
            let (name, weight) = term.split_once(':').unwrap_or((term, "1"));
            let loss: PairLoss = name.trim().parse()?;
            let weight = match weight.trim().parse::<f64>() {
                Ok(number) if number.is_finite() && number > 0.0 => number,
                _ => {
                    let message = format!(
                        "expected a weight above zero for the loss `{loss}`, got `{weight}`"
                    );
                    return Err(Error::config(message).hint("as in `sigmoid:1.0,sft:0.2`"));
                }
            };
            if terms.iter().any(|(other, _)| *other == loss) {
                return Err(Error::config(format!("the loss `{loss}` is named twice")));
            }
            terms.push((loss, weight));
        }
        Ok(Self(terms))
    }
}

impl TryFrom<String> for PairLosses {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<PairLosses> for String {
    fn from(losses: PairLosses) -> Self {
        losses.to_string()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::loss::{ReferenceLogps, Sums};

    #[test]
    fn a_sum_is_parsed_and_written() {
        let losses: PairLosses = "sigmoid:1.0, sft:0.2".parse().unwrap();
        assert_eq!(losses.terms(), [(PairLoss::Sigmoid, 1.0), (PairLoss::Sft, 0.2)]);
        assert_eq!(losses.to_string(), "sigmoid,sft:0.2");
        let json = serde_json::to_string(&losses).unwrap();
        assert_eq!(json, "\"sigmoid,sft:0.2\"");
        assert_eq!(serde_json::from_str::<PairLosses>(&json).unwrap(), losses);
        assert!(losses.needs_reference() && !losses.compares_pairs());
    }

    #[test]
    fn mistakes_are_named() {
        let message = |text: &str| text.parse::<PairLosses>().unwrap_err().message().to_string();
        assert_eq!(message("sigmoid,"), "expected a loss, got ``");
        assert_eq!(message("sft:-1"), "expected a weight above zero for the loss `sft`, got `-1`");
        assert_eq!(message("sft,sft:2"), "the loss `sft` is named twice");
    }

    #[test]
    fn constants_without_a_meaning_are_refused() {
        let refused = |losses: &str, config: LossConfig| {
            losses.parse::<PairLosses>().unwrap().validate(&config).unwrap_err().to_string()
        };
        let plain = LossConfig::default();
        assert_eq!(
            refused("exo_pair", plain.clone()),
            "`exo_pair` needs a `label_smoothing` above zero"
        );
        let smoothing = LossConfig { label_smoothing: 0.5, ..plain.clone() };
        assert_eq!(
            refused("hinge,robust", smoothing),
            "`label_smoothing` of `robust`: expected at least 0 and less than 0.5, got `0.5`"
        );
        assert_eq!(
            refused("sigmoid", LossConfig { beta: 0.0, ..plain.clone() }),
            "`beta`: expected above zero, got `0`"
        );
        assert_eq!(
            refused("discopop", LossConfig { discopop_tau: 2.0, ..plain.clone() }),
            "`discopop_tau`: expected above 0 and at most 1, got `2`"
        );
        assert_eq!(
            refused("cpo", LossConfig { cpo_alpha: -1.0, ..plain.clone() }),
            "`cpo_alpha`: expected at least zero, got `-1`"
        );
        assert!(PairLosses::default().validate(&plain).is_ok());
    }

    fn pairs() -> PairLogps {
        let one = |x: f64| Tensor::new(&[x], &Device::Cpu).unwrap();
        let reference = ReferenceLogps { chosen: one(-10.0), rejected: one(-8.0) };
        PairLogps {
            chosen: Sums { logps: one(-10.0), tokens: vec![5] },
            rejected: Sums { logps: one(-8.0), tokens: vec![4] },
            reference: Some(reference),
            nll: None,
            tokens_per_pair: None,
        }
    }

    #[test]
    fn the_recipe_adds_a_fifth_of_the_nll_per_token() {
        let losses: PairLosses = "sigmoid:1.0,sft:0.2".parse().unwrap();
        let loss = |pairs: &PairLogps| {
            losses.loss(pairs, &LossConfig::default(), 0.0).unwrap().to_vec1::<f64>().unwrap()[0]
        };
        // ln 2 + 0.2·10/5
        assert!((loss(&pairs()) - (std::f64::consts::LN_2 + 0.4)).abs() < 1e-15);
        // Two tokens that the preference term leaves out: ln 2 + 0.2·14/7.
        let logps = Tensor::new(&[-14f64], &Device::Cpu).unwrap();
        let with_formatting = Sums { logps, tokens: vec![7] };
        let pairs = PairLogps { nll: Some(with_formatting), ..pairs() };
        assert!((loss(&pairs) - (std::f64::consts::LN_2 + 0.4)).abs() < 1e-15);
    }

    #[test]
    fn a_reference_is_asked_for_only_where_it_is_needed() {
        let pairs = PairLogps { reference: None, ..pairs() };
        for kind in PairLoss::ALL {
            let config = LossConfig { label_smoothing: 0.1, ..LossConfig::default() };
            let loss = kind.loss(&pairs, &config, 0.0);
            assert_eq!(loss.is_err(), kind.needs_reference(), "{kind}");
            assert_eq!(kind.rewards(&pairs, 0.1).is_err(), kind.needs_reference(), "{kind}");
        }
    }

    #[test]
    fn parts_of_different_lengths_are_refused() {
        let mut pairs = pairs();
        pairs.rejected.tokens.push(1);
        let error = PairLosses::default().loss(&pairs, &LossConfig::default(), 0.0).unwrap_err();
        assert_eq!(error.message(), "expected one number for each of 1 completions, got 2");
    }
}
