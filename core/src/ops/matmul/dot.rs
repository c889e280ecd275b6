//! Dot products of rows, summed in one fixed order on every processor.
//!
//! Lane `l` of sixteen sums the terms `l`, `l + 16`, `l + 32`, … in this order, each by a fused
//! multiply-add. Then the upper eight lanes are added to the lower ones, neighbours to each other,
//! twice, and the two sums that are left. Neither the tile in which an element is computed nor the
//! width of a register changes a bit of it.

use super::{Into, panels};
use crate::model::weights::StoredKind;
use crate::ops::simd::{Isa, LANES};

/// Rows of the weights in a tile.
pub(super) const STRIP: usize = 4;

/// Bytes that come into a cache together.
pub(super) const LINE: usize = 64;

/// The sixteen sums of each element of one row of a tile.
pub(super) type Lanes = [[f32; LANES]; STRIP];

/// A kernel: a strip of the weights times some rows of `x`.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// Numbers in a register.
    pub(super) width: usize,
    /// Most rows of `x` in a tile.
    pub(super) rows: usize,
    pub(super) run: unsafe fn(&Tile),
    /// For whole panels of rows of `x`; `None` where `run` is as fast.
    pub(super) panels: Option<unsafe fn(&panels::Tile)>,
}

/// The operands of a kernel.
pub(super) struct Tile<'a> {
    /// Length of all rows.
    pub(super) k: usize,
    /// Where each row of the strip begins, of f32 or as the kernel reads it. Every entry is readable.
    pub(super) weights: [*const u8; STRIP],
    /// Rows of `x`, one after the other.
    pub(super) x: *const f32,
    /// How many there are.
    pub(super) rows: usize,
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
    /// Columns of `y` to write.
    pub(super) cols: usize,
    pub(super) into: Into,
    /// What is brought near meanwhile.
    pub(super) fetch: &'a [u8],
}

impl Kernel {
    /// The best kernel of this processor.
    pub(super) fn detect() -> Self {
        let widest = match Isa::limit() {
            Isa::Best => usize::MAX,
            Isa::Avx2 => 8,
        };
        Self::all().into_iter().find(|kernel| kernel.width <= widest).unwrap_or(Self::PLAIN)
    }

    /// Every kernel that this processor can run, best first.
    pub(super) fn all() -> Vec<Self> {
        let mut kernels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 =
                is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                kernels.push(Self { width: 16, rows: 6, run: x86::avx512, panels: None });
            }
            if avx2 {
                let panels: Option<unsafe fn(&panels::Tile)> = Some(panels::avx2);
                kernels.push(Self { width: 8, rows: 3, run: x86::avx2, panels });
            }
        }
        kernels.push(Self::PLAIN);
        kernels
    }

    /// The kernel that reads weights as they are stored, for rows of `k`; `None` where there is none
    /// for so many rows of `x` or this kind.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "there is none"))]
    pub(super) fn of_stored(self, kind: StoredKind, k: usize, rows: usize) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if let Some(run) = super::stored_dot::kernel(kind, k, rows, self.width) {
            return Some(Self { rows, run, ..self });
        }
        None
    }

    /// Works everywhere; the compiler uses what vectors the target always has.
    pub(super) const PLAIN: Self = Self { width: 4, rows: 4, run: plain, panels: None };
}

/// # Safety
/// The operands hold what [`Tile`] says, and `rows` is at most the kernel's.
unsafe fn plain(tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.rows {
            1 => run::<[f32; 4], 1>(tile),
            2 => run::<[f32; 4], 2>(tile),
            3 => run::<[f32; 4], 3>(tile),
            _ => run::<[f32; 4], 4>(tile),
        }
    }
}

/// A register.
pub(super) trait Vector: Copy {
    const WIDTH: usize;

    fn zero() -> Self;

    /// # Safety
    /// `WIDTH` numbers lie at `from`.
    unsafe fn load(from: *const f32) -> Self;

    /// # Safety
    /// There is room for `WIDTH` numbers at `to`.
    unsafe fn store(self, to: *mut f32);

    /// `self + a·b`.
    fn add_product(self, a: Self, b: Self) -> Self;

    /// Each element's sixteen sums in one.
    #[inline(always)]
    fn totals(lanes: &Lanes) -> [f32; STRIP] {
        std::array::from_fn(|i| {
            let half: [f32; 8] = std::array::from_fn(|l| lanes[i][l] + lanes[i][l + 8]);
            let pairs: [f32; 4] = std::array::from_fn(|l| half[2 * l] + half[2 * l + 1]);
            (pairs[0] + pairs[1]) + (pairs[2] + pairs[3])
        })
    }
}

impl Vector for [f32; 4] {
    const WIDTH: usize = 4;

    #[inline(always)]
    fn zero() -> Self {
        [0.0; 4]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { *from.cast() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { *to.cast() = self }
    }

    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        std::array::from_fn(|l| a[l].mul_add(b[l], self[l]))
    }
}

/// A tile with `ROWS` rows of `x`.
///
/// # Safety
/// The operands hold what [`Tile`] says.
#[inline(always)]
unsafe fn run<V: Vector, const ROWS: usize>(tile: &Tile) {
    let mut lanes = [[[0f32; LANES]; STRIP]; ROWS];
    // SAFETY: the caller's promise.
    unsafe {
        // Registers narrower than the lanes go over the rows several times.
        for part in (0..LANES).step_by(V::WIDTH) {
            sum::<V, ROWS>(tile, part, &mut lanes);
        }
        let whole = tile.k / LANES * LANES;
        for p in whole..tile.k {
            for (j, lanes) in lanes.iter_mut().enumerate() {
                let x = *tile.x.add(j * tile.k + p);
                for (lanes, weights) in lanes.iter_mut().zip(tile.weights) {
                    let lane = &mut lanes[p - whole];
                    *lane = x.mul_add(*weights.cast::<f32>().add(p), *lane);
                }
            }
        }
        finish::<V, ROWS>(tile, &lanes);
    }
}

/// Writes the totals.
///
/// # Safety
/// The operands hold what [`Tile`] says.
#[inline(always)]
pub(super) unsafe fn finish<V: Vector, const ROWS: usize>(tile: &Tile, lanes: &[Lanes; ROWS]) {
    for (j, lanes) in lanes.iter().enumerate() {
        // SAFETY: the caller's promise.
        let y = unsafe { std::slice::from_raw_parts_mut(tile.y.add(j * tile.y_stride), tile.cols) };
        for (y, total) in y.iter_mut().zip(V::totals(lanes)) {
            *y = if tile.into == Into::Accumulate { *y + total } else { total };
        }
    }
}

/// The lanes from `part` on, as many as a register holds, without the last `k % 16` terms.
///
/// # Safety
/// The operands hold what [`Tile`] says.
#[inline(always)]
unsafe fn sum<V: Vector, const ROWS: usize>(tile: &Tile, part: usize, lanes: &mut [Lanes; ROWS]) {
    let mut sums = [[V::zero(); STRIP]; ROWS];
    let mut fetched = 0;
    for p in (0..tile.k / LANES * LANES).step_by(LANES) {
        if fetched < tile.fetch.len() {
            for line in 0..STRIP {
                fetch(tile.fetch.as_ptr().wrapping_add(fetched + line * LINE));
            }
            fetched += STRIP * LINE;
        }
        // SAFETY: the caller's promise; `p + part` lies at least `WIDTH` before the end.
        unsafe {
            let mut x = [V::zero(); ROWS];
            for (j, x) in x.iter_mut().enumerate() {
                *x = V::load(tile.x.add(j * tile.k + p + part));
            }
            for (i, weights) in tile.weights.iter().enumerate() {
                let weights = V::load(weights.cast::<f32>().add(p + part));
                for (sums, x) in sums.iter_mut().zip(x) {
                    sums[i] = sums[i].add_product(weights, x);
                }
            }
        }
    }
    for (lanes, sums) in lanes.iter_mut().zip(sums) {
        for (lanes, sums) in lanes.iter_mut().zip(sums) {
            // SAFETY: there are sixteen lanes, and `part` is a multiple of the width.
            unsafe { sums.store(lanes.as_mut_ptr().add(part)) };
        }
    }
}

/// Begins to bring a line of memory into the second-level cache; any address will do.
#[inline(always)]
pub(super) fn fetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that cannot fault, of an instruction that every x86-64 has.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _mm_add_ps, _mm_storeu_ps, _mm256_add_ps, _mm256_castps256_ps128,
        _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_hadd_ps, _mm256_loadu_ps, _mm256_setzero_ps,
        _mm256_storeu_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{LANES, Lanes, STRIP, Tile, Vector, run};

    /// # Safety
    /// As for `plain`.
    #[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
    pub(super) unsafe fn avx512(tile: &Tile) {
        // SAFETY: the caller's promise.
        unsafe {
            match tile.rows {
                1 => run::<__m512, 1>(tile),
                2 => run::<__m512, 2>(tile),
                3 => run::<__m512, 3>(tile),
                4 => run::<__m512, 4>(tile),
                5 => run::<__m512, 5>(tile),
                _ => run::<__m512, 6>(tile),
            }
        }
    }

    /// # Safety
    /// As for `plain`.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(tile: &Tile) {
        // SAFETY: the caller's promise.
        unsafe {
            match tile.rows {
                1 => run::<__m256, 1>(tile),
                2 => run::<__m256, 2>(tile),
                _ => run::<__m256, 3>(tile),
            }
        }
    }

    /// The upper eight lanes added to the lower ones.
    #[inline(always)]
    fn half(lanes: &[f32; LANES]) -> __m256 {
        // SAFETY: see below; sixteen lanes are two registers.
        unsafe {
            let lower = _mm256_loadu_ps(lanes.as_ptr());
            _mm256_add_ps(lower, _mm256_loadu_ps(lanes.as_ptr().add(8)))
        }
    }

    // This and the methods are compiled into the two functions above, which have the instructions.

    impl Vector for __m512 {
        const WIDTH: usize = 16;

        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: see above; likewise below.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's promise.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(to, self) }
        }

        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: see above.
            unsafe { _mm512_fmadd_ps(a, b, self) }
        }

        #[inline(always)]
        fn totals(lanes: &Lanes) -> [f32; STRIP] {
            <__m256 as Vector>::totals(lanes)
        }
    }

    impl Vector for __m256 {
        const WIDTH: usize = 8;

        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: see above.
            unsafe { _mm256_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's promise.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { _mm256_storeu_ps(to, self) }
        }

        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: see above.
            unsafe { _mm256_fmadd_ps(a, b, self) }
        }

        #[inline(always)]
        fn totals(lanes: &Lanes) -> [f32; STRIP] {
            let mut totals = [0f32; STRIP];
            // SAFETY: see above.
            unsafe {
                let pairs = [
                    _mm256_hadd_ps(half(&lanes[0]), half(&lanes[1])),
                    _mm256_hadd_ps(half(&lanes[2]), half(&lanes[3])),
                ];
                let fours = _mm256_hadd_ps(pairs[0], pairs[1]);
                let upper = _mm256_extractf128_ps::<1>(fours);
                let sums = _mm_add_ps(_mm256_castps256_ps128(fours), upper);
                _mm_storeu_ps(totals.as_mut_ptr(), sums);
            }
            totals
        }
    }
}
