//! Products for generation: `y = x·Wᵀ` with frozen weights, where the bits of a row of `y` depend
//! on that row of `x` alone, so that a completion is the same in any company.
//!
//! A strip of rows of `W` stays in the nearest cache while all of `x` goes by. Stored weights are
//! widened a strip at a time. The order of every sum is that of `dot`.

use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::dot::{Kernel, STRIP, Tile};
use super::{Into, panels};
use crate::Result;
use crate::model::weights::{StoredKind, StoredTensor};
use crate::ops::slices::Shared;

/// Weights that one task multiplies by.
const TASK: usize = 1 << 15;
/// Numbers of `x` that stay in the second-level cache.
const NEAR: usize = 1 << 17;
/// Rows of the weights that are whole strips of every kernel.
const STRIPS: usize = 12;

thread_local! {
    static STRIP_WIDENED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static PANELS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// The rows of a matrix.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// One after the other.
    Plain(&'a [f32]),
    /// As they lie in a file.
    Stored(&'a StoredTensor),
}

/// One of several products that share `x`.
pub(crate) struct Product<'a> {
    /// `(out, in)`.
    pub(crate) weights: Rows<'a>,
    pub(crate) into: Into,
    /// `(tokens, out)`.
    pub(crate) y: &'a mut [f32],
}

/// `y = x·Wᵀ` or `y += x·Wᵀ` for each of `products`, over all threads; `x` has rows of `k`.
pub(crate) fn products(x: &[f32], k: usize, products: Vec<Product>) -> Result<()> {
    static KERNEL: OnceLock<Kernel> = OnceLock::new();
    products_with(*KERNEL.get_or_init(Kernel::detect), x, k, products)
}

fn products_with(kernel: Kernel, x: &[f32], k: usize, products: Vec<Product>) -> Result<()> {
    assert!(k > 0 && x.len().is_multiple_of(k), "{} numbers in rows of {k}", x.len());
    let m = x.len() / k;
    if m == 0 {
        return Ok(());
    }
    let works: Vec<Work> = products.into_iter().map(|product| Work::new(product, m, k)).collect();
    let step = (TASK / k).max(1).next_multiple_of(STRIPS);
    let tasks = works.iter().flat_map(|work| {
        (0..work.out).step_by(step).map(move |row| (work, row..(row + step).min(work.out)))
    });
    let mut packed = PANELS.take();
    let in_panels = kernel.panels.map_or(0, |_| x.len() / (panels::ROWS * k) * panels::ROWS * k);
    if in_panels > 0 {
        panels::pack(x, k, &mut packed);
    }
    let (packed_x, rest) = (&packed[..in_panels], &x[in_panels..]);
    let strip = STRIP.max(panels::STRIP) * k;
    let tasks = tasks.collect::<Vec<_>>().into_par_iter().with_max_len(1);
    let done = tasks.try_for_each(|(work, rows)| {
        let mut widened = STRIP_WIDENED.take();
        if widened.len() < strip {
            widened.resize(strip, 0.0);
        }
        let panels = kernel
            .panels
            .map_or(Ok(()), |run| work.run_panels(run, packed_x, rows.clone(), &mut widened));
        let done = panels.and_then(|()| work.run(kernel, rest, in_panels / k, rows, &mut widened));
        STRIP_WIDENED.set(widened);
        done
    });
    PANELS.set(packed);
    done
}

/// A product that several tasks share.
struct Work<'a> {
    weights: Rows<'a>,
    out: usize,
    k: usize,
    into: Into,
    y: Shared<'a>,
}

impl<'a> Work<'a> {
    fn new(product: Product<'a>, m: usize, k: usize) -> Self {
        let Product { weights, into, y } = product;
        let out = y.len() / m;
        let shape = match weights {
            Rows::Plain(weights) => (weights.len() / k, k),
            Rows::Stored(stored) => (stored.rows(), stored.row_len()),
        };
        assert!(shape == (out, k) && y.len() == m * out, "product of ({m}, {k}) and {shape:?}");
        Self { weights, out, k, into, y: Shared::new(y) }
    }

    /// The columns `rows` of the result, in the rows of `packed`.
    fn run_panels(
        &self,
        run: unsafe fn(&panels::Tile),
        packed: &[f32],
        rows: Range<usize>,
        widened: &mut [f32],
    ) -> Result<()> {
        let Self { k, out, into, .. } = *self;
        let panels = packed.chunks_exact(panels::ROWS * k);
        let count = panels.len();
        if count == 0 {
            return Ok(());
        }
        for first in rows.clone().step_by(panels::STRIP) {
            let cols = panels::STRIP.min(rows.end - first);
            // Rows beyond the last are read from the last, and not written.
            let row = |i: usize| i.min(cols - 1);
            let of = |strip: &[f32]| std::array::from_fn(|i| strip[row(i) * k..].as_ptr());
            let weights = match self.weights {
                Rows::Plain(weights) => of(&weights[first * k..]),
                Rows::Stored(stored) if stored.kind() == StoredKind::F32 => {
                    std::array::from_fn(|i| stored.row_bytes(first + row(i)).as_ptr().cast())
                }
                Rows::Stored(stored) => {
                    let widened = &mut widened[..cols * k];
                    stored.read_rows_into(first..first + cols, widened)?;
                    of(widened)
                }
            };
            let next = self.next_strip(first, panels::STRIP);
            let place = |panel: usize| panel * next.len() / count;
            for (i, panel) in panels.clone().enumerate() {
                // SAFETY: no other task has these columns of the result.
                let y = unsafe { self.y.from(i * panels::ROWS * out + first) };
                assert!(y.len() >= (panels::ROWS - 1) * out + cols, "panel beyond the result");
                let tile = panels::Tile {
                    k,
                    weights,
                    panel: panel.as_ptr(),
                    y: y.as_mut_ptr(),
                    y_stride: out,
                    cols,
                    into,
                    fetch: &next[place(i)..place(i + 1)],
                };
                // SAFETY: the slices above are as long as the tile says.
                unsafe { run(&tile) };
            }
        }
        Ok(())
    }

    /// The columns `rows` of the result, in the rows of `x`, of which the first is row `above`.
    fn run(
        &self,
        kernel: Kernel,
        x: &[f32],
        above: usize,
        rows: Range<usize>,
        widened: &mut [f32],
    ) -> Result<()> {
        let of_stored = match self.weights {
            Rows::Plain(_) => None,
            Rows::Stored(stored) => kernel.of_stored(stored.kind(), self.k, x.len() / self.k),
        };
        let near = (NEAR / self.k).max(1).next_multiple_of(kernel.rows);
        for (part, x) in x.chunks(near * self.k).enumerate() {
            let run = |kernel, strip, first, cols| {
                self.run_strip(kernel, x, above + part * near, strip, first, cols);
            };
            for first in rows.clone().step_by(STRIP) {
                let cols = STRIP.min(rows.end - first);
                // Rows beyond the last are read from the last, and not written.
                let row = |i: usize| i.min(cols - 1);
                let of = |strip: &[f32]| {
                    std::array::from_fn(|i| strip[row(i) * self.k..].as_ptr().cast())
                };
                match (self.weights, of_stored) {
                    (Rows::Plain(weights), _) => {
                        run(kernel, of(&weights[first * self.k..]), first, cols);
                    }
                    (Rows::Stored(stored), Some(kernel)) => {
                        let strip =
                            std::array::from_fn(|i| stored.row_bytes(first + row(i)).as_ptr());
                        run(kernel, strip, first, cols);
                    }
                    (Rows::Stored(stored), None) => {
                        let widened = &mut widened[..cols * self.k];
                        stored.read_rows_into(first..first + cols, widened)?;
                        run(kernel, of(widened), first, cols);
                    }
                }
            }
        }
        Ok(())
    }

    /// As many rows after row `first` as belong to a strip of `len`, as they are held.
    fn next_strip(&self, first: usize, len: usize) -> &'a [u8] {
        let bytes = match self.weights {
            Rows::Plain(weights) => bytemuck::cast_slice(weights),
            Rows::Stored(stored) => stored.bytes(),
        };
        let of_rows = |rows: usize| (rows.min(self.out)) * (bytes.len() / self.out);
        &bytes[of_rows(first + len)..of_rows(first + 2 * len)]
    }

    /// The columns of the result from `col` on that belong to a strip of `weights`, in the rows of `x`, of which
    /// the first is row `row`; meanwhile the next strip is fetched.
    fn run_strip(
        &self,
        kernel: Kernel,
        x: &[f32],
        row: usize,
        weights: [*const u8; STRIP],
        col: usize,
        cols: usize,
    ) {
        let Self { k, out, into, .. } = *self;
        let rows = x.len() / k;
        let tiles = rows.div_ceil(kernel.rows);
        let next = self.next_strip(col, STRIP);
        let place = |tile: usize, whole: usize| tile * whole / tiles;
        for tile in 0..tiles {
            let (start, end) = (place(tile, rows), place(tile + 1, rows));
            // SAFETY: no other task has these columns of the result.
            let y = unsafe { self.y.from((row + start) * out + col) };
            assert!(y.len() >= (end - start - 1) * out + cols, "tile beyond the result");
            let tile = Tile {
                k,
                weights,
                x: x[start * k..end * k].as_ptr(),
                rows: end - start,
                y: y.as_mut_ptr(),
                y_stride: out,
                cols,
                into,
                fetch: &next[place(tile, next.len())..place(tile + 1, next.len())],
            };
            // SAFETY: the slices above are as long as the tile says.
            unsafe { (kernel.run)(&tile) };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use candle_core::quantized::GgmlDType;

    use super::*;
    use crate::model::weights::StoredKind;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i + seed) * 2_654_435_761) % 1999) as f32 / 999.0 - 1.0).collect()
    }

    fn product(kernel: Kernel, x: &[f32], k: usize, weights: Rows, out: usize) -> Vec<f32> {
        let mut y = vec![f32::NAN; x.len() / k * out];
        let one = Product { weights, into: Into::Overwrite, y: &mut y };
        products_with(kernel, x, k, vec![one]).unwrap();
        y
    }

    fn bits(y: &[f32]) -> Vec<u32> {
        y.iter().map(|y| y.to_bits()).collect()
    }

    /// The order of the sum, told plainly.
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut lanes = [0f32; 16];
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            lanes[i % 16] = a.mul_add(*b, lanes[i % 16]);
        }
        let half: Vec<f32> = (0..8).map(|l| lanes[l] + lanes[l + 8]).collect();
        let pairs: Vec<f32> = half.chunks(2).map(|pair| pair[0] + pair[1]).collect();
        (pairs[0] + pairs[1]) + (pairs[2] + pairs[3])
    }

    #[test]
    fn every_kernel_in_every_tile_gives_the_bits_of_the_plain_loop() {
        let kernels = Kernel::all();
        let mut cases = 0;
        // `k` off the lanes and blocks, `out` off the strips; the last has more rows of `x` than stay near.
        for (k, out) in [(1, 1), (15, 3), (16, 4), (33, 9), (576, 70), (1201, 13), (7000, 6)] {
            let weights = numbers(k * out, 1);
            for m in [1, 2, 3, 4, 5, 6, 7, 13, 37, 64] {
                let x = numbers(k * m, 2);
                let rows = x.chunks(k).flat_map(|x| weights.chunks(k).map(|w| dot(x, w)));
                let want: Vec<f32> = rows.collect();
                for kernel in &kernels {
                    let y = product(*kernel, &x, k, Rows::Plain(&weights), out);
                    assert_eq!(bits(&y), bits(&want), "{m} {k} {out}, {} rows", kernel.rows);
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, 70 * kernels.len());
    }

    #[test]
    fn sums_are_near_those_in_double_precision() {
        let (m, k, out) = (5, 1537, 30);
        let (x, weights) = (numbers(m * k, 3), numbers(k * out, 4));
        let y = product(Kernel::detect(), &x, k, Rows::Plain(&weights), out);
        for (i, y) in y.iter().enumerate() {
            let (x, w) = (&x[i / out * k..][..k], &weights[i % out * k..][..k]);
            let want: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            assert!((f64::from(*y) - want).abs() < 1e-4, "{y} {want}");
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_in_company_on_any_number_of_threads() {
        let (m, k, out) = (64, 300, 2001);
        let (x, weights) = (numbers(m * k, 5), numbers(k * out, 6));
        let run = |threads: usize, x: &[f32]| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| product(Kernel::detect(), x, k, Rows::Plain(&weights), out))
        };
        let together = run(1, &x);
        for threads in [2, 3, 5] {
            assert_eq!(bits(&run(threads, &x)), bits(&together), "{threads} threads");
        }
        for row in [0, 17, 63] {
            let alone = run(2, &x[row * k..][..k]);
            assert_eq!(bits(&alone), bits(&together[row * out..][..out]), "row {row}");
        }
    }

    #[test]
    fn several_products_in_one_go_are_each_as_alone_and_can_be_added() {
        let (m, k) = (3, 40);
        let x = numbers(m * k, 7);
        let weights = [numbers(k * 5, 8), numbers(k * 900, 9)];
        let alone = [(0, 5), (1, 900)]
            .map(|(i, out)| product(Kernel::PLAIN, &x, k, Rows::Plain(&weights[i]), out));
        let (mut a, mut b) = (vec![f32::NAN; m * 5], vec![1f32; m * 900]);
        let all = vec![
            Product { weights: Rows::Plain(&weights[0]), into: Into::Overwrite, y: &mut a },
            Product { weights: Rows::Plain(&weights[1]), into: Into::Accumulate, y: &mut b },
        ];
        products(&x, k, all).unwrap();
        assert_eq!(bits(&a), bits(&alone[0]));
        let added: Vec<f32> = alone[1].iter().map(|y| 1.0 + y).collect();
        assert_eq!(bits(&b), bits(&added));
    }

    #[test]
    fn stored_weights_give_the_bits_of_their_widened_copy() {
        use GgmlDType::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        let quantized = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K];
        let plain = [StoredKind::F32, StoredKind::BF16, StoredKind::F16];
        let mut cases = 0;
        for kind in plain.into_iter().chain(quantized.map(StoredKind::Ggml)) {
            let (k, out) = (768, 37);
            let pattern = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0x3b;
            let bytes = (0..kind.size_of(k * out).unwrap()).map(pattern).collect();
            let stored = StoredTensor::from_bytes("w", &[out, k], kind, bytes).unwrap();
            let widened = stored.to_vec().unwrap();
            assert!(widened.iter().all(|w| w.is_finite()), "{kind}");
            for m in [1, 3, 4, 8, 200] {
                let x = numbers(k * m, 10);
                for kernel in Kernel::all() {
                    let got = product(kernel, &x, k, Rows::Stored(&stored), out);
                    let want = product(kernel, &x, k, Rows::Plain(&widened), out);
                    assert_eq!(bits(&got), bits(&want), "{kind}, {m}");
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, 65 * Kernel::all().len());
    }
}
