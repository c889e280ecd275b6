//! Damaged files are errors, never panics, and never take memory that they do not have.

use halter_core::model::config::ModelConfig;
use halter_core::model::weights::WeightFiles;
use halter_core::model::weights::gguf::Gguf;
use halter_core::text::gguf_tokenizer;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::fixtures::{config, random_values, safetensors_of, tiny_gguf, tiny_json};

#[derive(Debug, Clone)]
enum Damage {
    Set(usize, u8),
    Flip(usize, u8),
    /// A length or count becomes something else, often enormous.
    Long(usize, u64),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    // Most of a file is data, most of the danger is in the header.
    let at = prop_oneof![3 => 0..200usize, 3 => 0..4000usize, 1 => any::<usize>()];
    (at, any::<u8>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..16), 0..6u8).prop_map(
        |(at, byte, long, bytes, kind)| match kind {
            0 => Damage::Set(at, byte),
            1 => Damage::Flip(at, byte % 8),
            2 => Damage::Long(at, if byte < 128 { long } else { u64::from(byte) }),
            3 => Damage::Cut(at),
            4 => Damage::Insert(at, bytes),
            _ => Damage::Remove(at, bytes.len()),
        },
    )
}

fn apply(file: &mut Vec<u8>, damage: &Damage) {
    if file.is_empty() {
        return;
    }
    let len = file.len();
    match damage {
        Damage::Set(at, byte) => file[at % len] = *byte,
        Damage::Flip(at, bit) => file[at % len] ^= 1 << bit,
        Damage::Long(at, value) => {
            let at = at % len;
            let end = (at + 8).min(len);
            file[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
        }
        Damage::Cut(at) => file.truncate(at % len),
        Damage::Insert(at, bytes) => {
            let at = at % len;
            file.splice(at..at, bytes.iter().copied());
        }
        Damage::Remove(at, count) => {
            let at = at % len;
            file.drain(at..(at + count).min(len));
        }
    }
}

fn settings() -> ProptestConfig {
    ProptestConfig {
        cases: 400,
        rng_seed: RngSeed::Fixed(17),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn a_damaged_gguf_file_never_panics(damages in prop::collection::vec(damage(), 1..4)) {
        let mut file = tiny_gguf().build();
        damages.iter().for_each(|damage| apply(&mut file, damage));
        if let Ok(gguf) = Gguf::from_bytes(file) {
            let _ = gguf_tokenizer::from_gguf(&gguf);
            if let Ok(config) = gguf.model_config()
                && let Ok(files) = WeightFiles::from_gguf(gguf)
                && files.check(&config).is_ok()
            {
                let _ = files.check_finite();
            }
        }
    }

    #[test]
    fn a_damaged_safetensors_file_never_panics(damages in prop::collection::vec(damage(), 1..4)) {
        let config = config(&tiny_json("llama"));
        let mut file = safetensors_of(&random_values(&config, 1));
        damages.iter().for_each(|damage| apply(&mut file, damage));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, &file).unwrap();
        if let Ok(files) = WeightFiles::open(&path)
            && files.check(&config).is_ok()
        {
            let _ = files.check_finite();
        }
    }

    #[test]
    fn a_damaged_configuration_never_panics(damages in prop::collection::vec(damage(), 1..4)) {
        let mut text = tiny_json("qwen2").to_string().into_bytes();
        damages.iter().for_each(|damage| apply(&mut text, damage));
        if let Ok(value) = serde_json::from_slice(&text)
            && let Ok(config) = ModelConfig::from_json(&value, "config.json")
        {
            prop_assert!(config.check().is_ok());
            prop_assert!(!config.params().is_empty());
        }
    }
}

/// Writes small valid files where `HALTER_FUZZ_SEEDS` says: the fuzzer's first corpus.
#[test]
fn seeds_of_the_fuzzer_are_valid() {
    let mut small = tiny_gguf();
    // Without the weights, which are only bytes, the fuzzer's changes hit the header.
    small.tensors.clear();
    small.data.clear();
    small.tensor("token_embd.weight", &[2, 32], 2, &[0x11; 36]);
    let pieces = super::gguf::sentencepiece(&[("▁", -1.0), ("a", -1.0), ("▁a", -0.5)]);
    let seeds = [("byte-level", small), ("sentencepiece", pieces), ("whole", tiny_gguf())];
    for (name, builder) in seeds {
        let bytes = builder.build();
        assert!(Gguf::from_bytes(bytes.clone()).is_ok(), "{name}");
        if let Some(dir) = std::env::var_os("HALTER_FUZZ_SEEDS") {
            let dir = std::path::PathBuf::from(dir);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join(name), bytes).unwrap();
        }
    }
}
