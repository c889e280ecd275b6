//! Rotary settings of a GGUF file. Llama 3.1's scaling is stored as its result: a table of
//! divisors, one for each pair, in the tensor `rope_freqs.weight`.

use std::f64::consts::TAU;

use super::Gguf;
use crate::Result;
use crate::model::config::RopeScaling;

/// The parameters of every Llama 3.x; the file does not keep them.
const LOW_FREQ_FACTOR: f64 = 1.0;
const HIGH_FREQ_FACTOR: f64 = 4.0;
const ORIGINAL_CONTEXT: usize = 8192;

pub(super) fn read(gguf: &Gguf, arch: &str, head_dim: usize, theta: f64) -> Result<RopeScaling> {
    let stated = stated(gguf, arch)?;
    if gguf.tensor("rope_freqs.weight").is_none() {
        return Ok(stated);
    }
    if stated != RopeScaling::None {
        return Err(gguf.error("both `rope.scaling` and `rope_freqs.weight` scale the rotation"));
    }
    let divisors = gguf.stored("rope_freqs.weight")?.to_vec()?;
    if divisors.len() != head_dim / 2 {
        return Err(gguf.error(format!(
            "`rope_freqs.weight` has {} values: expected half of the head dimension, {}",
            divisors.len(),
            head_dim / 2
        )));
    }
    let original = gguf.unsigned(&format!("{arch}.rope.scaling.original_context_length"))?;
    let mut contexts = vec![ORIGINAL_CONTEXT];
    contexts.extend(original.and_then(|n| usize::try_from(n).ok()));
    recognise(&divisors, head_dim, theta, &contexts).ok_or_else(|| {
        gguf.error("`rope_freqs.weight` is not the rotary scaling of Llama 3.1 as known here")
            .hint("use the safetensors checkpoint, whose `config.json` states the scaling")
    })
}

fn stated(gguf: &Gguf, arch: &str) -> Result<RopeScaling> {
    let kind = gguf.string(&format!("{arch}.rope.scaling.type"))?;
    let old = gguf.number(&format!("{arch}.rope.scale_linear"))?;
    let factor = gguf.number(&format!("{arch}.rope.scaling.factor"))?.or(old);
    match (kind, factor) {
        (None | Some("none"), None) => Ok(RopeScaling::None),
        (None | Some("none" | "linear"), Some(1.0)) => Ok(RopeScaling::None),
        (None | Some("linear"), Some(factor)) if factor.is_finite() && factor > 0.0 => {
            Ok(RopeScaling::Linear { factor })
        }
        (kind, factor) => {
            let kind = kind.unwrap_or("linear");
            let factor = factor.map_or("missing".to_string(), |f| f.to_string());
            Err(gguf.error(format!(
                "`{arch}.rope.scaling.type` is `{kind}` with factor {factor}: \
                 expected `none`, or `linear` with a positive factor"
            )))
        }
    }
}

/// Finds the scaling whose table this is.
fn recognise(
    divisors: &[f32],
    head_dim: usize,
    theta: f64,
    contexts: &[usize],
) -> Option<RopeScaling> {
    let factor = f64::from(divisors.iter().copied().reduce(f32::max)?);
    if divisors.iter().all(|&d| (d - 1.0).abs() < 1e-6) {
        return Some(RopeScaling::None);
    }
    contexts.iter().find_map(|&context| {
        let same = divisors.iter().enumerate().all(|(pair, &divisor)| {
            let expected = llama3_divisor(pair, head_dim, theta, factor, context);
            (f64::from(divisor) / expected - 1.0).abs() < 1e-4
        });
        same.then_some(RopeScaling::Llama3 {
            factor,
            low_freq_factor: LOW_FREQ_FACTOR,
            high_freq_factor: HIGH_FREQ_FACTOR,
            original_max_position_embeddings: context,
        })
    })
}

/// By what the frequency of a pair is divided ("The Llama 3 Herd of Models", section 3.4.2).
fn llama3_divisor(pair: usize, head_dim: usize, theta: f64, factor: f64, context: usize) -> f64 {
    let wavelength = TAU * theta.powf(2.0 * pair as f64 / head_dim as f64);
    let turns = context as f64 / wavelength;
    if turns > HIGH_FREQ_FACTOR {
        1.0
    } else if turns < LOW_FREQ_FACTOR {
        factor
    } else {
        let smooth = (turns - LOW_FREQ_FACTOR) / (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_llama_3_1_is_recognised_and_another_refused() {
        let table: Vec<f32> =
            (0..64).map(|pair| llama3_divisor(pair, 128, 5e5, 8.0, 8192) as f32).collect();
        assert!(table.contains(&1.0) && table.contains(&8.0));
        let found = recognise(&table, 128, 5e5, &[8192]);
        let RopeScaling::Llama3 { factor: 8.0, original_max_position_embeddings: 8192, .. } =
            found.unwrap()
        else {
            panic!("{found:?}");
        };
        let mut other = table;
        other[30] *= 1.01;
        assert_eq!(recognise(&other, 128, 5e5, &[8192]), None);
        assert_eq!(recognise(&[1.0; 64], 128, 5e5, &[8192]), Some(RopeScaling::None));
    }
}
