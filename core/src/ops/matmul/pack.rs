//! Panels: the operands of the kernels, in the order in which they are read.

use crate::ops::simd::vectorize;

/// Side of the squares that are turned in registers.
const SIDE: usize = 8;

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
        match (lines, width, step) {
            _ if lines < width => slowly(data, line_stride, step, lines, k, width, out),
            _ if line_stride == 1 => vectorize!(match width {
                32 => copy::<32>(data, step, out),
                16 => copy::<16>(data, step, out),
                14 => copy::<14>(data, step, out),
                8 => copy::<8>(data, step, out),
                6 => copy::<6>(data, step, out),
                _ => slowly(data, line_stride, step, lines, k, width, out),
            }),
            (_, _, 1) => vectorize!(turn(data, line_stride, k, width, out)),
            _ => slowly(data, line_stride, step, lines, k, width, out),
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
#[inline(always)]
fn turn(data: &[f32], line_stride: usize, k: usize, width: usize, out: &mut [f32]) {
    let whole = k / SIDE * SIDE;
    let mut line = 0;
    while line < width {
        let data = &data[line * line_stride..];
        for p in (0..whole).step_by(SIDE) {
            let (data, out) = (&data[p..], &mut out[p * width + line..]);
            match width - line {
                SIDE.. => square::<SIDE>(data, line_stride, width, out),
                6 | 7 => square::<6>(data, line_stride, width, out),
                4 | 5 => square::<4>(data, line_stride, width, out),
                _ => square::<1>(data, line_stride, width, out),
            }
        }
        let lines = match width - line {
            SIDE.. => SIDE,
            6 | 7 => 6,
            4 | 5 => 4,
            _ => 1,
        };
        for p in whole..k {
            for i in 0..lines {
                out[p * width + line + i] = data[i * line_stride + p];
            }
        }
        line += lines;
    }
}

/// `LINES` lines of eight numbers, turned.
#[inline(always)]
fn square<const LINES: usize>(data: &[f32], line_stride: usize, width: usize, out: &mut [f32]) {
    let mut rows = [[0f32; SIDE]; LINES];
    for (i, row) in rows.iter_mut().enumerate() {
        row.copy_from_slice(&data[i * line_stride..][..SIDE]);
    }
    for q in 0..SIDE {
        let mut column = [0f32; LINES];
        for (number, row) in column.iter_mut().zip(&rows) {
            *number = row[q];
        }
        out[q * width..][..LINES].copy_from_slice(&column);
    }
}
