//! Charts as coordinates; the page draws them.

use serde::Serialize;
use serde_json::Value;

const LEFT: f64 = 44.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 206.0;
const WIDTH: f64 = 1060.0;

/// A value for each label, with its error.
type Values = Vec<Option<(f64, f64)>>;

/// Lines over models in their order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lines {
    /// Width of the drawing.
    pub width: f64,
    /// Names below the points, with their places.
    pub labels: Vec<(f64, String)>,
    /// Heights of the grid's lines, with their values.
    pub ticks: Vec<(f64, String)>,
    /// The lines.
    pub series: Vec<Series>,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// What SVG draws.
    pub path: String,
    /// Places of the points: x, y, ends of the error, and what is said of them.
    pub points: Vec<(f64, f64, f64, f64, String)>,
}

impl Lines {
    /// Values in percent with their errors, a line for each name; `None` where there is nothing to
    /// draw.
    pub fn percent(labels: Vec<String>, series: Vec<(String, Values)>) -> Option<Self> {
        let values = || series.iter().flat_map(|(_, values)| values.iter().flatten());
        let low = values().map(|(value, error)| value - error).fold(f64::INFINITY, f64::min);
        let high = values().map(|(value, error)| value + error).fold(f64::NEG_INFINITY, f64::max);
        if labels.is_empty() || !low.is_finite() || !high.is_finite() {
            return None;
        }
        let step = if high - low > 50.0 {
            20.0
        } else if high - low > 20.0 {
            10.0
        } else {
            5.0
        };
        let low = ((low / step).floor() * step).max(0.0);
        let high = ((high / step).ceil() * step).clamp(low + step, 100f64.max(low + step));
        let y = |value: f64| BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP);
        let room = (WIDTH - LEFT - RIGHT) / labels.len() as f64;
        let x = |at: usize| LEFT + room * (at as f64 + 0.5);
        let ticks = (0..=((high - low) / step).round() as usize)
            .map(|tick| low + step * tick as f64)
            .map(|value| (y(value), format!("{value:.0} %")))
            .collect();
        let line = |(name, values): (String, Values)| {
            let mut path = String::new();
            let mut points = Vec::new();
            for (at, value) in values.iter().enumerate() {
                let Some((value, error)) = *value else { continue };
                let pen = if points.is_empty() { 'M' } else { 'L' };
                path += &format!("{pen}{:.1} {:.1}", x(at), y(value));
                let told = format!("{}: {value:.1} % ± {error:.1}", labels[at]);
                points.push((x(at), y(value), y(value - error), y(value + error), told));
            }
            Series { name, path, points }
        };
        let series = series.into_iter().map(line).collect();
        let labels = labels.iter().enumerate().map(|(at, name)| (x(at), name.clone())).collect();
        Some(Self { width: WIDTH, labels, ticks, series })
    }
}

/// A histogram.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bars {
    /// Place, height in percent of the highest, and what is said of it.
    pub bars: Vec<(f64, f64, String)>,
    /// Width of a bar.
    pub width: f64,
    /// The least and the greatest value.
    pub ends: (String, String),
}

impl Bars {
    /// The histogram of a sampling's figures: least, greatest, counts.
    pub fn histogram(figures: &Value) -> Option<Self> {
        let (low, high) = (figures.get(0)?.as_f64()?, figures.get(1)?.as_f64()?);
        let counts: Vec<f64> =
            figures.get(2)?.as_array()?.iter().filter_map(Value::as_f64).collect();
        let most = counts.iter().copied().fold(0.0, f64::max);
        if most <= 0.0 {
            return None;
        }
        let width = 100.0 / counts.len() as f64;
        let step = (high - low) / counts.len() as f64;
        let bar = |(at, count): (usize, &f64)| {
            let from = low + step * at as f64;
            let told = format!("{count:.0} from {from:.2} to {:.2}", from + step);
            (width * at as f64, 100.0 * count / most, told)
        };
        let bars = counts.iter().enumerate().map(bar).collect();
        Some(Self { bars, width, ends: (format!("{low:.2}"), format!("{high:.2}")) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_between_the_ticks() {
        let labels = vec!["base".to_string(), "sft".to_string()];
        let values = vec![Some((20.0, 2.0)), Some((61.0, 2.0))];
        let lines = Lines::percent(labels, vec![("math".into(), values)]).unwrap();
        let [low, .., high] = &lines.ticks[..] else { panic!("{:?}", lines.ticks) };
        assert_eq!((low.1.as_str(), high.1.as_str()), ("10 %", "70 %"));
        for (_, y, ..) in &lines.series[0].points {
            assert!((high.0..=low.0).contains(y), "{y}");
        }
        assert_eq!(Lines::percent(Vec::new(), Vec::new()), None);
        assert_eq!(Lines::percent(vec!["a".into()], vec![("t".into(), vec![None])]), None);
    }

    #[test]
    fn a_histogram_is_as_high_as_its_highest_bar() {
        let bars = Bars::histogram(&serde_json::json!([0.0, 1.0, [1, 4]])).unwrap();
        assert_eq!((bars.bars[0].1, bars.bars[1].1), (25.0, 100.0));
        assert_eq!(Bars::histogram(&Value::Null), None);
        assert_eq!(Bars::histogram(&serde_json::json!([0.0, 0.0, [0]])), None);
    }
}
