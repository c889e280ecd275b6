//! A real checkpoint: SmolLM2-135M-Instruct as GGUF, where it was fetched.

use std::path::PathBuf;

use candle_core::{Device, quantized::gguf_file};
use halter_core::model::config::{Family, ParamSpec};
use halter_core::model::weights::export::{ExportOptions, ParamData, write_model};
use halter_core::model::weights::{HubOptions, ModelFiles, RowOrder, StoredKind};
use serde_json::Value;

use super::fixtures::template;

/// The file, or `None` with a notice.
fn asset() -> Option<PathBuf> {
    let root = std::env::var_os("HALTER_ASSETS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../assets"), PathBuf::from);
    let path = root.join("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        println!("skipped: no smollm2/SmolLM2-135M-Instruct.Q4_1.gguf under HALTER_ASSETS");
        return None;
    }
    Some(path)
}

fn open() -> Option<ModelFiles> {
    let path = asset()?;
    Some(ModelFiles::open(path.to_str()?, &HubOptions::default()).unwrap())
}

#[test]
fn the_configuration_is_that_of_smollm2() {
    let Some(model) = open() else { return };
    let c = &model.config;
    assert_eq!(c.family, Family::Llama);
    assert_eq!((c.num_hidden_layers, c.hidden_size, c.intermediate_size), (30, 576, 1536));
    assert_eq!((c.num_attention_heads, c.num_key_value_heads, c.head_dim), (9, 3, 64));
    assert_eq!((c.vocab_size, c.rope_theta, c.rms_norm_eps), (49_152, 1e5, 1e-5));
    assert!(c.tie_word_embeddings);
    assert_eq!((c.bos_token_id, &c.eos_token_ids[..]), (Some(1), &[2][..]));
    model.weights.check_finite().unwrap();
}

#[test]
fn every_tensor_reads_as_candle_reads_it() {
    let (Some(path), Some(model)) = (asset(), open()) else { return };
    let mut file = std::fs::File::open(path).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let mut quantized = 0;
    for tensor in model.weights.tensors() {
        let name = super::fixtures::gguf_name(tensor.name());
        let expected = content.tensor(&mut file, &name, &Device::Cpu).unwrap();
        let expected = expected.dequantize(&Device::Cpu).unwrap();
        let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let read = tensor.to_vec().unwrap();
        let row_len = tensor.row_len();
        for (row, values) in read.chunks(row_len).enumerate() {
            let at = tensor.row_order().stored_row(row) * row_len;
            assert_eq!(values, &expected[at..at + row_len], "{name} row {row}");
        }
        quantized += usize::from(matches!(tensor.kind(), StoredKind::Ggml(_)));
        let turned = name.contains("attn_q") || name.contains("attn_k");
        assert_eq!(tensor.row_order() != RowOrder::AsStored, turned, "{name}");
    }
    assert_eq!(quantized, 211);
}

#[test]
fn its_tokenizer_gives_the_ids_of_transformers() {
    let Some(model) = open() else { return };
    let golden = include_str!("../../../oracle/golden/smollm2_tokenizer.json");
    let golden: Value = serde_json::from_str(golden).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 30, "{}", cases.len());
    let tokenizer = model.text.tokenizer().unwrap();
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let encoded = tokenizer.encode(text, true).unwrap();
        assert_eq!(encoded.get_ids(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    assert_eq!(template(&model), golden["chat_template"]);
    for role in ["bos_token", "eos_token", "unk_token", "pad_token"] {
        assert_eq!(model.text.tokenizer_config[role], golden[role], "{role}");
    }
}

#[test]
fn its_export_has_the_same_values() {
    let Some(model) = open() else { return };
    let dir = tempfile::tempdir().unwrap();
    // Where a person wants to look at it with other tools.
    let kept = std::env::var_os("HALTER_KEEP_EXPORT").map(PathBuf::from);
    let out = kept.unwrap_or_else(|| dir.path().join("export"));
    let copy = |param: &ParamSpec| model.weights.get(&param.name).map(ParamData::Stored);
    write_model(&out, &model.config, &model.text.side_files, &ExportOptions::default(), copy)
        .unwrap();
    let again = ModelFiles::open(out.to_str().unwrap(), &HubOptions::default()).unwrap();
    for tensor in model.weights.tensors() {
        let read = again.weights.get(tensor.name()).unwrap().to_vec().unwrap();
        assert_eq!(read, tensor.to_vec().unwrap(), "{}", tensor.name());
    }
}
