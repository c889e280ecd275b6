//! `report.html`: one file that loads nothing from elsewhere, with the curves, samples, ledger and
//! configuration of a run. The same for every method.

use std::io::ErrorKind;
use std::path::Path;

use minijinja::{Environment, UndefinedBehavior, context};
use serde::Serialize;
use serde_json::Value;

use super::files::atomic_write;
use super::metrics::{self, StepMetrics};
use super::run_dir::RunFiles;
use super::summary::{CalibrationBin, Figure, LedgerCount, Prediction, Sample, Summary};
use crate::{Error, Result};

const TEMPLATE: &str = include_str!("report.html");
const SCRIPT: &str = include_str!("report.js");
/// What the pages of halter look like.
pub const STYLE: &str = include_str!("report.css");
/// A curve is drawn with no more points than a screen could show.
const MOST_POINTS: usize = 2000;
const MOST_ROWS: usize = 500;
const MOST_SAMPLES: usize = 200;

/// Everything the page shows. Empty parts are left out of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The heading.
    pub title: String,
    /// Figures in large type.
    pub headline: Vec<Figure>,
    /// Names and values.
    pub facts: Vec<(String, String)>,
    /// Curves; those with the same `chart` are drawn together, in the order given.
    pub curves: Vec<Curve>,
    /// Prompts and completions.
    pub samples: Vec<Sample>,
    /// What became of the rows.
    pub ledger: LedgerReport,
    /// The run's `config.toml`.
    pub config_toml: String,
    /// The plan's figures beside the facts.
    pub prediction: Vec<Prediction>,
    /// How far the model's confidence can be trusted.
    pub calibration: Vec<CalibrationBin>,
}

/// One line of one chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Title of the chart, e.g. `loss`.
    pub chart: String,
    /// Name of the line, e.g. `train`.
    pub name: String,
    /// `(step, value)`, steps ascending; a value that is not finite leaves a gap.
    pub points: Vec<(u64, f64)>,
}

/// The ledger as the page shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LedgerReport {
    /// Sums by outcome and reason.
    pub counts: Vec<LedgerCount>,
    /// Names of the columns of `rows`.
    pub columns: Vec<String>,
    /// The first rows that were cut or dropped.
    pub rows: Vec<Vec<String>>,
    /// How many such rows there are in all.
    pub total: usize,
}

impl Report {
    /// What a run directory holds, as a report. Parts that are not there yet (the summary of a
    /// run that is still going on) are left out.
    ///
    /// # Errors
    /// A file that is there and cannot be read, with its line.
    pub fn from_run(files: &RunFiles) -> Result<Self> {
        let summary = match Summary::read(&files.summary()) {
            Ok(summary) => summary,
            Err(_) if !files.summary().exists() => Summary::default(),
            Err(error) => return Err(error),
        };
        let steps = match files.metrics().exists() {
            true => metrics::read(files.metrics())?,
            false => Vec::new(),
        };
        let config = files.config();
        let config_toml =
            std::fs::read_to_string(&config).map_err(|error| Error::io("read", config, error))?;
        let mut ledger = read_ledger(&files.ledger())?;
        if !summary.ledger.is_empty() {
            ledger.counts = summary.ledger;
        }
        let name = files.path().file_name().unwrap_or(files.path().as_os_str());
        let title = match summary.title.is_empty() {
            true => format!("Run {}", name.to_string_lossy()),
            false => summary.title,
        };
        let headline = match summary.headline.is_empty() {
            true => headline_of(&steps),
            false => summary.headline,
        };
        Ok(Self {
            title,
            headline,
            facts: summary.facts,
            curves: curves_of(&steps),
            samples: summary.samples,
            ledger,
            config_toml,
            prediction: summary.prediction,
            calibration: summary.calibration,
        })
    }

    /// The page. Everything in it that came from data is escaped.
    ///
    /// # Errors
    /// Never for a report that can be held in memory; the template is part of the program.
    pub fn render(&self) -> Result<String> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.add_filter("thousands", thousands);
        let failed = |error: minijinja::Error| {
            Error::new(crate::ErrorKind::Text, "the report cannot be rendered").because(error)
        };
        // The name's ending turns the escaping on.
        environment.add_template("report.html", TEMPLATE).map_err(failed)?;
        let template = environment.get_template("report.html").map_err(failed)?;
        let longest = self.curves.iter().map(|curve| curve.points.len()).max().unwrap_or(0);
        let thinned = match longest > MOST_POINTS {
            true => format!(
                "Curves of {longest} steps are drawn with the lowest and the highest value of \
                 each of {} stretches; all values are in metrics.jsonl.",
                MOST_POINTS / 2
            ),
            false => String::new(),
        };
        let samples = &self.samples[..self.samples.len().min(MOST_SAMPLES)];
        let samples: Vec<_> = samples.iter().map(ShownSample::from).collect();
        template
            .render(context! {
                title => self.title,
                headline => self.headline,
                facts => self.facts,
                charts => charts(&self.curves),
                smoothing => if longest > 50 { 0.8 } else { 0.0 },
                thinned,
                filters => filters(&samples),
                samples_left_out => self.samples.len() - samples.len(),
                samples,
                ledger => self.ledger,
                config_toml => self.config_toml,
                prediction => self.prediction,
                calibration => self.calibration,
                version => env!("CARGO_PKG_VERSION"),
                script => SCRIPT,
                style => STYLE,
            })
            .map_err(failed)
    }

    /// Renders the page to `path`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, path: &Path) -> Result<()> {
        atomic_write(path, self.render()?.as_bytes())
    }
}

/// The curves of a run's metrics. `loss` and `eval/loss` share a chart, as do all keys with the
/// same word before the `/` (`rewards/chosen`, `rewards/rejected`, `eval/rewards/chosen`), but for
/// `accuracies`.
pub fn curves_of(steps: &[StepMetrics]) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for metrics in steps {
        for (key, value) in metrics.values() {
            if ["epoch", "num_tokens", "supervised_tokens", "seconds"].contains(&key) {
                continue;
            }
            let (chart, name) = chart_of(key);
            match curves.iter_mut().find(|curve| curve.chart == chart && curve.name == name) {
                Some(curve) => curve.points.push((metrics.step, value)),
                None => curves.push(Curve {
                    chart: chart.to_string(),
                    name,
                    points: vec![(metrics.step, value)],
                }),
            }
        }
    }
    // The engine's own first, training before evaluation.
    let place = |curve: &Curve| {
        let known = ["loss", "mean_token_accuracy", "learning_rate", "grad_norm"];
        let chart = known.iter().position(|known| *known == curve.chart);
        let last = usize::from(curve.chart == "tokens_per_second");
        (last, chart.unwrap_or(known.len()), curve.name.starts_with("eval"))
    };
    curves.sort_by_key(place);
    curves
}

/// The chart of a key of the metrics, and its name there.
fn chart_of(key: &str) -> (&str, String) {
    let (side, key) = match key.strip_prefix("eval/") {
        Some(key) => ("eval", key),
        None => ("train", key),
    };
    match key.split_once('/') {
        // a share, beside which the others would be flat
        Some((_, "accuracies")) | None => (key, side.into()),
        Some((chart, name)) if side == "eval" => (chart, format!("eval {name}")),
        Some((chart, name)) => (chart, name.into()),
    }
}

/// The figures of a run without a summary: how far it is.
fn headline_of(steps: &[StepMetrics]) -> Vec<Figure> {
    let Some(last) = steps.last() else { return Vec::new() };
    let figure = |name: &str, value: String| Figure { name: name.into(), value, ..<_>::default() };
    let mut figures = vec![figure("steps", last.step.to_string())];
    if let Some(loss) = last.loss {
        figures.push(figure("loss", format!("{loss:.4}")));
    }
    if let Some(tokens) = last.num_tokens {
        figures.push(figure("tokens", tokens.to_string()));
    }
    figures
}

/// The ledger's lines as a table of whatever they hold, so that a new kind of entry needs no
/// change here. A last line without its end is left out.
fn read_ledger(path: &Path) -> Result<LedgerReport> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(LedgerReport::default()),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    let mut report = LedgerReport::default();
    for (index, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let Some(line) = line.strip_suffix(b"\n") else { break };
        report.total += 1;
        let entry: serde_json::Map<String, Value> = serde_json::from_slice(line)
            .map_err(|error| Error::data(error.to_string()).at(path, index + 1))?;
        count(&mut report.counts, &entry);
        if report.rows.len() == MOST_ROWS {
            continue;
        }
        let mut row = vec![String::new(); report.columns.len()];
        for (key, value) in entry {
            let cell = match value {
                Value::Null => String::new(),
                Value::String(text) => text,
                value => value.to_string(),
            };
            match report.columns.iter().position(|column| *column == key) {
                Some(column) => row[column] = cell,
                None => {
                    report.columns.push(key);
                    row.push(cell);
                }
            }
        }
        report.rows.push(row);
    }
    let columns = report.columns.len();
    report.rows.iter_mut().for_each(|row| row.resize(columns, String::new()));
    Ok(report)
}

/// Adds a line of the ledger to the sums.
fn count(counts: &mut Vec<LedgerCount>, entry: &serde_json::Map<String, Value>) {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
    let number = |key: &str| entry.get(key).and_then(Value::as_u64);
    let (fate, reason) = (text("fate"), text("reason"));
    let lost = number("tokens").map(|all| all.saturating_sub(number("kept_tokens").unwrap_or(0)));
    match counts.iter_mut().find(|count| count.fate == fate && count.reason == reason) {
        Some(count) => {
            count.rows += 1;
            count.tokens = count.tokens.zip(lost).map(|(tokens, lost)| tokens.saturating_add(lost));
        }
        None => counts.push(LedgerCount {
            fate: fate.to_string(),
            reason: reason.to_string(),
            rows: 1,
            tokens: lost,
        }),
    }
}

#[derive(Serialize)]
struct Chart<'a> {
    title: &'a str,
    series: Vec<Series<'a>>,
}

#[derive(Serialize)]
struct Series<'a> {
    name: &'a str,
    /// `None` for what JSON cannot hold.
    points: Vec<(u64, Option<f64>)>,
}

fn charts(curves: &[Curve]) -> Vec<Chart<'_>> {
    let mut charts: Vec<Chart<'_>> = Vec::new();
    // A line without points has no ends to draw between.
    for curve in curves.iter().filter(|curve| !curve.points.is_empty()) {
        let points = thin(&curve.points).into_iter();
        let points = points.map(|(step, value)| (step, value.is_finite().then_some(value)));
        let series = Series { name: &curve.name, points: points.collect() };
        match charts.iter_mut().find(|chart| chart.title == curve.chart) {
            Some(chart) => chart.series.push(series),
            None => charts.push(Chart { title: &curve.chart, series: vec![series] }),
        }
    }
    charts
}

/// 1234567 → `1,234,567`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// The lowest and the highest point of each stretch, so that no spike is lost. A stretch with a
/// value that is not finite keeps it, as the gap it leaves must be seen.
fn thin(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    if points.len() <= MOST_POINTS {
        return points.to_vec();
    }
    let stretches = MOST_POINTS / 2;
    let mut thinned = Vec::with_capacity(MOST_POINTS);
    for stretch in 0..stretches {
        let bound = |index: usize| index * points.len() / stretches;
        let stretch = &points[bound(stretch)..bound(stretch + 1)];
        let broken = stretch.iter().find(|(_, value)| !value.is_finite());
        let low = stretch.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        let high = stretch.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        let mut found: Vec<_> = if let Some(broken) = broken {
            vec![*broken]
        } else {
            [low, high].into_iter().flatten().copied().collect()
        };
        found.sort_by_key(|(step, _)| *step);
        found.dedup_by_key(|(step, _)| *step);
        thinned.extend(found);
    }
    thinned
}

#[derive(Serialize)]
struct ShownSample<'a> {
    #[serde(flatten)]
    sample: &'a Sample,
    /// How the verdict changed.
    change: &'static str,
}

impl<'a> From<&'a Sample> for ShownSample<'a> {
    fn from(sample: &'a Sample) -> Self {
        let change = match (sample.before_correct, sample.after_correct) {
            (Some(false), Some(true)) => "gained",
            (Some(true), Some(false)) => "lost",
            (_, Some(true)) => "right",
            (_, Some(false)) => "wrong",
            (_, None) => "",
        };
        Self { sample, change }
    }
}

/// The buttons above the samples, with how many samples each shows.
fn filters(samples: &[ShownSample<'_>]) -> Vec<minijinja::Value> {
    let count = |name| samples.iter().filter(|sample| sample.change == name).count();
    let names = ["gained", "lost", "right", "wrong"].into_iter();
    let counted = names.map(|name| (name, count(name))).filter(|(_, count)| *count > 0);
    counted.map(|(name, count)| context! { name, count }).collect()
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
