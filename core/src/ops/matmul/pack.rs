//! Panels: the operands of the kernels, in the order in which they are read.

use crate::ops::simd::vectorize;

/// Writes `count` lines of `k` numbers as panels of `width` lines each: `panel[p·width + i]` is
/// number `p` of line `i`. Lines beyond `count` are zero. Number `p` of line `i` lies at
/// `data[i·line_stride + p·step]`.
pub(super) fn pack(
    data: &[f32],
    line_stride: usize,
    step: usize,
    count: usize,
    k: usize,
    width: usize,
    out: &mut [f32],
) {
    for (panel, out) in out.chunks_exact_mut(width * k).enumerate() {
        let first = panel * width;
        let lines = width.min(count.saturating_sub(first));
        if lines == 0 {
            out.fill(0.0);
            continue;
        }
        let data = &data[first * line_stride..];
        if lines < width {
            slowly(data, line_stride, step, lines, k, width, out);
        } else if line_stride == 1 {
            vectorize!(match width {
                32 => copy::<32>(data, step, out),
                16 => copy::<16>(data, step, out),
                14 => copy::<14>(data, step, out),
                8 => copy::<8>(data, step, out),
                6 => copy::<6>(data, step, out),
                4 => copy::<4>(data, step, out),
                _ => slowly(data, line_stride, step, lines, k, width, out),
            });
        } else if step == 1 {
            turn(data, line_stride, k, width, out);
        } else {
            slowly(data, line_stride, step, lines, k, width, out);
        }
    }
}

/// Any layout.
fn slowly(
    data: &[f32],
    line_stride: usize,
    step: usize,
    lines: usize,
    k: usize,
    width: usize,
    out: &mut [f32],
) {
    out.fill(0.0);
    for i in 0..lines {
        for p in 0..k {
            out[p * width + i] = data[i * line_stride + p * step];
        }
    }
}

/// Lines that lie side by side: rows of `WIDTH` numbers.
#[inline(always)]
fn copy<const WIDTH: usize>(data: &[f32], step: usize, out: &mut [f32]) {
    for (p, out) in out.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
        out.copy_from_slice(&data[p * step..][..WIDTH]);
    }
}

/// Lines of consecutive numbers.
fn turn(data: &[f32], line_stride: usize, k: usize, width: usize, out: &mut [f32]) {
    assert!(data.len() >= (width - 1) * line_stride + k && out.len() >= k * width);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        let mut line = 0;
        while line < width {
            // SAFETY: the lines from `line` on lie within `data`, and their columns within `out`.
            unsafe {
                let (data, out) =
                    (data.as_ptr().add(line * line_stride), out.as_mut_ptr().add(line));
                line += match width - line {
                    8.. => turn_lines::<8>(data, line_stride, k, width, out),
                    6 | 7 => turn_lines::<6>(data, line_stride, k, width, out),
                    4 | 5 => turn_lines::<4>(data, line_stride, k, width, out),
                    _ => turn_lines::<1>(data, line_stride, k, width, out),
                };
            }
        }
        return;
    }
    slowly(data, line_stride, 1, width, k, width, out);
}

/// `LINES` lines (8, 6, 4 or 1), in squares of eight that are turned in registers.
///
/// # Safety
/// `k` numbers at each line, and `LINES` places at `out + p·width` for each `p < k`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn turn_lines<const LINES: usize>(
    data: *const f32,
    line_stride: usize,
    k: usize,
    width: usize,
    out: *mut f32,
) -> usize {
    use std::arch::x86_64::{
        __m128, _mm_castps_si128, _mm_storeu_ps, _mm_storeu_si64, _mm256_castps256_ps128,
        _mm256_extractf128_ps, _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_setzero_ps,
        _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };
    let whole = if LINES >= 4 { k / 8 * 8 } else { 0 };
    for p in (0..whole).step_by(8) {
        let mut rows = [_mm256_setzero_ps(); 8];
        for (i, row) in rows.iter_mut().enumerate().take(LINES) {
            // SAFETY: the caller's promise.
            *row = unsafe { _mm256_loadu_ps(data.add(i * line_stride + p)) };
        }
        // Pairs of rows, then fours, then halves.
        let mut pairs = rows;
        for i in 0..4 {
            pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
        }
        let mut fours = rows;
        for half in [0, 4] {
            let (a, b, c, d) = (pairs[half], pairs[half + 1], pairs[half + 2], pairs[half + 3]);
            fours[half] = _mm256_shuffle_ps::<0b01_00_01_00>(a, c);
            fours[half + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(a, c);
            fours[half + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(b, d);
            fours[half + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(b, d);
        }
        for q in 0..4 {
            let low = _mm256_permute2f128_ps::<0x20>(fours[q], fours[q + 4]);
            let high = _mm256_permute2f128_ps::<0x31>(fours[q], fours[q + 4]);
            for (column, q) in [(low, q), (high, q + 4)] {
                // SAFETY: the caller's promise.
                unsafe {
                    let at = out.add((p + q) * width);
                    let first: __m128 = _mm256_castps256_ps128(column);
                    match LINES {
                        8 => _mm256_storeu_ps(at, column),
                        6 => {
                            _mm_storeu_ps(at, first);
                            let rest = _mm_castps_si128(_mm256_extractf128_ps::<1>(column));
                            _mm_storeu_si64(at.add(4).cast(), rest);
                        }
                        _ => _mm_storeu_ps(at, first),
                    }
                }
            }
        }
    }
    for p in whole..k {
        for i in 0..LINES {
            // SAFETY: likewise.
            unsafe { *out.add(p * width + i) = *data.add(i * line_stride + p) };
        }
    }
    LINES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_of_every_width_hold_what_lies_in_the_lines() {
        let data: Vec<f32> = (0..40_000).map(|i| i as f32).collect();
        let mut cases = 0;
        for width in [4usize, 6, 8, 14, 16, 32, 5] {
            for (count, k) in [(width, 8), (2 * width, 21), (width + 1, 17), (1, 3)] {
                for (line_stride, step) in [(50, 1), (1, 90), (70, 2)] {
                    let mut out = vec![-1f32; count.next_multiple_of(width) * k];
                    pack(&data, line_stride, step, count, k, width, &mut out);
                    for (at, &got) in out.iter().enumerate() {
                        let (panel, within) = (at / (width * k), at % (width * k));
                        let (p, line) = (within / width, panel * width + within % width);
                        let want = (line * line_stride + p * step) as f32;
                        assert_eq!(got, if line < count { want } else { 0.0 });
                        cases += 1;
                    }
                }
            }
        }
        assert!(cases > 10_000);
    }
}
