//! Weights of tokens by their place, against the pull towards long completions.

/// The weights of a pair's completion tokens, chosen and rejected: 1 up to the length of the
/// shorter one, `alpha` (0 to 1) beyond. Log-probs are multiplied by them before they are summed,
/// the reference's too; counts of tokens stay as they are.
///
/// LD-DPO: Liu et al. 2024 (arXiv 2409.06411).
pub fn ld_weights(chosen: usize, rejected: usize, alpha: f64) -> (Vec<f64>, Vec<f64>) {
    let shared = chosen.min(rejected);
    let weights = |len: usize| (0..len).map(|i| if i < shared { 1.0 } else { alpha }).collect();
    (weights(chosen), weights(rejected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_beyond_the_common_length_weigh_alpha() {
        assert_eq!(ld_weights(2, 4, 0.3), (vec![1.0, 1.0], vec![1.0, 1.0, 0.3, 0.3]));
        assert_eq!(ld_weights(3, 0, 0.0), (vec![0.0; 3], vec![]));
        assert_eq!(ld_weights(1, 1, 0.5), (vec![1.0], vec![1.0]));
    }
}
