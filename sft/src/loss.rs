//! The loss of supervised fine-tuning.

use candle_core::Tensor;
use halter_core::Result;

/// −Σ log-probs / `tokens`: the cross-entropy of the trained tokens, normalised over the whole
/// step ("The Llama 3 Herd of Models", section 4.1.3).
///
/// # Errors
/// When a tensor operation fails.
pub fn cross_entropy(per_token_logps: &Tensor, tokens: usize) -> Result<Tensor> {
    Ok((per_token_logps.sum_all()?.neg()? / tokens as f64)?)
}
