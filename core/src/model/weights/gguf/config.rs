//! The model's configuration from GGUF metadata.

use candle_core::DType;
use serde_json::Map;

use super::{Gguf, MetaValue, rope};
use crate::Result;
use crate::model::config::{Family, Head, ModelConfig};

/// Keys under the architecture that say nothing about the computation, or are read below.
const KNOWN: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "vocab_size",
];

impl Gguf {
    /// The configuration that the metadata describes.
    ///
    /// # Errors
    /// An architecture that is not `llama`, `qwen2` or `qwen3`, a key that is missing or cannot
    /// be used, or one whose value would change the computation.
    pub fn model_config(&self) -> Result<ModelConfig> {
        let arch = self
            .string("general.architecture")?
            .ok_or_else(|| self.error("`general.architecture` is missing"))?;
        let window = self.unsigned(&format!("{arch}.attention.sliding_window"))?.filter(|&n| n > 0);
        let family = match arch {
            // Mistral's files call themselves llama; a window tells them apart, and matters.
            "llama" if window.is_some() => Family::Mistral,
            "llama" => Family::Llama,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            other => {
                return Err(self.error(format!(
                    "unknown architecture `{other}`: expected `llama`, `qwen2` or `qwen3`"
                )));
            }
        };
        self.refuse_unknown(arch)?;
        let hidden_size = self.size(arch, "embedding_length")?;
        let layers = self.size(arch, "block_count")?;
        // Before anything is made for each of them.
        if layers > self.tensors().len() {
            return Err(self.error(format!(
                "`{arch}.block_count` is {layers}, but the file has only {} tensors",
                self.tensors().len()
            )));
        }
        let heads = self.size(arch, "attention.head_count")?;
        let kv_heads = self.optional_size(arch, "attention.head_count_kv")?.unwrap_or(heads);
        let head_dim = self.head_dim(arch, hidden_size, heads)?;
        let rope_theta = self.number(&format!("{arch}.rope.freq_base"))?.unwrap_or(10_000.0);
        let (qkv_bias, o_bias, mlp_bias) = self.biases(family)?;
        let embedding = self
            .tensor("token_embd.weight")
            .ok_or_else(|| self.error("the tensor `token_embd.weight` is missing"))?;
        let eps = format!("{arch}.attention.layer_norm_rms_epsilon");
        let mut config = ModelConfig {
            family,
            head: Head::Language,
            vocab_size: embedding.shape.first().copied().unwrap_or_default(),
            hidden_size,
            intermediate_size: self.size(arch, "feed_forward_length")?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            // Stored as f32: the nearest short decimal is what was meant (1e-5, not 9.99…e-6).
            rms_norm_eps: self
                .number(&eps)?
                .map(shortest)
                .ok_or_else(|| self.error(format!("`{eps}` is missing")))?,
            rope_theta: shortest(rope_theta),
            rope_scaling: rope::read(self, arch, head_dim, rope_theta)?,
            max_position_embeddings: self.optional_size(arch, "context_length")?.unwrap_or(2048),
            tie_word_embeddings: self.tensor("output.weight").is_none(),
            qkv_bias,
            o_bias,
            mlp_bias,
            qk_norm: family == Family::Qwen3,
            sliding_window: vec![window.and_then(|n| usize::try_from(n).ok()); layers],
            bos_token_id: self.token("bos")?,
            eos_token_ids: self.ends()?,
            pad_token_id: self.token("padding")?,
            raw: Map::new(),
        };
        config.check().map_err(|e| self.place(e))?;
        config.raw = config.to_json(DType::F32).map_err(|e| self.place(e))?;
        config.raw.shift_remove("torch_dtype");
        Ok(config)
    }

    fn refuse_unknown(&self, arch: &str) -> Result<()> {
        for key in self.keys() {
            let Some(name) = key.strip_prefix(arch).and_then(|rest| rest.strip_prefix('.')) else {
                continue;
            };
            let neutral = match self.value(key) {
                Some(MetaValue::Unsigned(0) | MetaValue::Bool(false)) => true,
                Some(MetaValue::Float(number)) => *number == 0.0,
                _ => false,
            };
            if !neutral && !KNOWN.contains(&name) {
                return Err(self.error(format!("unknown key `{key}` could change the computation")));
            }
        }
        Ok(())
    }

    /// A positive size; an array is allowed where every layer says the same.
    fn optional_size(&self, arch: &str, name: &str) -> Result<Option<usize>> {
        let key = format!("{arch}.{name}");
        let number = match self.value(&key) {
            None => return Ok(None),
            Some(MetaValue::Array(_)) => {
                let all = self.numbers(&key)?.unwrap_or_default();
                match all.first() {
                    Some(&first) if all.iter().all(|&n| n == first) => first,
                    _ => return Err(self.error(format!("`{key}` differs between layers"))),
                }
            }
            Some(_) => self.unsigned(&key)?.unwrap_or_default() as f64,
        };
        // The bound keeps products of two sizes within range.
        if number.fract() == 0.0 && (1.0..=16_777_216.0).contains(&number) {
            return Ok(Some(number as usize));
        }
        Err(self.error(format!("`{key}` is {number}: expected a whole number from 1 to 16777216")))
    }

    fn size(&self, arch: &str, name: &str) -> Result<usize> {
        self.optional_size(arch, name)?
            .ok_or_else(|| self.error(format!("`{arch}.{name}` is missing")))
    }

    fn head_dim(&self, arch: &str, hidden_size: usize, heads: usize) -> Result<usize> {
        let key = self.optional_size(arch, "attention.key_length")?;
        let value = self.optional_size(arch, "attention.value_length")?;
        let head_dim = match (key, value) {
            (Some(key), Some(value)) if key != value => {
                return Err(self
                    .error(format!("keys are {key} wide and values {value}: expected the same")));
            }
            (Some(dim), _) | (None, Some(dim)) => dim,
            (None, None) if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            (None, None) => {
                return Err(self.error(format!(
                    "`embedding_length` {hidden_size} is not a multiple of `head_count` {heads}"
                )));
            }
        };
        match self.optional_size(arch, "rope.dimension_count")? {
            Some(turned) if turned != head_dim => Err(self.error(format!(
                "`{arch}.rope.dimension_count` is {turned}: only whole heads of {head_dim} are \
                 rotated here"
            ))),
            _ => Ok(head_dim),
        }
    }

    /// Which biases the first block has, as (q, k, v), o, and feed-forward.
    fn biases(&self, family: Family) -> Result<(bool, bool, bool)> {
        let has = |name: &str| self.tensor(&format!("blk.0.{name}.bias")).is_some();
        let (qkv, o, mlp) = (has("attn_q"), has("attn_output"), has("ffn_gate"));
        match family {
            Family::Qwen2 => Ok((true, o, mlp)),
            _ if qkv != o => Err(self.error(
                "biases on q, k and v without one on the output projection (or the reverse): \
                 no supported family has that",
            )),
            _ => Ok((qkv, o, mlp)),
        }
    }

    fn token(&self, name: &str) -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match self.unsigned(&key)?.map(u32::try_from) {
            None => Ok(None),
            // Some writers put the largest number where there is no token.
            Some(Ok(u32::MAX)) => Ok(None),
            Some(Ok(id)) => Ok(Some(id)),
            Some(Err(_)) => Err(self.error(format!("`{key}` is too large for a token id"))),
        }
    }

    fn ends(&self) -> Result<Vec<u32>> {
        let mut ends: Vec<u32> = self.token("eos")?.into_iter().collect();
        if let Some(turn) = self.token("eot")?
            && !ends.contains(&turn)
        {
            ends.push(turn);
        }
        Ok(ends)
    }
}

/// The shortest decimal that is the same f32, for numbers that were stored as f32.
fn shortest(number: f64) -> f64 {
    let narrow = number as f32;
    if f64::from(narrow) != number {
        return number;
    }
    narrow.to_string().parse().unwrap_or(number)
}
