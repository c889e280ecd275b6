//! Distances between models whose tokens differ.

use candle_core::{D, DType, Tensor};
use halter_core::Result;
use halter_core::train::stable::log_odds;

/// Universal logit distillation: how far the sorted probabilities of two distributions are apart, each
/// `(rows,)` from `(rows, vocabulary)`; the smaller vocabulary is filled up with zeros ("Towards
/// Cross-Tokenizer Distillation", Boizard et al. 2024). No gradient reaches the teacher.
///
/// # Errors
/// When a tensor operation fails.
pub fn uld(own: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let own = sorted_probabilities(own, temperature)?;
    let teacher = sorted_probabilities(&teacher.detach(), temperature)?;
    let shared = own.dim(1)?.min(teacher.dim(1)?);
    // The graph holds a copy of what it needs, and not all of the teacher.
    let common = teacher.narrow(1, 0, shared)?.copy()?;
    let distance = (own.narrow(1, 0, shared)? - common)?.abs()?.sum(D::Minus1)?;
    Ok(((distance + beyond(&own, shared)?)? + beyond(&teacher, shared)?)?)
}

/// Sums of the columns from `shared` on.
fn beyond(x: &Tensor, shared: usize) -> Result<Tensor> {
    match x.dim(1)? - shared {
        0 => Ok(Tensor::zeros(x.dim(0)?, x.dtype(), x.device())?),
        more => Ok(x.narrow(1, shared, more)?.sum(D::Minus1)?),
    }
}

fn sorted_probabilities(logits: &Tensor, temperature: f64) -> Result<Tensor> {
    let logits = (logits / temperature)?;
    let exp = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let probabilities = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
    let order = probabilities.detach().arg_sort_last_dim(false)?;
    Ok(probabilities.gather(&order, D::Minus1)?)
}

/// Approximate likelihood matching: KL between the two models' verdicts on whether a chunk's text comes
/// next, yes or no, from its log-probs `(chunks,)`; probabilities are taken to the power of 1 by the
/// temperature ("Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching",
/// Minixhofer et al. 2025; 100 there). No gradient reaches the teacher.
///
/// # Errors
/// When a tensor operation fails.
pub fn alm(own: &Tensor, teacher: &Tensor, temperature: f64) -> Result<Tensor> {
    let (own, teacher) = ((own / temperature)?, (teacher.detach() / temperature)?);
    let (own_no, teacher_no) = (complement(&own)?, complement(&teacher)?);
    let yes = (teacher.exp()? * (&teacher - &own)?)?;
    let no = (teacher_no.exp()? * (&teacher_no - &own_no)?)?;
    Ok((yes + no)?)
}

/// ln(1 − p) from ln p.
fn complement(logp: &Tensor) -> Result<Tensor> {
    Ok((logp - log_odds(logp)?)?)
}

/// Sums of `values` `(tokens,)` over chunks, `(chunks,)`; `chunk_of` names the tokens' chunks, and
/// those without one are left out.
///
/// # Errors
/// When a tensor operation fails.
pub fn by_chunk(values: &Tensor, chunk_of: &[(u32, u32)], chunks: usize) -> Result<Tensor> {
    let device = values.device();
    let (tokens, of): (Vec<u32>, Vec<u32>) = chunk_of.iter().copied().unzip();
    let count = tokens.len();
    let tokens = Tensor::from_vec(tokens, count, device)?;
    let of = Tensor::from_vec(of, count, device)?;
    let sums = Tensor::zeros(chunks, DType::F64, device)?;
    Ok(sums.index_add(&of, &values.to_dtype(DType::F64)?.index_select(&tokens, 0)?, 0)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use super::*;
    use candle_core::{Device, Var};
    use halter_testkit::values;

    fn rows<const N: usize>(rows: [[f64; N]; 2]) -> Tensor {
        Tensor::new(&rows, &Device::Cpu).unwrap()
    }

    /// Slope of `f` in each element, by central differences.
    fn slopes(f: impl Fn(&Tensor) -> Tensor, x: &Tensor) -> Vec<f64> {
        let at = values(x);
        let moved = |index: usize, by: f64| {
            let mut at = at.clone();
            at[index] += by;
            values(&f(&Tensor::from_vec(at, x.dims(), x.device()).unwrap())).iter().sum::<f64>()
        };
        (0..at.len()).map(|i| (moved(i, 1e-5) - moved(i, -1e-5)) / 2e-5).collect()
    }

    fn holds(f: impl Fn(&Tensor) -> Tensor, x: &Tensor) {
        let leaf = Var::from_tensor(x).unwrap();
        let grads = f(&leaf).sum_all().unwrap().backward().unwrap();
        let found = values(grads.get(&leaf).unwrap());
        for (found, wanted) in found.iter().zip(slopes(&f, x)) {
            assert!((found - wanted).abs() < 1e-8, "{found} {wanted}");
        }
    }

    #[test]
    fn sorted_probabilities_are_compared() {
        let ln = |rows: Tensor| rows.log().unwrap();
        let own = ln(rows([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]));
        let teacher = ln(rows([[0.6, 0.4], [0.2, 0.8]]));
        let near = |found: Vec<f64>, wanted: [f64; 2]| {
            found.iter().zip(wanted).for_each(|(a, b)| assert!((a - b).abs() < 1e-12, "{a} {b}"));
        };
        near(values(&uld(&own, &teacher, 1.0).unwrap()), [0.1 + 0.1 + 0.2, 0.1 + 0.1]);
        near(values(&uld(&teacher, &own, 1.0).unwrap()), [0.4, 0.2]);
        holds(|own| uld(own, &teacher, 2.0).unwrap(), &rows([[0.3, -1.0, 0.9], [1.2, 0.1, -0.4]]));
    }

    #[test]
    fn verdicts_on_chunks_are_compared() {
        let of = |p: [f64; 3]| Tensor::new(&p, &Device::Cpu).unwrap();
        let (own, teacher) = (of([-0.1, -2.0, -1e-9]), of([-0.7, -2.0, -3.0]));
        let found = values(&alm(&own, &teacher, 1.0).unwrap());
        let (q, p) = ((-0.7f64).exp(), (-0.1f64).exp());
        let wanted = q * (q / p).ln() + (1.0 - q) * ((1.0 - q) / (1.0 - p)).ln();
        assert!((found[0] - wanted).abs() < 1e-12 && found[1].abs() < 1e-12, "{found:?}");
        assert!(found[2].is_finite() && found[2] > 1.0);
        holds(|own| alm(own, &teacher, 3.0).unwrap(), &of([-0.1, -2.0, -0.4]));
    }

    #[test]
    fn chunks_are_sums() {
        let logps = Tensor::new(&[1f32, 2.0, 4.0, 8.0], &Device::Cpu).unwrap();
        let sums = by_chunk(&logps, &[(0, 1), (2, 0), (3, 1)], 2).unwrap();
        assert_eq!(values(&sums), [4.0, 9.0]);
        holds(
            |x| by_chunk(x, &[(0, 1), (3, 1)], 2).unwrap(),
            &rows([[1.0, 2.0], [3.0, 4.0]]).flatten_all().unwrap(),
        );
    }
}
