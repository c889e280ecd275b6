//! What preference learning adds to the configuration of a run.

use std::path::PathBuf;

use halter_core::train::config::{Config, MethodOptions, TrainConfig};
use halter_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::loss::{LossConfig, PairLosses};

/// The configuration of a run.
pub type DpoConfig = Config<DpoOptions>;

/// Its own keys. Losses and their constants are described in [`crate::loss`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DpoOptions {
    /// The loss, or a weighted sum of losses: `sigmoid`, `sigmoid:1,sft:0.2`.
    pub loss: PairLosses,
    /// How strongly the policy is held to the reference.
    pub beta: f64,
    /// Share of labels that are thought to be wrong.
    pub label_smoothing: f64,
    /// SimPO's γ.
    pub simpo_gamma: f64,
    /// Weight of the NLL term in `cpo`.
    pub cpo_alpha: f64,
    /// DiscoPOP's τ.
    pub discopop_tau: f64,
    /// Weight of the mean negative log-likelihood of the chosen completions, added to the loss
    /// ("The Llama 3 Herd of Models", section 4.1.4).
    pub nll_weight: f64,
    /// Leave formatting tokens (headers, ends of turns) out of the log-probs that are compared, but
    /// not out of the NLL term (the same section).
    pub mask_formatting: bool,
    /// Weight of the tokens of a completion beyond the length of the shorter one (LD-DPO).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ld_alpha: Option<f64>,
    /// Model whose log-probs are the reference; the policy as it was before training where it is
    /// not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ref_model: Option<String>,
    /// Count what the template puts after the end-of-turn token as well, as TRL does.
    pub train_on_trailing: bool,
}

impl Default for DpoOptions {
    fn default() -> Self {
        let constants = LossConfig::default();
        Self {
            loss: PairLosses::default(),
            beta: constants.beta,
            label_smoothing: constants.label_smoothing,
            simpo_gamma: constants.simpo_gamma,
            cpo_alpha: constants.cpo_alpha,
            discopop_tau: constants.discopop_tau,
            nll_weight: 0.2,
            mask_formatting: true,
            ld_alpha: None,
            ref_model: None,
            train_on_trailing: false,
        }
    }
}

impl DpoOptions {
    /// The constants of the losses.
    pub fn constants(&self) -> LossConfig {
        LossConfig {
            beta: self.beta,
            label_smoothing: self.label_smoothing,
            simpo_gamma: self.simpo_gamma,
            cpo_alpha: self.cpo_alpha,
            discopop_tau: self.discopop_tau,
        }
    }
}

impl MethodOptions for DpoOptions {
    const KEYS: &'static [&'static str] = &[
        "loss",
        "beta",
        "label_smoothing",
        "simpo_gamma",
        "cpo_alpha",
        "discopop_tau",
        "nll_weight",
        "mask_formatting",
        "ld_alpha",
        "ref_model",
        "train_on_trailing",
    ];
    const BUNDLED: Option<(&'static str, &'static str)> = None;

    fn defaults() -> TrainConfig {
        TrainConfig {
            output: PathBuf::from("runs/dpo"),
            learning_rate: 1e-6,
            ..TrainConfig::default()
        }
    }

    fn validate(&self, _train: &TrainConfig) -> Result<()> {
        self.loss.validate(&self.constants())?;
        if !(self.nll_weight >= 0.0 && self.nll_weight.is_finite()) {
            let message = format!("`nll-weight` is `{}`: expected 0 or more", self.nll_weight);
            return Err(Error::config(message));
        }
        if let Some(alpha) = self.ld_alpha.filter(|alpha| !(0.0..=1.0).contains(alpha)) {
            return Err(Error::config(format!("`ld-alpha` is `{alpha}`: expected in [0, 1]")));
        }
        if self.ref_model.is_some() && !self.loss.needs_reference() {
            let message = format!("`ref-model` is given with the loss `{}`", self.loss);
            return Err(Error::config(message).hint("it compares with no reference: leave it out"));
        }
        Ok(())
    }
}
