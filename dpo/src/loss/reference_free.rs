//! Losses of pairs that need no reference. Tensors are `(pairs,)`.

use candle_core::Tensor;
use halter_core::Result;

use super::{Sums, paired};
use halter_core::train::stable::{log_odds, log_sigmoid};

/// [`paired::sigmoid`] of `beta` · (chosen − rejected) − `gamma`, of log-probs per token.
///
/// SimPO: Meng et al. 2024 (arXiv 2405.14734), equation 6.
///
/// # Errors
/// When a tensor operation fails; so for every loss here.
pub fn simpo(
    chosen: &Tensor,
    rejected: &Tensor,
    beta: f64,
    gamma: f64,
    label_smoothing: f64,
) -> Result<Tensor> {
    paired::sigmoid(&(((chosen - rejected)? * beta)? - gamma)?, label_smoothing)
}

/// [`paired::sigmoid`] of `beta` · (chosen − rejected), of summed log-probs: the preference term
/// of CPO, to which `cpo_alpha` · [`nll`] is added.
///
/// CPO: Xu et al. 2024 (arXiv 2401.08417).
///
/// # Errors
/// See [`simpo`].
pub fn cpo(chosen: &Tensor, rejected: &Tensor, beta: f64, label_smoothing: f64) -> Result<Tensor> {
    paired::sigmoid(&((chosen - rejected)? * beta)?, label_smoothing)
}

/// −`lambda` · ln σ(ln odds(chosen) − ln odds(rejected)), of log-probs per token: the preference
/// term of ORPO, to which [`nll`] is added.
///
/// ORPO: Hong et al. 2024 (arXiv 2403.07691), equation 7.
///
/// # Errors
/// See [`simpo`].
pub fn odds_ratio(chosen: &Tensor, rejected: &Tensor, lambda: f64) -> Result<Tensor> {
    let ratio = (log_odds(chosen)? - log_odds(rejected)?)?;
    Ok((log_sigmoid(&ratio)? * -lambda)?)
}

/// −logp / tokens: every completion weighs the same, however long.
///
/// "The Llama 3 Herd of Models", section 4.1.4, adds it to DPO with a weight of 0.2.
///
/// # Errors
/// See [`simpo`].
pub fn nll(chosen: &Sums) -> Result<Tensor> {
    Ok(chosen.per_token()?.neg()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn one(x: f64) -> Tensor {
        Tensor::new(&[x], &Device::Cpu).unwrap()
    }

    #[track_caller]
    fn assert_value(loss: Result<Tensor>, want: f64) {
        let got = loss.unwrap().to_vec1::<f64>().unwrap()[0];
        assert!((got - want).abs() < 1e-12, "got {got}, expected {want}");
    }

    #[test]
    fn simpo_wants_a_margin_of_gamma() {
        // 2·(1 − 0.25) = 1.5 against a target of 1.5: even odds.
        let loss = simpo(&one(-0.25), &one(-1.0), 2.0, 1.5, 0.0);
        assert_value(loss, std::f64::consts::LN_2);
    }

    #[test]
    fn cpo_compares_the_policy_s_own_log_probs() {
        // ½·(ln 81 above) = ln 9: odds of 9 to 1.
        let loss = cpo(&one(-1.0), &one(-1.0 - 81f64.ln()), 0.5, 0.0);
        assert_value(loss, (10f64 / 9.0).ln());
    }

    #[test]
    fn odds_ratio_of_a_half_to_a_quarter_is_three() {
        let loss = odds_ratio(&one(0.5f64.ln()), &one(0.25f64.ln()), 0.1);
        assert_value(loss, 0.1 * (4f64 / 3.0).ln());
    }

    #[test]
    fn nll_is_per_token() {
        // The last completion has no counted token.
        let logps = Tensor::new(&[-6f64, -6.0, 0.0], &Device::Cpu).unwrap();
        let loss = nll(&Sums { logps, tokens: vec![3, 4, 0] }).unwrap();
        assert_eq!(loss.to_vec1::<f64>().unwrap(), [2.0, 1.5, 0.0]);
    }
}
