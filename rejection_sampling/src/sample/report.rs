//! `report.html` of a sampling run: one file that loads nothing from elsewhere.

use halter_core::{Error, Result};
use minijinja::{Environment, context};
use serde::Serialize;

use super::figures::{Figures, Rate};

const TEMPLATE: &str = include_str!("report.html");
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 200.0;

/// The page. What came from data is escaped.
///
/// # Errors
/// Never for figures that can be held in memory; the template is part of the program.
pub fn render(title: &str, facts: &[(String, String)], figures: &Figures) -> Result<String> {
    let failed = |error: minijinja::Error| {
        Error::new(halter_core::ErrorKind::Text, "the report cannot be rendered").because(error)
    };
    let mut environment = Environment::new();
    // The name's ending turns the escaping on.
    environment.add_template("report.html", TEMPLATE).map_err(failed)?;
    let lines: Vec<_> = [("pass@k", &figures.pass_at), ("maj@k", &figures.majority_at)]
        .into_iter()
        .filter(|(_, rates)| !rates.is_empty())
        .map(|(name, rates)| Curve::new(name, rates))
        .collect();
    let page = environment.get_template("report.html").map_err(failed)?.render(context! {
        title, facts, figures,
        width => WIDTH,
        height => HEIGHT,
        bars => bars(figures),
        curves => lines,
        points => points(figures),
    });
    page.map_err(failed)
}

/// A bar of the histogram, in the coordinates of the drawing.
#[derive(Serialize)]
struct Bar {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    told: String,
}

fn bars(figures: &Figures) -> Vec<Bar> {
    let Some((low, high, counts)) = &figures.histogram else { return Vec::new() };
    let most = counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let width = WIDTH / counts.len() as f64;
    let step = (high - low) / counts.len() as f64;
    let bar = |(at, &count): (usize, &usize)| {
        let height = HEIGHT * count as f64 / most;
        let from = low + step * at as f64;
        Bar {
            x: width * at as f64,
            y: HEIGHT - height,
            width: width - 1.0,
            height,
            told: format!("{from:.3} to {:.3}: {count}", from + step),
        }
    };
    counts.iter().enumerate().map(bar).collect()
}

/// Rates over `k`, on a logarithmic axis.
#[derive(Serialize)]
struct Curve {
    name: String,
    line: String,
    marks: Vec<Mark>,
}

#[derive(Serialize)]
struct Mark {
    x: f64,
    y: f64,
    low: f64,
    high: f64,
    told: String,
    k: usize,
}

impl Curve {
    fn new(name: &str, rates: &[Rate]) -> Self {
        let last = rates.last().map_or(1.0, |rate| (rate.k as f64).log2()).max(1e-9);
        let down = |share: f64| HEIGHT * (1.0 - share);
        let marks: Vec<Mark> = rates
            .iter()
            .map(|rate| Mark {
                x: (WIDTH - 40.0) * (rate.k as f64).log2() / last + 20.0,
                y: down(rate.mean),
                low: down(rate.interval.0),
                high: down(rate.interval.1),
                told: format!(
                    "k = {}: {:.1} % ({:.1} to {:.1})",
                    rate.k,
                    100.0 * rate.mean,
                    100.0 * rate.interval.0,
                    100.0 * rate.interval.1
                ),
                k: rate.k,
            })
            .collect();
        let line: Vec<String> = marks.iter().map(|m| format!("{:.1},{:.1}", m.x, m.y)).collect();
        Self { name: name.to_string(), line: line.join(" "), marks }
    }
}

/// Completions by length and score.
fn points(figures: &Figures) -> Vec<(f64, f64)> {
    let Some((low, high, _)) = &figures.histogram else { return Vec::new() };
    let longest = figures.lengths.iter().map(|(tokens, _)| *tokens).max().unwrap_or(1) as f64;
    let span = if high > low { high - low } else { 1.0 };
    let point = |&(tokens, score): &(usize, f64)| {
        (WIDTH * tokens as f64 / longest, HEIGHT * (1.0 - (score - low) / span))
    };
    figures.lengths.iter().map(point).collect()
}
