//! Code compiled for the widest vectors the machine has, chosen at run time.
//!
//! Loops passed to [`vectorize!`] are plain Rust that the compiler turns into vector instructions.
//! Multiplications and additions are fused where `mul_add` says so and nowhere else, so results do
//! not depend on whether the machine has an instruction for it.

use std::sync::OnceLock;

/// The value of an expression, compiled for the machine's vector instructions.
macro_rules! vectorize {
    ($body:expr) => {
        // What is not inlined would be compiled for the plainest machine.
        $crate::ops::simd::dispatch(
            #[inline(always)]
            || $body,
        )
    };
}
pub(crate) use vectorize;

/// See [`vectorize!`].
#[inline(always)]
pub(crate) fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    struct Body<F>(F);
    impl<R, F: FnOnce() -> R> pulp::WithSimd for Body<F> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> R {
            (self.0)()
        }
    }
    #[cfg(target_arch = "x86_64")]
    if Isa::limit() == Isa::Avx2
        && let Some(avx2) = pulp::x86::V3::try_new()
    {
        return pulp::Arch::V3(avx2).dispatch(Body(f));
    }
    pulp::Arch::new().dispatch(Body(f))
}

/// Vector instructions that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX2 and FMA at most.
    Avx2,
    /// The widest of the machine.
    Best,
}

static LIMIT: OnceLock<Isa> = OnceLock::new();

impl Isa {
    /// Lets this crate's operations use no wider ones, so that a machine can stand for an older
    /// one; the `gemm` crate, which computes thin products, chooses for itself. Only the first call,
    /// before the first operation, counts; returns whether this one did.
    pub fn set_limit(self) -> bool {
        LIMIT.set(self).is_ok()
    }

    /// The limit that was set.
    #[inline(always)]
    pub(crate) fn limit() -> Self {
        *LIMIT.get_or_init(|| Self::Best)
    }
}

/// Sums are kept in this many lanes, whatever the vector width, so that every machine and thread
/// count adds in the same order.
pub(crate) const LANES: usize = 16;

/// Sum of `f(i)` for `i` in `0..n`, in a fixed order.
#[inline(always)]
pub(crate) fn sum(n: usize, mut f: impl FnMut(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += f(i + lane);
        }
        i += LANES;
    }
    for (lane, total) in lanes.iter_mut().enumerate().take(n - whole) {
        *total += f(whole + lane);
    }
    fold(lanes, |a, b| a + b)
}

/// Σ `e^(x − shift)`, in the order of [`sum`].
#[inline(always)]
pub(crate) fn sum_exp(x: &[f32], shift: f32) -> f32 {
    // Apart from the sum, so that both loops become vector instructions.
    let mut powers = [0f32; 16 * LANES];
    let mut lanes = [0f32; LANES];
    for block in x.chunks(powers.len()) {
        let powers = &mut powers[..block.len()];
        for (power, &x) in powers.iter_mut().zip(block) {
            *power = exp(x - shift);
        }
        for powers in powers.chunks(LANES) {
            for (total, power) in lanes.iter_mut().zip(powers) {
                *total += power;
            }
        }
    }
    fold(lanes, |a, b| a + b)
}

/// Largest element; negative infinity of nothing.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for (best, &value) in lanes.iter_mut().zip(block) {
            *best = if value > *best { value } else { *best };
        }
    }
    for (best, &value) in lanes.iter_mut().zip(rest) {
        *best = if value > *best { value } else { *best };
    }
    fold(lanes, f32::max)
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = f(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// `e^x` to within 2 units in the last place; 0 below −87.3, infinity above 88.7, NaN of NaN.
///
/// `x = n·ln 2 + r`, `|r| ≤ ln 2 / 2`; `e^r` by its Taylor polynomial of degree 7, whose remainder
/// there is below 3e-9, and `2^n` by writing the exponent.
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5·2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > 88.8 { 88.8 } else { x };
    let clamped = if clamped < -87.4 { -87.4 } else { clamped };
    let rounded = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let mut p = 1.0 / 5040.0f32;
    p = p.mul_add(r, 1.0 / 720.0);
    p = p.mul_add(r, 1.0 / 120.0);
    p = p.mul_add(r, 1.0 / 24.0);
    p = p.mul_add(r, 1.0 / 6.0);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r, 1.0);
    p = p.mul_add(r, 1.0);
    // The whole number that rounding left in the lowest bits. It reaches 128 just below overflow:
    // scale in two steps.
    let n = rounded.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let scale = |n: i32| f32::from_bits((n.wrapping_add(127) << 23) as u32);
    let y = p * scale(n >> 1) * scale(n.wrapping_sub(n >> 1));
    let y = if x < -87.336_54 { 0.0 } else { y };
    if x > 88.722_84 { f32::INFINITY } else { y }
}

/// Natural logarithm of a positive normal number to within 2 units in the last place (or 2e-7 near 1).
///
/// `x = 2^e · (1 + f)`, `1 + f` in [√½, √2); `ln(1 + f)` by the polynomial of Cephes' `logf`.
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub(crate) fn ln(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const SQRT_HALF: u32 = 0x3f35_04f3;
    let bits = x.to_bits();
    let exponent = (bits.wrapping_sub(SQRT_HALF) as i32) >> 23;
    let f = f32::from_bits(bits.wrapping_sub((exponent << 23) as u32)) - 1.0;
    let e = exponent as f32;
    let mut p = 7.037_683_629_2e-2f32;
    p = p.mul_add(f, -1.151_461_031e-1);
    p = p.mul_add(f, 1.167_699_874e-1);
    p = p.mul_add(f, -1.242_014_084_6e-1);
    p = p.mul_add(f, 1.424_932_278_7e-1);
    p = p.mul_add(f, -1.666_805_766_5e-1);
    p = p.mul_add(f, 2.000_071_476_5e-1);
    p = p.mul_add(f, -2.499_999_399_3e-1);
    p = p.mul_add(f, 3.333_333_117_4e-1);
    let square = f * f;
    let y = (p * f).mul_add(square, e * LN2_LOW);
    e.mul_add(LN2_HIGH, f + square.mul_add(-0.5, y))
}

/// `1 / (1 + e^−x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_the_exact_value() {
        let mut checked = 0;
        let mut worst = 0f64;
        let mut x = -87.3f32;
        while x < 88.7 {
            let got = f64::from(exp(x));
            let want = f64::from(x).exp();
            let ulp = f64::from(f32::EPSILON) * 2f64.powi(want.log2().floor() as i32);
            worst = worst.max((got - want).abs() / ulp);
            checked += 1;
            x += 0.000_37;
        }
        assert!(checked > 400_000);
        assert!(worst <= 2.0, "{worst}");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(1000.0), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn ln_is_near_the_exact_value() {
        let mut worst = 0f64;
        for exponent in -126..128 {
            for part in 0..997 {
                let x = (1.0 + part as f32 / 997.0) * 2f32.powi(exponent);
                let (got, want) = (f64::from(ln(x)), f64::from(x).ln());
                worst = worst.max((got - want).abs() / want.abs().max(1.0));
            }
        }
        assert!(worst < 2e-7, "{worst}");
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn sums_and_maxima_agree_with_the_plain_loop() {
        for n in [0, 1, 15, 16, 17, 100, 1000] {
            let x: Vec<f32> = (0..n).map(|i| ((i * 7919) % 31) as f32 - 20.0).collect();
            assert_eq!(sum(n, |i| x[i]), x.iter().sum::<f32>());
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            assert_eq!(sum_exp(&x, 1.0), sum(n, |i| exp(x[i] - 1.0)));
        }
    }
}
