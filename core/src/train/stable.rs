//! Functions of log-probs that neither overflow nor lose their gradient, in f32 and f64.
//!
//! All are composed of candle operations, so they run on every device. Zero is where every policy
//! starts that equals its reference, and kinks that cancel there must have slopes that do: candle's
//! `minimum` and `maximum` share a tie evenly, its `relu` and `abs` do not.

use crate::Result;
use candle_core::Tensor;

/// ln σ(x) = min(x, 0) − ln(1 + e^(−|x|)).
///
/// # Errors
/// When a tensor operation fails.
pub fn log_sigmoid(x: &Tensor) -> Result<Tensor> {
    let minus_abs = x.minimum(&x.neg()?)?;
    Ok((x.minimum(0.0)? - ln_1p(&minus_abs.exp()?)?)?)
}

/// σ(x), small values in full relative precision.
///
/// # Errors
/// When a tensor operation fails.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok(log_sigmoid(x)?.exp()?)
}

/// ln(1 + x) for x ≥ 0: the logarithm of the rounded sum, and what the rounding left out.
fn ln_1p(x: &Tensor) -> Result<Tensor> {
    let sum = (x + 1.0)?;
    let left_out = (x - (&sum - 1.0)?)?;
    Ok((sum.log()? + (left_out / sum)?)?)
}

/// Closer to zero than this, a log-prob is noise of the head's sums.
const CERTAIN: f64 = 1e-6;

/// ln(p / (1 − p)) from ln p, as if p were at most e^(−1e-6) in the denominator: a completion that
/// is certain has finite odds.
///
/// # Errors
/// When a tensor operation fails.
pub fn log_odds(logp: &Tensor) -> Result<Tensor> {
    let below = logp.minimum(-CERTAIN)?;
    // 1 − e^x = −tanh(x/2)·(1 + e^x), which does not cancel near zero.
    let complement = ((&below / 2.0)?.tanh()?.neg()? * (below.exp()? + 1.0)?)?;
    Ok((logp - complement.log()?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    fn with_slope(f: impl Fn(&Tensor) -> Result<Tensor>, x: f64, dtype: DType) -> (f64, f64) {
        let x =
            Var::from_tensor(&Tensor::full(x, 1, &Device::Cpu).unwrap().to_dtype(dtype).unwrap());
        let x = x.unwrap();
        let y = f(x.as_tensor()).unwrap();
        let slope = y.backward().unwrap().get(&x).unwrap().clone();
        let number = |x: &Tensor| x.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()[0];
        (number(&y), number(&slope))
    }

    #[track_caller]
    fn assert_relative(got: (f64, f64), want: (f64, f64), tolerance: f64) {
        for (got, want) in [(got.0, want.0), (got.1, want.1)] {
            assert!((got - want).abs() <= tolerance * want.abs(), "got {got:e}, expected {want:e}");
        }
    }

    #[test]
    fn log_sigmoid_is_right_to_the_last_digits_everywhere() {
        for x in [-1e4, -800.0, -30.0, -1.5, -1e-9, 0.0, 1e-9, 0.5, 3.0, 30.0, 90.0, 700.0] {
            let tail = if x < 0.0 { x } else { 0.0 } - (-f64::abs(x)).exp().ln_1p();
            let slope =
                if x < 0.0 { 1.0 / (1.0 + x.exp()) } else { (-x).exp() / (1.0 + (-x).exp()) };
            assert_relative(with_slope(log_sigmoid, x, DType::F64), (tail, slope), 1e-14);
            if x.abs() < 85.0 {
                assert_relative(with_slope(log_sigmoid, x, DType::F32), (tail, slope), 2e-6);
            }
        }
        assert_eq!(with_slope(log_sigmoid, -1e4, DType::F32), (-1e4, 1.0));
        assert_eq!(with_slope(log_sigmoid, 1e4, DType::F32), (0.0, 0.0));
    }

    #[test]
    fn the_slope_of_log_sigmoid_at_zero_is_a_half() {
        assert_eq!(with_slope(log_sigmoid, 0.0, DType::F64), (-std::f64::consts::LN_2, 0.5));
    }

    #[test]
    fn sigmoid_keeps_small_values() {
        for x in [-700.0, -40.0, -1.0, 0.0, 2.0] {
            let value = f64::exp(x) / (1.0 + f64::exp(x));
            let slope = value / (1.0 + f64::exp(x));
            assert_relative(with_slope(sigmoid, x, DType::F64), (value, slope), 1e-12);
        }
        assert_eq!(with_slope(sigmoid, -1e4, DType::F64), (0.0, 0.0));
        assert_eq!(with_slope(sigmoid, 1e4, DType::F64), (1.0, 0.0));
    }

    #[test]
    fn log_odds_of_a_half_are_zero_and_of_certainty_finite() {
        let (value, slope) = with_slope(log_odds, 0.5f64.ln(), DType::F64);
        assert!(value.abs() < 1e-15 && (slope - 2.0).abs() < 1e-14, "{value} {slope}");
        // p = 1e-6 from certainty, and beyond recall.
        assert_relative(with_slope(log_odds, -1e-5, DType::F64), (11.512_920_464_95, 1e5), 1e-5);
        assert_eq!(with_slope(log_odds, -1e4, DType::F64), (-1e4, 1.0));
        let (value, slope) = with_slope(log_odds, 0.0, DType::F32);
        assert!((value - 13.815_51).abs() < 1e-4 && slope == 1.0, "{value} {slope}");
    }
}
