//! `report.html` of a pipeline: one file that loads nothing from elsewhere.

use std::path::Path;

use halter_core::train::report::STYLE;
use halter_core::{Error, Result};
use minijinja::{Environment, context};
use serde_json::Value;

use super::config::Pipeline;
use super::files;
use super::run::Summary;
use crate::row::Row;

const TEMPLATE: &str = include_str!("report.html");
/// Rows shown of each step.
const EXAMPLES: usize = 3;

/// The page. What came from data is escaped.
pub(super) fn render(pipeline: &Pipeline, output: &Path, summary: &Summary) -> Result<String> {
    let failed = |error: minijinja::Error| {
        Error::new(halter_core::ErrorKind::Text, "the report cannot be rendered").because(error)
    };
    let mut steps = Vec::new();
    for (at, told) in summary.steps.iter().enumerate() {
        let [rows, removed, _] = pipeline.files(output, at);
        let some = |path| Ok::<_, Error>(files::rows(path)?.into_iter().take(EXAMPLES));
        let examples: Vec<String> = some(&rows)?.map(|row| pretty(Value::Object(row.0))).collect();
        let lost: Vec<_> = some(&removed)?
            .map(|Row(mut line)| {
                let mut take = |name: &str| line.remove(name).unwrap_or_default();
                let text = |value: Value| value.as_str().unwrap_or_default().to_string();
                let (reason, detail) = (text(take("reason")), text(take("detail")));
                context! { reason, detail, row => pretty(take("row")) }
            })
            .collect();
        let figures: Vec<(&String, String)> =
            told.made.figures.iter().map(|(name, value)| (name, plain(value))).collect();
        steps.push(context! { told, examples, lost, figures });
    }
    let most = summary.steps.iter().map(|step| step.made.rows_out).max().unwrap_or(0).max(1);
    let mut environment = Environment::new();
    // The name's ending turns the escaping on.
    environment.add_template("report.html", TEMPLATE).map_err(failed)?;
    let page = environment.get_template("report.html").map_err(failed)?;
    let version = env!("CARGO_PKG_VERSION");
    page.render(context! { style => STYLE, steps, summary, most, version }).map_err(failed)
}

fn pretty(row: Value) -> String {
    format!("{row:#}")
}

/// A figure as one reads it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64().filter(|n| n.fract() != 0.0) {
            Some(fraction) => format!("{fraction:.3}"),
            None => number.to_string(),
        },
        Value::Object(figures) => {
            let one = |(name, value): (&String, &Value)| format!("{name} {}", plain(value));
            figures.iter().map(one).collect::<Vec<_>>().join(", ")
        }
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
