//! The page of a profile: one file that loads nothing from elsewhere and runs no script.

use halter_core::train::report::{STYLE, thousands};
use halter_core::{Error, ErrorKind, Result};
use minijinja::{Environment, UndefinedBehavior, context};
use serde::Serialize;

use super::series::{Histogram, Summary};
use super::{Comparison, Profile};

const TEMPLATE: &str = include_str!("page.html");
const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 130.0;

/// A drawing of one number of every data set, with the figures beneath.
#[derive(Serialize)]
struct Chart<'a> {
    name: &'a str,
    bars: Vec<Bar>,
    marks: Vec<Mark>,
    summaries: Vec<(usize, &'a Summary)>,
}

#[derive(Serialize)]
struct Bar {
    set: usize,
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    told: String,
}

/// A number below the bars.
#[derive(Serialize)]
struct Mark {
    x: f64,
    text: String,
    anchor: &'static str,
}

/// Renders profiles side by side. What came from data is escaped.
///
/// # Errors
/// Never for profiles that can be held in memory; the template is part of the program.
pub fn render(profiles: &[Profile], comparison: Option<&Comparison>) -> Result<String> {
    let failed = |error: minijinja::Error| {
        Error::new(ErrorKind::Text, "the page cannot be rendered").because(error)
    };
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_filter("thousands", thousands);
    environment.add_filter("number", number);
    environment.add_filter("percent", percent);
    // The name's ending turns the escaping on.
    environment.add_template("page.html", TEMPLATE).map_err(failed)?;
    let names: Vec<&str> = profiles.iter().map(|profile| profile.name.as_str()).collect();
    let lengths = profiles.iter().enumerate().flat_map(|(set, profile)| {
        profile.lengths.iter().map(move |(name, summary)| (*name, set, summary))
    });
    let columns = profiles.iter().enumerate().flat_map(|(set, profile)| {
        profile.numbers.iter().map(move |(name, summary)| (name.as_str(), set, summary))
    });
    let page = environment.get_template("page.html").map_err(failed)?.render(context! {
        title => names.join(" and "),
        profiles, comparison,
        lengths => charts(lengths),
        columns => charts(columns),
        width => WIDTH,
        height => HEIGHT,
        style => STYLE,
        version => env!("CARGO_PKG_VERSION"),
    });
    page.map_err(failed)
}

fn charts<'a>(summaries: impl Iterator<Item = (&'a str, usize, &'a Summary)>) -> Vec<Chart<'a>> {
    let mut charts: Vec<Chart<'a>> = Vec::new();
    for (name, set, summary) in summaries {
        match charts.iter_mut().find(|chart| chart.name == name) {
            Some(chart) => chart.summaries.push((set, summary)),
            None => charts.push(Chart {
                name,
                bars: Vec::new(),
                marks: Vec::new(),
                summaries: vec![(set, summary)],
            }),
        }
    }
    for chart in &mut charts {
        draw(chart);
    }
    charts
}

/// Bars as shares of each data set's rows, those of several sets beside each other.
fn draw(chart: &mut Chart) {
    let sets = chart.summaries.len() as f64;
    let share = |count: usize, summary: &Summary| count as f64 / summary.rows.max(1) as f64;
    let largest = |(_, summary): &(usize, &Summary)| {
        let most = summary.histogram.counts.iter().copied().max().unwrap_or(0);
        share(most, summary)
    };
    let most = chart.summaries.iter().map(largest).fold(1e-9, f64::max);
    let Some((_, first)) = chart.summaries.first() else { return };
    let histogram = &first.histogram;
    let step = WIDTH / histogram.counts.len().max(1) as f64;
    let width = (step - 1.5).max(0.5) / sets;
    let mut bars = Vec::new();
    for (place, (set, summary)) in chart.summaries.iter().enumerate() {
        for (at, &count) in summary.histogram.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            // What is there is seen.
            let height = (HEIGHT * share(count, summary) / most).max(1.0);
            let told = format!(
                "{}: {} rows, {}",
                range(histogram, at, summary.max),
                thousands(count as u64),
                percent(share(count, summary))
            );
            let x = step * at as f64 + width * place as f64;
            bars.push(Bar { set: *set, x, y: HEIGHT - height, width, height, told });
        }
    }
    chart.marks = marks(histogram, step);
    chart.bars = bars;
}

/// Which numbers a bar stands for.
fn range(histogram: &Histogram, at: usize, max: f64) -> String {
    let from = histogram.from + histogram.width * at as f64;
    if histogram.open && at + 1 == histogram.counts.len() {
        return format!("{} to {}", number(from), number(max));
    }
    let to = from + histogram.width;
    match histogram.width == 1.0 && from.fract() == 0.0 {
        true => number(from),
        false => format!("{} to {}", number(from), number(to)),
    }
}

fn marks(histogram: &Histogram, step: f64) -> Vec<Mark> {
    let bars = histogram.counts.len();
    let closed = bars - usize::from(histogram.open);
    let each = closed.div_ceil(6).max(1);
    // Of single whole numbers the middle of a bar is meant, of ranges its beginning.
    let whole = histogram.width == 1.0;
    let mut marks: Vec<Mark> = (0..closed)
        .step_by(each)
        .map(|at| Mark {
            x: step * (at as f64 + if whole { 0.5 } else { 0.0 }),
            text: number(histogram.from + histogram.width * at as f64),
            anchor: if at == 0 && !whole { "start" } else { "middle" },
        })
        .collect();
    if histogram.open {
        let from = histogram.from + histogram.width * closed as f64;
        let is_free = marks.last().is_none_or(|mark| WIDTH - mark.x > 70.0);
        if !is_free {
            marks.pop();
        }
        marks.push(Mark { x: WIDTH, text: format!("{} and more", number(from)), anchor: "end" });
    }
    marks
}

/// A number with as many digits as tell something.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => {
            let sign = if value < 0.0 { "−" } else { "" };
            format!("{sign}{}", thousands(size.round() as u64))
        }
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 1.0 => trimmed(format!("{value:.2}")),
        _ => trimmed(format!("{value:.4}")),
    }
}

fn trimmed(text: String) -> String {
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// A share in percent.
fn percent(share: f64) -> String {
    match 100.0 * share {
        0.0 => "0 %".into(),
        few if few < 0.1 => "< 0.1 %".into(),
        some if some < 10.0 => format!("{some:.1} %"),
        many => format!("{many:.0} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 3.0, 1234.5, 123.4, 2.5, 0.25, 0.33333, -1500.0].map(number);
        assert_eq!(shown, ["0", "3", "1,235", "123", "2.5", "0.25", "0.3333", "−1,500"]);
        let shares = [0.0, 0.0001, 0.034, 0.5, 1.0].map(percent);
        assert_eq!(shares, ["0 %", "< 0.1 %", "3.4 %", "50 %", "100 %"]);
    }

    #[test]
    fn bars_say_what_they_stand_for() {
        let histogram = Histogram { from: 0.0, width: 5.0, counts: vec![0; 3], open: true };
        assert_eq!(range(&histogram, 0, 99.0), "0 to 5");
        assert_eq!(range(&histogram, 2, 99.0), "10 to 99");
        let single = Histogram { from: 2.0, width: 1.0, counts: vec![0; 3], open: false };
        assert_eq!(range(&single, 1, 4.0), "3");
    }
}
