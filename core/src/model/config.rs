//! The model's configuration, read from a Hugging Face `config.json`.

mod keys;
mod read;
mod rope;
mod write;

use serde_json::{Map, Value};

/// Which architecture's conventions the checkpoint follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// LLaMA 1/2, Llama 3.x, SmolLM2, TinyLlama.
    Llama,
    /// Llama with a sliding window.
    Mistral,
    /// Llama with q/k/v biases.
    Qwen2,
    /// Llama with a norm on each query and key head.
    Qwen3,
}

/// What follows the final norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Logits of the next token (`…ForCausalLM`).
    Language,
    /// One number for the sequence (`…ForSequenceClassification` with one label): a reward model.
    Score,
}

/// How rotary frequencies are scaled for long contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's wavelength-dependent scaling ("The Llama 3 Herd of Models", section 3.4.2).
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are scaled in full.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are left alone.
        high_freq_factor: f64,
        /// Context length of the first training.
        original_max_position_embeddings: usize,
    },
}

/// Everything that decides the computation of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Architecture.
    pub family: Family,
    /// What it says.
    pub head: Head,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// RMSNorm's epsilon.
    pub rms_norm_eps: f64,
    /// Rotary base.
    pub rope_theta: f64,
    /// Rotary scaling.
    pub rope_scaling: RopeScaling,
    /// Longest position the model was made for.
    pub max_position_embeddings: usize,
    /// The head shares the embedding's matrix.
    pub tie_word_embeddings: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// A bias on the attention's output projection.
    pub o_bias: bool,
    /// Biases on the three feed-forward matrices.
    pub mlp_bias: bool,
    /// RMSNorm on every query and key head (Qwen3).
    pub qk_norm: bool,
    /// For each block: how many positions back (itself included) a query sees; `None` for all.
    pub sliding_window: Vec<Option<usize>>,
    /// Beginning-of-sequence token.
    pub bos_token_id: Option<u32>,
    /// End-of-sequence tokens.
    pub eos_token_ids: Vec<u32>,
    /// Padding token.
    pub pad_token_id: Option<u32>,
    /// The file as it was read, to be written again on export.
    pub raw: Map<String, Value>,
}

/// Name and shape of one parameter, as Hugging Face names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    /// e.g. `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Row-major shape; matrices are `(out, in)`.
    pub shape: Vec<usize>,
}

impl ModelConfig {
    /// Every parameter a checkpoint of this configuration has, in the order of the computation.
    /// `lm_head.weight` is absent where the embeddings are tied; a reward model has `score.weight`.
    pub fn params(&self) -> Vec<ParamSpec> {
        let mut params = Vec::new();
        let mut add = |name: String, shape: &[usize]| {
            params.push(ParamSpec { name, shape: shape.to_vec() });
        };
        let (hidden, ffn) = (self.hidden_size, self.intermediate_size);
        let q = self.num_attention_heads * self.head_dim;
        let kv = self.num_key_value_heads * self.head_dim;
        add("model.embed_tokens.weight".into(), &[self.vocab_size, hidden]);
        for layer in 0..self.num_hidden_layers {
            let at = |name: &str| format!("model.layers.{layer}.{name}");
            add(at("input_layernorm.weight"), &[hidden]);
            for (name, out) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
                add(at(&format!("self_attn.{name}.weight")), &[out, hidden]);
                if self.qkv_bias {
                    add(at(&format!("self_attn.{name}.bias")), &[out]);
                }
            }
            if self.qk_norm {
                add(at("self_attn.q_norm.weight"), &[self.head_dim]);
                add(at("self_attn.k_norm.weight"), &[self.head_dim]);
            }
            add(at("self_attn.o_proj.weight"), &[hidden, q]);
            if self.o_bias {
                add(at("self_attn.o_proj.bias"), &[hidden]);
            }
            add(at("post_attention_layernorm.weight"), &[hidden]);
            for (name, out, input) in
                [("gate_proj", ffn, hidden), ("up_proj", ffn, hidden), ("down_proj", hidden, ffn)]
            {
                add(at(&format!("mlp.{name}.weight")), &[out, input]);
                if self.mlp_bias {
                    add(at(&format!("mlp.{name}.bias")), &[out]);
                }
            }
        }
        add("model.norm.weight".into(), &[hidden]);
        match self.head {
            Head::Language if self.tie_word_embeddings => {}
            Head::Language => add("lm_head.weight".into(), &[self.vocab_size, hidden]),
            Head::Score => add("score.weight".into(), &[1, hidden]),
        }
        params
    }
}
