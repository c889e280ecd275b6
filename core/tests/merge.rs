//! A LoRA adapter merged into its base, on disk: the logits of PEFT's merged model
//! (`oracle/tiny_models.py`), and what is refused.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use halter_core::data::batch::PackedBatch;
use halter_core::model::config::ModelConfig;
use halter_core::model::merge::{Merged, merge};
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
