//! Dot products of many rows, to the bit those of `dot`, for registers of eight numbers: sixteen rows of
//! `x` lie side by side, so that the sum of a lane is a number in a register for each of them. No sum
//! has to be gathered from the lanes of a register, and weights are read as they lie.

use std::ops::Range;

use rayon::prelude::*;

use super::Into;
use crate::ops::simd::LANES;

/// Rows of `x` in a panel.
pub(super) const ROWS: usize = 16;

/// Rows of the weights in a tile.
pub(super) const STRIP: usize = 6;

/// Most terms of each sum that are added up in one go: so much of a strip stays in the nearest cache.
const BLOCK: usize = 576;

/// The operands of a kernel: a strip of the weights times a panel.
pub(super) struct Tile<'a> {
    /// Length of all rows.
    pub(super) k: usize,
    /// Where each row of the strip begins. Every entry is readable.
    pub(super) weights: [*const f32; STRIP],
    /// As [`pack`] made it.
    pub(super) panel: *const f32,
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
    /// Columns of `y` to write.
    pub(super) cols: usize,
    pub(super) into: Into,
    /// What is brought near meanwhile.
    pub(super) fetch: &'a [u8],
}

/// The terms `0..k` in blocks that begin with the first lane.
fn blocks(k: usize) -> impl Iterator<Item = Range<usize>> {
    let len = k.div_ceil(k.div_ceil(BLOCK)).next_multiple_of(LANES);
    (0..k).step_by(len).map(move |start| start..k.min(start + len))
}

/// Panels of the first rows of `x`, as many as fill panels; a panel has its blocks one after the other,
/// of each the terms lane by lane, and of each term the numbers of all rows.
pub(super) fn pack(x: &[f32], k: usize, panels: &mut Vec<f32>) {
    let whole = x.len() / (ROWS * k) * ROWS * k;
    if panels.len() < whole {
        panels.resize(whole, 0.0);
    }
    let panels = panels.par_chunks_exact_mut(ROWS * k).zip(x.par_chunks_exact(ROWS * k));
    panels.for_each(|(panel, x)| {
        let mut terms = panel.as_chunks_mut::<ROWS>().0.iter_mut();
        for block in blocks(k) {
            for lane in 0..LANES {
                for p in (block.start + lane..block.end).step_by(LANES) {
                    let Some(term) = terms.next() else { return };
                    for (row, number) in term.iter_mut().enumerate() {
                        *number = x[row * k + p];
                    }
                }
            }
        }
    });
}

/// # Safety
/// The operands hold what [`Tile`] says.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn avx2(tile: &Tile) {
    use std::arch::x86_64::{
        _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps,
        _mm256_storeu_ps,
    };

    use super::dot::{LINE, fetch};

    let zero = _mm256_setzero_ps();
    let mut lanes = [[[zero; 2]; STRIP]; LANES];
    let (mut panel, mut fetched) = (tile.panel, 0);
    let lines = tile.fetch.len().div_ceil(LINE).div_ceil(LANES * blocks(tile.k).count());
    for block in blocks(tile.k) {
        for (lane, kept) in lanes.iter_mut().enumerate() {
            for _ in 0..lines {
                fetch(tile.fetch.as_ptr().wrapping_add(fetched));
                fetched += LINE;
            }
            let mut sums = *kept;
            for p in (block.start + lane..block.end).step_by(LANES) {
                // SAFETY: the caller's promise; a panel has `ROWS` numbers for each term.
                unsafe {
                    let (x0, x1) = (_mm256_loadu_ps(panel), _mm256_loadu_ps(panel.add(8)));
                    for (sums, weights) in sums.iter_mut().zip(tile.weights) {
                        let weight = _mm256_set1_ps(weights.add(p).read_unaligned());
                        sums[0] = _mm256_fmadd_ps(weight, x0, sums[0]);
                        sums[1] = _mm256_fmadd_ps(weight, x1, sums[1]);
                    }
                    panel = panel.add(ROWS);
                }
            }
            *kept = sums;
        }
    }
    let mut totals = [[0f32; ROWS]; STRIP];
    for (i, totals) in totals.iter_mut().enumerate() {
        for (half, totals) in totals.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let (mut sums, mut count) = ([zero; LANES / 2], LANES / 2);
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum = _mm256_add_ps(lanes[lane][i][half], lanes[lane + LANES / 2][i][half]);
            }
            while count > 1 {
                count /= 2;
                for pair in 0..count {
                    sums[pair] = _mm256_add_ps(sums[2 * pair], sums[2 * pair + 1]);
                }
            }
            // SAFETY: eight numbers.
            unsafe { _mm256_storeu_ps(totals.as_mut_ptr(), sums[0]) };
        }
    }
    for row in 0..ROWS {
        for (col, totals) in totals.iter().enumerate().take(tile.cols) {
            // SAFETY: the caller's promise.
            let y = unsafe { &mut *tile.y.add(row * tile.y_stride + col) };
            *y = if tile.into == Into::Accumulate { *y + totals[row] } else { totals[row] };
        }
    }
}
