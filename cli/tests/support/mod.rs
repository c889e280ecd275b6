//! What the tests of the binary share: running it, and a tiny model with a tokenizer.
#![allow(dead_code, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs `halter` in `dir`, so that what it prints names no path of this machine.
pub fn halter_in(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_halter"))
        .args(arguments)
        .current_dir(dir)
        .env_remove("HALTER_LOG")
        .env_remove("NO_COLOR")
        .env_remove("COLUMNS")
        .env("XDG_CACHE_HOME", dir.join("cache"))
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", dir.join("no-cache"))
        .output()
        .unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What went to stderr, without the lines of a progress bar, which tell the time.
pub fn notes(output: &Output) -> String {
    let is_progress =
        |line: &&str| !["reading", "writing"].iter().any(|what| line.starts_with(what));
    text(&output.stderr).lines().filter(is_progress).map(|line| format!("{line}\n")).collect()
}

/// Exit code, stdout and stderr, as one text.
pub fn told(arguments: &[&str], output: &Output) -> String {
    let code = output.status.code().map_or("none".to_string(), |code| code.to_string());
    let mut shown = format!("$ halter {}\nexit code {code}\n", arguments.join(" "));
    for (name, part) in [("stdout", text(&output.stdout)), ("stderr", notes(output))] {
        if !part.is_empty() {
            shown += &format!("--- {name}\n{part}");
        }
    }
    shown
}

/// Runs each command, which must fail with an error and without a panic, and tells what it said.
pub fn failures(dir: &Path, commands: &[&str]) -> String {
    let mut shown = String::new();
    for command in commands {
        let arguments: Vec<&str> = command.split(' ').collect();
        let output = halter_in(dir, &arguments);
        let stderr = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{command}: {}", output.status);
        assert!(stderr.contains("error: ") && !stderr.contains("panicked"), "{command}: {stderr}");
        shown += &told(&arguments, &output);
        shown += "\n";
    }
    shown
}

/// A model of zeros in `dir/model`, with the tokenizer of the core's tests and a ChatML template.
pub fn write_model(dir: &Path) {
    let model = dir.join("model");
    fs::create_dir(&model).unwrap();
    let fixtures = root().join("core/tests");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixtures.join("fixtures/tiny_chatml").join(name), model.join(name)).unwrap();
    }
    fs::copy(fixtures.join("templates/smollm2.jinja"), model.join("chat_template.jinja")).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 520,
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 4,
        "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_act": "silu",
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "torch_dtype": "float32",
    });
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let shapes: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), vec![520, 8]),
        ("model.norm.weight".into(), vec![8]),
        (layer("input_layernorm"), vec![8]),
        (layer("post_attention_layernorm"), vec![8]),
        (layer("self_attn.q_proj"), vec![8, 8]),
        (layer("self_attn.k_proj"), vec![4, 8]),
        (layer("self_attn.v_proj"), vec![4, 8]),
        (layer("self_attn.o_proj"), vec![8, 8]),
        (layer("mlp.gate_proj"), vec![8, 8]),
        (layer("mlp.up_proj"), vec![8, 8]),
        (layer("mlp.down_proj"), vec![8, 8]),
    ];
    let zeros = vec![0u8; 520 * 8 * 4];
    let tensors = shapes.into_iter().map(|(name, shape)| {
        let bytes = 4 * shape.iter().product::<usize>();
        (name, TensorView::new(Dtype::F32, shape, &zeros[..bytes]).unwrap())
    });
    let bytes = safetensors::serialize(tensors, None).unwrap();
    fs::write(model.join("model.safetensors"), bytes).unwrap();
}
