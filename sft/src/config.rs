//! What supervised fine-tuning adds to the configuration of a run.

use std::path::PathBuf;

use halter_core::Result;
use halter_core::text::mask::MaskPolicy;
use halter_core::train::config::{Config, MethodOptions, TrainConfig};
use serde::{Deserialize, Serialize};

/// The configuration of a run.
pub type SftConfig = Config<SftOptions>;

/// Its own keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SftOptions {
    /// Which assistant turns are trained.
    pub mask: MaskPolicy,
    /// Train what the template puts after the end-of-turn token as well.
    pub train_on_trailing: bool,
    /// In prompt/completion rows, train the completion only.
    pub completion_only_loss: bool,
}

impl Default for SftOptions {
    fn default() -> Self {
        Self { mask: MaskPolicy::All, train_on_trailing: false, completion_only_loss: true }
    }
}

impl MethodOptions for SftOptions {
    const KEYS: &'static [&'static str] = &["mask", "train_on_trailing", "completion_only_loss"];
    const BUNDLED: Option<(&'static str, &'static str)> = Some((
        include_str!("../../examples/recipes/bundled-sft.toml"),
        "examples/recipes/bundled-sft.toml",
    ));

    fn defaults() -> TrainConfig {
        TrainConfig { output: PathBuf::from("runs/sft"), ..TrainConfig::default() }
    }

    fn validate(&self, _train: &TrainConfig) -> Result<()> {
        Ok(())
    }
}
