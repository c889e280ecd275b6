//! What distillation adds to the configuration of a run.

use std::path::PathBuf;

use halter_core::ops::divergence::{Comparison, Divergence};
use halter_core::text::encode::Overlong;
use halter_core::text::mask::MaskPolicy;
use halter_core::train::config::{Config, MethodOptions, TrainConfig};
use halter_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::cross::CrossTokenizer;
use crate::inside::{InsideDistance, LayerMap};

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
    /// How a teacher that reads other tokens is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cross_tokenizer: Option<CrossTokenizer>,
    /// Weight of the distance between the models' streams behind the blocks of the layer map.
    pub hidden_weight: f64,
    /// Weight of the distance between what attention adds to the streams there.
    pub attention_weight: f64,
    /// How far such values are apart.
    pub hidden_distance: InsideDistance,
    /// Which blocks are compared; all of the student's, evenly, where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer_map: Option<LayerMap>,
    /// Share of the rows whose completion the student writes itself in the step.
    pub on_policy_fraction: f64,
    /// The teacher writes the completions of the other rows.
    pub teacher_completions: bool,
    /// Of completions that are written.
    pub sampling_temperature: f64,
    /// Most tokens of a completion that is written.
    pub max_completion_tokens: usize,
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
    /// KL of the student's whole completions from the teacher: reverse KL at every token, and what
    /// the token led to.
    Minillm,
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
            cross_tokenizer: None,
            hidden_weight: 0.0,
            attention_weight: 0.0,
            hidden_distance: InsideDistance::default(),
            layer_map: None,
            on_policy_fraction: 0.0,
            teacher_completions: false,
            sampling_temperature: 1.0,
            max_completion_tokens: 256,
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
            DivergenceKind::ReverseKl | DivergenceKind::Minillm => Divergence::ReverseKl,
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
        "cross_tokenizer",
        "hidden_weight",
        "attention_weight",
        "hidden_distance",
        "layer_map",
        "on_policy_fraction",
        "teacher_completions",
        "sampling_temperature",
        "max_completion_tokens",
        "mask",
        "train_on_trailing",
        "completion_only_loss",
    ];
    const BUNDLED: Option<(&'static str, &'static str)> = Some((
        include_str!("../../examples/recipes/bundled-distill.toml"),
        "examples/recipes/bundled-distill.toml",
    ));

    fn defaults() -> TrainConfig {
        TrainConfig { output: PathBuf::from("runs/distill"), ..TrainConfig::default() }
    }

    fn validate(&self, train: &TrainConfig) -> Result<()> {
        let checks = [
            ("temperature", self.temperature, self.temperature > 0.0, "above zero"),
            (
                "divergence-weight",
                self.divergence_weight,
                self.divergence_weight > 0.0,
                "above zero",
            ),
            ("ce-weight", self.ce_weight, self.ce_weight >= 0.0, "0 or more"),
            ("hidden-weight", self.hidden_weight, self.hidden_weight >= 0.0, "0 or more"),
            ("attention-weight", self.attention_weight, self.attention_weight >= 0.0, "0 or more"),
            ("beta", self.beta, self.beta > 0.0 && self.beta < 1.0, "between 0 and 1"),
            (
                "on-policy-fraction",
                self.on_policy_fraction,
                (0.0..=1.0).contains(&self.on_policy_fraction),
                "0 to 1",
            ),
            (
                "sampling-temperature",
                self.sampling_temperature,
                self.sampling_temperature >= 0.0,
                "0 or more",
            ),
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
        self.validate_inside()?;
        self.validate_written()?;
        self.validate_cross(train)
    }
}

impl DistillOptions {
    /// Whether completions are written while the student is trained.
    pub fn writes(&self) -> bool {
        self.on_policy_fraction > 0.0 || self.teacher_completions
    }

    /// Whether values inside the models are compared.
    pub fn looks_inside(&self) -> bool {
        self.hidden_weight > 0.0 || self.attention_weight > 0.0
    }

    fn validate_inside(&self) -> Result<()> {
        let usual = Self::default();
        for (name, is_usual) in [
            ("hidden-distance", self.hidden_distance == usual.hidden_distance),
            ("layer-map", self.layer_map.is_none()),
        ] {
            if !is_usual && !self.looks_inside() {
                return Err(Error::config(format!("`{name}` has no effect"))
                    .hint("it is of `--hidden-weight` and `--attention-weight`"));
            }
        }
        if self.looks_inside() && self.teacher_logps.is_some() {
            return Err(Error::config("a file knows nothing of what is inside its teacher")
                .hint("name the model with `--teacher` instead of `--teacher-logps`"));
        }
        Ok(())
    }

    fn validate_cross(&self, train: &TrainConfig) -> Result<()> {
        let Some(kind) = self.cross_tokenizer else { return Ok(()) };
        let usual = Self::default();
        let only_of_equal_tokens = [
            ("teacher-logps", self.teacher_logps.is_some()),
            ("teacher-top-k", self.teacher_top_k.is_some()),
            ("divergence", self.divergence != usual.divergence),
            ("hidden-weight", self.hidden_weight > 0.0),
            ("attention-weight", self.attention_weight > 0.0),
            ("on-policy-fraction", self.on_policy_fraction > 0.0),
            ("teacher-completions", self.teacher_completions),
        ];
        if let Some((name, _)) = only_of_equal_tokens.iter().find(|(_, given)| *given) {
            return Err(Error::config(format!("`{name}` beside `cross-tokenizer`"))
                .hint("it is of teachers that read the student's tokens"));
        }
        if train.overlong == Overlong::Split {
            return Err(Error::config("`overlong` is `split` beside `cross-tokenizer`")
                .hint("the models would cut at different places: give `truncate` or `drop`"));
        }
        if kind == CrossTokenizer::Uld && self.ce_weight == 0.0 {
            return Err(Error::config("`ce-weight` is `0` beside `cross-tokenizer uld`").hint(
                "sorted probabilities do not say which token is meant: give `--ce-weight 1`",
            ));
        }
        Ok(())
    }

    fn validate_written(&self) -> Result<()> {
        if self.max_completion_tokens == 0 {
            return Err(Error::config("`max-completion-tokens` is `0`: expected 1 or more"));
        }
        if self.writes() && self.teacher_logps.is_some() {
            return Err(Error::config("a file knows nothing of completions that are written now")
                .hint("name the model with `--teacher` instead of `--teacher-logps`"));
        }
        let usual = Self::default();
        for (name, is_usual) in [
            ("sampling-temperature", self.sampling_temperature == usual.sampling_temperature),
            ("max-completion-tokens", self.max_completion_tokens == usual.max_completion_tokens),
        ] {
            if !is_usual && !self.writes() {
                return Err(Error::config(format!("`{name}` has no effect"))
                    .hint("it is of `--on-policy-fraction` and `--teacher-completions`"));
            }
        }
        if self.divergence == DivergenceKind::Minillm {
            for (name, value) in [
                ("on-policy-fraction", self.on_policy_fraction),
                ("temperature", self.temperature),
                ("sampling-temperature", self.sampling_temperature),
            ] {
                if value != 1.0 {
                    let message = format!("`{name}` is `{value}`: expected 1");
                    return Err(Error::config(message).hint(
                        "`minillm` is the divergence of completions that the student draws",
                    ));
                }
            }
        }
        Ok(())
    }
}
