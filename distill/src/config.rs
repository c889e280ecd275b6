//! What distillation adds to the configuration of a run.

use std::path::PathBuf;

use halter_core::ops::divergence::{Comparison, Divergence};
use halter_core::text::mask::MaskPolicy;
use halter_core::train::config::{Config, MethodOptions, TrainConfig};
use halter_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// The configuration of a run.
pub type DistillConfig = Config<DistillOptions>;

/// Its own keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistillOptions {
    /// The model that is learned from: directory, `.gguf` file or hub id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// What a teacher said before, instead of one: a file that [`crate::capture`] wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_logps: Option<PathBuf>,
    /// The distance from the teacher's distribution.
    pub divergence: DivergenceKind,
    /// Of `jsd`: the teacher's share in the mixture.
    pub beta: f64,
    /// Logits of both are divided by it before they are compared.
    pub temperature: f64,
    /// Weight of the divergence.
    pub divergence_weight: f64,
    /// Weight of the cross-entropy of the rows' own tokens.
    pub ce_weight: f64,
    /// Compare with so many of the teacher's likeliest tokens, and all others together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_top_k: Option<usize>,
    /// Which assistant turns are trained.
    pub mask: MaskPolicy,
    /// Train what the template puts after the end-of-turn token as well.
    pub train_on_trailing: bool,
    /// In prompt/completion rows, train the completion only.
    pub completion_only_loss: bool,
}

/// A [`Divergence`] by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DivergenceKind {
    /// Teacher from student; the mass of the teacher must be covered.
    #[default]
    ForwardKl,
    /// Student from teacher; the student keeps to what the teacher finds likely.
    ReverseKl,
    /// Generalised Jensen–Shannon.
    Jsd,
    /// Total variation.
    Tv,
}

impl Default for DistillOptions {
    fn default() -> Self {
        Self {
            teacher: None,
            teacher_logps: None,
            divergence: DivergenceKind::default(),
            beta: 0.5,
            temperature: 1.0,
            divergence_weight: 1.0,
            ce_weight: 0.0,
            teacher_top_k: None,
            mask: MaskPolicy::All,
            train_on_trailing: false,
            completion_only_loss: true,
        }
    }
}

impl DistillOptions {
    /// How student and teacher are compared.
    pub fn comparison(&self) -> Comparison {
        let divergence = match self.divergence {
            DivergenceKind::ForwardKl => Divergence::ForwardKl,
            DivergenceKind::ReverseKl => Divergence::ReverseKl,
            DivergenceKind::Jsd => Divergence::Jsd(self.beta as f32),
            DivergenceKind::Tv => Divergence::TotalVariation,
        };
        Comparison { divergence, temperature: self.temperature }
    }
}

impl MethodOptions for DistillOptions {
    const KEYS: &'static [&'static str] = &[
        "teacher",
        "teacher_logps",
        "divergence",
        "beta",
        "temperature",
        "divergence_weight",
        "ce_weight",
        "teacher_top_k",
        "mask",
        "train_on_trailing",
        "completion_only_loss",
    ];
    const BUNDLED: Option<(&'static str, &'static str)> = None;

    fn defaults() -> TrainConfig {
        TrainConfig { output: PathBuf::from("runs/distill"), ..TrainConfig::default() }
    }

    fn validate(&self, _train: &TrainConfig) -> Result<()> {
        let checks = [
            ("temperature", self.temperature, self.temperature > 0.0, "above zero"),
            (
                "divergence-weight",
                self.divergence_weight,
                self.divergence_weight > 0.0,
                "above zero",
            ),
            ("ce-weight", self.ce_weight, self.ce_weight >= 0.0, "0 or more"),
            ("beta", self.beta, self.beta > 0.0 && self.beta < 1.0, "between 0 and 1"),
        ];
        if let Some((name, value, _, expected)) =
            checks.into_iter().find(|&(_, value, fits, _)| !(fits && value.is_finite()))
        {
            return Err(Error::config(format!("`{name}` is `{value}`: expected {expected}")));
        }
        if self.divergence != DivergenceKind::Jsd && self.beta != Self::default().beta {
            return Err(Error::config("`beta` has no effect").hint("it is of `--divergence jsd`"));
        }
        if self.teacher_logps.is_some() && (self.teacher.is_some() || self.teacher_top_k.is_some())
        {
            return Err(Error::config("`teacher-logps` beside `teacher` or `teacher-top-k`")
                .hint("the file says both: give it alone"));
        }
        if self.teacher_top_k == Some(0) {
            return Err(Error::config("`teacher-top-k` is `0`: expected 1 or more"));
        }
        Ok(())
    }
}
