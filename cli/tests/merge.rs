//! The binary as a user runs it: `halter merge`, on the golden tiny model, its adapter and its
//! variants.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod support;

use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use support::{failures, halter_in, root, text, told, write_model};

/// A directory with copies of the golden base and adapter.
fn prepared() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, from, files) in [
        ("base", "llama-tied", ["config.json", "model.safetensors"]),
        ("lora", "lora", ["adapter_config.json", "adapter_model.safetensors"]),
    ] {
        copy(&root().join("oracle/golden/tiny").join(from), &dir.path().join(name), &files);
    }
    dir
}

fn copy(from: &Path, to: &Path, files: &[&str]) {
    fs::create_dir_all(to).unwrap();
    for file in files {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

/// Another adapter: the golden one with a key of its configuration set.
fn adapter_with(dir: &Path, name: &str, key: &str, value: Value) {
    copy(&dir.join("lora"), &dir.join(name), &["adapter_config.json", "adapter_model.safetensors"]);
    let path = dir.join(name).join("adapter_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn a_base_and_its_adapter_become_one_model() {
    let dir = prepared();
    let arguments = ["merge", "--model", "base", "--adapter", "lora", "--output", "out/merged"];
    let output = halter_in(dir.path(), &arguments);
    insta::assert_snapshot!("merge", told(&arguments, &output));
    let merged = dir.path().join("out/merged");
    let bytes = fs::read(merged.join("model.safetensors")).unwrap();
    let base = fs::read(dir.path().join("base/model.safetensors")).unwrap();
    let merged_tensors = SafeTensors::deserialize(&bytes).unwrap();
    let base_tensors = SafeTensors::deserialize(&base).unwrap();
    for (name, tensor) in merged_tensors.tensors() {
        let same = tensor.data() == base_tensors.tensor(&name).unwrap().data();
        assert_eq!(same, !name.contains("_proj"), "{name}");
    }
    assert_eq!(merged_tensors.len(), base_tensors.len());
}

#[test]
fn side_files_come_along_and_programs_are_told_what_was_written() {
    let dir = prepared();
    write_model(dir.path());
    copy(
        &dir.path().join("model"),
        &dir.path().join("base"),
        &["tokenizer_config.json", "chat_template.jinja"],
    );
    let arguments = "merge --model_name_or_path base --adapter lora --output_dir out --export-dtype \
                     bf16 --json";
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    let output = halter_in(dir.path(), &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["output"], "out");
    assert_eq!(told["merged_matrices"], 14);
    assert_eq!(told["export_dtype"], "bf16");
    let mut files: Vec<_> = told["files"].as_array().unwrap().iter().collect();
    files.sort_by_key(|file| file.as_str());
    let names =
        ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer_config.json"];
    assert_eq!(
        files,
        names
            .map(|name| format!("out/{name}"))
            .each_ref()
            .map(|n| json!(n))
            .iter()
            .collect::<Vec<_>>()
    );
    let bytes = fs::read(dir.path().join("out/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert!(tensors.tensors().iter().all(|(_, tensor)| tensor.dtype() == Dtype::BF16));
}

#[test]
fn what_stands_beside_the_adapter_goes_before_the_bases() {
    let dir = prepared();
    write_model(dir.path());
    let path = dir.path();
    let tokenizer = ["tokenizer.json", "tokenizer_config.json"];
    copy(&path.join("model"), &path.join("base"), &["chat_template.jinja"]);
    let write = |name: &str, text: &str| fs::write(path.join(name), text).unwrap();
    write("base/generation_config.json", "{\"eos_token_id\": 1}");
    write("base/vocab.json", "{}");
    let merged = |output: &str| -> Vec<(String, String)> {
        let arguments = ["merge", "--model", "base", "--adapter", "lora", "--output", output];
        let done = halter_in(path, &arguments);
        assert!(done.status.success(), "{}", text(&done.stderr));
        let files = names(&path.join(output))
            .into_iter()
            .filter(|name| !name.ends_with(".safetensors") && !name.ends_with("/config.json"));
        let name = |file: &str| Path::new(file).file_name().unwrap().to_str().unwrap().to_string();
        files.map(|file| (name(&file), fs::read_to_string(&file).unwrap())).collect()
    };
    // A template alone, and where answers stop.
    write("lora/chat_template.jinja", "its own");
    write("lora/generation_config.json", "{\"eos_token_id\": [1, 9]}");
    let own = |name: &str, text: &str| (name.to_string(), text.to_string());
    let expected = vec![
        own("chat_template.jinja", "its own"),
        own("generation_config.json", "{\"eos_token_id\": [1, 9]}"),
        own("vocab.json", "{}"),
    ];
    assert_eq!(merged("template"), expected);
    // A tokenizer comes with its template, if that is in its configuration.
    fs::remove_file(path.join("lora/chat_template.jinja")).unwrap();
    copy(&path.join("model"), &path.join("lora"), &tokenizer);
    // The golden base has fewer rows than this tokenizer has tokens.
    let arguments = ["merge", "--model", "base", "--adapter", "lora", "--output", "out"];
    let refused = halter_in(path, &arguments);
    assert!(text(&refused.stderr).contains("but the embedding has"), "{}", text(&refused.stderr));
    assert!(!path.join("out").exists());
    let small = r#"{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}"#;
    write("lora/tokenizer.json", small);
    write("lora/tokenizer_config.json", "{\"chat_template\": \"inside\"}");
    let generation = own("generation_config.json", "{\"eos_token_id\": [1, 9]}");
    let expected = vec![
        own("chat_template.jinja", "inside"),
        generation.clone(),
        own("tokenizer.json", small),
        own("tokenizer_config.json", "{\"chat_template\": \"inside\"}"),
    ];
    assert_eq!(merged("tokenizer"), expected);
    // So does that configuration alone.
    fs::remove_file(path.join("lora/tokenizer.json")).unwrap();
    let inside = own("chat_template.jinja", "inside");
    assert_eq!(merged("alone"), [inside, generation, own("vocab.json", "{}")]);
}

#[test]
fn what_cannot_be_merged_is_told_whole_and_leaves_nothing() {
    let dir = prepared();
    let path = dir.path();
    adapter_with(path, "dora", "use_dora", json!(true));
    adapter_with(path, "rank", "r", json!(8));
    adapter_with(path, "head", "target_modules", json!(["lm_head"]));
    adapter_with(path, "saved", "modules_to_save", json!(["embed_tokens"]));
    adapter_with(path, "huge", "lora_alpha", json!(1e9));
    adapter_with(path, "cut", "r", json!(4));
    let cut = path.join("cut/adapter_model.safetensors");
    let bytes = fs::read(&cut).unwrap();
    fs::write(&cut, &bytes[..bytes.len() - 100]).unwrap();
    copy(&path.join("lora"), &path.join("bare"), &["adapter_config.json"]);
    copy(
        &root().join("oracle/golden/tiny/qwen3"),
        &path.join("other"),
        &["config.json", "model.safetensors"],
    );
    let before = names(path);
    let commands = [
        "merge",
        "merge --model base --adapter lora --output out --export-dtype f64",
        "merge --model absent --adapter lora --output out",
        "merge --model lora --adapter lora --output out",
        "merge --model base --adapter absent --output out",
        "merge --model base --adapter base --output out",
        "merge --model base --adapter bare --output out",
        "merge --model base --adapter dora --output out",
        "merge --model base --adapter rank --output out",
        "merge --model base --adapter head --output out",
        "merge --model base --adapter saved --output out",
        "merge --model base --adapter cut --output out",
        "merge --model base --adapter huge --output out --export-dtype f16",
        "merge --model other --adapter lora --output out",
        "merge --model base --adapter lora --output base",
        "merge --model base --adapter lora --output base/config.json",
        "merge --model base --adapter lora --output base/config.json/out",
    ];
    insta::assert_snapshot!("merge_failures", failures(path, &commands));
    assert_eq!(names(path), before, "something was left behind");
}

/// The golden base with its variants `a`, `b` and `c`.
fn prepared_variants() -> tempfile::TempDir {
    let dir = prepared();
    for name in ["a", "b", "c"] {
        let from = root().join("oracle/golden/merge").join(name);
        copy(&from, &dir.path().join(name), &["config.json", "model.safetensors"]);
    }
    dir
}

#[test]
fn several_models_become_one_by_every_method() {
    let dir = prepared_variants();
    let weights = |name: &str| fs::read(dir.path().join(name).join("model.safetensors")).unwrap();
    let mut shown = String::new();
    let mut written: Vec<Vec<u8>> = Vec::new();
    for (output, command) in [
        ("average", "--average --model a --model b --model c"),
        ("linear", "--method linear --model a:0.5 --model b:2 --model c:1.25"),
        ("slerp", "--method slerp --model a --model b --t 0.3"),
        (
            "ties",
            "--method ties --base base --model a:0.5 --model b:2 --model c:1.25 --density 0.4",
        ),
        ("dare", "--method dare_linear --base base --model a --model b --density 0.3 --seed 7"),
        ("dare_ties", "--method dare_ties --base base --model a --model b --export-dtype bf16"),
    ] {
        let command = format!("merge {command} --output {output}");
        let arguments: Vec<&str> = command.split(' ').collect();
        shown += &told(&arguments, &halter_in(dir.path(), &arguments));
        shown += "\n";
        let bytes = weights(output);
        assert!(!written.contains(&bytes), "{output} is what another one is");
        written.push(bytes);
    }
    insta::assert_snapshot!("merge_models", shown);
    // `--average` is the method of that name, equal weights change nothing, and neither does the
    // order.
    for (output, command) in [
        ("by_name", "--method average --model c --model a --model b"),
        ("by_weight", "--method linear --model a:2 --model b:2 --model c:2"),
    ] {
        let command = format!("merge {command} --output {output}");
        let arguments: Vec<&str> = command.split(' ').collect();
        let output_of = halter_in(dir.path(), &arguments);
        assert!(output_of.status.success(), "{}", text(&output_of.stderr));
        assert_eq!(weights(output), written[0], "{output}");
    }
}

#[test]
fn programs_are_told_which_models_were_merged() {
    let dir = prepared_variants();
    let path = dir.path();
    // What is on disk goes by its whole name.
    copy(&path.join("c"), &path.join("c:2"), &["config.json", "model.safetensors"]);
    fs::write(path.join("a/chat_template.jinja"), "of the first").unwrap();
    let command = "merge --method linear --model a:0.5 --model c:2 --output out --json";
    let output = halter_in(path, &command.split(' ').collect::<Vec<_>>());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = json!({
        "output": "out",
        "parameters": 15520,
        "method": "linear",
        "models": [{ "model": "a", "weight": 0.5 }, { "model": "c:2", "weight": 1.0 }],
        "export_dtype": "f32",
        "files": ["out/chat_template.jinja", "out/config.json", "out/model.safetensors"],
    });
    assert_eq!(told, expected);
}

#[test]
fn models_that_cannot_become_one_are_told_and_leave_nothing() {
    let dir = prepared_variants();
    let path = dir.path();
    let golden = root().join("oracle/golden/tiny");
    copy(&golden.join("qwen3"), &path.join("other"), &["config.json", "model.safetensors"]);
    copy(&path.join("a"), &path.join("longer"), &["config.json", "model.safetensors"]);
    let config = fs::read_to_string(path.join("a/config.json")).unwrap();
    let config = config.replace("\"rope_theta\": 10000.0", "\"rope_theta\": 500000.0");
    fs::write(path.join("longer/config.json"), config).unwrap();
    for (name, word) in [("one", "a"), ("two", "b")] {
        copy(&path.join("a"), &path.join(name), &["config.json", "model.safetensors"]);
        let tokenizer = json!({ "model": {
            "type": "WordLevel", "vocab": { "<unk>": 0, word: 1, "</s>": 2 }, "unk_token": "<unk>",
        } });
        fs::write(path.join(name).join("tokenizer.json"), tokenizer.to_string()).unwrap();
    }
    let before = names(path);
    let commands = [
        "merge --model a --model b --output out",
        "merge --model a --model b --adapter lora --output out",
        "merge --model a --adapter lora --average --output out",
        "merge --model a --adapter lora --t 0.5 --output out",
        "merge --model a --model b --average --revision main --output out",
        "merge --model a --model b --method median --output out",
        "merge --model a --model b --average --method slerp --output out",
        "merge --model a --average --output out",
        "merge --model a:2 --model b --average --output out",
        "merge --model a:0 --model b --method linear --output out",
        "merge --model a:x --model b --method linear --output out",
        "merge --model a --model b --model c --method slerp --output out",
        "merge --model a --model b:2 --method slerp --output out",
        "merge --model a --model b --method slerp --t 2 --output out",
        "merge --model a --model b --method slerp --density 0.5 --output out",
        "merge --model a --model b --method ties --output out",
        "merge --model a --model b --method ties --base base --seed 1 --output out",
        "merge --model a --model b --method ties --base base --density 0 --output out",
        "merge --model a --model b --method dare_ties --base other --output out",
        "merge --model a --model other --average --output out",
        "merge --model a --model longer --average --output out",
        "merge --model one --model two --average --output out",
        "merge --model one --model a --average --output out",
        "merge --model a --model absent --average --output out",
        "merge --model a --model b --average --output a",
    ];
    insta::assert_snapshot!("merge_models_failures", failures(path, &commands));
    assert_eq!(names(path), before, "something was left behind");
}

/// Every file under `dir`.
fn names(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names.extend(self::names(&path));
        }
        names.push(path.to_string_lossy().into_owned());
    }
    names.sort();
    names
}
