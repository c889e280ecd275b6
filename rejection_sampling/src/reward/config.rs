//! What reward modelling adds to the configuration of a run.

use std::path::PathBuf;

use halter_core::train::config::{Config, MethodOptions, TrainConfig};
use halter_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::strength::Strength;

/// The configuration of a run.
pub type RewardConfig = Config<RewardOptions>;

/// Its own keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardOptions {
    /// Weight of the term that draws scores towards a mean of zero.
    pub center_rewards_coefficient: f64,
    /// Rows whose `strength` is weaker are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_strength: Option<Strength>,
    /// Margin of a row that is `significantly better`; weaker ones have less. A row's own `margin`
    /// goes first.
    pub strength_margin: f64,
    /// Pairs of completions that are at least as alike as this are left out; see
    /// [`super::similarity`].
    pub max_similarity: f64,
}

impl Default for RewardOptions {
    fn default() -> Self {
        Self {
            center_rewards_coefficient: 0.0,
            min_strength: None,
            strength_margin: 0.0,
            max_similarity: 0.95,
        }
    }
}

impl MethodOptions for RewardOptions {
    const KEYS: &'static [&'static str] =
        &["center_rewards_coefficient", "min_strength", "strength_margin", "max_similarity"];
    const BUNDLED: Option<(&'static str, &'static str)> = Some((
        include_str!("../../../examples/recipes/bundled-reward.toml"),
        "examples/recipes/bundled-reward.toml",
    ));

    fn defaults() -> TrainConfig {
        TrainConfig {
            output: PathBuf::from("runs/reward"),
            learning_rate: 1e-5,
            ..TrainConfig::default()
        }
    }

    fn validate(&self, train: &TrainConfig) -> Result<()> {
        for (name, value) in [
            ("center-rewards-coefficient", self.center_rewards_coefficient),
            ("strength-margin", self.strength_margin),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::config(format!("`{name}` is `{value}`: expected 0 or more")));
            }
        }
        if !(self.max_similarity > 0.0 && self.max_similarity <= 1.0) {
            let message =
                format!("`max-similarity` is `{}`: expected in (0, 1]", self.max_similarity);
            return Err(Error::config(message));
        }
        if train.eval_generate > 0 {
            return Err(Error::config(
                "`eval-generate` is given, but a reward model writes nothing",
            )
            .hint("leave it out: held-out pairs are judged with `--eval-data` alone"));
        }
        Ok(())
    }
}
