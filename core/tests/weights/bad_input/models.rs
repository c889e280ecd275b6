//! What is not a model, not an adapter, or cannot be written.

use candle_core::DType;
use halter_core::model::weights::adapter::{
    Adapter, AdapterConfig, Part, TargetModules, write_adapter,
};
use halter_core::model::weights::export::{ExportOptions, ParamData, SideFile, write_model};
use halter_core::model::weights::{HubOptions, ModelFiles, StoredTensor, WeightFiles};
use serde_json::{Value, json};

use super::super::fixtures::{config, random_values, tiny_json, with, write_dir};
use super::Table;

#[test]
fn what_is_not_a_model() {
    let mut table = Table::new();
    let open =
        |path: &std::path::Path| ModelFiles::open(path.to_str().unwrap(), &HubOptions::default());
    let dir = table.dir();
    let at = dir.path();
    table.case("no such path", Some(at), open(&at.join("nothing/here/at-all")));
    table.case("no such GGUF file", Some(at), open(&at.join("nothing.gguf")));
    table.case("an empty directory", Some(at), open(at));
    std::fs::write(at.join("notes.txt"), "hello").unwrap();
    table.case("a text file", Some(at), open(&at.join("notes.txt")));
    table.case("a text file as weights", Some(at), WeightFiles::open(at.join("notes.txt")));
    table.case("no weights of that name", Some(at), WeightFiles::open(at.join("x.pth")));
    std::fs::create_dir(at.join("folder.gguf")).unwrap();
    table.case("a directory that calls itself GGUF", Some(at), open(&at.join("folder.gguf")));
    std::fs::write(at.join("adapter_config.json"), "{}").unwrap();
    table.case("an adapter", Some(at), open(at));
    table.case(
        "neither path nor hub id",
        None,
        ModelFiles::open("what is this?", &HubOptions::default()),
    );

    let mut with_files = |name: &str, files: &[(&str, &str)]| {
        let dir = table.dir();
        write_dir(dir.path(), &tiny_json("llama"), &random_values(&config(&tiny_json("llama")), 1));
        for (file, text) in files {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        table.case(name, Some(dir.path()), open(dir.path()));
    };
    with_files("a tokenizer that is not JSON", &[("tokenizer.json", "{")]);
    let tokenizer = json!({ "version": "1.0", "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": { "type": "BPE", "vocab": { "a": 0, "b": 264 }, "merges": [] } });
    with_files(
        "a tokenizer larger than the embedding",
        &[("tokenizer.json", &tokenizer.to_string())],
    );
    with_files("a tokenizer configuration that is a list", &[("tokenizer_config.json", "[]")]);
    for (name, template) in [
        ("a template that is a number", json!(3)),
        ("a named template without text", json!([{ "name": "default" }])),
        ("no template in the list", json!([])),
    ] {
        let config = json!({ "chat_template": template });
        with_files(name, &[("tokenizer_config.json", &config.to_string())]);
    }
    with_files("broken generation settings", &[("generation_config.json", "{\n\n]")]);
    with_files("a broken template file", &[("chat_template.json", "nope")]);
    insta::assert_snapshot!(table.finish(16));
}

fn peft() -> Value {
    json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"] })
}

#[test]
fn what_is_not_an_adapter() {
    let mut table = Table::new();
    let mut case = |name: &str, value: Value| {
        table.case(name, None, AdapterConfig::from_json(&value, "adapter_config.json".as_ref()));
    };
    let set = |key: &str, value: Value| with(peft(), key, value);
    case("a list", json!([]));
    case("another method", set("peft_type", json!("IA3")));
    case("no method", json!({ "r": 2 }));
    case("no rank", set("r", Value::Null));
    case("rank 0", set("r", json!(0)));
    case("no alpha", set("lora_alpha", Value::Null));
    case("dropout of everything", set("lora_dropout", json!(1.0)));
    case("no targets", set("target_modules", json!([])));
    case("a pattern", set("target_modules", json!(".*proj")));
    case("DoRA", set("use_dora", json!(true)));
    case("biases", set("bias", json!("all")));
    case("modules saved whole", set("modules_to_save", json!(["lm_head"])));
    case("ranks by layer", set("rank_pattern", json!({ "q_proj": 8 })));
    case("alphas by layer", set("alpha_pattern", json!({ "q_proj": 8 })));
    case("some layers only", set("layers_to_transform", json!([1])));
    case("an initialisation that changes the base", set("init_lora_weights", json!("pissa")));
    case("another task", set("task_type", json!("TOKEN_CLS")));
    case("an unknown key", set("new_trick", json!(3)));

    let model = config(&tiny_json("llama"));
    let good = AdapterConfig {
        rank: 2,
        alpha: 4.0,
        target_modules: TargetModules::Named(vec!["q_proj".into()]),
        use_rslora: false,
        ..AdapterConfig::default()
    };
    let factor = |_: &str, factor: Part| {
        let shape = if factor == Part::A { [2, 64] } else { [64, 2] };
        StoredTensor::from_f32("", &shape, &[0.5; 128]).map(ParamData::Stored)
    };
    let dir = table.dir();
    let at = dir.path();
    table.case("an empty directory", Some(at), Adapter::open(at, &model));
    write_adapter(at, &good, &model, DType::F32, factor).unwrap();
    let mut reopened = |name: &str, value: Value| {
        std::fs::write(at.join("adapter_config.json"), value.to_string()).unwrap();
        table.case(name, Some(at), Adapter::open(at, &model));
    };
    reopened("another rank", set("r", json!(4)));
    reopened("more targets than factors", set("target_modules", json!(["q_proj", "v_proj"])));
    reopened(
        "fewer targets than factors",
        set("target_modules", json!(["layers.0.self_attn.q_proj"])),
    );
    reopened("a target that no layer is", set("target_modules", json!(["q_proj", "lm_head"])));
    std::fs::remove_file(at.join("adapter_model.safetensors")).unwrap();
    std::fs::write(at.join("adapter_model.bin"), "").unwrap();
    reopened("pickled factors", peft());
    insta::assert_snapshot!(table.finish(24));
}

#[test]
fn what_cannot_be_written() {
    let mut table = Table::new();
    let model = config(&tiny_json("llama"));
    let values = random_values(&model, 1);
    let mut case = |name: &str,
                    file_in_the_way: bool,
                    dtype: DType,
                    side: &[SideFile],
                    value: f32,
                    extra: usize| {
        let dir = table.dir();
        let mut out = dir.path().join("out");
        if file_in_the_way {
            std::fs::write(&out, "a file").unwrap();
            out = out.join("export");
        }
        let options = ExportOptions { dtype, ..Default::default() };
        let result = write_model(&out, &model, side, &options, |param| {
            let (shape, values) = &values[&param.name];
            let (mut shape, mut values) = (shape.clone(), values.clone());
            if param.name == "model.norm.weight" {
                shape[0] += extra;
                values.resize(shape[0], 0.0);
                values[1] = value;
            }
            StoredTensor::from_f32(&param.name, &shape, &values).map(ParamData::Stored)
        });
        table.case(name, Some(dir.path()), result);
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, usize::from(file_in_the_way), "{name} left something");
    };
    case("below a file", true, DType::F32, &[], 0.0, 0);
    case("as integers", false, DType::I64, &[], 0.0, 0);
    case("a NaN", false, DType::F32, &[], f32::NAN, 0);
    case("an infinity", false, DType::BF16, &[], f32::INFINITY, 0);
    case("too large for f16", false, DType::F16, &[], 1e6, 0);
    case("a parameter of another shape", false, DType::F32, &[], 0.0, 1);
    let gone = SideFile {
        name: "tokenizer.json".into(),
        content: halter_core::model::weights::export::SideContent::File(
            "gone/tokenizer.json".into(),
        ),
    };
    case("a tokenizer that is gone", false, DType::F32, &[gone], 0.0, 0);
    insta::assert_snapshot!(table.finish(7));
}

#[test]
#[cfg(not(feature = "hub"))]
fn a_hub_id_needs_the_feature() {
    let Err(error) = ModelFiles::open("org/name", &HubOptions::default()) else {
        panic!("a hub was asked without the feature");
    };
    assert_eq!(
        error.to_string(),
        "`org/name` is not a directory here, and this build cannot ask a hub"
    );
    assert!(error.remedy().is_some_and(|hint| hint.contains("--features hub")));
}
