//! Matrix products on slices, with any strides, into memory that is already there.
//!
//! Large ones are our own (`blocked`), and small ones whose operands lie suitably; others go to
//! the `gemm` crate.

use rayon::prelude::*;

mod blocked;
mod dot;
mod kernel;
mod pack;
mod panels;
mod rows;
#[cfg(target_arch = "x86_64")]
mod stored_dot;

pub(crate) use rows::{Product, Rows, products};

/// A matrix to read: element `(i, j)` is at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows of `cols` elements, `row_stride` apart.
    pub(crate) fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let mat = Self { data, rows, cols, row_stride, col_stride: 1 };
        assert!(mat.extent() <= data.len(), "matrix larger than its memory");
        mat
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// Rows and columns.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The rows as panels of `width`, the last one filled up with zeros: see `pack`.
    pub(crate) fn pack_rows(&self, width: usize, out: &mut [f32]) {
        pack::pack(self.data, self.row_stride, self.col_stride, self.rows, self.cols, width, out);
    }

    fn extent(&self) -> usize {
        extent(self.rows, self.cols, self.row_stride, self.col_stride)
    }
}

/// A matrix to write: rows of contiguous elements, `row_stride` apart.
pub(crate) struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// A row-major matrix.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows of `cols` elements, `row_stride` apart.
    pub(crate) fn strided(
        data: &'a mut [f32],
        rows: usize,
        cols: usize,
        row_stride: usize,
    ) -> Self {
        assert!(extent(rows, cols, row_stride, 1) <= data.len(), "matrix larger than its memory");
        assert!(row_stride >= cols, "rows overlap");
        Self { data, rows, cols, row_stride }
    }
}

fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

/// What becomes of the destination's old content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Into {
    /// Written over.
    Overwrite,
    /// Added to.
    Accumulate,
}

/// `c = a·b` or `c += a·b`, on the calling thread.
pub(crate) fn serial(a: Mat, b: Mat, into: Into, c: MatMut) {
    check(&a, &b, &c);
    if blocked::goes_directly(&c, &b) {
        return blocked::direct(a, b, into, c);
    }
    let rows = 0..c.rows;
    let cols = 0..c.cols;
    let stride = c.row_stride;
    // SAFETY: the constructors checked that all three lie within their memory; `c` is borrowed
    // mutably.
    unsafe { tile(a, b, into, c.data.as_mut_ptr(), stride, rows, cols) }
}

/// `c = a·b` or `c += a·b`, over all threads. The tiling depends on the shapes alone, so the bits
/// of the result do not depend on the number of threads.
pub(crate) fn parallel(a: Mat, b: Mat, into: Into, c: MatMut) {
    check(&a, &b, &c);
    if blocked::pays(c.rows, c.cols, a.cols) {
        return blocked::product(a, b, into, c);
    }
    let (tile_rows, tile_cols) = tile_size(c.rows, c.cols, a.cols);
    let tiles_across = c.cols.div_ceil(tile_cols);
    let tiles = c.rows.div_ceil(tile_rows) * tiles_across;
    let stride = c.row_stride;
    let (m, n) = (c.rows, c.cols);
    if tiles <= 1 {
        return serial(a, b, into, c);
    }
    let base = Shared(c.data.as_mut_ptr());
    (0..tiles).into_par_iter().for_each(|index| {
        let row = index / tiles_across * tile_rows;
        let col = index % tiles_across * tile_cols;
        let base = &base;
        // SAFETY: as in `serial`; tiles do not overlap.
        unsafe {
            tile(
                a,
                b,
                into,
                base.0,
                stride,
                row..(row + tile_rows).min(m),
                col..(col + tile_cols).min(n),
            );
        }
    });
}

struct Shared(*mut f32);
// SAFETY: used only for writes to disjoint tiles.
unsafe impl Sync for Shared {}

/// Halves the longer side until there is work for several cores, but not below what a core does
/// efficiently.
fn tile_size(m: usize, n: usize, k: usize) -> (usize, usize) {
    const ENOUGH_TILES: usize = 16;
    const SMALLEST_WORK: usize = 1 << 22;
    let (mut rows, mut cols) = (m.max(1), n.max(1));
    while m.div_ceil(rows) * n.div_ceil(cols) < ENOUGH_TILES && rows * cols * k > SMALLEST_WORK {
        if rows >= cols {
            rows = rows.div_ceil(2).next_multiple_of(32);
        } else {
            cols = cols.div_ceil(2).next_multiple_of(32);
        }
    }
    (rows, cols)
}

fn check(a: &Mat, b: &Mat, c: &MatMut) {
    assert!(
        a.cols == b.rows && a.rows == c.rows && b.cols == c.cols,
        "product of ({}, {}) and ({}, {}) into ({}, {})",
        a.rows,
        a.cols,
        b.rows,
        b.cols,
        c.rows,
        c.cols
    );
}

/// # Safety
/// `rows` and `cols` lie within `a`, `b` and the memory at `c`, and nobody else touches that tile.
unsafe fn tile(
    a: Mat,
    b: Mat,
    into: Into,
    c: *mut f32,
    c_stride: usize,
    rows: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
) {
    if rows.is_empty() || cols.is_empty() {
        return;
    }
    // SAFETY: the caller's promise; offsets stay inside the extents checked at construction.
    unsafe {
        gemm::gemm(
            rows.len(),
            cols.len(),
            a.cols,
            c.add(rows.start * c_stride + cols.start),
            1,
            c_stride as isize,
            into == Into::Accumulate,
            a.data.as_ptr().add(if a.cols == 0 { 0 } else { rows.start * a.row_stride }),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr().add(if a.cols == 0 { 0 } else { cols.start * b.col_stride }),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i + seed) * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0).collect()
    }

    fn naive(a: Mat, b: Mat) -> Vec<f32> {
        let at = |m: &Mat, i: usize, j: usize| m.data[i * m.row_stride + j * m.col_stride];
        let mut c = vec![0f64; a.rows * b.cols];
        for i in 0..a.rows {
            for j in 0..b.cols {
                for k in 0..a.cols {
                    c[i * b.cols + j] += f64::from(at(&a, i, k)) * f64::from(at(&b, k, j));
                }
            }
        }
        c.into_iter().map(|x| x as f32).collect()
    }

    #[test]
    fn products_of_every_layout_equal_the_plain_loop() {
        let mut cases = 0;
        for (m, n, k) in [
            (1, 1, 1),
            (3, 5, 7),
            (64, 200, 33),
            (300, 70, 130),
            (1, 600, 40),
            (49, 48, 33),
            (90, 3100, 800),
        ] {
            for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
                let (x, y) = (numbers(m * k, 1), numbers(k * n, 2));
                let a = if ta { Mat::new(&x, k, m).t() } else { Mat::new(&x, m, k) };
                let b = if tb { Mat::new(&y, n, k).t() } else { Mat::new(&y, k, n) };
                let want = naive(a, b);
                let mut c = vec![1f32; m * n];
                parallel(a, b, Into::Overwrite, MatMut::new(&mut c, m, n));
                let mut twice = c.clone();
                parallel(a, b, Into::Accumulate, MatMut::new(&mut twice, m, n));
                for ((c, twice), want) in c.iter().zip(&twice).zip(&want) {
                    assert!((c - want).abs() < 5e-4, "{m} {n} {k} {c} {want}");
                    assert!((twice - 2.0 * want).abs() < 1e-3);
                }
                cases += 1;
            }
        }
        assert_eq!(cases, 28);
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        let (m, n, k) = (700, 900, 300);
        let (x, y) = (numbers(m * k, 1), numbers(k * n, 2));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut c = vec![0f32; m * n];
            pool.install(|| {
                parallel(Mat::new(&x, m, k), Mat::new(&y, k, n), Into::Overwrite, {
                    MatMut::new(&mut c, m, n)
                });
            });
            c
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(1), run(3));
    }
}
