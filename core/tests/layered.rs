//! A model that stays in its file says what it says in memory.
#![allow(clippy::unwrap_used)]

use candle_core::Device;
use halter_core::data::batch::PackedBatch;
use halter_core::model::config::ModelConfig;
use halter_core::model::linear::PassMode;
use halter_core::model::weights::WeightFiles;
use halter_core::model::{Base, Decoder};
use halter_core::ops::Context;
use halter_testkit::{golden, max_abs_diff};

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
