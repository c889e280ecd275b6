//! LoRA adapters in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::DType;
use serde_json::{Map, Value, json};

use super::export::{ParamData, SideFile, make_dir, remove_empty, sync_dir, write_json};
use super::safetensors_header::{self, short};
use super::stored::StoredTensor;
use super::text_files::{TextFiles, read_json};
use super::write_safetensors::{self, Pending};
use crate::model::config::{ModelConfig, ParamSpec};
use crate::{Error, Result};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";
/// PEFT's name for what a reward model does.
const SCORE_TASK: &str = "SEQ_CLS";

/// Keys that are read, and keys that say nothing about the computation.
const KNOWN: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "inference_mode",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// Which linear layers have factors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// All seven of each block (PEFT's `all-linear`; the head is not among them).
    AllLinear,
    /// Those whose path is, or ends in, one of these: `q_proj`, `layers.0.mlp.up_proj`, …
    Named(Vec<String>),
}

impl TargetModules {
    /// Those that an option names: none, or `all-linear` alone, are all.
    pub fn of(names: &[String]) -> Self {
        match names {
            [] => Self::AllLinear,
            [all] if all == "all-linear" => Self::AllLinear,
            names => Self::Named(names.to_vec()),
        }
    }
}

/// What decides the computation of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Inner dimension.
    pub rank: usize,
    /// The product is scaled by `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA.
    pub alpha: f64,
    /// Which layers.
    pub target_modules: TargetModules,
    /// Rank-stabilised scaling (Kalajdzievski 2023, <https://arxiv.org/abs/2312.03732>).
    pub use_rslora: bool,
    /// Probability that an input of A is dropped in training.
    pub dropout: f64,
    /// The model it belongs to, as its user named it.
    pub base_model: Option<String>,
    /// That model's revision on the hub, where one was named.
    pub revision: Option<String>,
    /// Whether a reward model's value head is saved with it (PEFT's `modules_to_save`).
    pub with_score: bool,
}

impl Default for AdapterConfig {
    /// Rank 16, alpha 32 on all linear layers.
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            target_modules: TargetModules::AllLinear,
            use_rslora: false,
            dropout: 0.0,
            base_model: None,
            revision: None,
            with_score: false,
        }
    }
}

impl AdapterConfig {
    /// By what the product of the factors is multiplied.
    pub fn scaling(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// The linear layers of a model that have factors: path (`model.layers.0.self_attn.q_proj`),
    /// outputs and inputs.
    ///
    /// # Errors
    /// A target that the model does not have.
    pub fn modules(&self, model: &ModelConfig) -> Result<Vec<(String, usize, usize)>> {
        let linear = linear_modules(model);
        let TargetModules::Named(names) = &self.target_modules else { return Ok(linear) };
        let is = |path: &str, name: &str| {
            path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if let Some(name) =
            names.iter().find(|name| !linear.iter().any(|(path, ..)| is(path, name)))
        {
            return Err(Error::model(format!(
                "target module `{}` is none of the model's linear layers",
                short(name)
            ))
            .hint(
                "expected `all-linear`, or some of `q_proj`, `k_proj`, `v_proj`, `o_proj`, \
                 `gate_proj`, `up_proj`, `down_proj`",
            ));
        }
        Ok(linear.into_iter().filter(|(path, ..)| names.iter().any(|n| is(path, n))).collect())
    }

    /// Reads the contents of an `adapter_config.json`; `path` is for the messages.
    ///
    /// # Errors
    /// Another kind of adapter, or a setting that is not implemented; it is named.
    pub fn from_json(value: &Value, path: &Path) -> Result<Self> {
        Self::parse(value).map_err(|e| e.in_file(path))
    }

    fn parse(value: &Value) -> Result<Self> {
        let Value::Object(map) = value else {
            return Err(Error::model("expected a JSON object"));
        };
        refuse_unknown(map)?;
        let wrong = |key: &str, expected: &str| {
            let got =
                map.get(key).map_or("missing".into(), |v| format!("`{}`", short(&v.to_string())));
            Error::model(format!("`{key}` is {got}: expected {expected}"))
        };
        let flag = |key: &str| match map.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(wrong(key, "`true` or `false`")),
        };
        let rank = map.get("r").and_then(Value::as_u64).filter(|r| (1..=65_536).contains(r));
        let rank = rank.ok_or_else(|| wrong("r", "a whole number from 1 to 65536"))? as usize;
        let alpha = map.get("lora_alpha").and_then(Value::as_f64).filter(|a| a.is_finite());
        let dropout = match map.get("lora_dropout") {
            None | Some(Value::Null) => Some(0.0),
            Some(value) => value.as_f64().filter(|p| (0.0..1.0).contains(p)),
        };
        let target_modules = match map.get("target_modules") {
            Some(Value::String(all)) if all == "all-linear" => TargetModules::AllLinear,
            Some(Value::String(pattern)) => {
                return Err(Error::model(format!(
                    "`target_modules` is the pattern `{}`: expected `all-linear` or a list of names",
                    short(pattern)
                ))
                .hint("list the modules that it matches"));
            }
            Some(Value::Array(names)) if !names.is_empty() => TargetModules::Named(
                names
                    .iter()
                    .map(|name| name.as_str().map(str::to_string))
                    .collect::<Option<_>>()
                    .ok_or_else(|| wrong("target_modules", "a list of names"))?,
            ),
            _ => return Err(wrong("target_modules", "`all-linear` or a list of names")),
        };
        let text = |key: &str| map.get(key).and_then(Value::as_str).map(str::to_string);
        Ok(Self {
            rank,
            alpha: alpha.ok_or_else(|| wrong("lora_alpha", "a number"))?,
            target_modules,
            use_rslora: flag("use_rslora")?,
            dropout: dropout.ok_or_else(|| wrong("lora_dropout", "a number from 0 up to 1"))?,
            base_model: text("base_model_name_or_path"),
            revision: text("revision"),
            with_score: map.get("task_type").is_some_and(|task| task == SCORE_TASK),
        })
    }

    /// The `adapter_config.json` of this adapter, as PEFT reads it.
    pub fn to_json(&self) -> Value {
        let modules = match &self.target_modules {
            TargetModules::AllLinear => json!("all-linear"),
            TargetModules::Named(names) => json!(names),
        };
        json!({
            "alpha_pattern": {},
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "modules_to_save": self.with_score.then_some(["score"]),
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": {},
            "revision": self.revision,
            "target_modules": modules,
            "task_type": if self.with_score { SCORE_TASK } else { "CAUSAL_LM" },
            "use_dora": false,
            "use_rslora": self.use_rslora,
        })
    }
}

/// All linear layers of the blocks: path, outputs, inputs.
pub fn linear_modules(model: &ModelConfig) -> Vec<(String, usize, usize)> {
    model
        .params()
        .into_iter()
        .filter_map(|param| match (param.name.strip_suffix("_proj.weight"), &*param.shape) {
            (Some(path), &[out, input]) => Some((format!("{path}_proj"), out, input)),
            _ => None,
        })
        .collect()
}

fn refuse_unknown(map: &Map<String, Value>) -> Result<()> {
    let expect = |key: &str, fine: &dyn Fn(&Value) -> bool, expected: &str| match map.get(key) {
        Some(value) if !value.is_null() && !fine(value) => Err(Error::model(format!(
            "`{key}` is `{}`: only {expected} is supported",
            short(&value.to_string())
        ))),
        _ => Ok(()),
    };
    if map.get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return Err(Error::model(format!(
            "`peft_type` is {}: expected `LORA`",
            map.get("peft_type").map_or("missing".into(), |v| format!("`{v}`"))
        )));
    }
    expect("bias", &|v| v == "none", "`none`")?;
    expect("task_type", &|v| v == "CAUSAL_LM" || v == SCORE_TASK, "`CAUSAL_LM` or `SEQ_CLS`")?;
    let is_score = map.get("task_type").is_some_and(|task| task == SCORE_TASK);
    // PEFT notes both names that a classifier's head may have.
    let heads = |v: &Value| {
        let is_head = |name: &Value| name == "score" || name == "classifier";
        is_score && v.as_array().is_some_and(|names| names.iter().all(is_head))
    };
    // The others change the base's weights when an adapter is loaded.
    expect("init_lora_weights", &|v| v.is_boolean() || v == "gaussian", "`true` or `gaussian`")?;
    for (key, value) in map {
        let empty = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(items) => items.is_empty(),
            _ => false,
        };
        if empty || KNOWN.contains(&key.as_str()) || (key == "modules_to_save" && heads(value)) {
            continue;
        }
        let error = Error::model(format!(
            "`{}` ({}) would change the computation and is not supported",
            short(key),
            short(&value.to_string())
        ));
        return Err(match key.as_str() {
            "modules_to_save" => error.hint("merge the adapter into its base with PEFT first"),
            _ => error.hint("if the key changes nothing, remove it from the file"),
        });
    }
    Ok(())
}

/// The factors of one linear layer: `y += scaling · B (A x)`.
#[derive(Debug, Clone)]
pub struct LoraFactors {
    /// `(rank, in)`.
    pub a: StoredTensor,
    /// `(out, rank)`.
    pub b: StoredTensor,
}

/// An adapter as PEFT saved it.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Its settings.
    pub config: AdapterConfig,
    /// Factors by the path of their layer, e.g. `model.layers.0.self_attn.q_proj`.
    pub factors: BTreeMap<String, LoraFactors>,
    /// A reward model's value head, `(1, hidden)`.
    pub score: Option<StoredTensor>,
    /// Tokenizer, template and generation settings that are saved beside it.
    pub side_files: Vec<SideFile>,
}

impl Adapter {
    /// Opens an adapter's directory and checks it against the model.
    ///
    /// # Errors
    /// Missing files, unsupported settings, factors that are missing, unknown or do not fit.
    pub fn open(dir: impl AsRef<Path>, model: &ModelConfig) -> Result<Self> {
        let dir = dir.as_ref();
        let config_path = dir.join(CONFIG);
        let value = read_json(&config_path)?
            .ok_or_else(|| Error::model(format!("not an adapter: no `{CONFIG}`")).in_file(dir))?;
        let config = AdapterConfig::from_json(&value, &config_path)?;
        let path = dir.join(WEIGHTS);
        if !path.exists() {
            let error = Error::model(format!("no `{WEIGHTS}`")).in_file(dir);
            return Err(match dir.join("adapter_model.bin").exists() {
                true => error.hint("pickled weights are not read: save them as safetensors"),
                false => error,
            });
        }
        let mut stored: BTreeMap<String, StoredTensor> = safetensors_header::open(&path)?
            .into_iter()
            .map(|tensor| (tensor.name().to_string(), tensor))
            .collect();
        let modules = config.modules(model).map_err(|e| e.in_file(&config_path))?;
        let mut factors = BTreeMap::new();
        let mut take = |spec: &ParamSpec| {
            let tensor = stored.remove(&spec.name).ok_or_else(|| {
                Error::model(format!("`{}` is missing", spec.name)).in_file(&path)
            })?;
            if tensor.shape() != spec.shape {
                return Err(Error::model(format!(
                    "`{}` has the shape {:?}: expected {:?} from the model and rank {}",
                    spec.name,
                    tensor.shape(),
                    spec.shape,
                    config.rank
                ))
                .in_file(&path));
            }
            Ok(tensor)
        };
        let score = match config.with_score {
            true => Some(take(&score_spec(model))?),
            false => None,
        };
        for (module, out, input) in modules {
            let [a, b] = specs(&module, out, input, config.rank);
            factors.insert(module, LoraFactors { a: take(&a)?, b: take(&b)? });
        }
        if let Some(name) = stored.keys().next() {
            return Err(Error::model(format!(
                "{} tensors belong to no target module, the first is `{}`",
                stored.len(),
                short(name)
            ))
            .in_file(&path));
        }
        Ok(Self { config, factors, score, side_files: TextFiles::templates_of(dir)?.side_files })
    }
}

/// Names and shapes of the two factors, as PEFT names them.
fn specs(module: &str, out: usize, input: usize, rank: usize) -> [ParamSpec; 2] {
    let name = |factor: &str| format!("{PREFIX}{module}.{factor}.weight");
    [
        ParamSpec { name: name("lora_A"), shape: vec![rank, input] },
        ParamSpec { name: name("lora_B"), shape: vec![out, rank] },
    ]
}

fn score_spec(model: &ModelConfig) -> ParamSpec {
    ParamSpec { name: format!("{PREFIX}score.weight"), shape: vec![1, model.hidden_size] }
}

/// Which part of a module is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `(rank, in)`.
    A,
    /// `(out, rank)`.
    B,
    /// All of it: a reward model's value head, `(1, hidden)`.
    Whole,
}

/// Writes an adapter into `dir`, which is made if need be. `get` is asked for both factors of
/// each targeted layer by the layer's path, and for the value head where it belongs to the adapter. As with a model's export, the files appear whole.
///
/// # Errors
/// A target that the model does not have, a directory that cannot be written, factors of the wrong
/// shape or with values that are not finite. Nothing of a failed adapter remains.
pub fn write_adapter(
    dir: impl AsRef<Path>,
    config: &AdapterConfig,
    model: &ModelConfig,
    dtype: DType,
    mut get: impl FnMut(&str, Part) -> Result<ParamData>,
) -> Result<Vec<PathBuf>> {
    let dir = dir.as_ref();
    let mut params = Vec::new();
    let mut asked = BTreeMap::new();
    for (module, out, input) in config.modules(model)? {
        for (spec, part) in
            specs(&module, out, input, config.rank).into_iter().zip([Part::A, Part::B])
        {
            asked.insert(spec.name.clone(), (module.clone(), part));
            params.push(spec);
        }
    }
    if config.with_score {
        let spec = score_spec(model);
        asked.insert(spec.name.clone(), ("score".to_string(), Part::Whole));
        params.push(spec);
    }
    let mut by_name = |spec: &ParamSpec| match asked.get(&spec.name) {
        Some((module, part)) => get(module, *part),
        None => Err(Error::model(format!("unknown factor `{}`", spec.name))),
    };
    let new_dir = make_dir(dir)?;
    let mut write = || -> Result<Vec<PathBuf>> {
        let config = write_json(&dir.join(CONFIG), &config.to_json())?;
        let path = dir.join(WEIGHTS);
        let weights = Pending::fill(&path, |out| {
            write_safetensors::write(out, &path, &params, dtype, &mut by_name)
        })?;
        let files = vec![weights.keep()?, config.keep()?];
        sync_dir(dir)?;
        Ok(files)
    };
    let written = write();
    if written.is_err() {
        remove_empty(new_dir.as_deref(), dir);
    }
    written
}
