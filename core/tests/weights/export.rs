//! What is exported opens again with the same values, and a failed export leaves nothing.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use halter_core::model::config::{ModelConfig, ParamSpec};
use halter_core::model::weights::export::{ExportOptions, ParamData, SideFile, write_model};
use halter_core::model::weights::{HubOptions, ModelFiles, StoredTensor, WeightFiles};
use halter_core::{ErrorKind, Result};
use serde_json::{Value, json};

use super::fixtures::{
    Values, config, random_values, template, tiny_gguf, tiny_json, with, write_dir,
};

fn tiny() -> (ModelConfig, Values) {
    let config = config(&tiny_json("llama"));
    let values = random_values(&config, 5);
    (config, values)
}

fn source(values: &Values) -> impl Fn(&ParamSpec) -> Result<ParamData> + '_ {
    |param| {
        let (shape, values) = &values[&param.name];
        StoredTensor::from_f32(&param.name, shape, values).map(ParamData::Stored)
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_export_opens_again_with_the_same_values() {
    let (config, values) = tiny();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a/b");
    let side = [SideFile::text("chat_template.jinja", "{{ x }}")];
    write_model(&out, &config, &side, &ExportOptions::default(), source(&values)).unwrap();
    assert_eq!(names(&out), ["chat_template.jinja", "config.json", "model.safetensors"]);
    let model = ModelFiles::open(out.to_str().unwrap(), &HubOptions::default()).unwrap();
    assert_eq!(template(&model), "{{ x }}");
    for (name, (_, expected)) in &values {
        assert_eq!(&model.weights.get(name).unwrap().to_vec().unwrap(), expected, "{name}");
    }
}

#[test]
fn narrow_types_round_to_nearest() {
    let (config, values) = tiny();
    for dtype in [DType::BF16, DType::F16] {
        let dir = tempfile::tempdir().unwrap();
        let options = ExportOptions { dtype, ..Default::default() };
        write_model(dir.path(), &config, &[], &options, |param| {
            let (shape, values) = &values[&param.name];
            Ok(ParamData::Tensor(Tensor::from_slice(values, shape.as_slice(), &Device::Cpu)?))
        })
        .unwrap();
        let files = WeightFiles::open(dir.path()).unwrap();
        for (name, (shape, expected)) in &values {
            let tensor = Tensor::from_slice(expected, shape.as_slice(), &Device::Cpu).unwrap();
            let rounded = tensor.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
            let rounded = rounded.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(files.get(name).unwrap().to_vec().unwrap(), rounded, "{name}");
        }
        let text = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        let expected = if dtype == DType::BF16 { "bfloat16" } else { "float16" };
        assert_eq!(json["torch_dtype"], expected);
    }
}

#[test]
fn a_large_export_is_sharded_and_replaces_what_was_there() {
    let (config, values) = tiny();
    let dir = tempfile::tempdir().unwrap();
    let small = ExportOptions { max_shard_bytes: 60_000, ..Default::default() };
    write_model(dir.path(), &config, &[], &small, source(&values)).unwrap();
    let first = names(dir.path());
    assert!(first.contains(&"model.safetensors.index.json".to_string()), "{first:?}");
    let count = first.iter().filter(|name| name.contains("-of-")).count();
    assert!(count > 2, "{first:?}");
    for name in first.iter().filter(|name| name.contains("-of-")) {
        let size = std::fs::metadata(dir.path().join(name)).unwrap().len();
        // The embedding alone is larger than the limit; nothing else shares its shard.
        assert!(size < 75_000, "{name} {size}");
    }
    let files = WeightFiles::open(dir.path()).unwrap();
    files.check(&config).unwrap();
    // One file in place of the shards, while the shards are mapped.
    let whole = ExportOptions::default();
    let copy = |param: &ParamSpec| files.get(&param.name).map(ParamData::Stored);
    write_model(dir.path(), &config, &[], &whole, copy).unwrap();
    assert_eq!(names(dir.path()), ["config.json", "model.safetensors"]);
    let again = WeightFiles::open(dir.path()).unwrap();
    for (name, (_, expected)) in &values {
        assert_eq!(&again.get(name).unwrap().to_vec().unwrap(), expected, "{name}");
    }
}

#[test]
fn a_gguf_file_exports_as_safetensors_with_the_same_values() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, tiny_gguf().build()).unwrap();
    let base = ModelFiles::open(path.to_str().unwrap(), &HubOptions::default()).unwrap();
    let out = dir.path().join("export");
    let options = ExportOptions::default();
    let copy = |param: &ParamSpec| base.weights.get(&param.name).map(ParamData::Stored);
    write_model(&out, &base.config, &base.text.side_files, &options, copy).unwrap();
    let again = ModelFiles::open(out.to_str().unwrap(), &HubOptions::default()).unwrap();
    for tensor in base.weights.tensors() {
        let read = again.weights.get(tensor.name()).unwrap();
        assert_eq!(read.to_vec().unwrap(), tensor.to_vec().unwrap(), "{}", tensor.name());
    }
    let mut config = again.config.clone();
    config.raw.clone_from(&base.config.raw);
    assert_eq!(config, base.config);
    let text = "the 12 <|user|>";
    let ids = |model: &ModelFiles| {
        model.text.tokenizer().unwrap().encode(text, true).unwrap().get_ids().to_vec()
    };
    assert_eq!(ids(&again), ids(&base));
    assert_eq!(again.text.chat_templates, base.text.chat_templates);
    assert_eq!(again.text.generation_config, base.text.generation_config);
}

#[test]
fn a_failed_export_leaves_nothing_behind() {
    let (config, values) = tiny();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a/b");
    let broken = |param: &ParamSpec| {
        let (shape, values) = &values[&param.name];
        let mut values = values.clone();
        if param.name == "model.norm.weight" {
            values[3] = f32::NAN;
        }
        StoredTensor::from_f32(&param.name, shape, &values).map(ParamData::Stored)
    };
    let options = ExportOptions::default();
    let error = write_model(&out, &config, &[], &options, broken).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Numeric);
    assert!(names(dir.path()).is_empty());
    // Nor does it touch what was there.
    write_model(&out, &config, &[], &options, source(&values)).unwrap();
    let before = std::fs::read(out.join("model.safetensors")).unwrap();
    write_model(&out, &config, &[], &options, broken).unwrap_err();
    assert_eq!(names(&out), ["config.json", "model.safetensors"]);
    assert_eq!(std::fs::read(out.join("model.safetensors")).unwrap(), before);
}

#[test]
fn side_files_are_copied_as_they_are_and_templates_found_wherever_they_lie() {
    let (config, values) = tiny();
    let dir = tempfile::tempdir().unwrap();
    write_dir(dir.path(), &tiny_json("llama"), &values);
    let open = || ModelFiles::open(dir.path().to_str().unwrap(), &HubOptions::default()).unwrap();
    assert!(open().text.chat_templates.is_empty() && open().text.tokenizer().is_err());
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let both = json!([{ "name": "default", "template": "one" },
                      { "name": "tool_use", "template": "two" }]);
    write("tokenizer_config.json", &json!({ "chat_template": both }).to_string());
    let model = open();
    assert_eq!(template(&model), "one");
    assert_eq!(model.text.chat_templates[1], ("tool_use".to_string(), "two".to_string()));
    write("tokenizer_config.json", &json!({ "chat_template": "inside" }).to_string());
    let model = open();
    assert_eq!(template(&model), "inside");
    let out = dir.path().join("out");
    let options = ExportOptions::default();
    write_model(&out, &config, &model.text.side_files, &options, source(&values)).unwrap();
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    assert_eq!(read("chat_template.jinja"), "inside");
    assert_eq!(read("tokenizer_config.json"), json!({ "chat_template": "inside" }).to_string());
    write("chat_template.json", &json!({ "chat_template": "beside" }).to_string());
    assert_eq!(template(&open()), "beside");
    write("chat_template.jinja", "own file");
    assert_eq!(template(&open()), "own file");
    write("chat_template.jinja", "{% if %}");
    let error = open().text.template().unwrap_err();
    assert!(error.to_string().contains("chat_template.jinja: the chat template is not valid"));
    assert_eq!(error.kind(), ErrorKind::Text);
}

#[test]
fn a_tied_head_in_the_file_is_tolerated_and_not_exported() {
    let tied = with(tiny_json("llama"), "tie_word_embeddings", json!(true));
    let dir = tempfile::tempdir().unwrap();
    write_dir(dir.path(), &tied, &tiny().1);
    let model = ModelFiles::open(dir.path().to_str().unwrap(), &HubOptions::default()).unwrap();
    let out = dir.path().join("out");
    let copy = |param: &ParamSpec| model.weights.get(&param.name).map(ParamData::Stored);
    write_model(&out, &model.config, &[], &ExportOptions::default(), copy).unwrap();
    assert!(!WeightFiles::open(&out).unwrap().contains("lm_head.weight"));
}
