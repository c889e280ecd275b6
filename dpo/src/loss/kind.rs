//! The losses by name.

use std::fmt;
use std::str::FromStr;

use candle_core::Tensor;
use halter_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::unpaired::UnpairedLoss;
use super::{LossConfig, PairLogps, Sums, paired, per_token, reference_free};

/// A loss of preference pairs, under the name that TRL has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairLoss {
    /// DPO, and with `label_smoothing` conservative DPO.
    Sigmoid,
    /// DPO on log-ratios per token: Lambert et al. 2024, Tülu 3 (arXiv 2411.15124).
    SigmoidNorm,
    /// SLiC on rewards.
    Hinge,
    /// IPO on log-ratios per token, as TRL and the authors' experiments.
    Ipo,
    /// IPO on summed log-ratios, as the paper's formula and OpenRLHF.
    IpoSum,
    /// EXO; needs `label_smoothing`, 0.001 in the paper.
    ExoPair,
    /// NCA.
    NcaPair,
    /// Robust DPO; `label_smoothing` below ½, 0.1 in the paper.
    Robust,
    /// BCO, shifted by the running mean of the rewards.
    BcoPair,
    /// SPPO with hard labels.
    SppoHard,
    /// AOT; needs all pairs of a step at once.
    Aot,
    /// AOT's unpaired case, `aot_pair` in older releases of TRL; needs all pairs of a step at once.
    AotUnpaired,
    /// APO for chosen completions better than the model.
    ApoZero,
    /// APO for chosen completions worse than the model.
    ApoDown,
    /// DiscoPOP; `discopop_tau`.
    Discopop,
    /// NLL of the chosen completions, per token; see [`PairLogps::tokens_per_pair`].
    Sft,
    /// SimPO; `simpo_gamma`.
    Simpo,
    /// CPO with its NLL term; `cpo_alpha`.
    Cpo,
    /// ORPO with its NLL term.
    Orpo,
}

impl PairLoss {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::Sigmoid,
        Self::SigmoidNorm,
        Self::Hinge,
        Self::Ipo,
        Self::IpoSum,
        Self::ExoPair,
        Self::NcaPair,
        Self::Robust,
        Self::BcoPair,
        Self::SppoHard,
        Self::Aot,
        Self::AotUnpaired,
        Self::ApoZero,
        Self::ApoDown,
        Self::Discopop,
        Self::Sft,
        Self::Simpo,
        Self::Cpo,
        Self::Orpo,
    ];

    /// The name of configurations and command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sigmoid => "sigmoid",
            Self::SigmoidNorm => "sigmoid_norm",
            Self::Hinge => "hinge",
            Self::Ipo => "ipo",
            Self::IpoSum => "ipo_sum",
            Self::ExoPair => "exo_pair",
            Self::NcaPair => "nca_pair",
            Self::Robust => "robust",
            Self::BcoPair => "bco_pair",
            Self::SppoHard => "sppo_hard",
            Self::Aot => "aot",
            Self::AotUnpaired => "aot_unpaired",
            Self::ApoZero => "apo_zero",
            Self::ApoDown => "apo_down",
            Self::Discopop => "discopop",
            Self::Sft => "sft",
            Self::Simpo => "simpo",
            Self::Cpo => "cpo",
            Self::Orpo => "orpo",
        }
    }

    /// Whether it compares the policy with a reference.
    pub fn needs_reference(self) -> bool {
        !matches!(self, Self::Sft | Self::Simpo | Self::Cpo | Self::Orpo)
    }

    /// Whether the loss of a pair depends on the others of its batch, so that a step's pairs must
    /// be in one.
    pub fn compares_pairs(self) -> bool {
        matches!(self, Self::Aot | Self::AotUnpaired)
    }

    /// Whether it holds the NLL of the chosen completions.
    pub fn holds_nll(self) -> bool {
        matches!(self, Self::Sft | Self::Cpo | Self::Orpo)
    }

    /// Whether `label_smoothing` changes it.
    pub fn smooths_labels(self) -> bool {
        use PairLoss::{Aot, AotUnpaired, Cpo, ExoPair, Robust, Sigmoid, SigmoidNorm, Simpo};
        matches!(self, Sigmoid | SigmoidNorm | ExoPair | Robust | Aot | AotUnpaired | Simpo | Cpo)
    }

    /// The loss of each pair, `(pairs,)`. `reward_mean` is the mean of [`super::RunningMoments`],
    /// which `bco_pair` alone uses.
    ///
    /// # Errors
    /// Parts of different lengths, or no reference where one is needed.
    pub fn loss(self, logps: &PairLogps, config: &LossConfig, reward_mean: f64) -> Result<Tensor> {
        logps.check()?;
        let LossConfig { beta, label_smoothing: smoothing, .. } = *config;
        let rewards = || -> Result<(Tensor, Tensor)> {
            let (chosen, rejected) = logps.logratios(self)?;
            Ok(((chosen * beta)?, (rejected * beta)?))
        };
        let margin = || -> Result<Tensor> {
            let (chosen, rejected) = rewards()?;
            Ok((chosen - rejected)?)
        };
        let difference_per_token = || -> Result<Tensor> {
            let (chosen, rejected) = logps.logratios(self)?;
            let chosen = per_token(&chosen, &logps.chosen.tokens)?;
            Ok((chosen - per_token(&rejected, &logps.rejected.tokens)?)?)
        };
        let of_rewards = |loss: fn(&Tensor, &Tensor) -> Result<Tensor>| -> Result<Tensor> {
            let (chosen, rejected) = rewards()?;
            loss(&chosen, &rejected)
        };
        let PairLogps { chosen, rejected, .. } = logps;
        let nll = || reference_free::nll(logps.nll.as_ref().unwrap_or(chosen));
        match self {
            Self::Sigmoid => paired::sigmoid(&margin()?, smoothing),
            Self::SigmoidNorm => paired::sigmoid(&(difference_per_token()? * beta)?, smoothing),
            Self::Hinge => paired::hinge(&margin()?),
            Self::Ipo => paired::ipo(&difference_per_token()?, beta),
            Self::IpoSum => {
                let (chosen, rejected) = logps.logratios(self)?;
                paired::ipo(&(chosen - rejected)?, beta)
            }
            Self::ExoPair => paired::exo_pair(&margin()?, smoothing),
            Self::NcaPair => of_rewards(paired::nca_pair),
            Self::Robust => paired::robust(&margin()?, smoothing),
            Self::BcoPair => {
                let (chosen, rejected) = rewards()?;
                paired::bco_pair(&chosen, &rejected, reward_mean)
            }
            Self::SppoHard => {
                let (chosen, rejected) = rewards()?;
                paired::sppo_hard(&chosen, &rejected, beta)
            }
            Self::Aot => {
                let reference = logps.reference(self)?;
                let policy = ((&chosen.logps - &rejected.logps)? * beta)?;
                let reference = ((&reference.chosen - &reference.rejected)? * beta)?;
                paired::aot(&policy, &reference, smoothing)
            }
            Self::AotUnpaired => {
                let (chosen, rejected) = rewards()?;
                paired::aot_unpaired(&chosen, &rejected, smoothing)
            }
            Self::ApoZero => of_rewards(paired::apo_zero),
            Self::ApoDown => of_rewards(paired::apo_down),
            Self::Discopop => paired::discopop(&margin()?, config.discopop_tau),
            Self::Sft => match logps.tokens_per_pair {
                Some(tokens) => Ok((logps.nll.as_ref().unwrap_or(chosen).logps.neg()? / tokens)?),
                None => nll(),
            },
            Self::Simpo => {
                let (chosen, rejected) = (chosen.per_token()?, rejected.per_token()?);
                let gamma = config.simpo_gamma;
                reference_free::simpo(&chosen, &rejected, beta, gamma, smoothing)
            }
            Self::Cpo => {
                let (chosen, rejected) = (&chosen.logps, &rejected.logps);
                let loss = reference_free::cpo(chosen, rejected, beta, smoothing)?;
                Ok((loss + (nll()? * config.cpo_alpha)?)?)
            }
            Self::Orpo => {
                let (chosen, rejected) = (chosen.per_token()?, rejected.per_token()?);
                Ok((reference_free::odds_ratio(&chosen, &rejected, beta)? + nll()?)?)
            }
        }
    }

    /// The rewards that TRL reports, of chosen and rejected completions, `(pairs,)`, without a
    /// graph: `beta` times the log-ratio to the reference, or the log-prob where the loss has
    /// none, per token in `simpo` and `orpo`.
    ///
    /// # Errors
    /// See [`Self::loss`].
    pub fn rewards(self, logps: &PairLogps, beta: f64) -> Result<(Tensor, Tensor)> {
        logps.check()?;
        let PairLogps { chosen, rejected, reference, .. } = logps;
        let plain = |x: &Sums| x.logps.clone();
        let (chosen, rejected) = match self {
            Self::Simpo | Self::Orpo => (chosen.per_token()?, rejected.per_token()?),
            Self::Cpo => (plain(chosen), plain(rejected)),
            Self::Sft if reference.is_none() => (plain(chosen), plain(rejected)),
            _ => logps.logratios(self)?,
        };
        Ok(((chosen.detach() * beta)?, (rejected.detach() * beta)?))
    }

    /// Refuses constants with which the loss has no meaning.
    pub(super) fn validate(self, config: &LossConfig) -> Result<()> {
        let smoothing = config.label_smoothing;
        if self.smooths_labels() && !(0.0..0.5).contains(&smoothing) {
            return Err(Error::config(format!(
                "`label_smoothing` of `{self}`: expected at least 0 and less than 0.5, got \
                 `{smoothing}`"
            )));
        }
        if self == Self::ExoPair && smoothing == 0.0 {
            return Err(Error::config("`exo_pair` needs a `label_smoothing` above zero")
                .hint("its paper takes 0.001"));
        }
        let tau = config.discopop_tau;
        if self == Self::Discopop && !(tau > 0.0 && tau <= 1.0) {
            return Err(Error::config(format!(
                "`discopop_tau`: expected above 0 and at most 1, got `{tau}`"
            )));
        }
        Ok(())
    }
}

impl fmt::Display for PairLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PairLoss {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        if name == "aot_pair" {
            return Ok(Self::AotUnpaired);
        }
        Self::ALL.into_iter().find(|loss| loss.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(|loss| format!("`{loss}`")).join(", ");
            let alone = UnpairedLoss::ALL.map(|loss| format!("`{}`", loss.name())).join(" or ");
            Error::config(format!("expected a loss, got `{name}`"))
                .hint(format!("one of {names}; or alone, of single completions, {alone}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::loss::ReferenceLogps;

    /// Log-ratios of 4 over 2 tokens and −3 over 3 tokens.
    fn pair() -> PairLogps {
        let one = |x: f64| Tensor::new(&[x], &Device::Cpu).unwrap();
        PairLogps {
            chosen: Sums { logps: one(-2.0), tokens: vec![2] },
            rejected: Sums { logps: one(-9.0), tokens: vec![3] },
            reference: Some(ReferenceLogps { chosen: one(-6.0), rejected: one(-6.0) }),
            nll: None,
            tokens_per_pair: None,
        }
    }

    #[test]
    fn some_losses_are_per_token() {
        let config = LossConfig { beta: 0.5, ..LossConfig::default() };
        let value =
            |kind: PairLoss| kind.loss(&pair(), &config, 0.0).unwrap().to_vec1::<f64>().unwrap()[0];
        // 4/2 + 3/3 = 3 and 4 + 3 = 7, of which IPO wants 1.
        assert_eq!(value(PairLoss::Ipo), 4.0);
        assert_eq!(value(PairLoss::IpoSum), 36.0);
        assert!((value(PairLoss::SigmoidNorm) - (-1.5f64).exp().ln_1p()).abs() < 1e-15);
    }

    #[test]
    fn rewards_are_log_ratios_or_log_probs_times_beta() {
        let rewards = |kind: PairLoss| {
            let (chosen, rejected) = kind.rewards(&pair(), 0.5).unwrap();
            [chosen, rejected].map(|x| x.to_vec1::<f64>().unwrap()[0])
        };
        assert_eq!(rewards(PairLoss::SigmoidNorm), [2.0, -1.5]);
        assert_eq!(rewards(PairLoss::Simpo), [-0.5, -1.5]);
        assert_eq!(rewards(PairLoss::Cpo), [-1.0, -4.5]);
    }

    #[test]
    fn names_are_those_of_serde_and_parse() {
        for loss in PairLoss::ALL {
            assert_eq!(serde_json::to_value(loss).unwrap(), loss.name());
            assert_eq!(loss.name().parse::<PairLoss>().unwrap(), loss);
        }
        assert_eq!("aot_pair".parse::<PairLoss>().unwrap(), PairLoss::AotUnpaired);
    }

    #[test]
    fn an_unknown_name_is_told_the_names() {
        let error = "kl".parse::<PairLoss>().unwrap_err();
        assert_eq!(error.message(), "expected a loss, got `kl`");
        assert!(error.remedy().unwrap().contains("`sppo_hard`"));
    }
}
