//! Comparisons and golden files for halter's tests, a server that fails, and what its benchmarks
//! measure against.

pub mod faults;
pub mod gradients;
pub mod peak;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// A file or folder under `oracle/golden`.
pub fn golden(path: &str) -> PathBuf {
    root().join("oracle/golden").join(path)
}

/// A file or folder that `scripts/fetch-assets` fetches; says `skipped` where it is not there.
pub fn asset(path: &str) -> Option<PathBuf> {
    let assets =
        std::env::var_os("HALTER_ASSETS").map_or_else(|| root().join("assets"), Into::into);
    let found = assets.join(path);
    if found.exists() {
        return Some(found);
    }
    eprintln!("skipped: `{}` is not there (run scripts/fetch-assets)", found.display());
    None
}

/// `config.json` of SmolLM2-135M, with so many blocks.
pub fn smollm2_config(blocks: usize) -> Value {
    json!({
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": blocks, "num_attention_heads": 9, "num_key_value_heads": 3,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
        "tie_word_embeddings": true, "hidden_act": "silu",
    })
}

/// All tensors of a safetensors file.
pub fn tensors(path: impl AsRef<Path>) -> HashMap<String, Tensor> {
    let path = path.as_ref();
    candle_core::safetensors::load(path, &Device::Cpu)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The elements as f64.
pub fn values(x: &Tensor) -> Vec<f64> {
    let flat = x.flatten_all().and_then(|x| x.to_dtype(DType::F64)).and_then(|x| x.to_vec1());
    flat.unwrap_or_else(|error| panic!("{error}"))
}

/// Largest |a − b|.
pub fn max_abs_diff(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims(), "shapes differ");
    values(a).iter().zip(values(b)).map(|(a, b)| nan_is_far(a - b).abs()).fold(0.0, f64::max)
}

/// ‖a − b‖ / ‖b‖, in the Euclidean norm.
pub fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims(), "shapes differ");
    let (a, b) = (values(a), values(b));
    let difference: f64 = a.iter().zip(&b).map(|(a, b)| nan_is_far(a - b).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| b * b).sum();
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

fn nan_is_far(x: f64) -> f64 {
    if x.is_nan() { f64::INFINITY } else { x }
}

/// Fails unless every element of `a` is within `tolerance` of `b`'s.
#[track_caller]
pub fn assert_close(what: &str, a: &Tensor, b: &Tensor, tolerance: f64) {
    let diff = max_abs_diff(a, b);
    assert!(diff <= tolerance, "{what}: largest difference {diff:e}, allowed {tolerance:e}");
}

/// Fails unless ‖a − b‖ ≤ `tolerance` · ‖b‖.
#[track_caller]
pub fn assert_relative(what: &str, a: &Tensor, b: &Tensor, tolerance: f64) {
    let error = relative_error(a, b);
    assert!(error <= tolerance, "{what}: relative error {error:e}, allowed {tolerance:e}");
}
