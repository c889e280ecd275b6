//! How much memory and time completions will need, from the model's shape.

use super::plan::{PROCESS_BYTES, Width, product_speed};
use crate::generate;
use crate::model::config::ModelConfig;

/// Share of the measured product speed that a forward pass reaches.
const EFFICIENCY: f64 = 0.9;

/// What is to be generated, and what is only read.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GenerationInput {
    /// Completions in all.
    pub completions: usize,
    /// Most tokens of one.
    pub max_new_tokens: usize,
    /// Completions at once.
    pub together: usize,
    /// Tokens that are read: prompts, once each, and texts that are scored.
    pub read: usize,
    /// Tokens of a prompt, on average.
    pub mean_prompt: usize,
    /// Bytes of the weights as they are held.
    pub weights: usize,
}

/// What completions will need at most: no prompt's pages go twice, and none ends before its time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GenerationPlan {
    /// Most memory the process will hold, in bytes.
    pub peak_bytes: usize,
    /// Seconds that they take.
    pub seconds: f64,
}

impl GenerationPlan {
    /// Plans for a model of this shape.
    pub fn new(config: &ModelConfig, input: GenerationInput) -> Self {
        let together = input.together.min(input.completions);
        let kv = 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers;
        let held = (together * (input.mean_prompt + input.max_new_tokens))
            .min(generate::generator::CACHE_TOKENS);
        let prefill = generate::PREFILL_TOKENS * Width::of(config).forward;
        let numbers = held * kv + together * config.vocab_size + prefill;
        let written = (input.completions * input.max_new_tokens) as f64;
        let passes = input.read as f64 + written * writing_passes(together as f64);
        Self {
            peak_bytes: input.weights + PROCESS_BYTES + 4 * numbers,
            seconds: seconds(config, passes),
        }
    }

    /// The same with a second model beside it, of which `weights` are the bytes, that reads `read`
    /// tokens, `together` of them at once.
    #[must_use]
    pub fn with_reader(
        self,
        config: &ModelConfig,
        read: usize,
        together: usize,
        weights: usize,
    ) -> Self {
        let held = together.min(read) * Width::of(config).forward;
        Self {
            peak_bytes: self.peak_bytes + weights + 4 * held,
            seconds: self.seconds + seconds(config, read as f64),
        }
    }
}

/// Seconds of so many forward passes of a token each.
fn seconds(config: &ModelConfig, passes: f64) -> f64 {
    let params = config.params();
    let matrices = params.iter().filter(|param| param.shape.len() == 2);
    let matrices: usize = matrices.map(|param| param.shape.iter().product::<usize>()).sum();
    // An embedding that is no head is looked up.
    let looked_up = match config.tie_word_embeddings {
        true => 0,
        false => config.vocab_size * config.hidden_size,
    };
    let operations = 2.0 * (matrices - looked_up.min(matrices)) as f64;
    operations * passes / (EFFICIENCY * product_speed(config.hidden_size))
}

/// Forward passes that writing a token costs, so many completions at once: few of them wait for the
/// weights at every token. Measured on SmolLM2-135M (docs/reference/performance.md, "Generation").
pub fn writing_passes(together: f64) -> f64 {
    (16.0 / together.max(1.0)).max(1.9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> ModelConfig {
        ModelConfig::from_json(
            &serde_json::json!({
                "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
                "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "vocab_size": 512, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
            }),
            "config.json",
        )
        .unwrap()
    }

    #[test]
    fn more_completions_need_more_time_and_more_at_once_more_memory() {
        let plan = |completions, together| {
            GenerationPlan::new(
                &tiny(),
                GenerationInput {
                    completions,
                    together,
                    max_new_tokens: 32,
                    read: 10 * completions,
                    mean_prompt: 10,
                    weights: 1 << 20,
                },
            )
        };
        let (few, many, at_once) = (plan(64, 1), plan(6400, 1), plan(6400, 64));
        assert!(many.seconds > 10.0 * few.seconds, "{few:?} {many:?}");
        assert!(at_once.seconds < many.seconds / 2.0, "{at_once:?} {many:?}");
        assert_eq!(few.peak_bytes, many.peak_bytes);
        // Keys and values of 63 more completions, and their logits.
        let more = 4 * 63 * (42 * 2 * 2 * 16 * 2 + 512);
        assert_eq!(at_once.peak_bytes, many.peak_bytes + more);
        let (read, read_more) =
            (few.with_reader(&tiny(), 100, 64, 1 << 20), few.with_reader(&tiny(), 1000, 64, 0));
        assert!(read.peak_bytes > few.peak_bytes + (1 << 20), "{few:?} {read:?}");
        assert_eq!(read.peak_bytes, read_more.peak_bytes + (1 << 20));
        assert!(few.seconds < read.seconds && read.seconds < read_more.seconds);
    }
}
