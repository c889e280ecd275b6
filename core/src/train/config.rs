//! Everything that decides a run: what all methods share, and a method's own keys beside it.

use std::path::{Path, PathBuf};

use crate::model::weights::adapter::{AdapterConfig, TargetModules};
use crate::text::encode::{EncodeOptions, Overlong};
use crate::train::optimizer::{AdamWConfig, Optim};
use crate::train::schedule::Decay;
use crate::train::source::SourceSpec;
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::de::DeTable;

/// A method's own keys.
pub trait MethodOptions: Clone + Default + Serialize + DeserializeOwned {
    /// Their names.
    const KEYS: &'static [&'static str];
    /// The recipe of a run without model and data, and its path.
    const BUNDLED: Option<(&'static str, &'static str)>;

    /// What a method does not share with [`TrainConfig::default`].
    fn defaults() -> TrainConfig;

    /// Checks every value that can be checked without looking at a file.
    ///
    /// # Errors
    /// Names the first value that cannot be used.
    fn validate(&self, train: &TrainConfig) -> Result<()>;
}

/// The configuration of a run; `config.toml` in its directory.
#[derive(Debug, Clone, PartialEq)]
pub struct Config<O> {
    /// What all methods share.
    pub train: TrainConfig,
    /// The method's own.
    pub method: O,
}

impl<O: MethodOptions> Default for Config<O> {
    fn default() -> Self {
        Self { train: O::defaults(), method: O::default() }
    }
}

impl<O: MethodOptions> Config<O> {
    /// The bundled model on the bundled data, where the method has such a recipe; else the defaults.
    ///
    /// # Errors
    /// Never: the recipe is part of the program.
    pub fn bundled() -> Result<Self> {
        match O::BUNDLED {
            Some((text, path)) => Self::from_toml(text, Path::new(path)),
            None => Ok(Self::default()),
        }
    }

    /// Reads a configuration; keys it does not know are refused.
    ///
    /// # Errors
    /// Text that is not TOML, an unknown key, a value of the wrong type.
    pub fn from_toml(text: &str, path: &Path) -> Result<Self> {
        let told = |error: toml::de::Error| {
            let Some(before) = error.span().and_then(|span| text.get(..span.start)) else {
                return Error::config(error.message().replace('\n', " ")).in_file(path);
            };
            let line = before.matches('\n').count();
            let told = tell(error.message(), text.lines().nth(line).unwrap_or_default(), O::KEYS);
            told.at(path, line + 1)
        };
        let (shared, own) = split::<O>(text).map_err(told)?;
        // Read as it stands first, for errors that name a line; then over the method's defaults.
        toml::from_str::<TrainConfig>(&shared).map_err(told)?;
        let method = toml::from_str(&own).map_err(told)?;
        let mut table = toml::Table::try_from(O::defaults()).map_err(unwritable)?;
        table.extend(shared.parse::<toml::Table>().map_err(told)?);
        Ok(Self { train: table.try_into().map_err(told)?, method })
    }

    /// The configuration as `config.toml`.
    ///
    /// # Errors
    /// Never for values that [`Self::validate`] lets pass.
    pub fn to_toml(&self) -> Result<String> {
        let own = toml::to_string(&self.method).map_err(unwritable)?;
        Ok(toml::to_string(&self.train).map_err(unwritable)? + &own)
    }

    /// Checks every value that can be checked without looking at a file.
    ///
    /// # Errors
    /// Names the first value that cannot be used.
    pub fn validate(&self) -> Result<()> {
        self.train.validate()?;
        self.method.validate(&self.train)
    }
}

fn unwritable(error: toml::ser::Error) -> Error {
    Error::config("the configuration cannot be written").because(error)
}

/// The text without the method's keys, and with these alone; every line stays where it is.
fn split<O: MethodOptions>(text: &str) -> std::result::Result<(String, String), toml::de::Error> {
    let table = DeTable::parse(text)?;
    let blank = |unwanted: &dyn Fn(&str) -> bool| {
        let mut kept = text.as_bytes().to_vec();
        for (key, value) in table.get_ref() {
            if unwanted(key.get_ref()) {
                let letters = &mut kept[key.span().start..value.span().end];
                letters.iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
            }
        }
        String::from_utf8_lossy(&kept).into_owned()
    };
    let is_own = |key: &str| O::KEYS.contains(&key);
    Ok((blank(&|key| is_own(key)), blank(&|key| !is_own(key))))
}

/// What all methods share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Model: directory, `.gguf` file, hub id, or `bundled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Revision on the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// A `config.json` for fresh weights instead of a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
    /// Directory of a tokenizer, or its `tokenizer.json`: needed with `init_from`, else instead of
    /// the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// A chat template (Jinja) instead of the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<PathBuf>,
    /// A PEFT adapter to go on from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// Data sets, `PATH[:weight]`.
    pub data: Vec<String>,
    /// Format of the rows; detected where it is not stated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Columns under other names, as `prompt=question`.
    pub column: Vec<String>,
    /// Data sets of the evaluation.
    pub eval_data: Vec<String>,
    /// Evaluate after this many steps; 0: before and after training only.
    pub eval_every: u64,
    /// Rows of the evaluation data that are answered (greedily) before and after training.
    pub eval_generate: usize,
    /// Most tokens of such an answer.
    pub max_new_tokens: usize,
    /// Run directory.
    pub output: PathBuf,
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Seed of the order of the data, of fresh weights and of dropout.
    pub seed: u64,

    /// Steps in all; from `epochs` where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Passes over the data.
    pub epochs: f64,
    /// Rows of one step.
    pub batch_size: usize,
    /// Most tokens that go through the model at once; chosen from the model's size where 0.
    pub microbatch_tokens: usize,
    /// Most tokens of a row.
    pub max_seq_len: usize,
    /// What becomes of longer rows.
    pub overlong: Overlong,
    /// Let special tokens that stand as text in a conversation become special tokens.
    pub allow_special_text: bool,
    /// Shuffle the rows of every epoch.
    pub shuffle: bool,

    /// Learning rate at its peak.
    pub learning_rate: f64,
    /// Decay of the learning rate.
    pub schedule: Decay,
    /// Share of the steps that warm up.
    pub warmup_ratio: f64,
    /// AdamW's decay of the first moment.
    pub adam_beta1: f64,
    /// AdamW's decay of the second moment.
    pub adam_beta2: f64,
    /// AdamW's epsilon.
    pub adam_epsilon: f64,
    /// Decay of the weights' matrices.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm; 0: never.
    pub max_grad_norm: f64,
    /// How AdamW keeps its moments.
    pub optim: Optim,
    /// Update every parameter as soon as backward has its gradient, which is then forgotten.
    pub optimizer_in_backward: bool,

    /// Rank of LoRA; 0 trains all weights.
    pub lora_rank: usize,
    /// LoRA's alpha.
    pub lora_alpha: f64,
    /// Matrices that get an adapter; all linear layers where empty.
    pub lora_target: Vec<String>,
    /// Dropout of LoRA's input.
    pub lora_dropout: f64,
    /// Scale by the root of the rank.
    pub use_rslora: bool,

    /// Blocks that keep their activations rather than computing them again; the planner's choice
    /// where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_blocks: Option<usize>,
    /// Save a checkpoint after this many steps; 0: at the end and when interrupted only.
    pub save_every: u64,
    /// Newest checkpoints that are kept; 0: all.
    pub keep_checkpoints: usize,
    /// Type of the exported weights: `f32`, `bf16` or `f16`.
    pub export_dtype: String,
}

impl Default for TrainConfig {
    fn default() -> Self {
        let adam = AdamWConfig::default();
        Self {
            model: None,
            revision: None,
            init_from: None,
            tokenizer: None,
            chat_template: None,
            adapter: None,
            data: Vec::new(),
            format: None,
            column: Vec::new(),
            eval_data: Vec::new(),
            eval_every: 0,
            eval_generate: 0,
            max_new_tokens: 256,
            output: PathBuf::from("runs/train"),
            device: "cpu".into(),
            seed: 0,
            max_steps: None,
            epochs: 1.0,
            batch_size: 8,
            microbatch_tokens: 0,
            max_seq_len: 1024,
            overlong: Overlong::Refuse,
            allow_special_text: false,
            shuffle: true,
            learning_rate: 2e-5,
            schedule: Decay::Linear,
            warmup_ratio: 0.0,
            adam_beta1: adam.beta1,
            adam_beta2: adam.beta2,
            adam_epsilon: adam.eps,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            optim: Optim::AdamW,
            optimizer_in_backward: false,
            lora_rank: 0,
            lora_alpha: 32.0,
            lora_target: Vec::new(),
            lora_dropout: 0.0,
            use_rslora: false,
            keep_blocks: None,
            save_every: 0,
            keep_checkpoints: 2,
            export_dtype: "f32".into(),
        }
    }
}

impl TrainConfig {
    /// Checks every value that can be checked without looking at a file.
    ///
    /// # Errors
    /// Names the first value that cannot be used.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("batch-size", self.batch_size as f64),
            ("max-seq-len", self.max_seq_len as f64),
            ("max-new-tokens", self.max_new_tokens as f64),
            ("learning-rate", self.learning_rate),
            ("adam-epsilon", self.adam_epsilon),
        ];
        for (name, value) in positive {
            if !(value > 0.0 && value.is_finite()) {
                return Err(Error::config(format!("`{name}` is `{value}`: expected above zero")));
            }
        }
        if self.max_steps.is_none() && !(self.epochs > 0.0 && self.epochs.is_finite()) {
            let message = format!("`epochs` is `{}`: expected above zero", self.epochs);
            return Err(Error::config(message));
        }
        if self.max_steps == Some(0) {
            return Err(Error::config("`max-steps` is `0`: expected at least 1"));
        }
        for (name, value) in [("adam-beta1", self.adam_beta1), ("adam-beta2", self.adam_beta2)] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::config(format!("`{name}` is `{value}`: expected in [0, 1)")));
            }
        }
        if !(0.0..=1.0).contains(&self.warmup_ratio) {
            let message = format!("`warmup-ratio` is `{}`: expected in [0, 1]", self.warmup_ratio);
            return Err(Error::config(message));
        }
        for (name, value) in
            [("weight-decay", self.weight_decay), ("max-grad-norm", self.max_grad_norm)]
        {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::config(format!(
                    "`{name}` is `{value}`: expected 0 or more, finite"
                )));
            }
        }
        if self.data.is_empty() {
            return Err(Error::config("no data: expected at least one `--data`"));
        }
        if self.adapter.is_some() && self.lora_rank > 0 {
            return Err(Error::config("both `adapter` and `lora-rank` are given")
                .hint("an adapter has its rank already; leave out `--lora-rank`"));
        }
        self.fits_together()?;
        if self.lora_rank > 0 {
            self.adapter_config().validate()?;
        }
        self.dtype().map(drop)
    }

    /// Refuses options that would silently do nothing.
    fn fits_together(&self) -> Result<()> {
        if self.init_from.is_some() && self.is_lora() {
            return Err(Error::config(
                "an adapter on fresh weights, which are not exported with it",
            )
            .hint("train all weights first: leave out `--lora-rank` and `--adapter`"));
        }
        let default = Self::default();
        let without_rank = [
            ("lora-alpha", self.lora_alpha != default.lora_alpha),
            ("lora-target", !self.lora_target.is_empty()),
            ("lora-dropout", self.lora_dropout != 0.0),
            ("use-rslora", self.use_rslora),
        ];
        let without_data =
            [("eval-every", self.eval_every > 0), ("eval-generate", self.eval_generate > 0)];
        let given = |names: &[(&'static str, bool)]| {
            names.iter().find(|(_, given)| *given).map(|(name, _)| *name)
        };
        let refused = match (given(&without_rank), given(&without_data)) {
            _ if self.optimizer_in_backward && self.max_grad_norm > 0.0 => Some((
                "optimizer-in-backward",
                "with `max-grad-norm`, a norm that is known after the last update only",
                "give `--max-grad-norm 0`",
            )),
            _ if self.optimizer_in_backward && self.microbatch_tokens > 0 => Some((
                "microbatch-tokens",
                "with `optimizer-in-backward`, where a step is one microbatch",
                "leave it out, and lower `--batch-size` instead",
            )),
            (Some(name), _) if self.adapter.is_some() => {
                Some((name, "with `adapter`, which says it already", "leave it out"))
            }
            (Some(name), _) if self.lora_rank == 0 => {
                Some((name, "without `lora-rank`", "give the rank with `--lora-rank`"))
            }
            (_, Some(name)) if self.eval_data.is_empty() => {
                Some((name, "without `eval-data`", "give held-out rows with `--eval-data`"))
            }
            _ if self.max_new_tokens != default.max_new_tokens && self.eval_generate == 0 => {
                let hint = "say how many prompts are answered with `--eval-generate`";
                Some(("max-new-tokens", "without `eval-generate`", hint))
            }
            _ if self.export_dtype != default.export_dtype && self.is_lora() => {
                Some(("export-dtype", "for an adapter, which is always f32", "give `f32`"))
            }
            _ if self.max_steps.is_some() && self.epochs != default.epochs => {
                Some(("epochs", "with `max-steps`", "leave out one of the two"))
            }
            _ => None,
        };
        match refused {
            Some((name, how, hint)) => {
                Err(Error::config(format!("`{name}` is given {how}")).hint(hint))
            }
            None => Ok(()),
        }
    }

    /// Type of the exported weights.
    ///
    /// # Errors
    /// An unknown name.
    pub fn dtype(&self) -> Result<candle_core::DType> {
        match self.export_dtype.as_str() {
            "f32" => Ok(candle_core::DType::F32),
            "bf16" => Ok(candle_core::DType::BF16),
            "f16" => Ok(candle_core::DType::F16),
            other => Err(Error::config(format!(
                "unknown `export-dtype` `{other}`: expected `f32`, `bf16` or `f16`"
            ))),
        }
    }

    /// How records become rows, as far as all methods share it.
    pub fn encode_options(&self) -> EncodeOptions {
        EncodeOptions {
            max_seq_len: Some(self.max_seq_len),
            overlong: self.overlong,
            allow_special_text: self.allow_special_text,
            ..EncodeOptions::default()
        }
    }

    /// The adapter of a run with `lora_rank` above zero.
    pub fn adapter_config(&self) -> AdapterConfig {
        AdapterConfig {
            rank: self.lora_rank,
            alpha: self.lora_alpha,
            target_modules: TargetModules::of(&self.lora_target),
            use_rslora: self.use_rslora,
            dropout: self.lora_dropout,
            base_model: self.model.clone(),
            revision: self.revision.clone(),
            with_score: false,
        }
    }

    /// Whether an adapter is trained rather than the weights.
    pub fn is_lora(&self) -> bool {
        self.lora_rank > 0 || self.adapter.is_some()
    }

    /// The optimizer's constants.
    pub fn adam(&self) -> AdamWConfig {
        AdamWConfig {
            beta1: self.adam_beta1,
            beta2: self.adam_beta2,
            eps: self.adam_epsilon,
            weight_decay: self.weight_decay,
        }
    }

    /// What the run starts from.
    pub fn source(&self) -> SourceSpec {
        SourceSpec {
            model: self.model.clone(),
            revision: self.revision.clone(),
            init_from: self.init_from.clone(),
            tokenizer: self.tokenizer.clone(),
            chat_template: self.chat_template.clone(),
            adapter: self.adapter.clone(),
            ..SourceSpec::default()
        }
    }
}

/// Serde's words about a line of the recipe in ours, with the key that it is about.
fn tell(message: &str, line: &str, own: &[&str]) -> Error {
    let key = line.split_once('=').map(|(key, _)| key.trim());
    if let Some(unknown) = message.strip_prefix("unknown field `") {
        let mut names = unknown.split('`').step_by(2);
        let unknown = names.next().unwrap_or_default();
        let names = names.chain(own.iter().copied());
        let nearest = names.min_by_key(|name| edits(unknown, name));
        let error = Error::config(format!("no key is called `{unknown}`"));
        let near = |name: &&str| edits(unknown, name) <= name.len() / 3;
        return match nearest.filter(near) {
            Some(name) => error.hint(format!("did you mean `{name}`?")),
            None => error
                .hint("keys are the options that the command's `--help` lists, with `_` for `-`"),
        };
    }
    let message = message
        .replace('\n', " ")
        .replace("expected usize", "expected a whole number, 0 or more")
        .replace("expected u64", "expected a whole number, 0 or more")
        .replace("expected f64", "expected a number")
        .replace("unknown variant", "unknown value");
    match key {
        Some(key) if message.contains("expected") && !message.starts_with("key") => {
            Error::config(format!("`{key}`: {message}"))
        }
        _ => Error::config(message),
    }
}

/// Levenshtein's distance: letters to add, take away or change.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
