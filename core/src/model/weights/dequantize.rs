//! From the types that files store to f32.

use candle_core::quantized::{GgmlDType, GgmlType, k_quants};
use half::slice::HalfFloatSliceExt;

use super::StoredKind;

/// Widens whole blocks. `bytes` must be exactly as long as `out.len()` elements of `kind`, and
/// `out.len()` a whole number of blocks: `StoredTensor` sees to both. Where they are not, what
/// both sides have in common is read.
pub(super) fn widen(kind: StoredKind, bytes: &[u8], out: &mut [f32]) {
    match kind {
        StoredKind::F32 if cfg!(target_endian = "little") => {
            let out = bytemuck::cast_slice_mut::<f32, u8>(out);
            let count = out.len().min(bytes.len());
            out[..count].copy_from_slice(&bytes[..count]);
        }
        StoredKind::F32 => each(bytes, out, f32::from_le_bytes),
        StoredKind::BF16 => {
            each(bytes, out, |b: [u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16));
        }
        StoredKind::F16 => match bytemuck::try_cast_slice::<u8, half::f16>(bytes) {
            // Uses the processor's conversion where there is one.
            Ok(halves) if halves.len() == out.len() => halves.convert_to_f32_slice(out),
            _ => each(bytes, out, |b: [u8; 2]| half::f16::from_le_bytes(b).to_f32()),
        },
        StoredKind::Ggml(dtype) => ggml(dtype, bytes, out),
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    let (chunks, _) = bytes.as_chunks::<N>();
    for (value, chunk) in out.iter_mut().zip(chunks) {
        *value = read(*chunk);
    }
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
