//! Large products over all threads: both operands packed into panels, tiles held in registers.
//!
//! The loops are those of Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
//! (2008): a block of `b` that stays in the shared cache is packed once by all threads; each task
//! then packs a block of `a` for its own cache and runs the kernel over both. An element of the
//! result is a sum over `k` in one fixed order, so the number of threads changes no bit.

use std::cell::Cell;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::kernel::{Kernel, LARGEST_TILE};
use super::pack::pack;
use super::{Into, Mat, MatMut};
use crate::ops::slices::Shared;

/// Depth of a block: one panel of `a` and one of `b` share the first-level cache.
const DEPTH: usize = 384;
/// Rows of a block of `a`, for the second-level cache.
const ROWS: usize = 168;
/// Columns of a block of `b`, for the third-level cache.
const COLS: usize = 3072;
/// Panels of `b` that one task packs.
const PANELS: usize = 4;

thread_local! {
    static PACKED_A: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static PACKED_B: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

fn kernel() -> Kernel {
    static KERNEL: OnceLock<Kernel> = OnceLock::new();
    *KERNEL.get_or_init(Kernel::detect)
}

/// Whether a product is large enough in every direction to be worth the packing.
pub(super) fn pays(m: usize, n: usize, k: usize) -> bool {
    m >= 48 && n >= 48 && k >= 32
}

/// `c = a·b` or `c += a·b`; the shapes have been checked.
pub(super) fn product(a: Mat, b: Mat, into: Into, c: MatMut) {
    product_with(kernel(), a, b, into, c);
}

fn product_with(kernel: Kernel, a: Mat, b: Mat, into: Into, c: MatMut) {
    let (m, n, k, stride) = (c.rows, c.cols, a.cols, c.row_stride);
    let depth = even_part(k, DEPTH, 8);
    let cols = even_part(n, COLS, kernel.cols);
    // At least four blocks of rows, so that several threads have work.
    let rows = even_part(m, ROWS.min(m.div_ceil(4)), kernel.rows);
    let c = Shared::new(c.data);
    let mut packed = PACKED_B.take();
    for col in (0..n).step_by(cols) {
        let width = cols.min(n - col);
        for start in (0..k).step_by(depth) {
            let depth = depth.min(k - start);
            let panels = resized(&mut packed, width.next_multiple_of(kernel.cols) * depth);
            pack_b(b, col, start, width, depth, kernel.cols, panels);
            let panels = &*panels;
            let add = into == Into::Accumulate || start > 0;
            (0..m.div_ceil(rows)).into_par_iter().for_each(|block| {
                let row = block * rows;
                let height = rows.min(m - row);
                let mut packed = PACKED_A.take();
                let block = resized(&mut packed, height.next_multiple_of(kernel.rows) * depth);
                let lines = &a.data[row * a.row_stride + start * a.col_stride..];
                pack(lines, a.row_stride, a.col_stride, height, depth, kernel.rows, block);
                // SAFETY: the rows of this block belong to this task.
                let c = unsafe { c.from(row * stride + col) };
                let tiles = Tiles { kernel, depth, height, width, stride, add };
                tiles.run(block, panels, c);
                PACKED_A.set(packed);
            });
        }
    }
    PACKED_B.set(packed);
}

/// Columns `col..col + width` and rows `start..start + depth` of `b`, as panels.
fn pack_b(
    b: Mat,
    col: usize,
    start: usize,
    width: usize,
    depth: usize,
    panel: usize,
    out: &mut [f32],
) {
    out.par_chunks_mut(PANELS * panel * depth).enumerate().for_each(|(group, out)| {
        let skip = group * PANELS * panel;
        let lines = &b.data[(col + skip) * b.col_stride + start * b.row_stride..];
        pack(lines, b.col_stride, b.row_stride, width - skip, depth, panel, out);
    });
}

/// One block of `a` against one of `b`.
struct Tiles {
    kernel: Kernel,
    depth: usize,
    height: usize,
    width: usize,
    stride: usize,
    add: bool,
}

impl Tiles {
    fn run(&self, a: &[f32], b: &[f32], c: &mut [f32]) {
        let Self { kernel, depth, stride, add, .. } = *self;
        let mut edge = [0f32; LARGEST_TILE];
        for (col, b) in
            (0..self.width).step_by(kernel.cols).zip(b.chunks_exact(kernel.cols * depth))
        {
            let cols = kernel.cols.min(self.width - col);
            let rows = (0..self.height).step_by(kernel.rows);
            for (row, a) in rows.zip(a.chunks_exact(kernel.rows * depth)) {
                let rows = kernel.rows.min(self.height - row);
                let c = &mut c[row * stride + col..];
                if rows == kernel.rows && cols == kernel.cols {
                    assert!(c.len() >= (rows - 1) * stride + cols, "tile beyond the result");
                    // SAFETY: the panels have `depth` columns and rows; the tile was checked.
                    unsafe {
                        (kernel.run)(depth, a.as_ptr(), b.as_ptr(), c.as_mut_ptr(), stride, add);
                    }
                    continue;
                }
                // SAFETY: likewise; `edge` holds the largest tile.
                unsafe {
                    let out = edge.as_mut_ptr();
                    (kernel.run)(depth, a.as_ptr(), b.as_ptr(), out, kernel.cols, false);
                }
                for (r, edge) in edge.chunks_exact(kernel.cols).take(rows).enumerate() {
                    for (c, edge) in c[r * stride..][..cols].iter_mut().zip(edge) {
                        *c = if add { *c + edge } else { *edge };
                    }
                }
            }
        }
    }
}

/// `total` cut into the fewest parts of at most `most`, all of about the same size, a multiple of
/// `unit`.
fn even_part(total: usize, most: usize, unit: usize) -> usize {
    let parts = total.div_ceil(most.max(1)).max(1);
    total.div_ceil(parts).next_multiple_of(unit)
}

fn resized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_of_this_processor_gives_the_plain_result() {
        let numbers = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| (((i + seed) * 7919) % 13) as f32 - 6.0).collect()
        };
        let kernels = Kernel::all();
        assert!(!kernels.is_empty());
        for (m, n, k) in [(1, 1, 1), (13, 31, 5), (29, 65, 400), (200, 40, 17)] {
            let (x, y) = (numbers(m * k, 1), numbers(n * k, 2));
            // Whole numbers this small are summed exactly in any order.
            let mut want = vec![1f32; m * n];
            for i in 0..m {
                for j in 0..n {
                    want[i * n + j] += (0..k).map(|p| x[i * k + p] * y[j * k + p]).sum::<f32>();
                }
            }
            for kernel in &kernels {
                let mut c = vec![1f32; m * n];
                let (a, b) = (Mat::new(&x, m, k), Mat::new(&y, n, k).t());
                product_with(*kernel, a, b, Into::Accumulate, MatMut::new(&mut c, m, n));
                assert_eq!(c, want, "{m} {n} {k} with {} × {}", kernel.rows, kernel.cols);
            }
        }
    }
}
