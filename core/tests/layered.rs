//! A model that stays in its file says what it says in memory.
#![allow(clippy::unwrap_used)]

use candle_core::Device;
use halter_core::data::batch::PackedBatch;
use halter_core::memory::layered::layered_tokens;
use halter_core::memory::system::resident_memory;
use halter_core::model::config::ModelConfig;
use halter_core::model::linear::PassMode;
use halter_core::model::weights::WeightFiles;
use halter_core::model::{Base, Decoder};
use halter_core::ops::Context;
use halter_testkit::{golden, max_abs_diff};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

fn load(case: &str, base: Base) -> Decoder {
    let dir = golden("tiny").join(case);
    let config = ModelConfig::from_file(dir.join("config.json")).unwrap();
    let weights = WeightFiles::open(&dir).unwrap();
    Decoder::load(config, &weights, base, Context::new(&Device::Cpu)).unwrap()
}

fn batches() -> Vec<PackedBatch> {
    let row = |len: usize| {
        let mut builder = PackedBatch::builder();
        let ids: Vec<u32> = (0..len as u32).map(|at| (at * 7 + len as u32) % 48).collect();
        builder.masked_row(&ids, &vec![true; len]);
        builder.masked_row(&ids[..3], &[false, true, true]);
        builder.build().unwrap()
    };
    [5, 20, 9].map(row).into()
}

#[test]
fn block_by_block_the_hidden_states_have_the_same_bits() {
    for case in ["llama-tied", "llama-bias", "mistral-window", "qwen3"] {
        let (whole, mapped) = (load(case, Base::Frozen), load(case, Base::Mapped));
        assert!(mapped.embed.dense().is_none() && whole.embed.dense().is_some());
        assert_eq!(whole.fingerprint(true).unwrap(), mapped.fingerprint(true).unwrap(), "{case}");
        let (batches, mut seen) = (batches(), Vec::new());
        let layered = mapped.evaluate_layered(&batches, |done| {
            seen.push(done);
            Ok(())
        });
        assert_eq!(seen, [1, 2], "{case}");
        for (batch, layered) in batches.iter().zip(layered.unwrap()) {
            let rows = batch.target_rows().unwrap();
            let plain = whole.evaluate_hidden(batch, &rows, PassMode::EVALUATE).unwrap();
            assert_eq!(max_abs_diff(&plain, &layered), 0.0, "{case}");
            let logits = |model: &Decoder| model.logits(batch).unwrap();
            assert_eq!(max_abs_diff(&logits(&whole), &logits(&mapped)), 0.0, "{case}");
        }
    }
}

/// A model of 64 MiB in bf16, nearly all of it in its embedding and head.
fn large(dir: &std::path::Path) -> Decoder {
    let raw = json!({
        "model_type": "llama", "vocab_size": 65_536, "hidden_size": 256, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "hidden_act": "silu",
    });
    std::fs::write(dir.join("config.json"), raw.to_string()).unwrap();
    let config = ModelConfig::from_json(&raw, "config.json").unwrap();
    let params = config.params();
    let size = |shape: &[usize]| 2 * shape.iter().product::<usize>();
    let zeros = vec![0u8; params.iter().map(|param| size(&param.shape)).max().unwrap()];
    let tensors = params.iter().map(|param| {
        let bytes = &zeros[..size(&param.shape)];
        (&param.name, TensorView::new(Dtype::BF16, param.shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
    let weights = WeightFiles::open(dir).unwrap();
    Decoder::load(config, &weights, Base::Mapped, Context::new(&Device::Cpu)).unwrap()
}

#[test]
fn what_a_fingerprint_reads_of_a_file_does_not_stay_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let model = large(dir.path());
    let Some(before) = resident_memory() else {
        return println!("skipped: the system does not tell how much memory a process has");
    };
    model.fingerprint(true).unwrap();
    let more = resident_memory().unwrap().saturating_sub(before);
    assert!(more < 24 << 20, "{} MiB more", more >> 20);
    // The head is needed in f32.
    let head = 65_536 * 256 * 4;
    let told = layered_tokens(&model, before + head / 2, 16, 1).unwrap_err().to_string();
    assert!(told.contains("a microbatch needs"), "{told}");
    layered_tokens(&model, ((before + head) as f64 / 0.95) as usize + (48 << 20), 16, 1).unwrap();
}
