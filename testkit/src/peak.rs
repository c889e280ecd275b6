//! What the machine can do at most, and criterion's throughput as a share of it.

use std::fmt::Display;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput};
use rayon::prelude::*;

/// Wall time; throughput is told as a share of the machine's peak: elements are floating-point
/// operations, bytes are those of memory.
pub struct ShareOfPeak {
    /// Floating-point operations a nanosecond, over all rayon threads.
    operations: f64,
    /// Bytes a nanosecond, likewise.
    bytes: f64,
}

/// Criterion with the peaks of this machine, measured and printed.
pub fn criterion() -> Criterion<ShareOfPeak> {
    let (operations, bytes) = (fma_peak(), memory_peak());
    println!("peak of {} threads:", rayon::current_num_threads());
    println!("  {operations:.0} GFLOP/s (fused multiply-add)");
    println!("  {bytes:.1} GB/s (256 MiB read and written in place; caches are faster)\n");
    Criterion::default()
        .with_measurement(ShareOfPeak { operations, bytes })
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
}

impl Measurement for ShareOfPeak {
    type Intermediate = Instant;
    type Value = Duration;

    fn start(&self) -> Instant {
        WallTime.start()
    }

    fn end(&self, start: Instant) -> Duration {
        WallTime.end(start)
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        WallTime.add(a, b)
    }

    fn zero(&self) -> Duration {
        WallTime.zero()
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        self
    }
}

impl ValueFormatter for ShareOfPeak {
    fn format_throughput(&self, throughput: &Throughput, nanoseconds: f64) -> String {
        let told = |work: u64, unit: &dyn Display, peak: f64| {
            let rate = work as f64 / nanoseconds;
            format!("{rate:.1} {unit} ({:.0} % of peak)", 100.0 * rate / peak)
        };
        match *throughput {
            Throughput::Elements(work) => told(work, &"GFLOP/s", self.operations),
            Throughput::Bytes(work) => told(work, &"GB/s", self.bytes),
            _ => WallTime.formatter().format_throughput(throughput, nanoseconds),
        }
    }

    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }

    fn scale_throughputs(
        &self,
        typical: f64,
        throughput: &Throughput,
        values: &mut [f64],
    ) -> &'static str {
        WallTime.formatter().scale_throughputs(typical, throughput, values)
    }

    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_for_machines(values)
    }
}

/// The highest of nine rates: what the machine can do when nobody disturbs it.
fn best(work: f64, mut f: impl FnMut()) -> f64 {
    let rate = |_| {
        let start = Instant::now();
        f();
        work / start.elapsed().as_nanos() as f64
    };
    (0..9).map(rate).fold(0.0, f64::max)
}

/// Independent sums that hide the latency of one; with their factors they fill AVX2's registers.
const SUMS: usize = 12;

/// Operations a nanosecond of multiplications and additions that stay in registers.
fn fma_peak() -> f64 {
    const ROUNDS: usize = 10_000_000;
    let (kernel, lanes) = kernel();
    let work = 2 * SUMS * lanes * ROUNDS * rayon::current_num_threads();
    best(work as f64, || {
        // SAFETY: `kernel` chose one that this processor can run.
        rayon::broadcast(|_| unsafe { kernel(ROUNDS) });
    })
}

/// One loop of multiplications and additions, and the width of its vectors.
fn kernel() -> (unsafe fn(usize), usize) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return (avx512, 16);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return (avx2, 8);
        }
    }
    (plain, 4)
}

/// # Safety
/// The processor has AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(rounds: usize) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps};
    let (factor, term) = black_box((_mm512_set1_ps(0.999), _mm512_set1_ps(0.001)));
    let mut sums = black_box([_mm512_set1_ps(0.0); SUMS]);
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, term);
        }
    }
    black_box(sums);
}

/// # Safety
/// The processor has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(rounds: usize) {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps};
    let (factor, term) = black_box((_mm256_set1_ps(0.999), _mm256_set1_ps(0.001)));
    let mut sums = black_box([_mm256_set1_ps(0.0); SUMS]);
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, term);
        }
    }
    black_box(sums);
}

/// In the vectors that the target always has.
fn plain(rounds: usize) {
    let (factor, term) = black_box((0.999f32, 0.001f32));
    let mut sums = black_box([[0f32; 4]; SUMS]);
    for _ in 0..rounds {
        for sum in sums.as_flattened_mut() {
            // Elsewhere `mul_add` may be a call of a function.
            *sum = match cfg!(target_arch = "aarch64") {
                true => sum.mul_add(factor, term),
                false => *sum * factor + term,
            };
        }
    }
    black_box(sums);
}

/// Bytes a nanosecond, read and written, of additions in place on an array larger than the caches.
/// A triad, `a = b + c / 2`, gets no further than 60 % of it on the machines at hand: what it writes
/// is read before, which nobody counts.
fn memory_peak() -> f64 {
    const ELEMENTS: usize = 1 << 26;
    let chunk = ELEMENTS.div_ceil(rayon::current_num_threads());
    let mut numbers = vec![1f32; ELEMENTS];
    best((2 * 4 * ELEMENTS) as f64, || {
        numbers.par_chunks_mut(chunk).for_each(|chunk| chunk.iter_mut().for_each(|x| *x += 1.0));
        black_box(&numbers);
    })
}
