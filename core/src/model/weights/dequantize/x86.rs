//! 16-bit floats, and blocks of 32 whole numbers with a scale and perhaps a minimum, widened by
//! vector instructions.

use std::arch::x86_64::{
    __m128, __m128i, __m256, _mm_add_epi8, _mm_and_si128, _mm_cvtph_ps, _mm_cvtsi32_si128,
    _mm_loadu_si128, _mm_movehdup_ps, _mm_set1_epi8, _mm_srli_epi16, _mm_unpackhi_epi64,
    _mm256_add_ps, _mm256_broadcastss_ps, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps,
    _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_mul_ps, _mm256_slli_epi32, _mm256_storeu_ps,
    _mm256_storeu_si256,
};

use candle_core::quantized::GgmlDType;

use super::{StoredKind, each, wide_bf16, wide_f16};

/// Widens what both sides have in common; `false` where the type or this processor needs another way.
pub(super) fn widen(kind: StoredKind, bytes: &[u8], out: &mut [f32]) -> bool {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")) {
        return false;
    }
    // SAFETY: the processor has the instructions.
    unsafe {
        match kind {
            StoredKind::BF16 => bf16(bytes, out),
            StoredKind::F16 => f16(bytes, out),
            StoredKind::Ggml(GgmlDType::Q4_0) => q4_0(bytes, out),
            StoredKind::Ggml(GgmlDType::Q4_1) => q4_1(bytes, out),
            StoredKind::Ggml(GgmlDType::Q8_0) => q8_0(bytes, out),
            _ => return false,
        }
    }
    true
}

#[target_feature(enable = "avx2,f16c")]
fn bf16(bytes: &[u8], out: &mut [f32]) {
    let (eights, rest) = bytes.as_chunks::<16>();
    for (eight, out) in eights.iter().zip(out.as_chunks_mut::<8>().0) {
        // SAFETY: sixteen bytes, and eight places.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(eight.as_ptr().cast()));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_slli_epi32::<16>(bits));
        }
    }
    each(rest, out.as_chunks_mut::<8>().1, wide_bf16);
}

#[target_feature(enable = "avx2,f16c")]
fn f16(bytes: &[u8], out: &mut [f32]) {
    let (eights, rest) = bytes.as_chunks::<16>();
    for (eight, out) in eights.iter().zip(out.as_chunks_mut::<8>().0) {
        // SAFETY: likewise.
        unsafe {
            let values = _mm256_cvtph_ps(_mm_loadu_si128(eight.as_ptr().cast()));
            _mm256_storeu_ps(out.as_mut_ptr(), values);
        }
    }
    each(rest, out.as_chunks_mut::<8>().1, wide_f16);
}

#[target_feature(enable = "avx2,f16c")]
fn q4_0(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        let [d0, d1, quants @ ..]: &[u8; 18] = block;
        let eight = _mm_set1_epi8(-8);
        let [lower, upper] = nibbles(quants);
        let quants = [_mm_add_epi8(lower, eight), _mm_add_epi8(upper, eight)];
        store(quants, _mm256_broadcastss_ps(halves([*d0, *d1, 0, 0])), None, out);
    }
}

#[target_feature(enable = "avx2,f16c")]
fn q4_1(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        let [d0, d1, m0, m1, quants @ ..]: &[u8; 20] = block;
        let both = halves([*d0, *d1, *m0, *m1]);
        let least = _mm256_broadcastss_ps(_mm_movehdup_ps(both));
        store(nibbles(quants), _mm256_broadcastss_ps(both), Some(least), out);
    }
}

#[target_feature(enable = "avx2,f16c")]
fn q8_0(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        let [d0, d1, quants @ ..]: &[u8; 34] = block;
        let scale = _mm256_broadcastss_ps(halves([*d0, *d1, 0, 0]));
        // SAFETY: two times sixteen of 32 bytes.
        let quants = unsafe {
            let start = quants.as_ptr().cast::<__m128i>();
            [_mm_loadu_si128(start), _mm_loadu_si128(start.add(1))]
        };
        store(quants, scale, None, out);
    }
}

/// Two 16-bit floats in the lowest places.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn halves(bytes: [u8; 4]) -> __m128 {
    _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from_le_bytes(bytes)))
}

/// The lower and the upper four bits of every byte.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn nibbles(quants: &[u8; 16]) -> [__m128i; 2] {
    let low = _mm_set1_epi8(15);
    // SAFETY: sixteen bytes.
    let quants = unsafe { _mm_loadu_si128(quants.as_ptr().cast()) };
    [_mm_and_si128(quants, low), _mm_and_si128(_mm_srli_epi16::<4>(quants), low)]
}

/// Twice sixteen whole numbers `q` as `scale·q` or `scale·q + least`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn store(quants: [__m128i; 2], scale: __m256, least: Option<__m256>, out: &mut [f32; 32]) {
    let [a, b] = quants;
    let eights = [a, _mm_unpackhi_epi64(a, a), b, _mm_unpackhi_epi64(b, b)];
    for (quants, out) in eights.into_iter().zip(out.as_chunks_mut::<8>().0) {
        let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(quants)), scale);
        let value = least.map_or(scaled, |least| _mm256_add_ps(scaled, least));
        // SAFETY: eight places.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), value) };
    }
}
