//! Sentence embeddings against those of transformers (`oracle/sentence_embeddings.py`).
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::path::Path;

use candle_core::Device;
use halter_synth::curate::clusters::Vectors;
use halter_synth::curate::embed::Embedder;
use halter_synth::curate::embed::bert::Bert;
use halter_testkit::{asset, golden};
use serde_json::Value;

/// Embeds the oracle's texts; the most that any value of any embedding is off, and the embeddings.
fn compared(folder: &Path, file: &str, values: usize) -> (f64, Vectors) {
    let told: Value =
        serde_json::from_slice(&std::fs::read(golden("bert").join(file)).unwrap()).unwrap();
    let texts = told["texts"].as_array().unwrap();
    let texts: Vec<String> = texts.iter().map(|text| text.as_str().unwrap().into()).collect();
    let bert = Bert::open(folder, None, &Device::Cpu).unwrap();
    let mut reached = 0;
    let vectors = bert
        .embed(&texts, &mut |done| {
            reached = done;
            Ok(())
        })
        .unwrap();
    assert_eq!((vectors.len(), reached), (texts.len(), texts.len()));
    let mut worst = 0f64;
    let mut count = 0;
    for (at, expected) in told["embeddings"].as_array().unwrap().iter().enumerate() {
        for (got, expected) in vectors.get(at).iter().zip(expected.as_array().unwrap()) {
            worst = worst.max((f64::from(*got) - expected.as_f64().unwrap()).abs());
            count += 1;
        }
    }
    assert_eq!(count, values);
    (worst, vectors)
}

#[test]
fn a_tiny_bert_gives_the_embeddings_of_transformers() {
    let (worst, _) = compared(&golden("bert"), "embeddings.json", 7 * 32);
    assert!(worst < 2e-6, "{worst}");
}

#[test]
fn all_minilm_gives_the_embeddings_of_transformers() {
    let Some(folder) = asset("all-minilm-l6-v2") else { return };
    let (worst, vectors) = compared(&folder, "minilm.json", 7 * 384);
    assert!(worst < 2e-6, "{worst}");
    let (alike, unlike) = (vectors.cosine(0, 1), vectors.cosine(0, 2));
    assert!(alike > 0.8 && unlike < 0.2, "{alike} {unlike}");
}

#[test]
fn texts_do_not_depend_on_those_beside_them() {
    let bert = Bert::open(&golden("bert"), None, &Device::Cpu).unwrap();
    let texts: Vec<String> = (0..70).map(|at| "the cat ".repeat(at % 9 + 1)).collect();
    let together = bert.embed(&texts, &mut |_| Ok(())).unwrap();
    let alone = bert.embed(&texts[3..4], &mut |_| Ok(())).unwrap();
    for (a, b) in together.get(3).iter().zip(alone.get(0)) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }
    assert_eq!(together.get(3), together.get(12));
}
