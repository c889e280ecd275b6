//! Writes the bundled data: problems, conversations, tokenizer and configuration.
//!
//! `scripts/make-bundled` calls it, and trains the bundled model on what it writes. The same seeds
//! give the same bytes.
#![allow(clippy::print_stderr, missing_docs)]

mod corpus;
mod problem;
mod random;
mod templates;
mod vocabulary;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(bundle), Some(pretrain), None) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err(anyhow!("expected two arguments: BUNDLE_DIR PRETRAIN_FILE"));
    };
    std::fs::create_dir_all(&bundle)?;
    let documents = corpus::pretrain()?;
    let text = documents.iter().map(|text| json!({"text": text}));
    write(&pretrain, &lines(text))?;
    write(&bundle.join("train.jsonl"), &lines(corpus::train()?))?;
    write(&bundle.join("eval.jsonl"), &lines(corpus::eval()?))?;
    let tokenizer = vocabulary::tokenizer(&documents)?;
    let tokenizer = tokenizer.to_string(true).map_err(|error| anyhow!("{error}"))?;
    write(&bundle.join("tokenizer.json"), &tokenizer)?;
    write(&bundle.join("tokenizer_config.json"), &pretty(&vocabulary::config())?)?;
    write(&bundle.join("chat_template.jinja"), vocabulary::CHAT_TEMPLATE)?;
    write(&bundle.join("config.json"), &pretty(&model())?)?;
    write(&bundle.join("generation_config.json"), &pretty(&generation())?)
}

/// `config.json`: the shape of the model.
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

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}
