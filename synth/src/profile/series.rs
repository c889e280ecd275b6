//! Numbers of rows: means, percentiles, histograms.

use serde::Serialize;

/// Most bars of a histogram.
const BARS: usize = 24;

/// One number of each row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Series {
    /// In ascending order.
    sorted: Vec<f64>,
    sum: f64,
}

/// What a [`Series`] comes to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// How many rows have the number.
    pub rows: usize,
    /// Their sum.
    pub sum: f64,
    /// Their mean.
    pub mean: f64,
    /// The smallest.
    pub min: f64,
    /// Nearest ranks: the smallest number that this share of the rows does not exceed.
    pub p25: f64,
    /// The median.
    pub p50: f64,
    /// See `p25`.
    pub p75: f64,
    /// See `p25`.
    pub p95: f64,
    /// See `p25`.
    pub p99: f64,
    /// The largest.
    pub max: f64,
    /// First and last edge of the bars, and the rows of each.
    pub histogram: Histogram,
}

/// Bars of equal width; the last also holds whatever is beyond.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Histogram {
    /// Where the first bar begins.
    pub from: f64,
    /// Width of a bar.
    pub width: f64,
    /// Rows in each.
    pub counts: Vec<usize>,
    /// Whether the last bar holds rows beyond its width.
    pub open: bool,
}

impl Series {
    /// The numbers of rows, in any order; those that are not finite are left out.
    pub fn new(numbers: Vec<f64>) -> Self {
        let mut sorted: Vec<f64> = numbers.into_iter().filter(|n| n.is_finite()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let sum = sorted.iter().sum();
        Self { sorted, sum }
    }

    /// Whether no row has the number.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    fn rank(&self, percent: usize) -> f64 {
        let index = (percent * self.sorted.len()).div_ceil(100).max(1) - 1;
        self.sorted.get(index).copied().unwrap_or(0.0)
    }

    /// The figures; the bars are those of [`bars`].
    pub fn summary(&self, bars: &Histogram) -> Summary {
        Summary {
            rows: self.sorted.len(),
            sum: self.sum,
            mean: self.sum / self.sorted.len().max(1) as f64,
            min: self.rank(0),
            p25: self.rank(25),
            p50: self.rank(50),
            p75: self.rank(75),
            p95: self.rank(95),
            p99: self.rank(99),
            max: self.rank(100),
            histogram: self.counted(bars),
        }
    }

    fn counted(&self, bars: &Histogram) -> Histogram {
        let mut counts = vec![0; bars.counts.len()];
        let Some(last) = counts.len().checked_sub(1) else { return Histogram::default() };
        for &number in &self.sorted {
            let place = ((number - bars.from) / bars.width + 1e-9).floor().max(0.0) as usize;
            counts[place.min(last)] += 1;
        }
        Histogram { counts, ..bars.clone() }
    }
}

/// Bars that suit several series at once, so that they can be laid over each other: of one round
/// width, up to the outer fence (Tukey 1977); what is beyond is in the last.
pub fn bars(series: &[&Series]) -> Histogram {
    let full: Vec<&&Series> = series.iter().filter(|series| !series.is_empty()).collect();
    let Some(low) = full.iter().map(|series| series.rank(0)).min_by(f64::total_cmp) else {
        return Histogram::default();
    };
    let usual = |series: &&&Series| {
        let fence = series.rank(75) + 3.0 * (series.rank(75) - series.rank(25));
        let within = series.sorted.partition_point(|&number| number <= fence);
        series.sorted[within.max(1) - 1]
    };
    let usual = full.iter().map(usual).fold(low, f64::max);
    let high = full.iter().map(|series| series.rank(100)).fold(low, f64::max);
    let whole = full.iter().all(|series| series.sorted.iter().all(|number| number.fract() == 0.0));
    let width = round_width((usual - low) / BARS as f64, whole);
    let from = (low / width).floor() * width;
    let count = ((usual - from) / width + 1e-9).floor() as usize + 1;
    let open = high >= from + width * count as f64;
    Histogram { from, width, counts: vec![0; count + usize::from(open)], open }
}

/// The smallest of 1, 2, 5, 10, 20, … (or of tenths, …) that is at least `least`.
fn round_width(least: f64, whole: bool) -> f64 {
    let least = if whole { least.max(1.0) } else { least };
    if least <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    steps.into_iter().find(|step| *step >= least * (1.0 - 1e-9)).unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(numbers: &[f64]) -> Summary {
        let series = Series::new(numbers.to_vec());
        series.summary(&bars(&[&series]))
    }

    #[test]
    fn ranks_are_numbers_of_rows() {
        let told = summary(&[4.0, 1.0, 2.0, 3.0, f64::NAN]);
        assert_eq!((told.rows, told.mean), (4, 2.5));
        assert_eq!([told.min, told.p25, told.p50, told.p75, told.max], [1.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(told.histogram.counts, [1, 1, 1, 1]);
    }

    #[test]
    fn bars_are_of_a_round_width_and_far_numbers_share_the_last() {
        let mut numbers: Vec<f64> = (0..100).map(|n| n as f64).collect();
        numbers.push(100_000.0);
        let told = summary(&numbers).histogram;
        assert_eq!((told.from, told.width, told.open), (0.0, 5.0, true));
        assert_eq!(told.counts.len(), 21);
        assert_eq!((told.counts[0], told.counts[20]), (5, 1));
        let told = summary(&[0.25, 0.5, 0.5, 1.0]).histogram;
        assert_eq!((told.from, told.width), (0.25, 0.05));
        assert_eq!(told.counts.iter().sum::<usize>(), 4);
        assert_eq!(summary(&[7.0; 5]).histogram.counts, [5]);
    }

    #[test]
    fn no_numbers_have_no_bars() {
        assert_eq!(bars(&[]), Histogram::default());
        assert!(bars(&[&Series::default()]).counts.is_empty());
    }

    #[test]
    fn two_series_share_their_bars() {
        let (a, b) = (Series::new(vec![1.0, 2.0]), Series::new(vec![40.0, 41.0]));
        let shared = bars(&[&a, &b]);
        let (a, b) = (a.summary(&shared).histogram, b.summary(&shared).histogram);
        assert_eq!((a.from, a.width, a.counts.len()), (b.from, b.width, b.counts.len()));
        assert_eq!((a.counts[0], b.counts[0]), (1, 0));
    }
}
