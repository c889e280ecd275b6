//! The innermost product: a tile of the result held in registers, for each kind of processor.

/// A tile kernel: `c (rows, cols)` gets `a·b` added or written, where `a` is packed as `k`
/// columns of `rows` numbers and `b` as `k` rows of `cols` numbers.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// Rows of a tile.
    pub(super) rows: usize,
    /// Columns of a tile.
    pub(super) cols: usize,
    /// `(k, a, b, c, row stride of c, add)`.
    pub(super) run: unsafe fn(usize, *const f32, *const f32, *mut f32, usize, bool),
}

/// Largest `rows · cols` of any kernel.
pub(super) const LARGEST_TILE: usize = 14 * 32;

impl Kernel {
    /// The best kernel of this processor.
    pub(super) fn detect() -> Self {
        Self::all().first().copied().unwrap_or(Self::PLAIN)
    }

    /// Every kernel that this processor can run, best first.
    pub(super) fn all() -> Vec<Self> {
        let mut kernels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                kernels.push(Self { rows: 14, cols: 32, run: avx512 });
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                kernels.push(Self { rows: 6, cols: 16, run: avx2 });
            }
        }
        kernels.push(Self::PLAIN);
        kernels
    }

    /// Works everywhere; the compiler uses what vectors the target always has.
    const PLAIN: Self = Self { rows: 4, cols: 8, run: plain };
}

/// Vectors of sixteen: 14 × 2 accumulators of the 32 registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(
    k: usize,
    mut a: *const f32,
    mut b: *const f32,
    c: *mut f32,
    stride: usize,
    add: bool,
) {
    use std::arch::x86_64::{
        _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_storeu_ps,
    };
    // SAFETY: the caller's panels hold `14·k` and `32·k` numbers, and its tile 14 rows of 32.
    unsafe {
        let mut t = [[_mm512_setzero_ps(); 2]; 14];
        for _ in 0..k {
            let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
            for (i, t) in t.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*a.add(i));
                t[0] = _mm512_fmadd_ps(a, b0, t[0]);
                t[1] = _mm512_fmadd_ps(a, b1, t[1]);
            }
            a = a.add(14);
            b = b.add(32);
        }
        for (i, t) in t.iter().enumerate() {
            for (j, &t) in t.iter().enumerate() {
                let at = c.add(i * stride + 16 * j);
                let value = if add { _mm512_add_ps(t, _mm512_loadu_ps(at)) } else { t };
                _mm512_storeu_ps(at, value);
            }
        }
    }
}

/// Vectors of eight: 6 × 2 accumulators of the 16 registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(
    k: usize,
    mut a: *const f32,
    mut b: *const f32,
    c: *mut f32,
    stride: usize,
    add: bool,
) {
    use std::arch::x86_64::{
        _mm256_add_ps, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps,
        _mm256_storeu_ps,
    };
    // SAFETY: the caller's panels hold `6·k` and `16·k` numbers, and its tile 6 rows of 16.
    unsafe {
        let mut t = [[_mm256_setzero_ps(); 2]; 6];
        for _ in 0..k {
            let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
            for (i, t) in t.iter_mut().enumerate() {
                let a = _mm256_broadcast_ss(&*a.add(i));
                t[0] = _mm256_fmadd_ps(a, b0, t[0]);
                t[1] = _mm256_fmadd_ps(a, b1, t[1]);
            }
            a = a.add(6);
            b = b.add(16);
        }
        for (i, t) in t.iter().enumerate() {
            for (j, &t) in t.iter().enumerate() {
                let at = c.add(i * stride + 8 * j);
                let value = if add { _mm256_add_ps(t, _mm256_loadu_ps(at)) } else { t };
                _mm256_storeu_ps(at, value);
            }
        }
    }
}

unsafe fn plain(k: usize, a: *const f32, b: *const f32, c: *mut f32, stride: usize, add: bool) {
    let mut t = [[0f32; 8]; 4];
    // SAFETY: the caller's panels hold `4·k` and `8·k` numbers, and its tile 4 rows of 8.
    let (a, b) =
        unsafe { (std::slice::from_raw_parts(a, 4 * k), std::slice::from_raw_parts(b, 8 * k)) };
    for (a, b) in a.chunks_exact(4).zip(b.chunks_exact(8)) {
        for (t, a) in t.iter_mut().zip(a) {
            for (t, b) in t.iter_mut().zip(b) {
                *t += a * b;
            }
        }
    }
    for (i, t) in t.iter().enumerate() {
        for (j, t) in t.iter().enumerate() {
            // SAFETY: likewise.
            let at = unsafe { &mut *c.add(i * stride + j) };
            *at = if add { *at + t } else { *t };
        }
    }
}
