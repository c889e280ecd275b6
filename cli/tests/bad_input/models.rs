//! Weights and configurations.

use std::fs;

use serde_json::{Value, json};

use super::support::{Place, TINY};
use super::{Table, change_config};

pub const WEIGHTS: &str = "base/model.safetensors";

/// The header of the model's weights, changed; the length before it is right.
fn change_header(place: &Place, change: impl FnOnce(&mut Value)) {
    let bytes = place.read(WEIGHTS);
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut header);
    let mut text = header.to_string();
    // Data stays aligned.
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut changed = (text.len() as u64).to_le_bytes().to_vec();
    changed.extend_from_slice(text.as_bytes());
    changed.extend_from_slice(&bytes[8 + length..]);
    place.write(WEIGHTS, changed);
}

const NORM: &str = "model.norm.weight";

#[test]
fn wrong_weights_and_configurations_are_refused() {
    let mut t = Table::new();
    t.model("safetensors: empty", |p| p.write(WEIGHTS, ""));
    t.model("safetensors: cut in the data", |p| {
        let bytes = p.read(WEIGHTS);
        p.write(WEIGHTS, &bytes[..bytes.len() - 1000]);
    });
    t.model("safetensors: cut in the header", |p| p.write(WEIGHTS, &p.read(WEIGHTS)[..100]));
    t.model("safetensors: a header longer than any file", |p| {
        let mut bytes = p.read(WEIGHTS);
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        p.write(WEIGHTS, bytes);
    });
    t.model("safetensors: a header that is not JSON", |p| {
        let mut bytes = p.read(WEIGHTS);
        bytes[8] = b'?';
        p.write(WEIGHTS, bytes);
    });
    t.model("safetensors: a shape that its bytes are not", |p| {
        change_header(p, |header| header[NORM]["shape"] = json!([33]));
    });
    t.model("safetensors: a shape whose size overflows", |p| {
        change_header(p, |header| {
            header[NORM]["shape"] = json!([u64::MAX, u64::MAX, 3]);
        });
    });
    t.model("safetensors: bytes beyond the end", |p| {
        change_header(p, |header| {
            header[NORM]["data_offsets"] = json!([1u64 << 40, (1u64 << 40) + 128]);
        });
    });
    t.model("safetensors: a type that nobody knows", |p| {
        change_header(p, |header| header[NORM]["dtype"] = json!("F7"));
    });
    t.model("safetensors: a tensor missing", |p| {
        change_header(p, |header| {
            let norm = header.as_object_mut().unwrap().remove(NORM).unwrap();
            header["model.other.weight"] = norm;
        });
    });
    t.model("weights: NaN", |p| {
        let mut bytes = p.read(WEIGHTS);
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        p.write(WEIGHTS, bytes);
    });
    t.model("weights: none", |p| fs::remove_file(p.path(WEIGHTS)).unwrap());
    t.model("weights: a shard missing", |p| {
        fs::rename(p.path(WEIGHTS), p.path("base/model-00001-of-00002.safetensors")).unwrap();
        let map = json!({
            "model.embed_tokens.weight": "model-00001-of-00002.safetensors",
            NORM: "model-00002-of-00002.safetensors",
        });
        p.write("base/model.safetensors.index.json", json!({ "weight_map": map }).to_string());
    });
    t.model("weights: an index that leads out of the directory", |p| {
        fs::remove_file(p.path(WEIGHTS)).unwrap();
        let map = json!({ NORM: "../../etc/passwd" });
        p.write("base/model.safetensors.index.json", json!({ "weight_map": map }).to_string());
    });
    let model_config = "base/config.json";
    t.model("config: shapes that the weights do not have", |p| {
        change_config(p, model_config, "intermediate_size", json!(96));
    });
    t.model("config: a block that the weights do not have", |p| {
        change_config(p, model_config, "num_hidden_layers", json!(3));
    });
    t.model("config: not JSON", |p| p.write(model_config, "{\"model_type\": \"llama\","));
    t.model("config: missing", |p| fs::remove_file(p.path(model_config)).unwrap());
    t.model("config: a type of model that nobody knows", |p| {
        change_config(p, model_config, "model_type", json!("alpaca"));
    });
    t.model("config: a field that would change the computation", |p| {
        change_config(p, model_config, "partial_rotary_factor", json!(0.5));
    });
    t.model("config: a size of the wrong type", |p| {
        change_config(p, model_config, "hidden_size", json!("32"));
    });
    t.model("config: a size of zero", |p| change_config(p, model_config, "hidden_size", json!(0)));
    t.model("config: a size beyond any memory", |p| {
        change_config(p, model_config, "vocab_size", json!(1u64 << 60));
    });
    t.case("init-from: fewer embeddings than tokens", TINY, &[], |p| {
        change_config(p, "config.json", "vocab_size", json!(300));
    });
    t.case("init-from: a model beyond any memory", TINY, &[], |p| {
        change_config(p, "config.json", "intermediate_size", json!(1u64 << 44));
    });
    let gguf = ["--model", "m.gguf", "--data", "m.jsonl"];
    let header = |tensors: u64, keys: u64| {
        [&b"GGUF"[..], &3u32.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat()
    };
    for (name, bytes) in [
        ("gguf: empty", Vec::new()),
        ("gguf: another format", b"not a model at all".to_vec()),
        ("gguf: a version that nobody knows", [&b"GGUF"[..], &99u32.to_le_bytes()].concat()),
        ("gguf: cut in the header", header(1, 1)[..20].to_vec()),
        ("gguf: more tensors than bytes", header(u64::MAX, 0)),
        ("gguf: a name longer than the file", [header(0, 1), vec![0xff; 8]].concat()),
        ("gguf: nothing in it", header(0, 0)),
    ] {
        t.case(name, &gguf, &[], |p| p.write("m.gguf", bytes));
    }
    t.case("model: no such directory", &["--model", "./none", "--data", "m.jsonl"], &[], |_| {});
    t.case("model: a file", &["--model", "m.jsonl", "--data", "m.jsonl"], &[], |_| {});
    t.case(
        "model: a hub id, offline",
        &["--model", "nobody/nothing", "--data", "m.jsonl"],
        &[],
        |_| {},
    );
    println!("{} wrong models", t.cases);
    insta::assert_snapshot!("models", t.text);
}
