//! Dropout whose mask is a function of a seed and the element's place, so that recomputing a block
//! drops the same elements and nothing has to be kept.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{Context, assign, slices};
use crate::Result;
use crate::memory::Buffer;

/// Elements per task.
const CHUNK: usize = 4096;

/// `x` with each element zeroed with `probability`, the others divided by `1 − probability`. The
/// same seed drops the same elements.
pub fn apply(ctx: &Context, x: &Tensor, probability: f32, seed: u64) -> Result<Buffer> {
    let y = ctx.copy(x)?;
    apply_in_place(ctx, &y, probability, seed)?;
    Ok(y)
}

/// [`apply`], in place; also its own gradient.
pub fn apply_in_place(ctx: &Context, x: &Tensor, probability: f32, seed: u64) -> Result<()> {
    let scale = 1.0 / (1.0 - probability);
    let limit = (f64::from(probability) * 2f64.powi(32)) as u64;
    let factor =
        move |index: usize| if hash(seed, index as u64) >> 32 < limit { 0.0 } else { scale };
    if !ctx.is_fused(x) {
        let mask: Vec<f32> = (0..x.elem_count()).map(factor).collect();
        let mask = Tensor::from_vec(mask, x.shape(), x.device())?.to_dtype(x.dtype())?;
        return assign(x, &(x * mask)?);
    }
    slices::write(x, |x| {
        x.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, x)| {
            for (i, x) in x.iter_mut().enumerate() {
                *x *= factor(chunk * CHUNK + i);
            }
        });
    })
}

/// SplitMix64 (Steele, Lea & Flood 2014) of the pair.
pub fn hash(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A seed for what has this name.
pub fn hash_name(seed: u64, name: &str) -> u64 {
    name.bytes().fold(seed, |seed, byte| hash(seed, u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn the_share_dropped_is_the_probability_and_the_mean_is_kept() {
        let ctx = Context::new(&Device::Cpu);
        let ones = Tensor::ones((300, 300), DType::F32, &Device::Cpu).unwrap();
        let y = apply(&ctx, &ones, 0.3, 7).unwrap().flatten_all().unwrap();
        let y = y.to_vec1::<f32>().unwrap();
        let dropped = y.iter().filter(|&&y| y == 0.0).count() as f32 / y.len() as f32;
        let mean = y.iter().sum::<f32>() / y.len() as f32;
        assert!((dropped - 0.3).abs() < 0.01, "{dropped}");
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
    }

    #[test]
    fn seeds_decide_the_mask() {
        let ctx = Context::new(&Device::Cpu);
        let ones = Tensor::ones((10, 10), DType::F32, &Device::Cpu).unwrap();
        let with =
            |ctx: &Context, seed| apply(ctx, &ones, 0.5, seed).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(with(&ctx, 1), with(&ctx, 1));
        assert_ne!(with(&ctx, 1), with(&ctx, 2));
        assert_eq!(with(&ctx, 1), with(&Context::composed(&Device::Cpu), 1));
    }
}
