//! What preference learning adds to the configuration of a run.

use std::path::PathBuf;

use halter_core::train::config::{Config, MethodOptions, TrainConfig};
use halter_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::loss::unpaired::{KtoConfig, UnpairedLoss};
use crate::loss::{LossConfig, Losses, PairLoss};

/// The configuration of a run.
pub type DpoConfig = Config<DpoOptions>;

/// Weight of the NLL term in the recipe of Llama 3.
const NLL_WEIGHT: f64 = 0.2;

/// Its own keys. Losses and their constants are described in [`crate::loss`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DpoOptions {
    /// The loss, or a weighted sum of losses: `sigmoid`, `sigmoid:1,sft:0.2`; `kto` and
    /// `apo_zero_unpaired` are of single completions with a verdict.
    pub loss: Losses,
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
    /// KTO's weight of desirable completions.
    pub desirable_weight: f64,
    /// KTO's weight of undesirable completions.
    pub undesirable_weight: f64,
    /// Weight of the mean negative log-likelihood of the chosen (desirable) completions, added to the loss
    /// ("The Llama 3 Herd of Models", section 4.1.4); see [`Self::nll_weight`] where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nll_weight: Option<f64>,
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
    /// Take the reference's log-probs of all completions before the first step; the reference is
    /// not held then.
    pub precompute_ref_log_probs: bool,
    /// File that keeps them; in the run directory where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ref_log_probs: Option<PathBuf>,
    /// Move the reference towards the policy while training (TR-DPO).
    pub sync_ref_model: bool,
    /// TR-DPO's α: the policy's share in the new reference.
    pub ref_model_mixup_alpha: f64,
    /// TR-DPO's τ: steps between two moves.
    pub ref_model_sync_steps: u64,
    /// Count what the template puts after the end-of-turn token as well, as TRL does.
    pub train_on_trailing: bool,
}

impl Default for DpoOptions {
    fn default() -> Self {
        let constants = LossConfig::default();
        let kto = KtoConfig::default();
        Self {
            loss: Losses::default(),
            beta: constants.beta,
            label_smoothing: constants.label_smoothing,
            simpo_gamma: constants.simpo_gamma,
            cpo_alpha: constants.cpo_alpha,
            discopop_tau: constants.discopop_tau,
            desirable_weight: kto.desirable_weight,
            undesirable_weight: kto.undesirable_weight,
            nll_weight: None,
            mask_formatting: true,
            ld_alpha: None,
            ref_model: None,
            precompute_ref_log_probs: false,
            ref_log_probs: None,
            sync_ref_model: false,
            ref_model_mixup_alpha: 0.6,
            ref_model_sync_steps: 512,
            train_on_trailing: false,
        }
    }
}

impl DpoOptions {
    /// Weight of the NLL term: 0.2 where it is not given, or 0 where the loss holds such a term itself.
    pub fn nll_weight(&self) -> f64 {
        let own = if self.loss.any(PairLoss::holds_nll) { 0.0 } else { NLL_WEIGHT };
        self.nll_weight.unwrap_or(own)
    }

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
        "desirable_weight",
        "undesirable_weight",
        "nll_weight",
        "mask_formatting",
        "ld_alpha",
        "ref_model",
        "precompute_ref_log_probs",
        "ref_log_probs",
        "sync_ref_model",
        "ref_model_mixup_alpha",
        "ref_model_sync_steps",
        "train_on_trailing",
    ];
    const BUNDLED: Option<(&'static str, &'static str)> = Some((
        include_str!("../../examples/recipes/bundled-dpo.toml"),
        "examples/recipes/bundled-dpo.toml",
    ));

    fn defaults() -> TrainConfig {
        TrainConfig {
            output: PathBuf::from("runs/dpo"),
            learning_rate: 1e-6,
            ..TrainConfig::default()
        }
    }

    fn validate(&self, train: &TrainConfig) -> Result<()> {
        match &self.loss {
            Losses::Pairs(losses) => losses.validate(&self.constants())?,
            Losses::Unpaired(loss) => self.validate_unpaired(*loss, train)?,
        }
        for (name, value) in [
            ("nll-weight", self.nll_weight()),
            ("desirable-weight", self.desirable_weight),
            ("undesirable-weight", self.undesirable_weight),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::config(format!("`{name}` is `{value}`: expected 0 or more")));
            }
        }
        for (name, value) in [
            ("ld-alpha", self.ld_alpha),
            ("ref-model-mixup-alpha", Some(self.ref_model_mixup_alpha)),
        ] {
            if let Some(value) = value.filter(|value| !(0.0..=1.0).contains(value)) {
                return Err(Error::config(format!("`{name}` is `{value}`: expected in [0, 1]")));
            }
        }
        if self.ref_model_sync_steps == 0 {
            return Err(Error::config("`ref-model-sync-steps` is `0`: expected at least 1"));
        }
        self.fits_together(train)
    }
}

impl DpoOptions {
    fn validate_unpaired(&self, loss: UnpairedLoss, train: &TrainConfig) -> Result<()> {
        let beta = self.beta;
        if !(beta.is_finite() && beta > 0.0) {
            return Err(Error::config(format!("`beta`: expected above zero, got `{beta}`")));
        }
        if loss == UnpairedLoss::Kto && train.batch_size < 2 {
            return Err(Error::config("`batch-size` is `1`: the loss `kto` expects at least 2")
                .hint("its KL is estimated from completions behind other rows' prompts"));
        }
        Ok(())
    }

    /// A constant that is given and that no loss looks at.
    fn unread_constant(&self) -> Option<&'static str> {
        let (default, loss) = (Self::default(), &self.loss);
        let constants = [
            (
                "label-smoothing",
                self.label_smoothing != default.label_smoothing,
                loss.any(PairLoss::smooths_labels),
            ),
            (
                "simpo-gamma",
                self.simpo_gamma != default.simpo_gamma,
                loss.any(|loss| loss == PairLoss::Simpo),
            ),
            (
                "cpo-alpha",
                self.cpo_alpha != default.cpo_alpha,
                loss.any(|loss| loss == PairLoss::Cpo),
            ),
            (
                "discopop-tau",
                self.discopop_tau != default.discopop_tau,
                loss.any(|loss| loss == PairLoss::Discopop),
            ),
        ];
        let unread = constants.into_iter().find(|&(_, given, is_read)| given && !is_read);
        unread.map(|(name, ..)| name)
    }

    /// Refuses options that would silently do nothing, or contradict one another.
    fn fits_together(&self, train: &TrainConfig) -> Result<()> {
        let default = Self::default();
        let sync_options = [
            ("ref-model-mixup-alpha", self.ref_model_mixup_alpha != default.ref_model_mixup_alpha),
            ("ref-model-sync-steps", self.ref_model_sync_steps != default.ref_model_sync_steps),
        ];
        let of_reference = [
            ("ref-model", self.ref_model.is_some()),
            ("precompute-ref-log-probs", self.precompute_ref_log_probs),
            ("sync-ref-model", self.sync_ref_model),
        ];
        let of_kto = [
            ("desirable-weight", self.desirable_weight != default.desirable_weight),
            ("undesirable-weight", self.undesirable_weight != default.undesirable_weight),
        ];
        let given = |names: &[(&'static str, bool)]| {
            names.iter().find(|(_, given)| *given).map(|(name, _)| *name)
        };
        let is_unpaired = matches!(self.loss, Losses::Unpaired(_));
        let loss = format!("with the loss `{}`", self.loss);
        let refused = if let Some(name) = given(&of_reference)
            && !self.loss.needs_reference()
        {
            (name, loss.as_str(), "it compares with no reference: leave it out")
        } else if let Some(name) = given(&of_kto)
            && !is_unpaired
        {
            (name, loss.as_str(), "a pair has one of each: it is of `kto` and `apo_zero_unpaired`")
        } else if let Some(name) = self.unread_constant() {
            (name, loss.as_str(), "the loss does not look at it: leave it out")
        } else if self.ld_alpha.is_some() && is_unpaired {
            ("ld-alpha", loss.as_str(), "it compares the lengths of a pair: leave it out")
        } else if let Some(name) = given(&sync_options)
            && !self.sync_ref_model
        {
            (name, "without `sync-ref-model`", "give `--sync-ref-model`")
        } else if self.ref_log_probs.is_some() && !self.precompute_ref_log_probs {
            let hint = "give `--precompute-ref-log-probs`";
            ("ref-log-probs", "without `precompute-ref-log-probs`", hint)
        } else if self.sync_ref_model && self.precompute_ref_log_probs {
            let hint = "log-probs taken beforehand are of a reference that stays as it is";
            ("sync-ref-model", "with `precompute-ref-log-probs`", hint)
        } else if self.sync_ref_model && train.is_lora() {
            let hint =
                "the mean of two adapters' factors is not that of the models: train all weights";
            ("sync-ref-model", "with an adapter", hint)
        } else {
            return Ok(());
        };
        let (name, how, hint) = refused;
        Err(Error::config(format!("`{name}` is given {how}")).hint(hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(loss: &str) -> DpoOptions {
        DpoOptions { loss: loss.parse().unwrap(), ..DpoOptions::default() }
    }

    #[test]
    fn a_loss_with_an_nll_of_its_own_is_given_no_second_one() {
        for (loss, weight) in [
            ("sigmoid", 0.2),
            ("kto", 0.2),
            ("sigmoid:1,sft:0.2", 0.0),
            ("orpo", 0.0),
            ("cpo", 0.0),
        ] {
            assert_eq!(options(loss).nll_weight(), weight, "{loss}");
            let stated = DpoOptions { nll_weight: Some(0.5), ..options(loss) };
            assert_eq!(stated.nll_weight(), 0.5, "{loss}");
        }
    }

    #[test]
    fn a_constant_that_no_loss_looks_at_is_refused() {
        let train = DpoOptions::defaults();
        let smoothing = |options| DpoOptions { label_smoothing: 0.1, ..options };
        let gamma = |options| DpoOptions { simpo_gamma: 1.0, ..options };
        let alpha = |options| DpoOptions { cpo_alpha: 0.5, ..options };
        let tau = |options| DpoOptions { discopop_tau: 0.1, ..options };
        for (loss, given, refused) in [
            ("sigmoid", smoothing as fn(DpoOptions) -> DpoOptions, None),
            ("hinge,robust", smoothing, None),
            ("hinge", smoothing, Some("label-smoothing")),
            ("ipo", smoothing, Some("label-smoothing")),
            ("kto", smoothing, Some("label-smoothing")),
            ("simpo", gamma, None),
            ("sigmoid", gamma, Some("simpo-gamma")),
            ("cpo,sft", alpha, None),
            ("orpo", alpha, Some("cpo-alpha")),
            ("discopop", tau, None),
            ("sigmoid", tau, Some("discopop-tau")),
        ] {
            let told = given(options(loss)).validate(&train).map_err(|error| error.to_string());
            let expected = refused
                .map_or(Ok(()), |name| Err(format!("`{name}` is given with the loss `{loss}`")));
            assert_eq!(told, expected, "{loss}");
        }
    }
}
