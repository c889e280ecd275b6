//! From the types that files store to f32.

use candle_core::quantized::{GgmlDType, GgmlType, k_quants};

use super::StoredKind;

#[cfg(target_arch = "x86_64")]
mod x86;

/// Widens whole blocks. `bytes` must be exactly as long as `out.len()` elements of `kind`, and
/// `out.len()` a whole number of blocks: `StoredTensor` sees to both. Where they are not, what
/// both sides have in common is read.
pub(super) fn widen(kind: StoredKind, bytes: &[u8], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if x86::widen(kind, bytes, out) {
        return;
    }
    match kind {
        StoredKind::F32 if cfg!(target_endian = "little") => {
            let out = bytemuck::cast_slice_mut::<f32, u8>(out);
            let count = out.len().min(bytes.len());
            out[..count].copy_from_slice(&bytes[..count]);
        }
        StoredKind::F32 => each(bytes, out, f32::from_le_bytes),
        StoredKind::BF16 => each(bytes, out, wide_bf16),
        StoredKind::F16 => each(bytes, out, wide_f16),
        StoredKind::Ggml(dtype) => ggml(dtype, bytes, out),
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    let (chunks, _) = bytes.as_chunks::<N>();
    for (value, chunk) in out.iter_mut().zip(chunks) {
        *value = read(*chunk);
    }
}

fn wide_bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

fn wide_f16(bytes: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bytes).to_f32()
}

fn ggml(dtype: GgmlDType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        GgmlDType::F32 => widen(StoredKind::F32, bytes, out),
        GgmlDType::F16 => widen(StoredKind::F16, bytes, out),
        GgmlDType::BF16 => widen(StoredKind::BF16, bytes, out),
        GgmlDType::Q4_0 => blocks::<k_quants::BlockQ4_0>(bytes, out),
        GgmlDType::Q4_1 => blocks::<k_quants::BlockQ4_1>(bytes, out),
        GgmlDType::Q5_0 => blocks::<k_quants::BlockQ5_0>(bytes, out),
        GgmlDType::Q5_1 => blocks::<k_quants::BlockQ5_1>(bytes, out),
        GgmlDType::Q8_0 => blocks::<k_quants::BlockQ8_0>(bytes, out),
        GgmlDType::Q8_1 => blocks::<k_quants::BlockQ8_1>(bytes, out),
        GgmlDType::Q2K => blocks::<k_quants::BlockQ2K>(bytes, out),
        GgmlDType::Q3K => blocks::<k_quants::BlockQ3K>(bytes, out),
        GgmlDType::Q4K => blocks::<k_quants::BlockQ4K>(bytes, out),
        GgmlDType::Q5K => blocks::<k_quants::BlockQ5K>(bytes, out),
        GgmlDType::Q6K => blocks::<k_quants::BlockQ6K>(bytes, out),
        GgmlDType::Q8K => blocks::<k_quants::BlockQ8K>(bytes, out),
    }
}

fn blocks<T: GgmlType>(bytes: &[u8], out: &mut [f32]) {
    let count = (bytes.len() / size_of::<T>()).min(out.len() / T::BLCK_SIZE);
    let out = &mut out[..count * T::BLCK_SIZE];
    let source = bytes.as_ptr().cast::<T>();
    if source.is_aligned() {
        // SAFETY: `source` is aligned, the `count` blocks lie within `bytes`, and candle's blocks
        // are `repr(C)` without padding, made of integers and floats: every bit pattern is valid.
        let blocks = unsafe { std::slice::from_raw_parts(source, count) };
        T::to_float(blocks, out);
        return;
    }
    // A file with an odd alignment: through a few aligned blocks on the stack.
    const STEP: usize = 8;
    let mut aligned: [T; STEP] = std::array::from_fn(|_| T::zeros());
    let sizes = (STEP * size_of::<T>(), STEP * T::BLCK_SIZE);
    for (bytes, out) in bytes.chunks(sizes.0).zip(out.chunks_mut(sizes.1)) {
        let count = (bytes.len() / size_of::<T>()).min(STEP);
        // SAFETY: `aligned` has room for STEP blocks, `count` of them lie within `bytes`, the two
        // do not overlap, and every bit pattern is a valid block, as above.
        unsafe {
            let target = aligned.as_mut_ptr().cast::<u8>();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, count * size_of::<T>());
        }
        T::to_float(&aligned[..count], &mut out[..count * T::BLCK_SIZE]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same bits, or both no number.
    fn assert_same(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "{i}: {got} {want}"
            );
        }
    }

    #[test]
    fn every_16_bit_float_is_widened_exactly() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut got = vec![0f32; 1 << 16];
        // In two parts, so that what is left of a whole register is read as well.
        for part in [0..3, 3..1 << 16] {
            widen(StoredKind::F16, &bytes[2 * part.start..2 * part.end], &mut got[part]);
        }
        let want: Vec<f32> =
            (0..=u16::MAX).map(|bits| half::f16::from_bits(bits).to_f32()).collect();
        assert_same(&got, &want);
        widen(StoredKind::BF16, &bytes, &mut got);
        let want: Vec<f32> =
            (0..=u16::MAX).map(|bits| half::bf16::from_bits(bits).to_f32()).collect();
        assert_same(&got, &want);
    }

    #[test]
    fn simple_blocks_are_widened_to_the_bits_that_candle_gives() {
        fn check<T: GgmlType>(dtype: GgmlDType) {
            const BLOCKS: usize = 3000;
            let bytes: Vec<u8> = (0..BLOCKS * size_of::<T>())
                .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
                .collect();
            let (mut got, mut want) = (vec![0f32; 32 * BLOCKS], vec![0f32; 32 * BLOCKS]);
            widen(StoredKind::Ggml(dtype), &bytes, &mut got);
            blocks::<T>(&bytes, &mut want);
            assert!(got.iter().filter(|x| x.is_finite() && **x != 0.0).count() > 16 * BLOCKS);
            assert_same(&got, &want);
        }
        check::<k_quants::BlockQ4_0>(GgmlDType::Q4_0);
        check::<k_quants::BlockQ4_1>(GgmlDType::Q4_1);
        check::<k_quants::BlockQ8_0>(GgmlDType::Q8_0);
    }
}
