//! KTO: a loss of single completions that are said to be good or bad.

use candle_core::{DType, Tensor};
use halter_core::{Error, Result};

use super::check_length_of;
use halter_core::train::stable::sigmoid;

/// A loss of single completions, under the name that TRL has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnpairedLoss {
    /// [`kto`] with the KL of [`kto_kl`].
    Kto,
    /// [`kto`] with a KL of zero, which is APO-zero of single completions: D'Oosterlinck et al.
    /// 2024 (arXiv 2408.06266).
    ApoZeroUnpaired,
}

impl UnpairedLoss {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Kto, Self::ApoZeroUnpaired];

    /// Whether it wants completions of other prompts, to estimate the KL from.
    pub fn estimates_kl(self) -> bool {
        self == Self::Kto
    }

    /// The name of configurations and command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kto => "kto",
            Self::ApoZeroUnpaired => "apo_zero_unpaired",
        }
    }
}

/// The constants of [`kto`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KtoConfig {
    /// How strongly the policy is held to the reference.
    pub beta: f64,
    /// Weight of desirable completions.
    pub desirable_weight: f64,
    /// Weight of undesirable completions.
    pub undesirable_weight: f64,
}

impl Default for KtoConfig {
    fn default() -> Self {
        Self { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0 }
    }
}

/// For each completion, `(completions,)`: its weight times 1 − σ(reward − `beta`·`kl`) where it is
/// desirable, 1 − σ(`beta`·`kl` − reward) where it is not. The reward is `beta` · (`logps` −
/// `reference`), both summed over the completion; `kl` is that of [`kto_kl`].
///
/// KTO: Ethayarajh et al. 2024 (arXiv 2402.01306), which advises weights for which
/// desirable weight × count over undesirable weight × count lies between 1 and 4/3.
///
/// # Errors
/// Parts of different lengths.
pub fn kto(
    logps: &Tensor,
    reference: &Tensor,
    desirable: &[bool],
    kl: f64,
    config: &KtoConfig,
) -> Result<Tensor> {
    check_length_of(logps.dims1()?, desirable.len())?;
    check_length_of(reference.dims1()?, desirable.len())?;
    let per_completion = |good: f64, bad: f64| -> Result<Tensor> {
        let values: Vec<f64> = desirable.iter().map(|&is| if is { good } else { bad }).collect();
        Ok(Tensor::from_vec(values, desirable.len(), logps.device())?.to_dtype(logps.dtype())?)
    };
    let above = (((logps - reference)? - kl)? * config.beta)?;
    let loss = sigmoid(&(above * per_completion(-1.0, 1.0)?)?)?;
    Ok((loss * per_completion(config.desirable_weight, config.undesirable_weight)?)?)
}

/// The estimate of KL(policy ‖ reference) for [`kto`]: the mean over the step of the log-ratios of
/// *mismatched* completions, at least zero; a constant, so both are without a graph.
///
/// As in TRL, completion `i` is put behind prompt `i + 1` of the same batch, and the last behind
/// the first: the completions are then those of the batch, and only their prompts are wrong. With
/// one completion in a batch nothing is mismatched.
///
/// # Errors
/// Parts of different lengths, or no completion.
pub fn kto_kl(logps: &Tensor, reference: &Tensor) -> Result<f64> {
    let completions = logps.dims1()?;
    check_length_of(reference.dims1()?, completions)?;
    if completions == 0 {
        return Err(Error::data("no completion to estimate the KL of KTO from"));
    }
    let mean = (logps - reference)?.to_dtype(DType::F64)?.mean_all()?.to_scalar::<f64>()?;
    Ok(mean.max(0.0))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn vector(x: &[f64]) -> Tensor {
        Tensor::new(x, &Device::Cpu).unwrap()
    }

    #[test]
    fn desirable_completions_are_to_lie_above_the_kl_and_others_below() {
        let config = KtoConfig { beta: 0.5, desirable_weight: 1.0, undesirable_weight: 2.0 };
        let tripled = 2.0 * 3f64.ln() + 4.0;
        let logps = vector(&[tripled, tripled, 4.0, 4.0]);
        let zero = vector(&[0.0; 4]);
        let loss = kto(&logps, &zero, &[true, false, true, false], 4.0, &config).unwrap();
        // ½·(2 ln 3 + 4 − 4) = ln 3, whose σ is 3/4.
        for (got, want) in loss.to_vec1::<f64>().unwrap().into_iter().zip([0.25, 1.5, 0.5, 1.0]) {
            assert!((got - want).abs() < 1e-14, "got {got}, expected {want}");
        }
    }

    #[test]
    fn the_kl_is_a_mean_that_is_never_negative() {
        assert_eq!(kto_kl(&vector(&[3.0, -1.0]), &vector(&[1.0, -2.0])).unwrap(), 1.5);
        assert_eq!(kto_kl(&vector(&[-3.0]), &vector(&[0.0])).unwrap(), 0.0);
        assert!(kto_kl(&vector(&[]), &vector(&[])).is_err());
    }

    #[test]
    fn labels_of_another_length_are_refused() {
        let error = kto(&vector(&[1.0]), &vector(&[1.0]), &[], 0.0, &KtoConfig::default());
        let message = error.unwrap_err().message().to_string();
        assert_eq!(message, "expected one number for each of 0 completions, got 1");
    }
}
