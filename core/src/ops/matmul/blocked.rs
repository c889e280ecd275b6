//! Large products over all threads: both operands packed into panels, tiles held in registers.
//!
//! The loops are those of Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
//! (2008): a block of `b` that stays in the shared cache is packed once by all threads; each task
//! then packs a block of `a` for its own cache and runs the kernel over both. An element of the
//! result is a sum over `k` in one fixed order, so the number of threads changes no bit.

use std::cell::Cell;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::kernel::{Kernel, LARGEST_TILE, MOST_ROWS, Tile};
use super::pack::pack;
use super::{Into, Mat, MatMut};
use crate::ops::slices::Shared;

/// Depth of a block: a panel of `a` fits the first-level cache, several panels of both the second.
const DEPTH: usize = 576;
/// Most rows of a block of `a`, for the second-level cache.
const ROWS: usize = 168;
/// Blocks of rows that there should be, so that threads end together.
const BLOCKS: usize = 12;
/// Columns of `b` that are packed at once, and numbers: they stay in the third-level cache.
const COLS: usize = 3072;
const PACKED: usize = 1 << 20;
/// Rows of `b` a multiple of this apart would fall on each other in the first-level cache.
const ALIASED: usize = 512;
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
    let cols = even_part(n, COLS, kernel.cols);
    let depth = even_part(k, DEPTH, 8);
    let reach = (PACKED / cols / depth).max(1) * depth;
    let panels = m.div_ceil(kernel.rows);
    let blocks = m.div_ceil(ROWS).max(BLOCKS).min(panels);
    let first_row = |block: usize| (block * panels / blocks * kernel.rows).min(m);
    let is_flat = b.col_stride == 1
        && n <= kernel.flat_cols
        && n.is_multiple_of(kernel.cols)
        && !b.row_stride.is_multiple_of(ALIASED);
    let c = Shared::new(c.data);
    let mut packed_b = PACKED_B.take();
    for col in (0..n).step_by(cols) {
        let width = cols.min(n - col);
        for start in (0..k).step_by(reach) {
            let whole = Part { kernel, col, width, start, depth: reach.min(k - start) };
            let packed_b: &[f32] = if is_flat { &[] } else { whole.pack(b, depth, &mut packed_b) };
            (0..blocks).into_par_iter().with_max_len(1).for_each(|block| {
                let (row, end) = (first_row(block), first_row(block + 1));
                let mut packed_a = PACKED_A.take();
                // SAFETY: the rows of this block belong to this task.
                let c = unsafe { c.from(row * stride + col) };
                for part in whole.parts(depth) {
                    let add = into == Into::Accumulate || part.start > 0;
                    let a = part.pack_rows(a, row, end - row, &mut packed_a);
                    let panels = match is_flat {
                        true => Panels {
                            data: &b.data[part.start * b.row_stride + col..],
                            step: kernel.cols,
                            stride: b.row_stride,
                        },
                        false => Panels {
                            data: &packed_b[part.offset(start)..],
                            step: kernel.cols * part.depth,
                            stride: kernel.cols,
                        },
                    };
                    Tiles { part, height: end - row, stride, add }.run(a, panels, c);
                }
                PACKED_A.set(packed_a);
            });
        }
    }
    PACKED_B.set(packed_b);
}

/// Columns `col..col + width` and rows `start..start + depth` of `b`.
#[derive(Clone, Copy)]
struct Part {
    kernel: Kernel,
    col: usize,
    width: usize,
    start: usize,
    depth: usize,
}

impl Part {
    fn padded_width(&self) -> usize {
        self.width.next_multiple_of(self.kernel.cols)
    }

    /// Cut into parts of `depth` rows.
    fn parts(self, depth: usize) -> impl Iterator<Item = Self> {
        let end = self.start + self.depth;
        (self.start..end).step_by(depth).map(move |start| Self {
            start,
            depth: depth.min(end - start),
            ..self
        })
    }

    /// Where this part begins among those packed from row `first` on.
    fn offset(&self, first: usize) -> usize {
        (self.start - first) * self.padded_width()
    }

    /// Its parts of `depth` rows one after the other, each as panels; over all threads.
    fn pack<'a>(&self, b: Mat, depth: usize, buffer: &'a mut Vec<f32>) -> &'a [f32] {
        let panel = self.kernel.cols;
        let out = resized(buffer, self.padded_width() * self.depth);
        out.par_chunks_mut(self.padded_width() * depth)
            .zip(self.parts(depth).collect::<Vec<_>>())
            .for_each(|(out, part)| {
                let size = PANELS * panel * part.depth;
                out.par_chunks_mut(size).with_max_len(1).enumerate().for_each(|(group, out)| {
                    let skip = group * PANELS * panel;
                    let lines =
                        &b.data[(part.col + skip) * b.col_stride + part.start * b.row_stride..];
                    let count = part.width - skip;
                    pack(lines, b.col_stride, b.row_stride, count, part.depth, panel, out);
                });
            });
        out
    }

    /// The columns of `a` that meet this part, for the rows from `row` on, as panels.
    fn pack_rows<'a>(
        &self,
        a: Mat,
        row: usize,
        height: usize,
        buffer: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        let out = resized(buffer, height.next_multiple_of(self.kernel.rows) * self.depth);
        let lines = &a.data[row * a.row_stride + self.start * a.col_stride..];
        pack(lines, a.row_stride, a.col_stride, height, self.depth, self.kernel.rows, out);
        out
    }
}

/// The columns of a part of `b`, by as many as the kernel takes.
struct Panels<'a> {
    data: &'a [f32],
    /// From one panel to the next.
    step: usize,
    /// From one row of a panel to the next.
    stride: usize,
}

/// A block of rows of `a` against a part of `b`.
struct Tiles {
    part: Part,
    height: usize,
    stride: usize,
    add: bool,
}

impl Tiles {
    fn run(&self, a: &[f32], panels: Panels, c: &mut [f32]) {
        let Self { part: Part { kernel, width, depth, .. }, height, stride, add } = *self;
        let mut edge = [0f32; LARGEST_TILE];
        for (panel, col) in (0..width).step_by(kernel.cols).enumerate() {
            let b = &panels.data[panel * panels.step..];
            assert!(b.len() >= (depth - 1) * panels.stride + kernel.cols, "panel beyond `b`");
            let cols = kernel.cols.min(width - col);
            let rows = (0..height).step_by(kernel.rows);
            for (row, a) in rows.zip(a.chunks_exact(kernel.rows * depth)) {
                let rows = kernel.rows.min(height - row);
                let c = &mut c[row * stride + col..];
                let mut tile = Tile {
                    k: depth,
                    a: [a.as_ptr(); MOST_ROWS],
                    a_step: 0,
                    b: b.as_ptr(),
                    b_stride: panels.stride,
                    c: c.as_mut_ptr(),
                    c_stride: stride,
                    rows,
                    add,
                };
                if cols == kernel.cols {
                    assert!(c.len() >= (rows - 1) * stride + cols, "tile beyond the result");
                    // SAFETY: the panels have `depth` columns and rows; they and the tile were checked.
                    unsafe { (kernel.packed)(&tile) };
                    continue;
                }
                (tile.c, tile.c_stride, tile.add) = (edge.as_mut_ptr(), kernel.cols, false);
                // SAFETY: likewise; `edge` holds the largest tile.
                unsafe { (kernel.packed)(&tile) };
                for (r, edge) in edge.chunks_exact(kernel.cols).take(rows).enumerate() {
                    for (c, edge) in c[r * stride..][..cols].iter_mut().zip(edge) {
                        *c = if add { *c + edge } else { *edge };
                    }
                }
            }
        }
    }
}

/// Whether [`direct`] can compute such a product.
pub(super) fn goes_directly(c: &MatMut, b: &Mat) -> bool {
    let kernel = kernel();
    c.rows >= kernel.rows && c.cols.is_multiple_of(kernel.cols) && b.col_stride == 1 && b.rows > 0
}

/// A product of operands that lie in a near cache, on the calling thread, without packing.
pub(super) fn direct(a: Mat, b: Mat, into: Into, c: MatMut) {
    direct_with(kernel(), a, b, into, c);
}

fn direct_with(kernel: Kernel, a: Mat, b: Mat, into: Into, c: MatMut) {
    assert!(c.cols.is_multiple_of(kernel.cols) && b.col_stride == 1 && b.rows > 0);
    for col in (0..c.cols).step_by(kernel.cols) {
        for row in (0..c.rows).step_by(kernel.rows) {
            let rows = kernel.rows.min(c.rows - row);
            // Rows beyond the last are read from the last, and not written.
            let row_of_a = |i: usize| a.data[(row + i.min(rows - 1)) * a.row_stride..].as_ptr();
            let tile = Tile {
                k: a.cols,
                a: std::array::from_fn(row_of_a),
                a_step: a.col_stride,
                b: b.data[col..].as_ptr(),
                b_stride: b.row_stride,
                c: c.data[row * c.row_stride + col..].as_mut_ptr(),
                c_stride: c.row_stride,
                rows,
                add: into == Into::Accumulate,
            };
            // SAFETY: the matrices lie within their memory, as their constructors checked.
            unsafe { (kernel.direct)(&tile) };
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

    #[test]
    fn every_kernel_reads_operands_as_they_lie() {
        let numbers = |n: usize| -> Vec<f32> { (0..n).map(|i| (i * 7919 % 13) as f32).collect() };
        let mut cases = 0;
        for (m, n, k) in [(1, 32, 1), (14, 64, 5), (33, 32, 70)] {
            // Rows further apart than they are long, and `a` once as its transpose.
            let (x, y) = (numbers(m * k + 9 * m), numbers(k * (n + 3)));
            let b = Mat::strided(&y, k, n, n + 3);
            for a in [Mat::strided(&x, m, k, k + 9), Mat::strided(&x, k, m, m).t()] {
                let mut want = vec![1f32; m * n];
                for i in 0..m {
                    for j in 0..n {
                        let product = |p: usize| {
                            a.data[i * a.row_stride + p * a.col_stride] * y[p * (n + 3) + j]
                        };
                        want[i * n + j] += (0..k).map(product).sum::<f32>();
                    }
                }
                for kernel in Kernel::all() {
                    let mut c = vec![1f32; m * n];
                    direct_with(kernel, a, b, Into::Accumulate, MatMut::new(&mut c, m, n));
                    assert_eq!(c, want, "{m} {n} {k} with {} × {}", kernel.rows, kernel.cols);
                    cases += 1;
                }
            }
        }
        assert!(cases >= 6);
    }
}
