//! Dot products of a few rows with weights as they lie in a file, widened in registers. Every bit is
//! that of `dot` on the widened weights.

#![allow(clippy::undocumented_unsafe_blocks, reason = "said once, above the formats")]

use std::arch::x86_64::{
    __m128, __m128i, __m256, __m512, _mm_add_epi8, _mm_and_si128, _mm_cvtph_ps, _mm_cvtsi32_si128,
    _mm_loadu_si128, _mm_movehdup_ps, _mm_set1_epi8, _mm_srli_epi16, _mm_unpackhi_epi64,
    _mm256_add_ps, _mm256_broadcastss_ps, _mm256_castsi256_ps, _mm256_cvtepi8_epi32,
    _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_mul_ps, _mm256_setzero_ps, _mm256_slli_epi32, _mm256_storeu_ps,
    _mm512_add_ps, _mm512_broadcastss_ps, _mm512_castsi512_ps, _mm512_cvtepi8_epi32,
    _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_mul_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps,
};

use candle_core::quantized::GgmlDType;

use super::dot::{LINE, STRIP, Tile, fetch, finish};
use crate::model::weights::StoredKind;
use crate::ops::simd::LANES;

type Run = unsafe fn(&Tile);

/// Weights that are widened together.
const BLOCK: usize = 32;

/// The kernel for `rows` rows of length `k`, in registers of `width` numbers; `None` where widening
/// a strip beforehand is the way.
pub(super) fn kernel(kind: StoredKind, k: usize, rows: usize, width: usize) -> Option<Run> {
    use GgmlDType::{Q4_0, Q4_1, Q8_0};
    let has_f16c = is_x86_feature_detected!("f16c");
    if !(k.is_multiple_of(BLOCK) && has_f16c && matches!((width, rows), (16, 1..=4) | (8, 1))) {
        return None;
    }
    Some(match (width, kind) {
        (16, StoredKind::F32) => avx512::<F32>,
        (16, StoredKind::BF16 | StoredKind::Ggml(GgmlDType::BF16)) => avx512::<BF16>,
        (16, StoredKind::F16 | StoredKind::Ggml(GgmlDType::F16)) => avx512::<F16>,
        (16, StoredKind::Ggml(Q4_0)) => avx512::<Q4<18>>,
        (16, StoredKind::Ggml(Q4_1)) => avx512::<Q4<20>>,
        (16, StoredKind::Ggml(Q8_0)) => avx512::<Q8>,
        (8, StoredKind::F32) => avx2::<F32>,
        (8, StoredKind::BF16 | StoredKind::Ggml(GgmlDType::BF16)) => avx2::<BF16>,
        (8, StoredKind::F16 | StoredKind::Ggml(GgmlDType::F16)) => avx2::<F16>,
        (8, StoredKind::Ggml(Q4_0)) => avx2::<Q4<18>>,
        (8, StoredKind::Ggml(Q4_1)) => avx2::<Q4<20>>,
        (8, StoredKind::Ggml(Q8_0)) => avx2::<Q8>,
        _ => return None,
    })
}

/// # Safety
/// The operands hold what [`Tile`] says, weights as `F` reads them.
#[target_feature(enable = "avx512f,avx512vl,avx2,fma,f16c")]
unsafe fn avx512<F: Format>(tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.rows {
            1 => run::<__m512, F, 1>(tile),
            2 => run::<__m512, F, 2>(tile),
            3 => run::<__m512, F, 3>(tile),
            _ => run::<__m512, F, 4>(tile),
        }
    }
}

/// # Safety
/// The operands hold what [`Tile`] says, weights as `F` reads them.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<F: Format>(tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe { run::<[__m256; 2], F, 1>(tile) }
}

/// # Safety
/// The operands hold what [`Tile`] says, weights as `F` reads them.
#[inline(always)]
unsafe fn run<W: Sixteen, F: Format, const ROWS: usize>(tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[W::zero(); STRIP]; ROWS];
        let mut fetched = 0;
        for block in 0..tile.k / BLOCK {
            if fetched < tile.fetch.len() {
                for line in 0..(STRIP * F::BYTES).div_ceil(LINE) {
                    fetch(tile.fetch.as_ptr().wrapping_add(fetched + line * LINE));
                }
                fetched += STRIP * F::BYTES;
            }
            let mut x = [[W::zero(); 2]; ROWS];
            for (j, x) in x.iter_mut().enumerate() {
                let at = tile.x.add(j * tile.k + block * BLOCK);
                *x = [W::load(at), W::load(at.add(LANES))];
            }
            for (i, weights) in tile.weights.iter().enumerate() {
                let [lower, upper] = F::widen::<W>(weights.add(block * F::BYTES));
                for (sums, x) in sums.iter_mut().zip(x) {
                    sums[i] = sums[i].add_product(lower, x[0]).add_product(upper, x[1]);
                }
            }
        }
        let mut lanes = [[[0f32; LANES]; STRIP]; ROWS];
        for (lanes, sums) in lanes.iter_mut().zip(sums) {
            for (lanes, sums) in lanes.iter_mut().zip(sums) {
                sums.store(lanes);
            }
        }
        finish::<__m256, ROWS>(tile, &lanes);
    }
}

/// How weights are stored.
trait Format {
    /// Of [`BLOCK`] weights.
    const BYTES: usize;

    /// The weights of the block at `at`, rounded as by `StoredTensor::read_rows_into`.
    ///
    /// # Safety
    /// `BYTES` bytes lie at `at`.
    unsafe fn widen<W: Sixteen>(at: *const u8) -> [W; 2];
}

struct F32;
struct BF16;
struct F16;
/// Blocks of a scale, perhaps a minimum (20 bytes instead of 18), and 32 times four bits.
struct Q4<const BYTES: usize>;
/// Blocks of a scale and 32 times eight bits.
struct Q8;

// Every `unsafe` below rests on the caller's promise, and on this: the methods are compiled into the
// two functions above, which have the instructions. Closures may not be, so there are none.

impl Format for F32 {
    const BYTES: usize = 4 * BLOCK;

    #[inline(always)]
    unsafe fn widen<W: Sixteen>(at: *const u8) -> [W; 2] {
        unsafe { [W::load(at.cast()), W::load(at.cast::<f32>().add(LANES))] }
    }
}

impl Format for BF16 {
    const BYTES: usize = 2 * BLOCK;

    #[inline(always)]
    unsafe fn widen<W: Sixteen>(at: *const u8) -> [W; 2] {
        unsafe { [W::from_bf16(at), W::from_bf16(at.add(BLOCK))] }
    }
}

impl Format for F16 {
    const BYTES: usize = 2 * BLOCK;

    #[inline(always)]
    unsafe fn widen<W: Sixteen>(at: *const u8) -> [W; 2] {
        unsafe { [W::from_f16(at), W::from_f16(at.add(BLOCK))] }
    }
}

impl<const SIZE: usize> Format for Q4<SIZE> {
    const BYTES: usize = SIZE;

    #[inline(always)]
    unsafe fn widen<W: Sixteen>(at: *const u8) -> [W; 2] {
        unsafe {
            let low = _mm_set1_epi8(15);
            let both = _mm_loadu_si128(at.add(SIZE - 16).cast());
            let lower = _mm_and_si128(both, low);
            let upper = _mm_and_si128(_mm_srli_epi16::<4>(both), low);
            if SIZE == 20 {
                let halves = _mm_cvtsi32_si128(at.cast::<i32>().read_unaligned());
                let both = _mm_cvtph_ps(halves);
                let (scale, least) = (W::of_first(both), W::of_first(_mm_movehdup_ps(both)));
                let lower = W::from_i8(lower).mul(scale).add(least);
                [lower, W::from_i8(upper).mul(scale).add(least)]
            } else {
                let (scale, eight) = (scale(at), _mm_set1_epi8(-8));
                let lower = W::from_i8(_mm_add_epi8(lower, eight)).mul(scale);
                [lower, W::from_i8(_mm_add_epi8(upper, eight)).mul(scale)]
            }
        }
    }
}

impl Format for Q8 {
    const BYTES: usize = 34;

    #[inline(always)]
    unsafe fn widen<W: Sixteen>(at: *const u8) -> [W; 2] {
        unsafe {
            let scale = scale::<W>(at);
            let lower = W::from_i8(_mm_loadu_si128(at.add(2).cast()));
            [lower.mul(scale), W::from_i8(_mm_loadu_si128(at.add(18).cast())).mul(scale)]
        }
    }
}

/// The 16-bit float at `at`, everywhere.
#[inline(always)]
unsafe fn scale<W: Sixteen>(at: *const u8) -> W {
    unsafe {
        let bits = at.cast::<u16>().read_unaligned();
        W::of_first(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
    }
}

/// Sixteen numbers in registers.
trait Sixteen: Copy {
    fn zero() -> Self;
    /// The first number of `x`, everywhere.
    fn of_first(x: __m128) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    fn store(self, to: &mut [f32; LANES]);
    fn from_i8(quants: __m128i) -> Self;
    unsafe fn from_bf16(from: *const u8) -> Self;
    unsafe fn from_f16(from: *const u8) -> Self;
    fn mul(self, other: Self) -> Self;
    fn add(self, other: Self) -> Self;
    /// `self + a·b`.
    fn add_product(self, a: Self, b: Self) -> Self;
}

impl Sixteen for __m512 {
    #[inline(always)]
    fn zero() -> Self {
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    fn of_first(x: __m128) -> Self {
        unsafe { _mm512_broadcastss_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self) }
    }

    #[inline(always)]
    fn from_i8(quants: __m128i) -> Self {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(quants)) }
    }

    #[inline(always)]
    unsafe fn from_bf16(from: *const u8) -> Self {
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn from_f16(from: *const u8) -> Self {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe { _mm512_mul_ps(self, other) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { _mm512_add_ps(self, other) }
    }

    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }
}

impl Sixteen for [__m256; 2] {
    #[inline(always)]
    fn zero() -> Self {
        unsafe { [_mm256_setzero_ps(); 2] }
    }

    #[inline(always)]
    fn of_first(x: __m128) -> Self {
        unsafe { [_mm256_broadcastss_ps(x); 2] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), self[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), self[1]);
        }
    }

    #[inline(always)]
    fn from_i8(quants: __m128i) -> Self {
        unsafe {
            let upper = _mm_unpackhi_epi64(quants, quants);
            let lower = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(quants));
            [lower, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(upper))]
        }
    }

    #[inline(always)]
    unsafe fn from_bf16(from: *const u8) -> Self {
        unsafe {
            let lower = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let upper = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(16).cast()));
            let lower = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(lower));
            [lower, _mm256_castsi256_ps(_mm256_slli_epi32::<16>(upper))]
        }
    }

    #[inline(always)]
    unsafe fn from_f16(from: *const u8) -> Self {
        unsafe {
            let lower = _mm256_cvtph_ps(_mm_loadu_si128(from.cast()));
            [lower, _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast()))]
        }
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe { [_mm256_mul_ps(self[0], other[0]), _mm256_mul_ps(self[1], other[1])] }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { [_mm256_add_ps(self[0], other[0]), _mm256_add_ps(self[1], other[1])] }
    }

    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        unsafe {
            let lower = _mm256_fmadd_ps(a[0], b[0], self[0]);
            [lower, _mm256_fmadd_ps(a[1], b[1], self[1])]
        }
    }
}
