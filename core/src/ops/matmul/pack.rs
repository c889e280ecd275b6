//! Panels: the operands of the kernels, in the order in which they are read.

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
        if lines < width {
            out.fill(0.0);
        }
        if lines == 0 {
            continue;
        }
        let data = &data[first * line_stride..];
        if line_stride == 1 {
            for (p, out) in out.chunks_exact_mut(width).enumerate() {
                out[..lines].copy_from_slice(&data[p * step..][..lines]);
            }
        } else if step == 1 {
            transpose(data, line_stride, lines, k, width, out);
        } else {
            for i in 0..lines {
                for p in 0..k {
                    out[p * width + i] = data[i * line_stride + p * step];
                }
            }
        }
    }
}

/// Lines of consecutive numbers, turned in squares of eight that stay in registers.
fn transpose(
    data: &[f32],
    line_stride: usize,
    lines: usize,
    k: usize,
    width: usize,
    out: &mut [f32],
) {
    const SIDE: usize = 8;
    let whole = k / SIDE * SIDE;
    for i in (0..lines).step_by(SIDE) {
        let rows = SIDE.min(lines - i);
        if rows == SIDE {
            for p in (0..whole).step_by(SIDE) {
                let mut square = [[0f32; SIDE]; SIDE];
                for (r, row) in square.iter_mut().enumerate() {
                    row.copy_from_slice(&data[(i + r) * line_stride + p..][..SIDE]);
                }
                for q in 0..SIDE {
                    let column: [f32; SIDE] = std::array::from_fn(|r| square[r][q]);
                    out[(p + q) * width + i..][..SIDE].copy_from_slice(&column);
                }
            }
        }
        let done = if rows == SIDE { whole } else { 0 };
        for r in i..i + rows {
            let line = &data[r * line_stride..][..k];
            for p in done..k {
                out[p * width + r] = line[p];
            }
        }
    }
}
