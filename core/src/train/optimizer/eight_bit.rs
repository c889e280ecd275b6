//! AdamW's moments in 8 bits.
//!
//! As in "8-bit Optimizers via Block-wise Quantization" (Dettmers et al. 2022), every block of
//! numbers has a scale, its largest magnitude, and each number a code relative to it. The codes are
//! small floats rather than the paper's dynamic tree, so that they are computed and not looked up,
//! and rounding is stochastic: a change far below a code's step is made in that share of the
//! updates, where rounding to the nearest would lose it for ever. The second moment is kept as its
//! root, which halves the range, and never becomes zero by rounding.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::Factors;
use crate::ops::simd::{max, vectorize};
use crate::ops::{slices, zeros};
use crate::{Error, Result};

/// Numbers that share a scale.
pub(super) const BLOCK: usize = 256;
/// Blocks per task.
const BLOCKS: usize = 64;

/// Both moments of one parameter.
#[derive(Debug)]
pub(super) struct EightBit {
    /// Codes, one a number, and scales, one a block.
    first: Tensor,
    first_scale: Tensor,
    /// Those of the second moment's root.
    second: Tensor,
    second_scale: Tensor,
}

impl EightBit {
    /// Zeroed moments of `value`.
    ///
    /// # Errors
    /// If it is not f32 on the CPU.
    pub(super) fn zeros(value: &Tensor) -> Result<Self> {
        if !(value.device().is_cpu() && value.dtype() == DType::F32) {
            let found = format!("{:?} on {:?}", value.dtype(), value.device().location());
            return Err(Error::config(format!(
                "8-bit moments of `{found}`: expected `f32` on the cpu"
            ))
            .hint("give `--optim adamw`"));
        }
        let (numbers, device) = (value.elem_count(), value.device());
        let codes = || zeros(&numbers.into(), DType::U8, device);
        let scales = || zeros(&numbers.div_ceil(BLOCK).into(), DType::F32, device);
        Ok(Self {
            first: codes()?,
            first_scale: scales()?,
            second: codes()?,
            second_scale: scales()?,
        })
    }

    /// Its tensors by name.
    pub(super) fn tensors(&self) -> [(&'static str, &Tensor); 4] {
        [
            ("first_moment", &self.first),
            ("first_moment_scale", &self.first_scale),
            ("second_moment", &self.second),
            ("second_moment_scale", &self.second_scale),
        ]
    }

    /// One update of `value`. `seed` decides how codes are rounded.
    pub(super) fn update(
        &self,
        value: &Tensor,
        grad: &Tensor,
        factors: Factors,
        seed: u64,
    ) -> Result<()> {
        let factors = factors.narrow();
        let grad = slices::read(grad)?;
        slices::write3(value, &self.first_scale, &self.second_scale, |value, scale1, scale2| {
            slices::write_bytes2(&self.first, &self.second, |first, second| {
                let parameters =
                    value.par_chunks_mut(BLOCKS * BLOCK).zip(grad.par_chunks(BLOCKS * BLOCK));
                let codes =
                    first.par_chunks_mut(BLOCKS * BLOCK).zip(second.par_chunks_mut(BLOCKS * BLOCK));
                let scales = scale1.par_chunks_mut(BLOCKS).zip(scale2.par_chunks_mut(BLOCKS));
                parameters.zip(codes).zip(scales).enumerate().for_each(
                    |(task, (((value, grad), (first, second)), (scale1, scale2)))| {
                        let blocks = value
                            .chunks_mut(BLOCK)
                            .zip(grad.chunks(BLOCK))
                            .zip(first.chunks_mut(BLOCK).zip(second.chunks_mut(BLOCK)))
                            .zip(scale1.iter_mut().zip(scale2));
                        for (block, (((value, grad), codes), scales)) in blocks.enumerate() {
                            let place = ((task * BLOCKS + block) * BLOCK) as u32;
                            vectorize!(update_block(
                                factors, value, grad, codes, scales, place, seed
                            ));
                        }
                    },
                );
            })
        })?
    }
}

#[inline(always)]
fn update_block(
    factors: super::Narrow,
    value: &mut [f32],
    grad: &[f32],
    (first, second): (&mut [u8], &mut [u8]),
    (first_scale, second_scale): (&mut f32, &mut f32),
    place: u32,
    seed: u64,
) {
    let (mut m, mut root) = ([0f32; BLOCK], [0f32; BLOCK]);
    let n = value.len();
    let (m, root) = (&mut m[..n], &mut root[..n]);
    for i in 0..n {
        let r = Second::decode(second[i]) * *second_scale;
        let (moved, new_m, v) =
            factors.apply(value[i], First::decode(first[i]) * *first_scale, r * r, grad[i]);
        (value[i], m[i], root[i]) = (moved, new_m, v.sqrt());
    }
    let mut magnitudes = [0f32; BLOCK];
    for (magnitude, m) in magnitudes.iter_mut().zip(m.iter()) {
        *magnitude = m.abs();
    }
    *first_scale = max(&magnitudes[..n]);
    *second_scale = max(root);
    let inverse = |scale: f32| if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let (inverse1, inverse2) = (inverse(*first_scale), inverse(*second_scale));
    for i in 0..n {
        let noise = noise(place.wrapping_add(i as u32), seed);
        first[i] = First::encode(m[i] * inverse1, noise & 0xffff);
        second[i] = Second::encode(root[i] * inverse2, noise >> 16);
    }
}

/// 32 bits that look random, from a place and a seed (MurmurHash3's last steps).
#[inline(always)]
fn noise(place: u32, seed: u64) -> u32 {
    let mut x = place ^ seed as u32;
    x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 13) ^ (seed >> 32) as u32).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

/// Codes of the first moment: a sign, 4 bits of exponent, 3 of mantissa.
struct First;
/// Codes of the second moment's root: 4 bits of exponent, 4 of mantissa.
struct Second;

/// Magnitudes from 2⁻¹⁶ to 1 in floats of `BITS` bits of mantissa: the largest code is 1, code 0 is
/// zero.
#[inline(always)]
fn decode<const BITS: u32>(code: u32) -> f32 {
    let largest = (16 << BITS) - 1;
    let bits = (code + (127 << BITS) - largest) << (23 - BITS);
    if code == 0 { 0.0 } else { f32::from_bits(bits) }
}

/// The code of `x` from 0 to 1, rounded down or up by 16 bits of `noise`.
#[inline(always)]
fn encode<const BITS: u32>(x: f32, noise: u32) -> u32 {
    let largest = (16i32 << BITS) - 1;
    let shift = 23 - BITS;
    let bits = x.to_bits().wrapping_add(noise << (shift - 16)) >> shift;
    let code = bits as i32 - (127 << BITS) + largest;
    // Below the smallest code, between it and zero.
    let smallest = decode::<BITS>(1);
    let up = x * (65536.0 / smallest) > noise as f32;
    if x >= smallest { code.min(largest) as u32 } else { u32::from(up) }
}

impl First {
    #[inline(always)]
    fn decode(code: u8) -> f32 {
        let magnitude = decode::<3>(u32::from(code & 0x7f));
        f32::from_bits(magnitude.to_bits() | (u32::from(code & 0x80) << 24))
    }

    #[inline(always)]
    fn encode(x: f32, noise: u32) -> u8 {
        encode::<3>(x.abs(), noise) as u8 | ((x.to_bits() >> 24) & 0x80) as u8
    }
}

impl Second {
    #[inline(always)]
    fn decode(code: u8) -> f32 {
        decode::<4>(u32::from(code))
    }

    /// Zero for nothing but zero, which would make the update infinite.
    #[inline(always)]
    fn encode(x: f32, noise: u32) -> u8 {
        let code = encode::<4>(x, noise) as u8;
        if x > 0.0 { code.max(1) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_their_own_nearest() {
        for code in 0..=255u8 {
            assert_eq!(Second::encode(Second::decode(code), 0), code);
            if code != 0x80 {
                assert_eq!(First::encode(First::decode(code), 0), code);
            }
        }
        assert_eq!(
            (First::decode(0x7f), First::decode(0xff), Second::decode(0xff)),
            (1.0, -1.0, 1.0)
        );
    }

    #[test]
    fn rounding_is_right_on_average_over_the_whole_range() {
        let mut x = 1f32;
        let mut checked = 0;
        while x > 1e-6 {
            let mean = |decode: &dyn Fn(u32) -> f32| {
                (0..65536).map(|noise| f64::from(decode(noise))).sum::<f64>() / 65536.0
            };
            let first = mean(&|noise| First::decode(First::encode(-x, noise)));
            let second = mean(&|noise| Second::decode(Second::encode(x, noise)));
            let step = f64::from(x) / 8.0;
            assert!((first + f64::from(x)).abs() < step * 1e-3 + 1e-9, "{x} {first}");
            if x > Second::decode(1) {
                assert!((second - f64::from(x)).abs() < step * 1e-3 + 1e-9, "{x} {second}");
            }
            assert!(Second::encode(x, 0) > 0);
            checked += 1;
            x *= 0.713;
        }
        assert!(checked > 30);
    }

    #[test]
    fn noise_is_even() {
        let mut counts = [0; 16];
        for place in 0..16_000 {
            counts[noise(place, 7) as usize >> 28] += 1;
        }
        assert!(counts.iter().all(|&count| (800..1200).contains(&count)), "{counts:?}");
    }
}
