//! `report.html`: one file that loads nothing from elsewhere, over all rounds of a run.

mod chart;
mod lineage;
mod samples;

use std::path::Path;

use halter_core::memory::plan::gigabytes;
use halter_core::train::files::atomic_write;
use halter_core::train::report::STYLE;
use halter_core::{Error, Result};
use minijinja::{AutoEscape, Environment, Value as Shown, context};
use serde::Serialize;
use serde_json::Value;

use crate::cache::Done;
use crate::graph::Node;
use crate::kind;
use crate::plan::{Plan, Status, duration};
use crate::run::Failed;
use chart::{Bars, Lines};
pub use samples::has_completions;

const TEMPLATE: &str = include_str!("report.html");

/// Writes the report on what of `plan` is done to `path`.
///
/// # Errors
/// Outputs that cannot be read, or what the file system says.
pub fn write(plan: &Plan, path: &Path) -> Result<()> {
    atomic_write(path, render(plan)?.as_bytes())
}

/// Accuracies by task, of a stage that measures a model.
pub fn accuracies(done: &Done) -> Vec<(String, f64)> {
    let tasks = done.summary["tasks"].as_array().map_or(&[][..], Vec::as_slice);
    let one = |task: &Value| Some((task["task"].as_str()?.to_string(), task["acc"].as_f64()?));
    tasks.iter().filter_map(one).collect()
}

/// A stage that is done.
struct Finished<'a> {
    at: usize,
    node: &'a Node,
    done: &'a Done,
}

fn finished(plan: &Plan) -> Vec<Finished<'_>> {
    let each = plan.graph.nodes.iter().zip(&plan.steps).enumerate();
    each.filter_map(|(at, (node, step))| match &step.status {
        Status::Done(done) => Some(Finished { at, node, done }),
        _ => None,
    })
    .collect()
}

/// The page.
///
/// # Errors
/// Outputs that cannot be read.
pub fn render(plan: &Plan) -> Result<String> {
    let finished = finished(plan);
    let failed =
        |error: minijinja::Error| Error::config("the report cannot be rendered").because(error);
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_template("report.html", TEMPLATE).map_err(failed)?;
    let models = models(&finished, plan);
    let template = environment.get_template("report.html").map_err(failed)?;
    let page = template.render(context! {
        style => STYLE,
        title => format!("Alignment of {}", plan.recipe.model),
        rounds => plan.recipe.rounds,
        headline => headline(&models, &finished, plan),
        accuracy => accuracy_chart(&models),
        models => models,
        sampled => sampled(&finished),
        rewards => rewards(&finished),
        lineage => lineage::draw(plan),
        samples => samples::collect(plan)?,
        costs => costs(plan),
        recipe => plan.recipe.resolved(),
        version => env!("CARGO_PKG_VERSION"),
    });
    page.map_err(failed)
}

/// A model and what was measured of it.
#[derive(Debug, Serialize)]
struct Model {
    name: String,
    round: usize,
    /// Task, share of right answers in percent, its standard error.
    accuracy: Vec<(String, f64, Option<f64>)>,
    /// Mean tokens of a completion.
    length: Option<f64>,
    /// Mean difference of log-probs to the base, by completion with its error, and by token.
    drift: Option<(f64, f64, f64)>,
}

fn models(finished: &[Finished], plan: &Plan) -> Vec<Model> {
    let evaluations = finished.iter().filter(|f| f.node.kind.name == kind::EVAL.name);
    let model = |f: &Finished| {
        let tasks = f.done.summary["tasks"].as_array().cloned().unwrap_or_default();
        let accuracy = tasks.iter().filter_map(|task| {
            let percent = |key: &str| task[key].as_f64().map(|share| 100.0 * share);
            Some((task["task"].as_str()?.to_string(), percent("acc")?, percent("acc_stderr")))
        });
        let drift = finished.iter().find(|d| {
            d.node.kind.name == kind::DRIFT.name && d.node.of == f.node.of && f.node.of.is_some()
        });
        let drift = drift.and_then(|d| {
            let number = |key: &str| d.done.summary[key].as_f64();
            let error = number("per_completion_stderr").unwrap_or(0.0);
            Some((number("per_completion")?, error, number("per_token")?))
        });
        let name = f.node.name.strip_prefix("eval-").unwrap_or(&f.node.name).to_string();
        let length = samples::mean_tokens(&plan.steps[f.at].directory);
        Model { name, round: f.node.round, accuracy: accuracy.collect(), length, drift }
    };
    evaluations.map(model).collect()
}

/// `base`, `sft`, with the round where there are several.
fn label(name: &str, round: usize, rounds: usize) -> String {
    match round {
        0 => name.to_string(),
        _ if rounds == 1 => name.to_string(),
        round => format!("{name} · {round}"),
    }
}

fn headline(models: &[Model], finished: &[Finished], plan: &Plan) -> Vec<Shown> {
    let mut figures = Vec::new();
    if let (Some(first), Some(last)) = (models.first(), models.last()) {
        for (task, after, _) in &last.accuracy {
            let before = first.accuracy.iter().find(|(name, ..)| name == task);
            let value = match before {
                Some((_, before, _)) if models.len() > 1 => format!("{before:.1} → {after:.1} %"),
                _ => format!("{after:.1} %"),
            };
            let detail = format!("{} → {}", first.name, last.name);
            figures.push(context! { name => format!("accuracy, {task}"), value, detail });
        }
    }
    let seconds: f64 = finished.iter().map(|f| f.done.seconds).sum();
    let many = format!("{} of {} stages", finished.len(), plan.steps.len());
    figures.push(context! { name => "time", value => duration(seconds), detail => many });
    let peak = finished.iter().max_by_key(|f| f.done.peak_memory);
    if let Some((peak, bytes)) = peak.and_then(|f| Some((f, f.done.peak_memory?))) {
        let value = gigabytes(bytes as usize);
        figures.push(context! { name => "peak memory", value, detail => peak.node.title() });
    }
    figures
}

fn accuracy_chart(models: &[Model]) -> Option<Lines> {
    let mut tasks: Vec<&str> = Vec::new();
    for (task, ..) in models.iter().flat_map(|model| &model.accuracy) {
        if !tasks.contains(&task.as_str()) {
            tasks.push(task);
        }
    }
    let rounds = models.iter().map(|model| model.round).max().unwrap_or(0);
    let labels = models.iter().map(|model| label(&model.name, model.round, rounds)).collect();
    let of_task = |task: &&str| {
        let value = |model: &Model| {
            model
                .accuracy
                .iter()
                .find(|(name, ..)| name == task)
                .map(|(_, value, error)| (*value, error.unwrap_or(0.0)))
        };
        (task.to_string(), models.iter().map(value).collect())
    };
    Lines::percent(labels, tasks.iter().map(of_task).collect())
}

/// What was drawn of each model, and its scores.
fn sampled(finished: &[Finished]) -> Vec<Shown> {
    let of_sampling = finished.iter().filter(|f| f.node.kind.name == "sample");
    let one = |f: &Finished| {
        let figures = &f.done.summary["figures"];
        let accepted = figures["acceptance"].get(0).and_then(Value::as_f64);
        context! {
            title => f.node.title(),
            completions => figures["completions"].as_u64(),
            accepted => accepted.map(|share| 100.0 * share),
            score => figures["mean_score"].as_f64(),
            tokens => figures["mean_tokens"].as_f64(),
            kept => f.done.summary["kept_rows"].as_u64(),
            pairs => f.done.summary["pairs"].as_u64(),
            scores => Bars::histogram(&figures["histogram"]),
        }
    };
    of_sampling.map(one).collect()
}

/// What the reward models make of held-out pairs.
fn rewards(finished: &[Finished]) -> Vec<Shown> {
    let is_measured = |f: &&Finished| f.done.summary["eval_loss"][1].is_number();
    let of_reward = finished.iter().filter(|f| f.node.kind.name == "reward").filter(is_measured);
    let one = |f: &Finished| {
        let figures = f.done.summary["evaluation"].as_object();
        // The ends of the scores say little.
        let is_end = |name: &str| name.starts_with("min_") || name.starts_with("max_");
        let figures = figures.into_iter().flatten().filter(|(name, _)| !is_end(name));
        let figures: Vec<(&str, f64)> =
            figures.filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?))).collect();
        let loss = f.done.summary["eval_loss"].get(1).and_then(Value::as_f64);
        context! { title => f.node.title(), figures, loss }
    };
    of_reward.map(one).collect()
}

/// Time and memory by stage.
fn costs(plan: &Plan) -> Vec<Shown> {
    let finished = finished(plan);
    let most = finished.iter().map(|f| f.done.seconds).fold(1e-9, f64::max);
    let one = |f: &Finished| {
        let bytes: u64 = f.done.files.iter().map(|file| file.bytes).sum();
        context! {
            round => f.node.round,
            name => f.node.name,
            kind => f.node.kind.name,
            time => duration(f.done.seconds),
            share => 100.0 * f.done.seconds / most,
            resumed => f.done.resumed,
            failed => Failed::of(f.node.kind, &f.done.summary).map(|failed| failed.to_string()),
            memory => f.done.peak_memory.map(|bytes| gigabytes(bytes as usize)),
            disk => gigabytes(bytes as usize),
            key => f.done.key,
        }
    };
    finished.iter().map(one).collect()
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
