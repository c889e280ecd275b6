//! Which keys of a `config.json` decide the computation, and which can be passed over.

use super::{Family, Head};

/// Keys that the reader interprets itself.
pub(super) const READ: &[&str] = &[
    "architectures",
    "attention_bias",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
];

/// Keys that say nothing about the computation: provenance, storage, sampling defaults, labels.
pub(super) const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bf16",
    "cache_implementation",
    "cls_token_id",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "fp16",
    "fp32",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "mask_token_id",
    "max_length",
    "max_new_tokens",
    "max_sequence_length",
    "min_length",
    "model_max_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
    "use_bfloat16",
    "use_flash_attn",
    "use_return_dict",
];

/// Keys that would change the computation, with the one number at which they do not.
pub(super) const NEUTRAL: &[(&str, f64)] = &[
    ("attention_dropout", 0.0),
    ("attention_multiplier", f64::NAN),
    ("attn_logit_softcapping", f64::NAN),
    ("chunk_size_feed_forward", 0.0),
    ("embd_pdrop", 0.0),
    ("embedding_multiplier", 1.0),
    ("final_logit_softcapping", f64::NAN),
    ("hidden_dropout", 0.0),
    ("hidden_dropout_prob", 0.0),
    ("logit_scale", 1.0),
    ("logits_scaling", 1.0),
    ("num_experts", 0.0),
    ("num_experts_per_tok", 0.0),
    ("num_local_experts", 0.0),
    ("partial_rotary_factor", 1.0),
    ("pretraining_tp", 1.0),
    ("query_pre_attn_scalar", f64::NAN),
    ("resid_pdrop", 0.0),
    ("residual_multiplier", 1.0),
];

/// What to do about keys that people do meet.
pub(super) fn remedy(key: &str) -> &'static str {
    match key {
        "quantization_config" | "compression_config" => {
            "use the unquantized checkpoint, or a `.gguf` file for a quantized base"
        }
        "pretraining_tp" => "set it to 1: the weights are the same",
        "attention_dropout"
        | "embd_pdrop"
        | "hidden_dropout"
        | "hidden_dropout_prob"
        | "resid_pdrop" => "halter trains without dropout inside the model: set it to 0",
        "num_experts" | "num_local_experts" | "num_experts_per_tok" | "moe_intermediate_size" => {
            "mixtures of experts are not supported"
        }
        _ => "if the key does not change what the model computes, remove it from the file",
    }
}

/// Numbers that transformers assumes where a `config.json` leaves them out.
pub(super) struct Defaults {
    pub num_key_value_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    pub sliding_window: Option<usize>,
    pub max_window_layers: usize,
}

impl Family {
    /// Its name in `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// Its class in `architectures`.
    pub fn architecture(self, head: Head) -> &'static str {
        match (self, head) {
            (Self::Llama, Head::Language) => "LlamaForCausalLM",
            (Self::Mistral, Head::Language) => "MistralForCausalLM",
            (Self::Qwen2, Head::Language) => "Qwen2ForCausalLM",
            (Self::Qwen3, Head::Language) => "Qwen3ForCausalLM",
            (Self::Llama, Head::Score) => "LlamaForSequenceClassification",
            (Self::Mistral, Head::Score) => "MistralForSequenceClassification",
            (Self::Qwen2, Head::Score) => "Qwen2ForSequenceClassification",
            (Self::Qwen3, Head::Score) => "Qwen3ForSequenceClassification",
        }
    }

    pub(super) fn defaults(self) -> Defaults {
        let (num_key_value_heads, head_dim, max_position_embeddings, sliding_window) = match self {
            Self::Llama => (None, None, 2048, None),
            Self::Mistral => (Some(8), None, 4096 * 32, Some(4096)),
            Self::Qwen2 => (Some(32), None, 32768, Some(4096)),
            Self::Qwen3 => (Some(32), Some(128), 32768, Some(4096)),
        };
        Defaults {
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            sliding_window,
            max_window_layers: 28,
        }
    }
}
