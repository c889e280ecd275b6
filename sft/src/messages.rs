//! What a run says: lines to watch it by, and its errors.

use std::path::Path;

use halter_core::data::ledger::LedgerTotals;
use halter_core::data::record::Row;
use halter_core::train::metrics::StepMetrics;
use halter_core::{Error, ErrorKind};

use crate::evaluation::Answers;

/// The figures of a step.
pub fn describe(line: &StepMetrics) -> String {
    let [loss, grad_norm, speed] =
        [line.loss, line.grad_norm, line.tokens_per_second].map(Option::unwrap_or_default);
    format!("loss {loss:.4} · grad norm {grad_norm:.3} · {speed:.0} tokens/s")
}

/// How the model does `before` or `after` training.
pub fn report_evaluation(when: &str, loss: Option<f64>, answers: &Answers) -> String {
    let mut line = format!("evaluation {when} training:");
    if let Some(loss) = loss {
        line += &format!(" loss {loss:.4}");
    }
    let (right, verified) = answers.score();
    if let Some(accuracy) = answers.accuracy() {
        line += &format!(", accuracy {:.1} % ({right} of {verified} answers)", 100.0 * accuracy);
    }
    line
}

/// The run stops because it was asked to, after the step of a checkpoint or before there was one.
pub fn interrupted(saved: Option<u64>) -> Error {
    let (message, hint) = match saved {
        Some(step) => (
            format!("interrupted after step {step}; checkpoint saved"),
            "run the same command with `--resume` to go on",
        ),
        None => (
            "interrupted before the first step: nothing to save".to_string(),
            "run the same command again",
        ),
    };
    Error::new(ErrorKind::Interrupted, message).hint(hint)
}

/// Says of an interrupted evaluation what it means to the run.
pub fn tell_interruption(error: Error, saved: Option<u64>) -> Error {
    match error.kind() {
        ErrorKind::Interrupted => interrupted(saved),
        _ => error,
    }
}

/// A run is resumed, but no checkpoint in `dir` can be used.
pub fn all_damaged(dir: &Path) -> Error {
    Error::new(ErrorKind::Io, "every checkpoint of the run is damaged")
        .in_file(dir)
        .hint("put one back from a copy, or begin anew in another `--output`")
}

/// No record gave a row.
pub fn nothing_to_train(totals: &LedgerTotals) -> Error {
    let reasons: Vec<String> =
        totals.dropped.iter().map(|(reason, count)| format!("`{count}` {reason}")).collect();
    Error::data(format!("no row to train: all were dropped ({})", reasons.join(", ")))
        .hint("raise `--max-seq-len`, or choose another policy with `--overlong`")
}

/// The gradient of a step with `rows` cannot be used; the newest checkpoint is of step `saved`.
pub fn not_finite(grad_norm: f64, rows: &[Row], saved: Option<u64>) -> Error {
    let places: Vec<String> = rows
        .iter()
        .take(4)
        .map(|row| format!("{}:{}", row.origin.path.display(), row.origin.line))
        .collect();
    let hint = match saved {
        Some(step) => {
            format!("lower `--learning-rate`; the checkpoint of step {step} is intact")
        }
        None => "lower `--learning-rate`, and look at these rows".into(),
    };
    Error::new(
        ErrorKind::Numeric,
        format!("the gradient norm is `{grad_norm}` in a step with the rows {}", places.join(", ")),
    )
    .hint(hint)
}
