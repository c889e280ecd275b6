//! Whether a reward model is as often right as it is sure.
//!
//! A pair is a bet on the completion with the higher score, with confidence σ(|difference|), from
//! one half to one. Bets are put into ten bins of equal width by their confidence; the expected
//! calibration error is the mean over all bets of |share that was right − mean confidence| of their
//! bin (Guo et al. 2017, equation 3).

use halter_core::train::summary::CalibrationBin;

const BINS: usize = 10;

/// The bins, least confidence first. `margins` are score differences, better less worse: positive
/// where the bet is right. A difference of zero is wrong.
pub fn bins(margins: &[f64]) -> Vec<CalibrationBin> {
    let width = 0.5 / BINS as f64;
    let mut bins: Vec<CalibrationBin> = (0..BINS)
        .map(|bin| CalibrationBin {
            from: 0.5 + width * bin as f64,
            to: 0.5 + width * (bin + 1) as f64,
            ..CalibrationBin::default()
        })
        .collect();
    for &margin in margins {
        let confidence = 1.0 / (1.0 + (-margin.abs()).exp());
        let bin = &mut bins[(((confidence - 0.5) / width) as usize).min(BINS - 1)];
        bin.count += 1;
        bin.confidence += confidence;
        bin.accuracy += f64::from(margin > 0.0);
    }
    for bin in bins.iter_mut().filter(|bin| bin.count > 0) {
        bin.confidence /= bin.count as f64;
        bin.accuracy /= bin.count as f64;
    }
    bins
}

/// The expected calibration error of the bins.
pub fn expected_error(bins: &[CalibrationBin]) -> f64 {
    let all: usize = bins.iter().map(|bin| bin.count).sum();
    let gap = |bin: &CalibrationBin| (bin.accuracy - bin.confidence).abs() * bin.count as f64;
    bins.iter().map(gap).sum::<f64>() / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The difference of a bet with this confidence.
    fn margin(confidence: f64) -> f64 {
        (confidence / (1.0 - confidence)).ln()
    }

    #[test]
    fn bets_that_are_right_as_often_as_they_are_sure_have_no_error() {
        // Nine of ten with 0.9 (inside a bin), six of ten with 0.6.
        let mut margins = Vec::new();
        for (confidence, right) in [(0.93, 93), (0.62, 62)] {
            margins
                .extend((0..100).map(|i| margin(confidence) * if i < right { 1.0 } else { -1.0 }));
        }
        let bins = bins(&margins);
        assert_eq!(bins.iter().map(|bin| bin.count).sum::<usize>(), 200);
        assert_eq!((bins[8].count, bins[2].count), (100, 100));
        assert!(expected_error(&bins) < 1e-12);
    }

    #[test]
    fn a_model_that_is_always_sure_and_right_half_the_time_is_off_by_a_half() {
        let bins = bins(&[40.0, -40.0, 40.0, -40.0]);
        assert_eq!(bins[9].count, 4);
        assert!((expected_error(&bins) - 0.5).abs() < 1e-12);
        assert_eq!(expected_error(&super::bins(&[])), 0.0);
        let tie = super::bins(&[0.0]);
        assert_eq!((tie[0].count, tie[0].accuracy), (1, 0.0));
    }
}
