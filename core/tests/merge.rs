//! Merges on disk, and what is refused: a LoRA adapter in its base has the logits of PEFT's merged
//! model (`oracle/tiny_models.py`), several models have the values of `oracle/merge_models.py`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use halter_core::data::batch::PackedBatch;
use halter_core::model::config::ModelConfig;
use halter_core::model::merge::{Merged, Method, Weighted, merge, merge_models};
use halter_core::model::weights::adapter::Adapter;
use halter_core::model::weights::{HubOptions, ModelFiles, WeightFiles};
use halter_core::model::{Base, Decoder};
use halter_core::ops::Context;
use halter_core::train::progress::Silent;
use halter_testkit::{assert_close, asset, golden, tensors};

fn open(dir: &Path) -> ModelFiles {
    ModelFiles::open(&dir.to_string_lossy(), &HubOptions::default()).unwrap()
}

fn merge_case(case: &str, dtype: DType, output: &Path) -> halter_core::Result<Merged> {
    let base = open(&golden("tiny/llama-tied"));
    let adapter = Adapter::open(golden("tiny").join(case), &base.config).unwrap();
    merge(&base, &adapter, dtype, output, &mut Silent)
}

fn decoder(dir: &Path) -> Decoder {
    let config = ModelConfig::from_file(dir.join("config.json")).unwrap();
    let weights = WeightFiles::open(dir).unwrap();
    Decoder::load(config, &weights, Base::Trainable, Context::new(&Device::Cpu)).unwrap()
}

/// The first two sequences of a golden file.
fn batch(expected: &std::collections::HashMap<String, Tensor>) -> PackedBatch {
    let mut builder = PackedBatch::builder();
    for n in 0..2 {
        let ids = expected[&format!("input_ids.{n}")].to_vec1::<i64>().unwrap();
        let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
        builder.masked_row(&ids, &vec![true; ids.len()]);
    }
    builder.build().unwrap()
}

#[test]
fn the_merged_export_has_the_logits_of_pefts_merged_model() {
    for case in ["lora", "lora-rslora"] {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("merged/here");
        let merged = merge_case(case, DType::F32, &output).unwrap();
        assert_eq!(merged.matrices, 14);
        assert_eq!(merged.files.len(), 2, "weights and configuration: {:?}", merged.files);
        let expected = tensors(golden("tiny").join(case).join("golden.safetensors"));
        let logits = decoder(&output).logits(&batch(&expected)).unwrap();
        let want = [&expected["merged_logits.0"], &expected["merged_logits.1"]];
        let want = Tensor::cat(&want, 0).unwrap();
        assert_close(&format!("{case}: merged logits"), &logits, &want, 1e-5);
    }
}

#[test]
fn a_merge_on_disk_is_the_merge_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("merged");
    merge_case("lora", DType::F32, &output).unwrap();
    let on_disk = WeightFiles::open(&output).unwrap();
    let mut model = decoder(&golden("tiny/llama-tied"));
    let adapter = Adapter::open(golden("tiny/lora"), &model.config).unwrap();
    model.load_lora(&adapter).unwrap();
    model.merge_lora().unwrap();
    let params = model.params();
    assert_eq!(params.len(), 20);
    for param in params {
        let found = on_disk.get(param.name()).unwrap().to_tensor(&Device::Cpu).unwrap();
        // Two kernels made the products: they may round differently.
        assert_close(param.name(), &found, &param.to_f32().unwrap(), 1e-6);
    }
}

#[test]
fn the_type_of_the_export_is_the_one_asked_for() {
    for (dtype, name) in [(DType::BF16, "bfloat16"), (DType::F16, "float16")] {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("merged");
        merge_case("lora", dtype, &output).unwrap();
        let weights = WeightFiles::open(&output).unwrap();
        let kinds: BTreeMap<String, usize> =
            weights.tensors().fold(BTreeMap::new(), |mut kinds, tensor| {
                *kinds.entry(tensor.kind().to_string().to_lowercase()).or_default() += 1;
                kinds
            });
        assert_eq!(kinds.keys().next().unwrap(), dtype.as_str(), "{kinds:?}");
        assert_eq!(kinds.len(), 1, "{kinds:?}");
        let config = std::fs::read_to_string(output.join("config.json")).unwrap();
        assert!(config.contains(name), "{config}");
    }
}

#[test]
fn an_output_that_holds_something_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let error = merge_case("lora", DType::F32, dir.path()).unwrap_err();
    assert_eq!(error.message(), "the output directory is not empty: it holds `notes.txt`");
    let file = dir.path().join("notes.txt");
    let error = merge_case("lora", DType::F32, &file).unwrap_err();
    assert_eq!(error.message(), "the output is not a directory");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "mine");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_merge_that_fails_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("merged");
    let base = open(&golden("tiny/llama-tied"));
    let mut adapter = Adapter::open(golden("tiny/lora"), &base.config).unwrap();
    adapter.config.alpha = 1e30;
    let error = merge(&base, &adapter, DType::F16, &output, &mut Silent).unwrap_err();
    assert!(error.message().ends_with("which does not fit `f16`"), "{error}");
    assert!(!output.exists());
}

#[test]
fn an_adapter_merges_into_a_quantized_gguf_base() {
    let (Some(gguf), Some(lora)) =
        (asset("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), asset("smollm2-lora-init"))
    else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("merged");
    let base = open(&gguf);
    let adapter = Adapter::open(lora, &base.config).unwrap();
    let merged = merge(&base, &adapter, DType::F32, &output, &mut Silent).unwrap();
    assert_eq!(merged.matrices, 210);
    // B is zero: the merged weights are the base's, its tokenizer and template beside them.
    let export = open(&output);
    for name in ["model.layers.0.self_attn.q_proj.weight", "model.layers.29.mlp.down_proj.weight"] {
        let [found, want] =
            [&export, &base].map(|files| files.weights.get(name).unwrap().to_vec().unwrap());
        assert_eq!(found, want, "{name}");
    }
    assert_eq!(export.text.chat_templates, base.text.chat_templates);
    assert!(export.text.tokenizer.is_some());
}

/// A base and variants of it, from `oracle/merge_models.py`.
fn variant(name: &str) -> ModelFiles {
    open(&golden("merge").join(name))
}

fn variants(weights: &[f64]) -> Vec<Weighted> {
    let files = ["a", "b", "c"].map(variant);
    files.into_iter().zip(weights).map(|(files, &weight)| Weighted { files, weight }).collect()
}

/// Every element of the export.
fn merged(models: &[Weighted], method: &Method, dtype: DType) -> BTreeMap<String, Vec<f32>> {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("merged");
    let written = merge_models(models, method, dtype, &output, &mut Silent).unwrap();
    assert_eq!(written.parameters, 15520);
    let weights = WeightFiles::open(&output).unwrap();
    weights.tensors().map(|x| (x.name().to_string(), x.to_vec().unwrap())).collect()
}

#[test]
fn merged_models_are_those_of_the_formulas() {
    let base = open(&golden("tiny/llama-tied"));
    let weights = [0.5, 2.0, 1.25];
    for (case, weights, method) in [
        ("average", &[1.0; 3][..], Method::Linear),
        ("linear", &weights, Method::Linear),
        ("slerp", &[1.0; 2], Method::Slerp { t: 0.3 }),
        ("ties", &weights, Method::Ties { base: &base, density: 0.4 }),
    ] {
        let found = merged(&variants(weights), &method, DType::F32);
        let expected = tensors(golden("merge").join(case).with_extension("safetensors"));
        assert_eq!(found.len(), expected.len());
        for (name, values) in found {
            let values = Tensor::from_vec(values, expected[&name].shape(), &Device::Cpu).unwrap();
            assert_close(&format!("{case}: {name}"), &values, &expected[&name], 1e-6);
        }
    }
}

#[test]
fn a_model_averaged_with_itself_is_written_with_its_bits() {
    let twice = ["b", "b"].map(|name| Weighted { files: variant(name), weight: 0.7 });
    // The variants are stored in f16.
    for dtype in [DType::F16, DType::F32] {
        for (name, values) in merged(&twice, &Method::Linear, dtype) {
            assert_eq!(
                values,
                twice[0].files.weights.get(&name).unwrap().to_vec().unwrap(),
                "{name}"
            );
        }
    }
}

#[test]
fn dares_masks_are_of_the_seed_the_parameter_and_the_model() {
    let base = open(&golden("tiny/llama-tied"));
    let dare = |models: &[Weighted], seed| {
        let method = Method::Dare { base: &base, density: 0.5, seed, elect: false };
        merged(models, &method, DType::F32)
    };
    let twice = || ["a", "a"].map(|name| Weighted { files: variant(name), weight: 1.0 });
    let first = dare(&twice(), 1);
    assert_eq!(first, dare(&twice(), 1));
    assert_ne!(first, dare(&twice(), 2));
    // Of a model with itself: changed by both, by one of them or by none.
    let shares = |name: &str| -> Vec<i32> {
        let of = |files: &ModelFiles| files.weights.get(name).unwrap().to_vec().unwrap();
        let (base, model) = (of(&base), of(&twice()[0].files));
        let changes = first[name].iter().zip(base).zip(model);
        changes.map(|((x, base), model)| ((x - base) / (model - base)).round() as i32).collect()
    };
    let [gate, up] = ["gate", "up"].map(|n| shares(&format!("model.layers.0.mlp.{n}_proj.weight")));
    for count in 0..=2 {
        let found = gate.iter().filter(|&&share| share == count).count();
        assert!(found > gate.len() / 8, "{count}: {found} of {}", gate.len());
    }
    assert_ne!(gate, up, "two parameters of one shape have one mask");
}

#[test]
fn what_several_models_cannot_become_is_an_error() {
    let base = open(&golden("tiny/llama-tied"));
    let refused = |models: &[Weighted], method: &Method| {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("merged");
        let error = merge_models(models, method, DType::F32, &output, &mut Silent).unwrap_err();
        assert!(!output.exists());
        error.message().to_string()
    };
    let ties = |density| Method::Ties { base: &base, density };
    let cases: [(&[f64], Method, &str); 8] = [
        (&[1.0], Method::Linear, "1 model given: the method takes at least 2"),
        (&[1.0; 3], Method::Slerp { t: 0.5 }, "3 models given: the method takes exactly 2"),
        (&[], ties(0.5), "0 models given: the method takes at least 1"),
        (&[1.0; 2], Method::Slerp { t: 1.5 }, "`t` is `1.5`: expected 0 to 1"),
        (&[1.0; 2], Method::Slerp { t: f64::NAN }, "`t` is `NaN`: expected 0 to 1"),
        (&[1.0; 2], ties(0.0), "`density` is `0`: expected above 0, at most 1"),
        (&[1.0; 2], ties(1.1), "`density` is `1.1`: expected above 0, at most 1"),
        (&[1.0, 2.0], Method::Slerp { t: 0.5 }, "models have weights, but SLERP takes none"),
    ];
    for (weights, method, message) in cases {
        assert_eq!(refused(&variants(weights), &method), message);
    }
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let message = refused(&variants(&[1.0, weight]), &Method::Linear);
        assert!(
            message.ends_with(&format!("is `{weight}`: expected a number above 0")),
            "{message}"
        );
    }
    let other = || Weighted { files: open(&golden("tiny/llama-untied-mha")), weight: 1.0 };
    let models = [other(), other()];
    let message = refused(&models, &ties(0.5));
    assert!(message.starts_with("the models differ in `"), "{message}");
}
