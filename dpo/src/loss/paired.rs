//! Losses of pairs, given rewards.
//!
//! A reward is `beta` · (logp of the policy − logp of the reference), one per completion; the
//! margin is that of the chosen minus that of the rejected one. All tensors are `(pairs,)`.

use candle_core::Tensor;
use halter_core::Result;

use halter_core::train::stable::{log_sigmoid, sigmoid as logistic};

/// −(1 − ε) ln σ(margin) − ε ln σ(−margin), where `label_smoothing` ε is the share of labels that
/// are thought to be wrong.
///
/// DPO: Rafailov et al. 2023 (arXiv 2305.18290), equation 7. With ε: conservative DPO, Mitchell
/// 2023, "A note on DPO with noisy preferences".
///
/// # Errors
/// When a tensor operation fails; so for every loss here.
pub fn sigmoid(margin: &Tensor, label_smoothing: f64) -> Result<Tensor> {
    let loss = log_sigmoid(margin)?.neg()?;
    if label_smoothing == 0.0 {
        return Ok(loss);
    }
    let flipped = log_sigmoid(&margin.neg()?)?.neg()?;
    Ok(((loss * (1.0 - label_smoothing))? + (flipped * label_smoothing)?)?)
}

/// max(0, 1 − margin).
///
/// SLiC-HF: Zhao et al. 2023 (arXiv 2305.10425), on rewards as in RSO: Liu et al. 2023 (arXiv
/// 2309.06657).
///
/// # Errors
/// See [`sigmoid`].
pub fn hinge(margin: &Tensor) -> Result<Tensor> {
    Ok((1.0 - margin)?.relu()?)
}

/// (difference − 1 / (2·`beta`))², of a difference of log-ratios that `beta` has *not* multiplied.
///
/// IPO: Azar et al. 2023 (arXiv 2310.12036), equation 17, whose τ is `beta`.
///
/// # Errors
/// See [`sigmoid`].
pub fn ipo(difference: &Tensor, beta: f64) -> Result<Tensor> {
    Ok((difference - 0.5 / beta)?.sqr()?)
}

/// KL between (σ(margin), σ(−margin)) and (1 − ε, ε), with ε = `label_smoothing` > 0.
///
/// EXO: Ji et al. 2024 (arXiv 2402.00856), equation 16 for two completions.
///
/// # Errors
/// See [`sigmoid`].
pub fn exo_pair(margin: &Tensor, label_smoothing: f64) -> Result<Tensor> {
    let (log_chosen, log_rejected) = (log_sigmoid(margin)?, log_sigmoid(&margin.neg()?)?);
    let chosen = (log_chosen.exp()? * (log_chosen - (-label_smoothing).ln_1p())?)?;
    let rejected = (log_rejected.exp()? * (log_rejected - label_smoothing.ln())?)?;
    Ok((chosen + rejected)?)
}

/// (−(1 − ε) ln σ(margin) + ε ln σ(−margin)) / (1 − 2ε): an unbiased estimate of the loss on clean
/// labels where a share ε = `label_smoothing` < ½ is flipped.
///
/// Robust DPO: Chowdhury et al. 2024 (arXiv 2403.00409).
///
/// # Errors
/// See [`sigmoid`].
pub fn robust(margin: &Tensor, label_smoothing: f64) -> Result<Tensor> {
    let clean = (log_sigmoid(margin)? * -(1.0 - label_smoothing))?;
    let flipped = (log_sigmoid(&margin.neg()?)? * -label_smoothing)?;
    Ok(((clean - flipped)? / (1.0 - 2.0 * label_smoothing))?)
}

/// −ln σ(chosen) − ½ ln σ(−chosen) − ½ ln σ(−rejected).
///
/// NCA: Chen et al. 2024 (arXiv 2402.05369), the case of pairs.
///
/// # Errors
/// See [`sigmoid`].
pub fn nca_pair(chosen: &Tensor, rejected: &Tensor) -> Result<Tensor> {
    let away = (log_sigmoid(&chosen.neg()?)? + log_sigmoid(&rejected.neg()?)?)?;
    Ok((log_sigmoid(chosen)? + (away * 0.5)?)?.neg()?)
}

/// −ln σ(chosen − δ) − ln σ(δ − rejected), where δ = `reward_mean` is the running mean of all
/// rewards ([`super::RunningMoments`]).
///
/// BCO: Jung et al. 2024 (arXiv 2404.04656), for pairs.
///
/// # Errors
/// See [`sigmoid`].
pub fn bco_pair(chosen: &Tensor, rejected: &Tensor, reward_mean: f64) -> Result<Tensor> {
    let chosen = log_sigmoid(&(chosen - reward_mean)?)?;
    let rejected = log_sigmoid(&(reward_mean - rejected)?)?;
    Ok((chosen + rejected)?.neg()?)
}

/// (chosen − ½)² + (rejected + ½)², over `beta`²: SPPO with the winner's probability taken as 1.
///
/// SPPO: Wu et al. 2024 (arXiv 2405.00675), equation 4.7, whose η is 1/`beta`.
///
/// # Errors
/// See [`sigmoid`].
pub fn sppo_hard(chosen: &Tensor, rejected: &Tensor, beta: f64) -> Result<Tensor> {
    let (chosen, rejected) = ((chosen - 0.5)?.sqr()?, (rejected + 0.5)?.sqr()?);
    Ok(((chosen + rejected)? / (beta * beta))?)
}

/// (1 − σ(chosen)) + σ(rejected), for chosen completions that are better than the model.
///
/// APO: D'Oosterlinck et al. 2024 (arXiv 2408.06266), equation 7.
///
/// # Errors
/// See [`sigmoid`].
pub fn apo_zero(chosen: &Tensor, rejected: &Tensor) -> Result<Tensor> {
    Ok((logistic(&chosen.neg()?)? + logistic(rejected)?)?)
}

/// σ(chosen) + (1 − σ(chosen − rejected)), for chosen completions that are worse than the model.
///
/// APO: D'Oosterlinck et al. 2024 (arXiv 2408.06266), equation 8.
///
/// # Errors
/// See [`sigmoid`].
pub fn apo_down(chosen: &Tensor, rejected: &Tensor) -> Result<Tensor> {
    Ok((logistic(chosen)? + logistic(&(rejected - chosen)?)?)?)
}

/// −ln σ(m)·(1 − w) + e^(−m)·w with w = σ(m / `tau`), m the margin: the log-ratio modulated loss.
/// `tau` is at most 1; above that the loss of a very negative margin is infinite.
///
/// DiscoPOP: Lu et al. 2024 (arXiv 2406.08414), equation 5.
///
/// # Errors
/// See [`sigmoid`].
pub fn discopop(margin: &Tensor, tau: f64) -> Result<Tensor> {
    let scaled = (margin / tau)?;
    let logistic_part = (log_sigmoid(margin)?.neg()? * logistic(&scaled.neg()?)?)?;
    // e^(−m)·w as one exponential: the factors alone overflow where the product vanishes.
    let exponential_part = (log_sigmoid(&scaled)? - margin)?.exp()?;
    Ok((logistic_part + exponential_part)?)
}

/// [`sigmoid`] of the margins by which the batch's chosen − rejected log-ratios of the policy
/// exceed those of the reference when both are sorted: the distribution moves, not each pair.
///
/// `policy` and `reference` are `beta` · (logp of the chosen − logp of the rejected). Loss `i`
/// belongs to pair `i` of the policy; it depends on which pairs are in the batch.
///
/// AOT: Melnyk et al. 2024 (arXiv 2406.05882), the paired case.
///
/// # Errors
/// See [`sigmoid`].
pub fn aot(policy: &Tensor, reference: &Tensor, label_smoothing: f64) -> Result<Tensor> {
    sigmoid(&(policy - matched(reference, policy)?)?, label_smoothing)
}

/// [`sigmoid`] of the margins between the batch's chosen and rejected rewards when both are
/// sorted. Loss `i` belongs to chosen completion `i`.
///
/// AOT: Melnyk et al. 2024 (arXiv 2406.05882), the unpaired case.
///
/// # Errors
/// See [`sigmoid`].
pub fn aot_unpaired(chosen: &Tensor, rejected: &Tensor, label_smoothing: f64) -> Result<Tensor> {
    sigmoid(&(chosen - matched(rejected, chosen)?)?, label_smoothing)
}

/// `x` in another order: where `like` has its k-th smallest element stands the k-th smallest of `x`.
fn matched(x: &Tensor, like: &Tensor) -> Result<Tensor> {
    let mut at = vec![0; x.dim(0)?];
    for (from, to) in ascending(x)?.into_iter().zip(ascending(like)?) {
        at[to as usize] = from;
    }
    let at = Tensor::from_vec(at, x.dim(0)?, x.device())?;
    Ok(x.index_select(&at, 0)?)
}

/// Indices that sort `x`.
fn ascending(x: &Tensor) -> Result<Vec<u32>> {
    let values = x.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?;
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|&a, &b| values[a as usize].total_cmp(&values[b as usize]));
    Ok(order)
}

#[cfg(test)]
mod tests {
    //! The chosen reward is ln 3 and the rejected one −ln 3 where not said otherwise: σ gives 3/4
    //! and 1/4, and 9/10 for the margin of ln 9.

    use candle_core::Device;

    use super::*;

    fn rewards() -> (Tensor, Tensor, Tensor) {
        let chosen = Tensor::new(&[3f64.ln()], &Device::Cpu).unwrap();
        let rejected = chosen.neg().unwrap();
        let margin = (&chosen - &rejected).unwrap();
        (chosen, rejected, margin)
    }

    #[track_caller]
    fn assert_values(loss: Result<Tensor>, want: &[f64]) {
        let got = loss.unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-12, "got {got}, expected {want}");
        }
    }

    #[test]
    fn sigmoid_of_a_margin_of_ln_9() {
        let margin = rewards().2;
        assert_values(sigmoid(&margin, 0.0), &[(10f64 / 9.0).ln()]);
        // A fifth of the labels flipped: 0.8 ln(10/9) + 0.2 ln 10.
        assert_values(sigmoid(&margin, 0.2), &[10f64.ln() - 0.8 * 9f64.ln()]);
    }

    #[test]
    fn a_policy_that_equals_its_reference_has_a_loss_of_ln_2() {
        let zero = Tensor::zeros(1, candle_core::DType::F64, &Device::Cpu).unwrap();
        assert_values(sigmoid(&zero, 0.3), &[std::f64::consts::LN_2]);
        assert_values(robust(&zero, 0.3), &[std::f64::consts::LN_2]);
    }

    #[test]
    fn hinge_ends_at_a_margin_of_one() {
        let margin = Tensor::new(&[-1f64, 0.25, 1.0, 2.0], &Device::Cpu).unwrap();
        assert_values(hinge(&margin), &[2.0, 0.75, 0.0, 0.0]);
    }

    #[test]
    fn ipo_wants_a_difference_of_half_over_beta() {
        let difference = Tensor::new(&[2f64, 5.0], &Device::Cpu).unwrap();
        assert_values(ipo(&difference, 0.1), &[9.0, 0.0]);
    }

    #[test]
    fn exo_is_zero_where_the_odds_are_the_smoothed_label() {
        let margin = rewards().2;
        assert_values(exo_pair(&margin, 0.1), &[0.0]);
        // 0.9 ln(0.9/0.8) + 0.1 ln(0.1/0.2)
        assert_values(exo_pair(&margin, 0.2), &[0.9 * 1.125f64.ln() - 0.1 * 2f64.ln()]);
    }

    #[test]
    fn robust_averages_to_the_clean_loss_when_labels_flip() {
        let margin = rewards().2;
        // (0.8 ln(10/9) − 0.2 ln 10) / 0.6
        let right = (0.6 * 10f64.ln() - 0.8 * 9f64.ln()) / 0.6;
        assert_values(robust(&margin, 0.2), &[right]);
        let wrong = (0.8 * 10f64.ln() - 0.2 * (10f64 / 9.0).ln()) / 0.6;
        assert_values(robust(&margin.neg().unwrap(), 0.2), &[wrong]);
        assert!((0.8 * right + 0.2 * wrong - (10f64 / 9.0).ln()).abs() < 1e-12);
    }

    #[test]
    fn nca_has_three_terms() {
        let (chosen, rejected, _) = rewards();
        // −ln 3/4 − ½ ln 1/4 − ½ ln 3/4
        let want = 1.5 * (4f64 / 3.0).ln() + 0.5 * 4f64.ln();
        assert_values(nca_pair(&chosen, &rejected), &[want]);
    }

    #[test]
    fn bco_shifts_both_rewards_by_their_running_mean() {
        let (chosen, rejected, _) = rewards();
        assert_values(bco_pair(&chosen, &rejected, 0.0), &[2.0 * (4f64 / 3.0).ln()]);
        // Chosen at the mean: σ = 1/2; rejected ln 9 below it: σ = 9/10.
        assert_values(bco_pair(&chosen, &rejected, 3f64.ln()), &[(20f64 / 9.0).ln()]);
    }

    #[test]
    fn sppo_wants_rewards_of_plus_and_minus_a_half() {
        let reward = |x: f64| Tensor::new(&[x], &Device::Cpu).unwrap();
        assert_values(sppo_hard(&reward(0.5), &reward(-0.5), 0.1), &[0.0]);
        assert_values(sppo_hard(&reward(0.0), &reward(0.0), 0.1), &[50.0]);
    }

    #[test]
    fn apo_anchors_the_chosen_reward_from_either_side() {
        let (chosen, rejected, _) = rewards();
        assert_values(apo_zero(&chosen, &rejected), &[0.5]);
        assert_values(apo_down(&chosen, &rejected), &[0.75 + 0.1]);
    }

    #[test]
    fn discopop_goes_from_logistic_to_exponential() {
        let margin = rewards().2;
        // w = σ(ln 9) = 0.9: 0.1 ln(10/9) + 0.9/9
        assert_values(discopop(&margin, 1.0), &[0.1 * (10f64 / 9.0).ln() + 0.1]);
        let far = Tensor::new(&[-20f64, 20.0], &Device::Cpu).unwrap();
        assert_values(discopop(&far, 0.05), &[20f64.exp().ln_1p(), (-20f64).exp()]);
    }

    #[test]
    fn aot_compares_sorted_log_ratios() {
        // Sorted, the policy is −ln 3, 0, ln 9 and the reference −ln 9, 0, ln 3.
        let policy = Tensor::new(&[9f64.ln(), -(3f64.ln()), 0.0], &Device::Cpu).unwrap();
        let reference = Tensor::new(&[0.0, 3f64.ln(), -(9f64.ln())], &Device::Cpu).unwrap();
        // Margins ln 3, ln 3 and 0, each at the place of its policy's pair.
        let (certain, even) = ((4f64 / 3.0).ln(), 2f64.ln());
        assert_values(aot(&policy, &reference, 0.0), &[certain, certain, even]);
        assert_values(aot_unpaired(&policy, &reference, 0.0), &[certain, certain, even]);
        let smoothed = 4f64.ln() - 0.9 * 3f64.ln();
        assert_values(aot(&policy, &reference, 0.1), &[smoothed, smoothed, even]);
    }
}
