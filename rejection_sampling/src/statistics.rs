//! What scored completions say of the model: pass@k, maj@k, rates with their errors and intervals,
//! histograms.

use halter_core::{Error, Result};
use rand::seq::index;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Subsets that [`majority_at_k`] need not look beyond: the error of a mean over as many is below half
/// a percent.
pub const MAX_SUBSETS: u64 = 20_000;

/// Unbiased estimate of the chance that one of `k` completions is right, when `right` of `n` are:
/// 1 − C(n − right, k) / C(n, k), as a product (Chen et al. 2021, "Evaluating Large Language Models
/// Trained on Code", figure 3).
///
/// # Errors
/// `k` is 0 or more than `n`, or `right` more than `n`.
pub fn pass_at_k(n: usize, right: usize, k: usize) -> Result<f64> {
    if k == 0 || k > n || right > n {
        return Err(Error::config(format!(
            "pass@k: expected `k` from 1 to `n` and at most `n` right, got k = {k}, n = {n}, {right} right"
        )));
    }
    if n - right < k {
        return Ok(1.0);
    }
    let all_wrong: f64 = (n - right + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product();
    Ok(1.0 - all_wrong)
}

/// The chance that the majority of `k` completions, drawn without replacement, is right. `groups`
/// holds the answer of each completion ([`groups`](crate::selection::groups)), `is_right` says
/// which answers are. Answers with the same number of votes share the draw evenly; a draw in which
/// nobody answered is wrong. Exact where there are no more than `most` subsets, else a mean over as
/// many random ones from `seed`.
///
/// # Errors
/// `k` is 0 or more than there are completions.
pub fn majority_at_k(
    groups: &[Option<usize>],
    is_right: impl Fn(usize) -> bool,
    k: usize,
    most: u64,
    seed: u64,
) -> Result<f64> {
    let n = groups.len();
    if k == 0 || k > n {
        return Err(Error::config(format!(
            "maj@k: expected `k` from 1 to the number of completions, got k = {k} of {n}"
        )));
    }
    let share_right = |subset: &[usize]| {
        let mut answers: Vec<usize> = subset.iter().filter_map(|at| groups[*at]).collect();
        answers.sort_unstable();
        let votes: Vec<&[usize]> = answers.chunk_by(|a, b| a == b).collect();
        let most = votes.iter().map(|group| group.len()).max();
        let winners = || votes.iter().filter(|group| Some(group.len()) == most);
        let right = winners().filter(|group| is_right(group[0])).count();
        if right == 0 { 0.0 } else { right as f64 / winners().count() as f64 }
    };
    let (mut sum, mut count) = (0.0, 0_u64);
    if binomial(n, k).is_some_and(|subsets| subsets <= most) {
        let mut subset: Vec<usize> = (0..k).collect();
        loop {
            sum += share_right(&subset);
            count += 1;
            if !advance(&mut subset, n) {
                break;
            }
        }
    } else {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        while count < most.max(1) {
            sum += share_right(&index::sample(&mut random, n, k).into_vec());
            count += 1;
        }
    }
    Ok(sum / count as f64)
}

/// C(n, k), unless it is very large.
fn binomial(n: usize, k: usize) -> Option<u64> {
    let (n, k) = (n as u64, k.min(n - k) as u64);
    (0..k).try_fold(1_u64, |product, i| Some(product.checked_mul(n - i)? / (i + 1)))
}

/// The next subset of `0..n` in lexical order; false after the last.
fn advance(subset: &mut [usize], n: usize) -> bool {
    let k = subset.len();
    let Some(place) = (0..k).rev().find(|at| subset[*at] < n - k + at) else {
        return false;
    };
    subset[place] += 1;
    for at in place + 1..k {
        subset[at] = subset[at - 1] + 1;
    }
    true
}

/// A mean with its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Mean over all values.
    pub mean: f64,
    /// Its standard error; not a number where there is only one prompt.
    pub standard_error: f64,
    /// Prompts.
    pub prompts: usize,
    /// Values in all.
    pub values: usize,
}

/// The mean over all completions of all prompts, with the error that allows for completions of one
/// prompt being alike (clustered standard errors; Miller 2024, "Adding Error Bars to Evals",
/// section 2.2): √(G/(G−1) · Σ_g (Σ_i (x_gi − mean))²) / N, over G prompts and N values. One value
/// for each prompt gives the ordinary standard error of the mean. Prompts without values do not
/// count; `None` where none has one.
///
/// For an acceptance rate the values are 1 (accepted) and 0.
pub fn clustered_mean<'a>(prompts: impl IntoIterator<Item = &'a [f64]>) -> Option<Estimate> {
    let prompts: Vec<&[f64]> = prompts.into_iter().filter(|values| !values.is_empty()).collect();
    let values: usize = prompts.iter().map(|values| values.len()).sum();
    if values == 0 {
        return None;
    }
    let mean = prompts.iter().copied().flatten().sum::<f64>() / values as f64;
    let squares: f64 = prompts
        .iter()
        .map(|values| values.iter().map(|value| value - mean).sum::<f64>().powi(2))
        .sum();
    let count = prompts.len() as f64;
    let standard_error = (count / (count - 1.0) * squares).sqrt() / values as f64;
    Some(Estimate { mean, standard_error, prompts: prompts.len(), values })
}

/// Samples of [`bootstrap_interval`].
const RESAMPLES: usize = 2000;

/// Where the mean over all values lies with probability `confidence` (0 to 1): the percentile
/// bootstrap over prompts (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter
/// 13). As many prompts as there are, drawn with replacement from `seed`, give one mean; of
/// 2,000 such means the lowest and the highest are cut off. Prompts without values do not count;
/// `None` where none has one.
///
/// For pass@k and maj@k each prompt has one value, its own estimate.
pub fn bootstrap_interval<'a>(
    prompts: impl IntoIterator<Item = &'a [f64]>,
    confidence: f64,
    seed: u64,
) -> Option<(f64, f64)> {
    let prompts = prompts.into_iter().filter(|values| !values.is_empty());
    let sums: Vec<(f64, usize)> =
        prompts.map(|values| (values.iter().sum(), values.len())).collect();
    if sums.is_empty() {
        return None;
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut mean = || {
        let (mut sum, mut count) = (0.0, 0);
        for _ in 0..sums.len() {
            let (part, values) = sums[random.random_range(0..sums.len())];
            sum += part;
            count += values;
        }
        sum / count as f64
    };
    let mut means: Vec<f64> = (0..RESAMPLES).map(|_| mean()).collect();
    means.sort_by(f64::total_cmp);
    let cut = ((1.0 - confidence.clamp(0.0, 1.0)) / 2.0 * (RESAMPLES - 1) as f64).round() as usize;
    Some((means[cut], means[RESAMPLES - 1 - cut]))
}

/// How many scores fall into each of several bins of one width.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// Lower end of the first bin: the lowest score.
    pub low: f64,
    /// Upper end of the last bin, which belongs to it: the highest score.
    pub high: f64,
    /// Scores in each bin.
    pub counts: Vec<usize>,
    /// Scores that are not finite, which are in no bin.
    pub not_finite: usize,
}

impl Histogram {
    /// `scores` in `bins` bins (at least one) from the lowest to the highest. Equal scores are all in
    /// the first; without finite scores the ends are 0.
    pub fn new(scores: &[f64], bins: usize) -> Self {
        let finite = || scores.iter().copied().filter(|score| score.is_finite());
        let low = finite().reduce(f64::min).unwrap_or(0.0);
        let high = finite().reduce(f64::max).unwrap_or(0.0);
        let mut counts = vec![0; bins.max(1)];
        let last = counts.len() - 1;
        for score in finite() {
            // halved, so that the span of finite scores is finite
            let share = (score / 2.0 - low / 2.0) / (high / 2.0 - low / 2.0);
            let bin = if share > 0.0 { (share * counts.len() as f64) as usize } else { 0 };
            counts[bin.min(last)] += 1;
        }
        Self { low, high, not_finite: scores.len() - finite().count(), counts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn pass_at_k_is_one_minus_the_share_of_draws_that_are_all_wrong() {
        for (n, right, k, wanted) in [
            (10, 0, 1, 0.0),
            (10, 3, 1, 0.3),
            (10, 10, 1, 1.0),
            (10, 10, 10, 1.0),
            // 1 − C(2,2)/C(4,2) = 1 − 1/6
            (4, 2, 2, 5.0 / 6.0),
            // 1 − C(7,3)/C(10,3) = 1 − 35/120
            (10, 3, 3, 85.0 / 120.0),
            (10, 3, 8, 1.0),
            (5, 1, 5, 1.0),
            (1, 0, 1, 0.0),
        ] {
            let got = pass_at_k(n, right, k).unwrap();
            assert!(close(got, wanted), "{n} {right} {k}: {got}");
        }
    }

    #[test]
    fn pass_at_k_of_many_completions_neither_overflows_nor_leaves_its_range() {
        for right in [0, 1, 10, 5_000, 99_999, 100_000] {
            let value = pass_at_k(100_000, right, 1_000).unwrap();
            assert!((0.0..=1.0).contains(&value), "{right}: {value}");
        }
        assert!(close(pass_at_k(100_000, 1, 1_000).unwrap(), 0.01));
    }

    #[test]
    fn more_draws_than_completions_are_refused() {
        for (n, right, k) in [(3, 1, 4), (3, 1, 0), (3, 4, 1), (0, 0, 1)] {
            assert!(pass_at_k(n, right, k).is_err(), "{n} {right} {k}");
        }
        assert!(majority_at_k(&[Some(0)], |_| true, 2, MAX_SUBSETS, 0).is_err());
        assert!(majority_at_k(&[Some(0)], |_| true, 0, MAX_SUBSETS, 0).is_err());
        assert!(majority_at_k(&[], |_| true, 1, MAX_SUBSETS, 0).is_err());
    }

    #[test]
    fn majority_at_k_counts_every_subset() {
        let (a, b) = (Some(0), Some(1));
        for (groups, k, wanted) in [
            // one draw: the share of right answers
            (&[a, b, b, a][..], 1, 0.5),
            (&[a, None, None, None], 1, 0.25),
            // pairs of a a b: aa right, ab and ab shared
            (&[a, a, b], 2, (1.0 + 0.5 + 0.5) / 3.0),
            // triples of a a b b: aab twice right, abb twice wrong
            (&[a, a, b, b], 3, 0.5),
            (&[a, a, a, b], 3, 1.0),
            (&[a, b, b], 3, 0.0),
            // three answers with a vote each share the draw
            (&[a, b, Some(2)], 3, 1.0 / 3.0),
            // who gives no answer has no vote
            (&[a, None, None], 3, 1.0),
            (&[None, None], 2, 0.0),
        ] {
            let got = majority_at_k(groups, |group| group == 0, k, MAX_SUBSETS, 0).unwrap();
            assert!(close(got, wanted), "{groups:?} {k}: {got}");
        }
    }

    #[test]
    fn random_subsets_are_near_the_exact_value_and_repeat() {
        // 40 completions, 24 of them right; one draw of 39 leaves out one, so the majority is right
        let groups: Vec<_> = (0..40).map(|at| Some(usize::from(at >= 24))).collect();
        let right = |group| group == 0;
        let majority = |k, most| majority_at_k(&groups, right, k, most, 7).unwrap();
        assert_eq!(majority(39, MAX_SUBSETS), 1.0);
        let drawn = majority(9, MAX_SUBSETS);
        assert_eq!(drawn, majority(9, MAX_SUBSETS));
        // hypergeometric: Σ_{i=5..9} C(24,i) C(16,9−i) / C(40,9)
        let choose = |n: usize, k: usize| binomial(n, k).unwrap() as f64;
        let exact: f64 = (5..=9).map(|i| choose(24, i) * choose(16, 9 - i) / choose(40, 9)).sum();
        assert!((drawn - exact).abs() < 0.01, "{drawn} {exact}");
        let fewer = majority(9, 300);
        assert!(fewer != drawn && (fewer - exact).abs() < 0.1, "{fewer} {exact}");
    }

    #[test]
    fn one_value_for_each_prompt_gives_the_ordinary_error() {
        // mean 2.5, variance (2.25 + 0.25 + 0.25 + 2.25) / 3 = 5/3, error √(5/12)
        let values: [&[f64]; 4] = [&[1.0], &[2.0], &[3.0], &[4.0]];
        let estimate = clustered_mean(values).unwrap();
        assert!(close(estimate.mean, 2.5));
        assert!(close(estimate.standard_error, (5.0_f64 / 12.0).sqrt()));
    }

    #[test]
    fn completions_that_are_all_alike_say_no_more_than_one() {
        let once = clustered_mean([&[1.0][..], &[0.0], &[1.0]]).unwrap();
        let often = clustered_mean([&[1.0; 9][..], &[0.0; 9], &[1.0; 9]]).unwrap();
        assert!(close(once.standard_error, often.standard_error));
        assert_eq!((often.prompts, often.values), (3, 27));
    }

    #[test]
    fn prompts_whose_completions_balance_have_no_error_between_them() {
        let estimate = clustered_mean([&[1.0, 0.0][..], &[0.0, 1.0], &[]]).unwrap();
        assert_eq!((estimate.mean, estimate.standard_error, estimate.prompts), (0.5, 0.0, 2));
        assert!(clustered_mean([&[1.0][..]]).unwrap().standard_error.is_nan());
        assert_eq!(clustered_mean([]), None);
        assert_eq!(clustered_mean([&[][..]]), None);
    }

    #[test]
    fn the_bootstrap_interval_holds_the_middle_of_all_draws() {
        // two prompts: means 0, ½ and 1 with chances ¼, ½ and ¼
        let two: [&[f64]; 3] = [&[0.0], &[1.0], &[]];
        assert_eq!(bootstrap_interval(two, 0.95, 0), Some((0.0, 1.0)));
        assert_eq!(bootstrap_interval(two, 0.4, 0), Some((0.5, 0.5)));
        // a prompt with three values weighs three times as much: means 0, ¾ and 1
        assert_eq!(bootstrap_interval([&[0.0][..], &[1.0; 3]], 0.4, 0), Some((0.75, 0.75)));
        assert_eq!(bootstrap_interval([&[0.25][..]], 0.95, 0), Some((0.25, 0.25)));
        assert_eq!(bootstrap_interval([], 0.95, 0), None);
    }

    #[test]
    fn with_many_prompts_the_bootstrap_interval_is_the_normal_one() {
        let values: Vec<f64> = (0..400).map(|at| f64::from(u8::from(at % 10 < 3))).collect();
        let estimate = clustered_mean(values.chunks(1)).unwrap();
        let (low, high) = bootstrap_interval(values.chunks(1), 0.95, 1).unwrap();
        assert_eq!((low, high), bootstrap_interval(values.chunks(1), 0.95, 1).unwrap());
        let half = 1.96 * estimate.standard_error;
        assert!((low - (0.3 - half)).abs() < 0.004, "{low}");
        assert!((high - (0.3 + half)).abs() < 0.004, "{high}");
    }

    #[test]
    fn a_histogram_counts_each_score_once() {
        let histogram = Histogram::new(&[0.0, 0.24, 0.25, 0.5, 0.75, 1.0, f64::NAN], 4);
        assert_eq!(histogram.counts, [2, 1, 1, 2]);
        assert_eq!((histogram.low, histogram.high, histogram.not_finite), (0.0, 1.0, 1));
        assert_eq!(Histogram::new(&[3.0; 5], 3).counts, [5, 0, 0]);
        assert_eq!(Histogram::new(&[], 2).counts, [0, 0]);
        assert_eq!(Histogram::new(&[f64::MIN, f64::MAX], 2).counts, [1, 1]);
        assert_eq!(Histogram::new(&[1.0], 0).counts, [1]);
    }
}
