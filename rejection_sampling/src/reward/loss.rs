//! The Bradley–Terry loss of two scores.

use candle_core::Tensor;
use halter_core::Result;
use halter_core::train::stable::log_sigmoid;

/// −ln σ(better − worse − margin) + center · (better + worse)², one value per pair.
///
/// The margin is that of Llama 2 (Touvron et al. 2023, equation 2); the second term draws scores
/// towards a mean of zero (Eisenstein et al. 2023, equation 2). All tensors are `(pairs,)`.
///
/// # Errors
/// When a tensor operation fails.
pub fn pair_loss(better: &Tensor, worse: &Tensor, margin: &Tensor, center: f64) -> Result<Tensor> {
    let loss = log_sigmoid(&((better - worse)? - margin)?)?.neg()?;
    if center == 0.0 {
        return Ok(loss);
    }
    Ok((loss + ((better + worse)?.sqr()? * center)?)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use candle_core::{Device, Var};

    use super::*;

    fn column(values: &[f64]) -> Tensor {
        Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap()
    }

    #[test]
    fn values_by_hand() {
        let (better, worse) = (column(&[0.0, 2.0, 1.0]), column(&[0.0, 0.0, 3.0]));
        let margin = column(&[0.0, 2.0, 0.0]);
        let loss = |center| pair_loss(&better, &worse, &margin, center).unwrap();
        let plain: Vec<f64> = loss(0.0).to_vec1().unwrap();
        let ln_2 = std::f64::consts::LN_2;
        // A margin as large as the difference leaves a coin toss; 2.1269… is ln(1 + e²).
        for (got, want) in plain.iter().zip([ln_2, ln_2, 2.126_928_011_042_972_4]) {
            assert!((got - want).abs() < 1e-15, "{got} {want}");
        }
        let centred: Vec<f64> = loss(0.01).to_vec1().unwrap();
        for ((got, plain), square) in centred.iter().zip(plain).zip([0.0, 4.0, 16.0]) {
            assert!((got - plain - 0.01 * square).abs() < 1e-15, "{got}");
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let at = [0.3, -1.2, 0.7, 0.4];
        let value = |x: &Tensor| {
            let (better, worse) = (x.narrow(0, 0, 2).unwrap(), x.narrow(0, 2, 2).unwrap());
            let loss = pair_loss(&better, &worse, &column(&[0.0, 0.5]), 0.1).unwrap();
            loss.sum_all().unwrap()
        };
        let leaf = Var::from_tensor(&column(&at)).unwrap();
        let store = value(&leaf).backward().unwrap();
        let slopes: Vec<f64> = store.get(&leaf).unwrap().to_vec1().unwrap();
        for (i, slope) in slopes.iter().enumerate() {
            let moved = |step: f64| {
                let mut at = at;
                at[i] += step;
                value(&column(&at)).to_scalar::<f64>().unwrap()
            };
            let expected = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((slope - expected).abs() < 1e-8, "{i}: {slope} {expected}");
        }
    }
}
