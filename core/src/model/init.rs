//! Fresh weights, as transformers initialises a Llama: matrices normal, norms one, biases zero.

use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use serde_json::Value;

use super::config::ModelConfig;
use crate::ops::dropout::hash_name;
use crate::{Error, Result};

/// `initializer_range` of the configuration; 0.02 where it says nothing.
pub fn scale(config: &ModelConfig) -> f32 {
    let range = config.raw.get("initializer_range").and_then(Value::as_f64);
    range.unwrap_or(0.02) as f32
}

/// A fresh parameter. The numbers depend on the seed and the name alone.
pub fn tensor(
    name: &str,
    shape: &[usize],
    scale: f32,
    seed: u64,
    device: &Device,
) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let values = if shape.len() >= 2 {
        let mut random = ChaCha8Rng::seed_from_u64(hash_name(seed, name));
        let normal = Normal::new(0f32, scale)
            .map_err(|_| Error::config(format!("`initializer_range` `{scale}` is not usable")))?;
        (0..count).map(|_| normal.sample(&mut random)).collect()
    } else if name.ends_with("bias") {
        vec![0.0; count]
    } else {
        vec![1.0; count]
    };
    Ok(Tensor::from_vec(values, shape, device)?)
}
