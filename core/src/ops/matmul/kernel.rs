//! The innermost product: a tile of the result held in registers, for each kind of processor.

use crate::ops::simd::Isa;

/// Most rows of any kernel's tile.
pub(super) const MOST_ROWS: usize = 14;
/// Largest `rows · cols` of any kernel.
pub(super) const LARGEST_TILE: usize = MOST_ROWS * 32;

/// A kernel: `c (rows, cols)` gets `a·b` added or written.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// Rows of a tile.
    pub(super) rows: usize,
    /// Columns of a tile.
    pub(super) cols: usize,
    /// Most columns of a `b` that it reads as it lies. What is one line of the cache of each row has no
    /// neighbour that comes with it.
    pub(super) flat_cols: usize,
    /// For `a` in a panel: `k` columns of `rows` numbers.
    pub(super) packed: unsafe fn(&Tile),
    /// For `a` as it lies.
    pub(super) direct: unsafe fn(&Tile),
}

/// The operands of a kernel.
pub(super) struct Tile {
    pub(super) k: usize,
    /// Where each row of `a` begins; the first one alone for panels. Every entry is readable.
    pub(super) a: [*const f32; MOST_ROWS],
    /// From one number of a row of `a` to the next.
    pub(super) a_step: usize,
    pub(super) b: *const f32,
    /// From one row of `b` to the next: the kernel's columns where it is in a panel.
    pub(super) b_stride: usize,
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
    /// Rows of `c` to write.
    pub(super) rows: usize,
    pub(super) add: bool,
}

#[cfg(target_arch = "x86_64")]
impl Tile {
    /// Begins to bring the rows of the result near; they are written at the end.
    ///
    /// # Safety
    /// The rows lie where the tile says.
    #[inline(always)]
    unsafe fn fetch_result<const COLS: usize>(&self) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for i in 0..self.rows {
            // SAFETY: the caller's promise.
            unsafe {
                let row = self.c.add(i * self.c_stride);
                _mm_prefetch::<_MM_HINT_T0>(row.cast());
                _mm_prefetch::<_MM_HINT_T0>(row.add(COLS - 1).cast());
            }
        }
    }
}

impl Kernel {
    /// The best kernel of this processor.
    pub(super) fn detect() -> Self {
        let widest = match Isa::limit() {
            Isa::Best => usize::MAX,
            Isa::Avx2 => 16,
        };
        Self::all().into_iter().find(|kernel| kernel.cols <= widest).unwrap_or(Self::PLAIN)
    }

    /// Every kernel that this processor can run, best first.
    pub(super) fn all() -> Vec<Self> {
        let mut kernels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                let (packed, direct) = (avx512::<true>, avx512::<false>);
                kernels.push(Self { rows: 14, cols: 32, flat_cols: 1024, packed, direct });
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                let (packed, direct) = (avx2::<true>, avx2::<false>);
                kernels.push(Self { rows: 6, cols: 16, flat_cols: 0, packed, direct });
            }
        }
        kernels.push(Self::PLAIN);
        kernels
    }

    /// Works everywhere; the compiler uses what vectors the target always has.
    const PLAIN: Self =
        Self { rows: 4, cols: 8, flat_cols: 0, packed: plain::<true>, direct: plain::<false> };
}

/// Vectors of sixteen: 14 × 2 accumulators of the 32 registers.
///
/// # Safety
/// The operands hold what [`Tile`] says, for `k` and this kernel's rows and columns.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const PACKED: bool>(tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.rows {
            13.. => avx512_rows::<PACKED, 14>(tile),
            9..13 => avx512_rows::<PACKED, 12>(tile),
            5..9 => avx512_rows::<PACKED, 8>(tile),
            _ => avx512_rows::<PACKED, 4>(tile),
        }
    }
}

/// The first `ROWS` rows of a tile, which are at least those to write.
///
/// # Safety
/// As for `avx512`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512_rows<const PACKED: bool, const ROWS: usize>(tile: &Tile) {
    use std::arch::x86_64::{
        _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_storeu_ps,
    };
    // SAFETY: the caller's promise.
    unsafe {
        tile.fetch_result::<32>();
        let mut t = [[_mm512_setzero_ps(); 2]; ROWS];
        let (mut offset, mut b) = (0, tile.b);
        for _ in 0..tile.k {
            let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
            for (i, t) in t.iter_mut().enumerate() {
                let a = if PACKED { tile.a[0].add(offset + i) } else { tile.a[i].add(offset) };
                let a = _mm512_set1_ps(*a);
                t[0] = _mm512_fmadd_ps(a, b0, t[0]);
                t[1] = _mm512_fmadd_ps(a, b1, t[1]);
            }
            offset += if PACKED { MOST_ROWS } else { tile.a_step };
            b = b.add(tile.b_stride);
        }
        for (i, t) in t.iter().enumerate().take(tile.rows) {
            for (j, &t) in t.iter().enumerate() {
                let at = tile.c.add(i * tile.c_stride + 16 * j);
                let value = if tile.add { _mm512_add_ps(t, _mm512_loadu_ps(at)) } else { t };
                _mm512_storeu_ps(at, value);
            }
        }
    }
}

/// Vectors of eight: 6 × 2 accumulators of the 16 registers.
///
/// # Safety
/// As for `avx512`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const PACKED: bool>(tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.rows {
            5.. => avx2_rows::<PACKED, 6>(tile),
            3..5 => avx2_rows::<PACKED, 4>(tile),
            _ => avx2_rows::<PACKED, 2>(tile),
        }
    }
}

/// The first `ROWS` rows of a tile, which are at least those to write.
///
/// # Safety
/// As for `avx512`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_rows<const PACKED: bool, const ROWS: usize>(tile: &Tile) {
    use std::arch::x86_64::{
        _mm256_add_ps, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps,
        _mm256_storeu_ps,
    };
    const PANEL: usize = 6;
    // SAFETY: the caller's promise.
    unsafe {
        tile.fetch_result::<16>();
        let mut t = [[_mm256_setzero_ps(); 2]; ROWS];
        let (mut offset, mut b) = (0, tile.b);
        for _ in 0..tile.k {
            let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
            for (i, t) in t.iter_mut().enumerate() {
                let a = if PACKED { tile.a[0].add(offset + i) } else { tile.a[i].add(offset) };
                let a = _mm256_broadcast_ss(&*a);
                t[0] = _mm256_fmadd_ps(a, b0, t[0]);
                t[1] = _mm256_fmadd_ps(a, b1, t[1]);
            }
            offset += if PACKED { PANEL } else { tile.a_step };
            b = b.add(tile.b_stride);
        }
        for (i, t) in t.iter().enumerate().take(tile.rows) {
            for (j, &t) in t.iter().enumerate() {
                let at = tile.c.add(i * tile.c_stride + 8 * j);
                let value = if tile.add { _mm256_add_ps(t, _mm256_loadu_ps(at)) } else { t };
                _mm256_storeu_ps(at, value);
            }
        }
    }
}

/// # Safety
/// As for `avx512`.
unsafe fn plain<const PACKED: bool>(tile: &Tile) {
    const ROWS: usize = 4;
    const COLS: usize = 8;
    let mut t = [[0f32; COLS]; ROWS];
    for p in 0..tile.k {
        // SAFETY: the caller's promise.
        let b = unsafe { &*tile.b.add(p * tile.b_stride).cast::<[f32; COLS]>() };
        for (i, t) in t.iter_mut().enumerate() {
            // SAFETY: likewise.
            let a = unsafe {
                if PACKED { *tile.a[0].add(p * ROWS + i) } else { *tile.a[i].add(p * tile.a_step) }
            };
            for (t, b) in t.iter_mut().zip(b) {
                *t += a * b;
            }
        }
    }
    for (i, t) in t.iter().enumerate().take(tile.rows) {
        for (j, t) in t.iter().enumerate() {
            // SAFETY: likewise.
            let at = unsafe { &mut *tile.c.add(i * tile.c_stride + j) };
            *at = if tile.add { *at + t } else { *t };
        }
    }
}
