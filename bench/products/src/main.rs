//! halter's matrix products beside those of other libraries, on the shapes and layouts of training
//! and into memory that is there already. Prints the median GFLOP/s of each as a Markdown table.
//!
//!     cd bench/products && cargo run --release
//!     .venv/bin/python bench/products/blas.py       # the same table of OpenBLAS and MKL
//!
//! `x (tokens, in)`, `W (out, in)`, all row-major: forward `y = x·Wᵀ`, input `dx = dy·W`, weight
//! `dW += dyᵀ·x`. The libraries take turns, product by product, so that a noisy moment of the machine
//! does not fall on one of them. Threads: `RAYON_NUM_THREADS` and `MATMUL_NUM_THREADS`.

use std::time::Instant;

use candle_core::{Device, Tensor};
use faer::linalg::matmul::matmul;
use faer::mat::{MatMut, MatRef};
use faer::{Accum, Par};
use halter_core::Result;
use halter_core::ops::Context;
use halter_core::ops::linear::{self, Into};

const TOKENS: usize = 512;
/// `in` and `out`: SmolLM2-135M's matrices and its head, and a feed-forward of TinyLlama's.
const SHAPES: [(usize, usize); 6] =
    [(576, 576), (576, 192), (576, 1536), (1536, 576), (576, 49152), (2048, 5632)];
/// Turns of each library, and what is measured in a turn.
const ROUNDS: usize = 5;
const REPETITIONS: usize = 3;
const LIBRARIES: [(&str, Library); 4] =
    [("halter", halter), ("gemm", gemm), ("matrixmultiply", matrixmultiply), ("faer", faer)];

type Library = fn(&Product, &mut [f32]) -> Result<()>;

#[derive(Clone, Copy)]
enum Kind {
    Forward,
    Input,
    Weight,
}

/// `c (m, n) = a (m, k) · b (k, n)`; added to `c` where `kind` is the weight's.
struct Product {
    kind: Kind,
    m: usize,
    n: usize,
    k: usize,
    a: Vec<f32>,
    /// Elements from one row to the next, and from one column to the next.
    a_strides: (usize, usize),
    b: Vec<f32>,
    b_strides: (usize, usize),
    /// For halter: both operands and the result as they lie in memory.
    tensors: [Tensor; 3],
    ctx: Context,
}

impl Product {
    fn new(kind: Kind, input: usize, output: usize) -> Result<Self> {
        // Rows and columns of `a`, `b` and `c` as they lie in memory.
        let (a, b, c) = match kind {
            Kind::Forward => ((TOKENS, input), (output, input), (TOKENS, output)),
            Kind::Input => ((TOKENS, output), (output, input), (TOKENS, input)),
            Kind::Weight => ((TOKENS, output), (TOKENS, input), (output, input)),
        };
        let (m, n) = c;
        let (k, a_strides, b_strides) = match kind {
            Kind::Forward => (input, (input, 1), (1, input)),
            Kind::Input => (output, (output, 1), (input, 1)),
            Kind::Weight => (TOKENS, (1, output), (input, 1)),
        };
        let numbers = |(rows, columns): (usize, usize)| -> Vec<f32> {
            (0..rows * columns).map(|i| ((i * 7919) % 1000) as f32 / 5000.0 - 0.1).collect()
        };
        let tensor = |shape| Tensor::from_vec(numbers(shape), shape, &Device::Cpu);
        let tensors = [tensor(a)?, tensor(b)?, tensor(c)?];
        let (a, b) = (numbers(a), numbers(b));
        Ok(Self {
            kind,
            m,
            n,
            k,
            a,
            a_strides,
            b,
            b_strides,
            tensors,
            ctx: Context::new(&Device::Cpu),
        })
    }

    fn adds(&self) -> bool {
        matches!(self.kind, Kind::Weight)
    }
}

fn halter(product: &Product, _: &mut [f32]) -> Result<()> {
    let Product { ctx, tensors: [a, b, c], .. } = product;
    match product.kind {
        Kind::Forward => linear::forward(ctx, a, b, Into::Overwrite, c),
        Kind::Input => linear::backward_input(ctx, a, b, Into::Overwrite, c),
        Kind::Weight => linear::backward_weight(ctx, a, b, c),
    }
}

fn gemm(product: &Product, c: &mut [f32]) -> Result<()> {
    let &Product { m, n, k, ref a, a_strides, ref b, b_strides, .. } = product;
    // SAFETY: the strides are those of the slices, whose lengths fit.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            product.adds(),
            a.as_ptr(),
            a_strides.1 as isize,
            a_strides.0 as isize,
            b.as_ptr(),
            b_strides.1 as isize,
            b_strides.0 as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(rayon::current_num_threads()),
        );
    }
    Ok(())
}

fn matrixmultiply(product: &Product, c: &mut [f32]) -> Result<()> {
    let &Product { m, n, k, ref a, a_strides, ref b, b_strides, .. } = product;
    let beta = if product.adds() { 1.0 } else { 0.0 };
    // SAFETY: as above.
    unsafe {
        matrixmultiply::sgemm(
            m,
            k,
            n,
            1.0,
            a.as_ptr(),
            a_strides.0 as isize,
            a_strides.1 as isize,
            b.as_ptr(),
            b_strides.0 as isize,
            b_strides.1 as isize,
            beta,
            c.as_mut_ptr(),
            n as isize,
            1,
        );
    }
    Ok(())
}

fn faer(product: &Product, c: &mut [f32]) -> Result<()> {
    let &Product { m, n, k, ref a, a_strides, ref b, b_strides, .. } = product;
    let mat = |data: &[f32], rows, columns, strides: (usize, usize)| unsafe {
        // SAFETY: as above.
        MatRef::from_raw_parts(data.as_ptr(), rows, columns, strides.0 as isize, strides.1 as isize)
    };
    let (a, b) = (mat(a, m, k, a_strides), mat(b, k, n, b_strides));
    let c = MatMut::from_row_major_slice_mut(c, m, n);
    let accum = if product.adds() { Accum::Add } else { Accum::Replace };
    matmul(c, accum, a, b, 1.0, Par::rayon(0));
    Ok(())
}

/// Median GFLOP/s of each library. What follows another library's turn is not counted.
fn measure(product: &Product) -> Result<Vec<f64>> {
    let operations = 2.0 * (product.m * product.n * product.k) as f64;
    let mut c = vec![0f32; product.m * product.n];
    let mut rates = vec![Vec::new(); LIBRARIES.len()];
    for _ in 0..ROUNDS {
        for ((_, run), rates) in LIBRARIES.iter().zip(&mut rates) {
            run(product, &mut c)?;
            for _ in 0..REPETITIONS {
                let start = Instant::now();
                run(product, &mut c)?;
                rates.push(operations / start.elapsed().as_nanos() as f64);
            }
        }
    }
    for rates in &mut rates {
        rates.sort_by(f64::total_cmp);
    }
    Ok(rates.iter().map(|rates| rates[rates.len() / 2]).collect())
}

fn main() -> Result<()> {
    let names: Vec<&str> = LIBRARIES.iter().map(|&(name, _)| name).collect();
    println!("| tokens, in, out | product | {} |", names.join(" | "));
    println!("|---|---|{}", "---|".repeat(names.len()));
    // As in training, where the caller is one of the worker threads.
    rayon::scope(|_| {
        for (input, output) in SHAPES {
            for (name, kind) in
                [("forward", Kind::Forward), ("input", Kind::Input), ("weight", Kind::Weight)]
            {
                let rates = measure(&Product::new(kind, input, output)?)?;
                let cells: Vec<String> = rates.iter().map(|rate| format!("{rate:.0}")).collect();
                println!("| {TOKENS}, {input}, {output} | {name} | {} |", cells.join(" | "));
            }
        }
        Ok(())
    })
}
