//! How the values of a parameter in several models become one. Each function takes the values of
//! the models, of one length, row-major, and gives as many. Elements are computed in f64 and
//! rounded to f32 at the end; sums over models are taken in the order of their terms, so that the
//! order of the models decides nothing.

use rayon::prelude::*;

use crate::memory::pages;
use crate::ops::dropout::hash;

/// Elements of one task. The sums of [`slerp`] are made of one sum for each.
const CHUNK: usize = 1 << 14;

/// Below this sine of the angle, [`slerp`] is linear. The formulas differ by less than its square,
/// which f32 does not hold.
const COLINEAR: f64 = 1e-4;

/// A model's term of a weighted mean: weight times value, and the weight.
type Term = (f64, f64);

/// `Σ wᵢθᵢ / Σ wᵢ`: a model soup (Wortsman et al. 2022, "Model soups", section 2), uniform where
/// the weights are equal.
pub fn linear(models: &[Vec<f32>], weights: &[f64]) -> Vec<f32> {
    let len = models.first().map_or(0, Vec::len);
    elementwise(len, |at, terms| {
        terms.extend(models.iter().zip(weights).map(|(model, &w)| (w * f64::from(model[at]), w)));
        mean(terms)
    })
}

/// `sin((1−t)Ω)/sin Ω · a + sin(tΩ)/sin Ω · b`, Ω the angle between them (Shoemake 1985, "Animating
/// rotation with quaternion curves"). Norms are left as they are. Linear where the angle is next to
/// nothing or half a turn, or one is all zeros.
pub fn slerp(a: &[f32], b: &[f32], t: f64) -> Vec<f32> {
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    let cosine = if norms > 0.0 { (dot(a, b) / norms).clamp(-1.0, 1.0) } else { 1.0 };
    let angle = cosine.acos();
    let sine = angle.sin();
    let (of_a, of_b) = match sine < COLINEAR {
        true => (1.0 - t, t),
        false => (((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine),
    };
    elementwise(a.len(), |at, _| of_a * f64::from(a[at]) + of_b * f64::from(b[at]))
}

/// TIES (Yadav et al. 2023, "TIES-Merging", algorithm 1 with λ = 1): of each model's change of the
/// base the share `density` of largest magnitude stays, with all that are as large as the least of
/// them; the sign of an element is that of the weighted sum of what stayed; the base is changed by
/// the weighted mean of the changes of that sign.
pub fn ties(base: &[f32], models: &[Vec<f32>], weights: &[f64], density: f64) -> Vec<f32> {
    let thresholds: Vec<u32> =
        models.iter().map(|model| trim_threshold(base, model, density)).collect();
    changed(base, models, weights, true, |model, _, change| {
        if magnitude(change) >= thresholds[model] { change } else { 0.0 }
    })
}

/// DARE (Yu et al. 2024, "Language Models are Super Mario"): of each model's change of
/// the base a random share `density` stays, divided by it. The base is changed by the weighted mean
/// or, with `elect`, as by [`ties`]. `seeds`: one for each model.
pub fn dare(
    base: &[f32],
    models: &[Vec<f32>],
    weights: &[f64],
    density: f64,
    seeds: &[u64],
    elect: bool,
) -> Vec<f32> {
    let limit = (density * 2f64.powi(32)) as u64;
    changed(base, models, weights, elect, |model, at, change| {
        if hash(seeds[model], at as u64) >> 32 < limit { change / density } else { 0.0 }
    })
}

/// The base and the weighted mean of what `kept(model, element, change)` leaves of the changes; with
/// `elect`, of those alone that have the sign of their weighted sum.
fn changed(
    base: &[f32],
    models: &[Vec<f32>],
    weights: &[f64],
    elect: bool,
    kept: impl Fn(usize, usize, f64) -> f64 + Sync,
) -> Vec<f32> {
    elementwise(base.len(), |at, terms| {
        let base = f64::from(base[at]);
        let changes = models.iter().map(|model| f64::from(model[at]) - base).enumerate();
        terms.extend(changes.zip(weights).map(|((i, change), &w)| (w * kept(i, at, change), w)));
        let mut change = mean(terms);
        if elect {
            let sign = change;
            terms.retain(|(change, _)| change * sign > 0.0);
            change = mean(terms);
        }
        base + change
    })
}

/// The magnitude that `round(density · elements)` of the changes reach, one at least.
fn trim_threshold(base: &[f32], model: &[f32], density: f64) -> u32 {
    let changes = base.par_iter().zip(model).map(|(&a, &b)| f64::from(b) - f64::from(a));
    let mut magnitudes: Vec<u32> = changes.map(magnitude).collect();
    let kept = (density * magnitudes.len() as f64).round() as usize;
    match magnitudes.len().checked_sub(kept.max(1)) {
        Some(trimmed) => *magnitudes.select_nth_unstable(trimmed).1,
        None => 0,
    }
}

/// A number that is greater where the change is farther from zero, by as much as f32 can tell.
fn magnitude(change: f64) -> u32 {
    (change as f32).abs().to_bits()
}

/// The sum of the first over the sum of the second; 0 of none.
fn mean(terms: &mut [Term]) -> f64 {
    terms.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let sum = terms.iter().copied().reduce(|sum, term| (sum.0 + term.0, sum.1 + term.1));
    sum.map_or(0.0, |(sum, weights)| sum / weights)
}

/// `Σ aᵢbᵢ` in f64, the same for any number of threads.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let of_chunk = |(a, b): (&[f32], &[f32])| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let sums: Vec<f64> = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)).map(of_chunk).collect();
    sums.into_iter().sum()
}

/// `value` of each index below `len`. It is handed an empty list to use.
fn elementwise(len: usize, value: impl Fn(usize, &mut Vec<Term>) -> f64 + Sync) -> Vec<f32> {
    let mut out = pages::zeroed(len);
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, out)| {
        let mut terms = Vec::new();
        for (i, out) in out.iter_mut().enumerate() {
            terms.clear();
            *out = value(chunk * CHUNK + i, &mut terms) as f32;
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between −1 and 1.
    fn noise(seed: u64, len: usize) -> Vec<f32> {
        (0..len as u64).map(|i| (hash(seed, i) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    fn close(got: &[f32], expected: &[f32]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{got} {expected}");
        }
    }

    #[test]
    fn linear_is_the_weighted_mean() {
        let models = [vec![1.0, -2.0], vec![3.0, 6.0], vec![8.0, 5.0]];
        assert_eq!(linear(&models, &[1.0, 1.0, 1.0]), [4.0, 3.0]);
        // (1 + 3·3)/4 and (−2 + 3·6)/4.
        assert_eq!(linear(&models[..2], &[0.5, 1.5]), [2.5, 4.0]);
    }

    #[test]
    fn the_average_of_a_model_with_itself_has_its_bits() {
        let mut model = noise(1, 40_000);
        model.extend([0.0, -0.0, f32::MIN_POSITIVE / 8.0, f32::MAX]);
        let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|x| x.to_bits()).collect() };
        for weights in [vec![1.0; 2], vec![1.0; 3], vec![0.1, 0.7, 1.3]] {
            let models = vec![model.clone(); weights.len()];
            assert_eq!(bits(&linear(&models, &weights)), bits(&model), "{weights:?}");
        }
    }

    #[test]
    fn the_order_of_the_models_does_not_matter() {
        let base = noise(9, 5000);
        let models = [noise(1, 5000), noise(2, 5000), noise(3, 5000)];
        let turned = [models[2].clone(), models[0].clone(), models[1].clone()];
        let (weights, of_turned) = ([0.1, 0.7, 1.3], [1.3, 0.1, 0.7]);
        assert_eq!(linear(&models, &weights), linear(&turned, &of_turned));
        let ties = |models, weights: &[f64]| ties(&base, models, weights, 0.3);
        assert_eq!(ties(&models, &weights), ties(&turned, &of_turned));
    }

    #[test]
    fn slerp_goes_along_the_arc() {
        let half = std::f32::consts::FRAC_1_SQRT_2;
        close(&slerp(&[1.0, 0.0], &[0.0, 1.0], 0.5), &[half, half]);
        // A third of a quarter turn: cos 30° and sin 30°.
        close(&slerp(&[1.0, 0.0], &[0.0, 1.0], 1.0 / 3.0), &[0.866_025_4, 0.5]);
        // Lengths count as they are: half way at 60°, sin 30° / sin 60° = 1/√3 of each.
        let b = [1.0, 1.732_050_8];
        close(&slerp(&[1.0, 0.0], &b, 0.5), &[2.0 / 1.732_050_8, 1.0]);
    }

    #[test]
    fn slerps_ends_are_the_models() {
        let (a, b) = (noise(1, 40_000), noise(2, 40_000));
        assert_eq!(slerp(&a, &b, 0.0), a);
        assert_eq!(slerp(&a, &b, 1.0), b);
    }

    #[test]
    fn slerp_is_linear_where_there_is_no_arc() {
        assert_eq!(slerp(&[1.0, 2.0], &[3.0, 6.0], 0.25), [1.5, 3.0]);
        assert_eq!(slerp(&[1.0, 2.0], &[-1.0, -2.0], 0.25), [0.5, 1.0]);
        assert_eq!(slerp(&[0.0, 0.0], &[4.0, 8.0], 0.25), [1.0, 2.0]);
        // Next to the limit both formulas give the same.
        let (a, b) = ([1.0, 0.0], |angle: f64| [angle.cos() as f32, angle.sin() as f32]);
        for angle in [0.9e-4, 1.1e-4] {
            let expected = b(angle / 2.0);
            let got = slerp(&a, &b(angle), 0.5);
            assert!((got[0] - expected[0]).abs() < 1e-7 && (got[1] - expected[1]).abs() < 1e-10);
        }
    }

    #[test]
    fn ties_trims_elects_and_takes_the_mean_of_who_agrees() {
        // Four of six changes of each model stay. Element by element: both agree; the larger one
        // decides; one alone is left; they cancel; none is left; one alone is left.
        let of = |changes: [f32; 6]| changes.map(|change| 10.0 + change).to_vec();
        let models =
            [of([2.0, 3.0, 0.25, 1.0, 0.125, 4.0]), of([4.0, -5.0, -3.0, -1.0, 0.0625, 0.5])];
        let merged = |weights| ties(&[10.0; 6], &models, weights, 4.0 / 6.0);
        assert_eq!(merged(&[1.0, 1.0]), of([3.0, -5.0, -3.0, 0.0, 0.0, 4.0]));
        // (2 + 4·4)/5 and (4·2 + 4)/5; the weightier model wins the conflicts.
        assert_eq!(merged(&[1.0, 4.0]), of([3.6, -5.0, -3.0, -1.0, 0.0, 4.0]));
        assert_eq!(merged(&[4.0, 1.0]), of([2.4, 3.0, -3.0, 1.0, 0.0, 4.0]));
    }

    #[test]
    fn ties_of_everything_of_one_model_is_that_model() {
        let (base, model) = (noise(1, 5000), noise(2, 5000));
        assert_eq!(ties(&base, std::slice::from_ref(&model), &[2.0], 1.0), model);
        // The least density there is keeps one change.
        let one = ties(&base, &[model], &[1.0], 1e-9);
        assert_eq!(one.iter().zip(&base).filter(|(a, b)| a != b).count(), 1);
    }

    #[test]
    fn dare_drops_a_share_and_divides_what_is_kept_by_the_density() {
        let n = 200_000;
        let (base, models) = (vec![1.0; n], [vec![1.5; n]]);
        let merged = dare(&base, &models, &[3.0], 0.25, &[7], false);
        assert!(merged.iter().all(|&x| x == 1.0 || x == 3.0));
        let kept = merged.iter().filter(|&&x| x == 3.0).count() as f64 / n as f64;
        // Five standard deviations, √(0.25·0.75/n).
        assert!((kept - 0.25).abs() < 0.005, "{kept}");
        let mean = merged.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        assert!((mean - 1.5).abs() < 0.01, "{mean}");
        assert_eq!(merged, dare(&base, &models, &[3.0], 0.25, &[7], false));
        assert_ne!(merged, dare(&base, &models, &[3.0], 0.25, &[8], false));
    }

    #[test]
    fn dares_models_have_masks_of_their_own() {
        let n = 100_000;
        let models = [vec![1.0; n], vec![3.0; n]];
        // Nothing, 2·1/2, 2·3/2 or both: each of a quarter of the elements.
        let merged = dare(&vec![0.0; n], &models, &[1.0, 1.0], 0.5, &[1, 2], false);
        for value in [0.0, 1.0, 3.0, 4.0] {
            let share = merged.iter().filter(|&&x| x == value).count() as f64 / n as f64;
            assert!((share - 0.25).abs() < 0.01, "{value}: {share}");
        }
        // The mean is over who has a change left: 2 or 6 alone, 4 together.
        let elected = dare(&vec![0.0; n], &models, &[1.0, 1.0], 0.5, &[1, 2], true);
        let pairs = merged.iter().zip(&elected);
        let alone = |x: f32| if x == 4.0 { 4.0 } else { 2.0 * x };
        assert!(pairs.clone().all(|(&linear, &elected)| elected == alone(linear)));
    }

    #[test]
    fn dare_of_everything_is_the_weighted_mean() {
        let (base, models) = (noise(1, 5000), [noise(2, 5000), noise(3, 5000)]);
        let merged = dare(&base, &models, &[1.0, 3.0], 1.0, &[1, 2], false);
        close(&merged, &linear(&models, &[1.0, 3.0]));
    }

    #[test]
    fn the_number_of_threads_does_not_matter() {
        let (a, b) = (noise(1, 100_000), noise(2, 100_000));
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let models = [a.clone(), b.clone()];
            pool.install(|| {
                (slerp(&a, &b, 0.3), dare(&a, &models, &[1.0, 1.0], 0.3, &[1, 2], true))
            })
        };
        assert_eq!(with(1), with(5));
    }
}
