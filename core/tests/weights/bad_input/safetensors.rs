//! Safetensors that are truncated, that lie, or that do not fit.

use std::path::Path;

use halter_core::model::weights::WeightFiles;
use serde_json::json;

use super::super::fixtures::{
    Values, config, random_values, safetensors, safetensors_of, tiny_json, with,
};
use super::Table;

const HEADER: &str = r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;

#[test]
fn wrong_safetensors() {
    let mut table = Table::new();
    let mut case = |name: &str, file: &[u8]| {
        let dir = table.dir();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, file).unwrap();
        table.case(name, Some(dir.path()), WeightFiles::open(dir.path()));
    };
    let data = [0u8; 16];
    let good = safetensors(HEADER, &data);
    let with_header = |header: &str| safetensors(header, &data);
    case("empty", b"");
    case("four bytes", b"abcd");
    case("a web page", b"<!DOCTYPE html><html>not found</html>");
    case("cut in the header", &good[..40]);
    case("cut in the data", &good[..good.len() - 5]);
    let mut long = good.clone();
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    case("a header of 2^64 bytes", &long);
    case("a header that is not JSON", &with_header("{\"a\": "));
    case("a header that is a list", &with_header("[1, 2]"));
    case("a header that is not text", &[&8u64.to_le_bytes()[..], &[0xff; 8]].concat());
    case("a header of brackets", &with_header(&"[".repeat(100_000)));
    case("a tensor without a type", &with_header(r#"{"a":{"shape":[4],"data_offsets":[0,16]}}"#));
    case("a negative shape", &with_header(&HEADER.replace("[2,2]", "[-2,2]")));
    case("an integer tensor", &with_header(&HEADER.replace("F32", "I64")));
    case("an 8-bit tensor", &with_header(&HEADER.replace("F32", "F8_E4M3")));
    case("a shape that does not fit", &with_header(&HEADER.replace("[2,2]", "[2,3]")));
    case(
        "a shape that overflows",
        &with_header(&HEADER.replace("[2,2]", "[4294967296,4294967296,4]")),
    );
    case("an end beyond the file", &with_header(&HEADER.replace("[0,16]", "[0,32]")));
    case("an end before its start", &with_header(&HEADER.replace("[0,16]", "[16,0]")));
    let two = |first: &str, second: &str| {
        let entry = |at: &str| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":{at}}}"#);
        format!(r#"{{"a":{},"b":{}}}"#, entry(first), entry(second))
    };
    case("tensors that overlap", &with_header(&two("[0,8]", "[4,12]")));
    case(
        "bytes between tensors",
        &with_header(&two("[0,8]", "[12,20]")).into_iter().chain([0; 4]).collect::<Vec<_>>(),
    );
    case("bytes after the tensors", &safetensors(HEADER, &[0; 20]));
    case("one name twice", &with_header(&two("[0,8]", "[8,16]").replace("\"b\"", "\"a\"")));
    case(
        "a name of control characters",
        &with_header(&HEADER.replace("\"a\"", "\"\\u001b[2J\\n\"").replace("F32", "I8")),
    );
    insta::assert_snapshot!(table.finish(20));
}

#[test]
fn wrong_shards() {
    let mut table = Table::new();
    let index = "model.safetensors.index.json";
    let mut case = |name: &str, files: &[(&str, Vec<u8>)]| {
        let dir = table.dir();
        for (file, bytes) in files {
            std::fs::write(dir.path().join(file), bytes).unwrap();
        }
        table.case(name, Some(dir.path()), WeightFiles::open(dir.path()));
    };
    let text = |value: serde_json::Value| value.to_string().into_bytes();
    let map = |value: serde_json::Value| text(json!({ "weight_map": value }));
    let shard = || safetensors(HEADER, &[0; 16]);
    case("nothing at all", &[]);
    case("pickled weights", &[("pytorch_model.bin", vec![])]);
    case("an adapter", &[("adapter_model.safetensors", vec![])]);
    case("a GGUF file within", &[("m.gguf", vec![])]);
    case("shards without an index", &[("model-00001-of-00002.safetensors", shard())]);
    case("an index that is not JSON", &[(index, b"{".to_vec())]);
    case("an index without a map", &[(index, text(json!({ "metadata": {} })))]);
    case("an index that leads out", &[(index, map(json!({ "a": "../../etc/x.safetensors" })))]);
    case("an index to an absolute path", &[(index, map(json!({ "a": "/x.safetensors" })))]);
    case("an index to a number", &[(index, map(json!({ "a": 1 })))]);
    let two = json!({ "a": "1.safetensors", "b": "2.safetensors" });
    case("a missing shard", &[(index, map(two.clone())), ("1.safetensors", shard())]);
    case(
        "a shard without its tensor",
        &[(index, map(two)), ("1.safetensors", shard()), ("2.safetensors", shard())],
    );
    let renamed = safetensors(&HEADER.replace("\"a\"", "\"b\""), &[0; 16]);
    let both = safetensors(
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
        &[0; 8],
    );
    let overlap = json!({ "a": "1.safetensors", "b": "2.safetensors" });
    case(
        "a tensor in two shards",
        &[(index, map(overlap)), ("1.safetensors", both), ("2.safetensors", renamed)],
    );
    insta::assert_snapshot!(table.finish(13));
}

#[test]
fn weights_that_do_not_fit_the_configuration() {
    let mut table = Table::new();
    let llama = tiny_json("llama");
    let mut case = |name: &str, json: &serde_json::Value, change: &dyn Fn(&mut Values)| {
        let dir = table.dir();
        let mut values = random_values(&config(&llama), 1);
        change(&mut values);
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, safetensors_of(&values)).unwrap();
        let files = WeightFiles::open(&path).unwrap();
        let result = files.check(&config(json)).and_then(|()| files.check_finite());
        table.case(name, Some(dir.path()), result);
    };
    let rename = |from: &'static str, to: &'static str| {
        move |values: &mut Values| {
            *values = std::mem::take(values)
                .into_iter()
                .map(|(name, value)| (name.replacen(from, to, 1), value))
                .collect();
        }
    };
    case("a missing matrix", &llama, &|v| drop(v.remove("model.layers.1.mlp.up_proj.weight")));
    case("no head", &llama, &|v| drop(v.remove("lm_head.weight")));
    case("saved without its head", &llama, &rename("model.", ""));
    case("saved from a wrapper", &llama, &rename("model.", "module.model."));
    case(
        "more layers than there are",
        &with(llama.clone(), "num_hidden_layers", json!(3)),
        &|_| {},
    );
    case(
        "fewer layers than there are",
        &with(llama.clone(), "num_hidden_layers", json!(1)),
        &|_| {},
    );
    case("another vocabulary", &with(llama.clone(), "vocab_size", json!(300)), &|_| {});
    case("more key heads", &with(llama.clone(), "num_key_value_heads", json!(4)), &|_| {});
    case(
        "biases that the configuration wants",
        &with(llama.clone(), "attention_bias", json!(true)),
        &|_| {},
    );
    let add = |name: &'static str| {
        move |values: &mut Values| drop(values.insert(name.into(), (vec![1], vec![0.0])))
    };
    case("biases that it does not know", &llama, &add("model.layers.0.self_attn.q_proj.bias"));
    case("norms that it does not know", &llama, &add("model.layers.0.self_attn.q_norm.weight"));
    case("factors of an adapter", &llama, &add("model.layers.0.self_attn.q_proj.lora_A.weight"));
    case("scales of a quantization", &llama, &add("model.layers.0.self_attn.q_proj.weight_scale"));
    case("something else", &llama, &add("score.weight"));
    let poison = |value: f32| {
        move |values: &mut Values| {
            values.get_mut("model.layers.0.mlp.down_proj.weight").unwrap().1[100] = value;
        }
    };
    case("a NaN", &llama, &poison(f32::NAN));
    case("an infinity", &llama, &poison(f32::NEG_INFINITY));
    insta::assert_snapshot!(table.finish(16));
}

#[test]
fn a_file_with_rotary_tables_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let config = config(&tiny_json("llama"));
    let mut values = random_values(&config, 1);
    let name = "model.layers.0.self_attn.rotary_emb.inv_freq";
    values.insert(name.into(), (vec![8], vec![1.0; 8]));
    std::fs::write(&path, safetensors_of(&values)).unwrap();
    WeightFiles::open(Path::new(&path)).unwrap().check(&config).unwrap();
}
