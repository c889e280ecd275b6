//! `report.html` of a pipeline: one file that loads nothing from elsewhere.

use std::path::Path;

use halter_core::{Error, Result};
use minijinja::{Environment, context};
use serde_json::Value;

use super::config::Pipeline;
use super::files;
use super::run::Summary;

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
        let shown = |path| -> Result<Vec<String>> {
            let rows = files::rows(path)?;
            Ok(rows
                .into_iter()
                .take(EXAMPLES)
                .map(|row| format!("{:#}", Value::Object(row.0)))
                .collect())
        };
        steps.push(context! { told, examples => shown(&rows)?, lost => shown(&removed)? });
    }
    let mut environment = Environment::new();
    // The name's ending turns the escaping on.
    environment.add_template("report.html", TEMPLATE).map_err(failed)?;
    let page = environment.get_template("report.html").map_err(failed)?;
    page.render(context! { steps, summary }).map_err(failed)
}
