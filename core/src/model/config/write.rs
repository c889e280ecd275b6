//! From `ModelConfig` to the `config.json` of an export.

use candle_core::DType;
use serde_json::{Map, Value, json};

use super::{Family, Head, ModelConfig, RopeScaling, keys};
use crate::{Error, Result};

impl ModelConfig {
    /// The `config.json` of an export with weights of `dtype`: the file as it was read where it
    /// still describes this model, else one made from the fields (the keys that decide nothing
    /// are kept).
    ///
    /// # Errors
    /// A combination that no `config.json` of the family can express, or a `dtype` that is not
    /// f32, f16 or bf16.
    pub fn to_json(&self, dtype: DType) -> Result<Map<String, Value>> {
        let name = match dtype {
            DType::F32 => "float32",
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            other => {
                return Err(Error::model(format!(
                    "cannot export weights as `{}`: expected f32, f16 or bf16",
                    other.as_str()
                )));
            }
        };
        let mut map = self.raw.clone();
        if self.head == Head::Score && !map.is_empty() {
            map.extend(self.score_keys());
        }
        if map.is_empty() || !self.is_described_by(&map) {
            map = self.made_from_fields();
            let kept = |key: &str| keys::HARMLESS.contains(&key) && !map.contains_key(key);
            let harmless: Map<String, Value> = (self.raw.iter())
                .filter(|(key, _)| kept(key))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            map.extend(harmless);
            if !self.is_described_by(&map) {
                return Err(Error::model(format!(
                    "a `{}` configuration cannot express this model",
                    self.family.model_type()
                )));
            }
        }
        // `torch_dtype` is what every version reads; newer files say `dtype`.
        let key = if map.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        if key == "dtype" {
            map.shift_remove("torch_dtype");
        }
        map.insert(key.into(), name.into());
        Ok(map)
    }

    fn is_described_by(&self, map: &Map<String, Value>) -> bool {
        match Self::from_json(&Value::Object(map.clone()), "config.json") {
            Ok(mut read) => {
                read.raw.clone_from(&self.raw);
                read == *self
            }
            Err(_) => false,
        }
    }

    /// What makes a reward model of a `config.json`.
    fn score_keys(&self) -> Map<String, Value> {
        let mut map = Map::new();
        let name = self.family.architecture(Head::Score);
        map.insert("architectures".into(), json!([name]));
        map.insert("id2label".into(), json!({ "0": "LABEL_0" }));
        map.insert("label2id".into(), json!({ "LABEL_0": 0 }));
        map.insert("pad_token_id".into(), json!(self.pad_token_id));
        map
    }

    fn made_from_fields(&self) -> Map<String, Value> {
        let mut map = Map::new();
        let mut set = |key: &str, value: Value| {
            map.insert(key.into(), value);
        };
        set("architectures", json!([self.family.architecture(self.head)]));
        set("model_type", self.family.model_type().into());
        set("vocab_size", self.vocab_size.into());
        set("hidden_size", self.hidden_size.into());
        set("intermediate_size", self.intermediate_size.into());
        set("num_hidden_layers", self.num_hidden_layers.into());
        set("num_attention_heads", self.num_attention_heads.into());
        set("num_key_value_heads", self.num_key_value_heads.into());
        set("head_dim", self.head_dim.into());
        set("hidden_act", "silu".into());
        set("max_position_embeddings", self.max_position_embeddings.into());
        set("rms_norm_eps", self.rms_norm_eps.into());
        set("rope_theta", self.rope_theta.into());
        set("rope_scaling", rope_scaling(self.rope_scaling));
        set("tie_word_embeddings", self.tie_word_embeddings.into());
        set("attention_dropout", 0.0.into());
        set("use_cache", true.into());
        if matches!(self.family, Family::Llama | Family::Qwen3) {
            set("attention_bias", self.qkv_bias.into());
        }
        if self.family == Family::Llama {
            set("mlp_bias", self.mlp_bias.into());
        }
        let window = self.sliding_window.iter().flatten().next().copied();
        if self.family == Family::Mistral {
            set("sliding_window", json!(window));
        }
        if matches!(self.family, Family::Qwen2 | Family::Qwen3) {
            let first = self.sliding_window.iter().position(Option::is_some);
            set("use_sliding_window", window.is_some().into());
            set("sliding_window", json!(window));
            set("max_window_layers", first.unwrap_or(self.num_hidden_layers).into());
            let name = |w: &Option<usize>| match w {
                Some(_) => "sliding_attention",
                None => "full_attention",
            };
            set("layer_types", self.sliding_window.iter().map(name).collect());
        }
        set("bos_token_id", json!(self.bos_token_id));
        let eos = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        };
        set("eos_token_id", eos);
        set("pad_token_id", json!(self.pad_token_id));
        if self.head == Head::Score {
            map.extend(self.score_keys());
        }
        map
    }
}

fn rope_scaling(scaling: RopeScaling) -> Value {
    match scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
    }
}
