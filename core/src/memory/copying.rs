//! How much memory and time it takes to write a model that is made of others.

use super::plan::PROCESS_BYTES;
use crate::model::config::ModelConfig;

/// Bytes of the others that are read, widened, written, read again and compared in a second, about.
const BYTES_PER_SECOND: f64 = 2e8;

/// What a model needs that is made of others, matrix by matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CopyPlan {
    /// Most memory the process will hold, in bytes; pages of the files that the system keeps are not
    /// counted.
    pub peak_bytes: usize,
    /// Seconds that it takes.
    pub seconds: f64,
}

impl CopyPlan {
    /// Plans for so many models of this shape, with `bytes` of weights together.
    pub fn new(config: &ModelConfig, models: usize, bytes: usize) -> Self {
        let params = config.params();
        let sizes = params.iter().map(|param| param.shape.iter().product::<usize>());
        let largest = sizes.max().unwrap_or(0);
        Self {
            peak_bytes: PROCESS_BYTES + 4 * (models + 1) * largest,
            seconds: bytes as f64 / BYTES_PER_SECOND,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_matrix_of_every_model_is_held() {
        let config = ModelConfig::from_json(
            &serde_json::json!({
                "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
                "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "vocab_size": 512, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
            }),
            "config.json",
        )
        .unwrap();
        let (one, three) = (CopyPlan::new(&config, 1, 1000), CopyPlan::new(&config, 3, 3000));
        assert_eq!(three.peak_bytes - one.peak_bytes, 2 * 4 * 512 * 64);
        assert!(three.seconds > one.seconds);
    }
}
