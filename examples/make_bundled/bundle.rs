//! The files of the bundle, but for the weights.

use anyhow::{Result, anyhow};
use serde_json::{Value, json};

use crate::{corpus, vocabulary};

/// What the generator makes.
pub struct Bundle {
    /// Name and content of each file of the bundle.
    pub files: Vec<(&'static str, String)>,
    /// Rows of text to pre-train on: used once, not kept.
    pub pretrain: String,
}

/// Makes everything anew. The same bytes come out every time.
///
/// # Errors
/// A template with a mistake in it.
pub fn make() -> Result<Bundle> {
    let documents = corpus::pretrain()?;
    let tokenizer = vocabulary::tokenizer(&documents)?;
    let tokenizer = tokenizer.to_string(true).map_err(|error| anyhow!("{error}"))?;
    let files = vec![
        ("config.json", pretty(&model())?),
        ("generation_config.json", pretty(&generation())?),
        ("tokenizer.json", tokenizer + "\n"),
        ("tokenizer_config.json", pretty(&vocabulary::config())?),
        ("chat_template.jinja", vocabulary::CHAT_TEMPLATE.to_string()),
        ("train.jsonl", lines(corpus::train()?)),
        ("eval.jsonl", lines(corpus::eval()?)),
        ("preferences.jsonl", lines(corpus::preferences()?)),
        ("preferences-eval.jsonl", lines(corpus::preferences_eval()?)),
        ("problems.jsonl", lines(corpus::problems()?)),
        ("problems-eval.jsonl", lines(corpus::problems_eval()?)),
    ];
    let pretrain = lines(documents.iter().map(|text| json!({"text": text})));
    Ok(Bundle { files, pretrain })
}

/// The shape of the model.
fn model() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary::SIZE,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "initializer_range": 0.04,
        "tie_word_embeddings": true,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": null,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    })
}

fn generation() -> Value {
    json!({"eos_token_id": 2, "pad_token_id": 0, "max_new_tokens": 128})
}

fn lines(rows: impl IntoIterator<Item = Value>) -> String {
    rows.into_iter().map(|row| format!("{row}\n")).collect()
}

fn pretty(value: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}
