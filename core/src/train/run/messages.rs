//! What a run says: lines to watch it by, and its errors.

use std::path::Path;

use crate::data::ledger::LedgerTotals;
use crate::data::record::Origin;
use crate::train::method::TrainRow;
use crate::train::metrics::StepMetrics;
use crate::{Error, ErrorKind};

use super::evaluation::Answers;

/// The figures of a step.
pub fn describe(line: &StepMetrics) -> String {
    let [loss, grad_norm, speed] =
        [line.loss, line.grad_norm, line.tokens_per_second].map(Option::unwrap_or_default);
    format!("loss {loss:.4} · grad norm {grad_norm:.3} · {speed:.0} tokens/s")
}

/// How the model does `before` or `after` training.
pub fn report_evaluation(
    when: &str,
    loss: Option<f64>,
    told: &[(&str, f64)],
    answers: &Answers,
) -> String {
    let mut line = format!("evaluation {when} training:");
    if let Some(loss) = loss {
        line += &format!(" loss {loss:.4}");
    }
    for (key, value) in told {
        line += &format!(", {} {value:.4}", key.replace('_', " "));
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

/// What can be done about numbers in a step over `rows`, after `steps` updates, that are not
/// finite. A resumed run keeps its learning rate and comes to the same numbers again.
pub fn with_remedy(error: Error, steps: u64, rows: &[impl TrainRow]) -> Error {
    if error.kind() != ErrorKind::Numeric {
        return error;
    }
    let origins = rows.iter().map(TrainRow::origin);
    let place = |origin: &Origin| format!("{}:{}", origin.path.display(), origin.line);
    let mut places = origins.take(4).map(place).collect::<Vec<_>>().join(", ");
    if rows.len() > 4 {
        places += ", …";
    }
    error.hint(match steps {
        0 => format!("no update was made yet: look at the model, and at the step's rows {places}"),
        _ => format!(
            "begin anew in another `--output` with a lower `--learning-rate`, or look at the \
             step's rows {places}"
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::data::record::Row;

    use super::*;

    #[test]
    fn the_remedy_names_the_rows_and_the_learning_rate_once_it_can_be_the_cause() {
        let path = Arc::new("a.jsonl".into());
        let row = |line| Row {
            origin: Origin { path: Arc::clone(&path), line },
            input_ids: Vec::new(),
            completion_mask: Vec::new(),
            prompt_is_prefix: true,
        };
        let rows: Vec<Row> = (1..=5).map(row).collect();
        let hint = |kind, steps, rows: &[Row]| {
            let error = Error::new(kind, "the loss is `NaN`").hint("as it was");
            with_remedy(error, steps, rows).remedy().map(str::to_string).unwrap_or_default()
        };
        let first = hint(ErrorKind::Numeric, 0, &rows);
        assert!(first.ends_with("rows a.jsonl:1, a.jsonl:2, a.jsonl:3, a.jsonl:4, …"), "{first}");
        assert!(!first.contains("--learning-rate"), "{first}");
        let later = hint(ErrorKind::Numeric, 1, &rows[3..]);
        assert!(later.contains("in another `--output` with a lower `--learning-rate`"), "{later}");
        assert!(later.ends_with("rows a.jsonl:4, a.jsonl:5"), "{later}");
        assert_eq!(hint(ErrorKind::Data, 1, &rows), "as it was");
    }
}
