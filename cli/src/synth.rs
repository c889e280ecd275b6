//! `halter synth`.

use std::path::{Path, PathBuf};

use halter_core::train::progress::counted;
use halter_core::{Error, ErrorKind};
use halter_synth::Pipeline;
use halter_synth::pipeline::Runner;
use serde_json::json;

use crate::{Context, interrupt, progress};

/// What runs where no pipeline is named.
const BUNDLED: &str = include_str!("../../examples/synth/bundled.toml");

/// Generate and curate rows by teachers, as a pipeline says
///
/// Every step writes a file that the next one reads; what was made before is not made again. The
/// rows of the last step are in rows.jsonl. With no pipeline, the bundled model solves bundled
/// problems, and what is right is kept.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pipeline, a TOML file (docs/reference/synth.md)
    #[arg(value_name = "PIPELINE")]
    pipeline: Option<PathBuf>,
    /// Directory of the results
    #[arg(long, value_name = "DIR", default_value = "runs/synth")]
    output: PathBuf,
    /// Directory of the teachers' answers, which pipelines can share (default: teachers in --output)
    #[arg(long, value_name = "DIR")]
    answers: Option<PathBuf>,
    /// Another seed than the pipeline's
    #[arg(long)]
    seed: Option<u64>,
    /// A value in place of the pipeline's: teachers.NAME.KEY=VALUE or STEP.KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Run this step and those after it again
    #[arg(long, value_name = "STEP")]
    from: Option<String>,
    /// Run no step after this one
    #[arg(long, value_name = "STEP")]
    until: Option<String>,
    /// Print the plan, ask nobody
    #[arg(long)]
    dry_run: bool,
}

/// Runs the subcommand.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let mut progress = progress::to_stderr();
    let mut pipeline = match &args.pipeline {
        Some(path) => Pipeline::open(path, &args.set)?,
        None => {
            progress.note("no pipeline: the bundled one, on the bundled tiny model");
            Pipeline::parse(Path::new("bundled.toml"), BUNDLED, &args.set)?
        }
    };
    pipeline.seed = args.seed.unwrap_or(pipeline.seed);
    let place = |name: &Option<String>| name.as_ref().map(|n| pipeline.position(n)).transpose();
    let (from, until) = (place(&args.from)?, place(&args.until)?);
    if let (Some(first), Some(last)) = (from, until)
        && first > last
    {
        let error = Error::config("`--from` names a step after that of `--until`");
        return Err(error.into());
    }
    let interrupt = interrupt::on_ctrl_c()?;
    let answers = args.answers.clone().unwrap_or_else(|| args.output.join("teachers"));
    let mut runner = Runner {
        pipeline: &pipeline,
        output: &args.output,
        answers: &answers,
        from,
        until,
        progress: progress.as_mut(),
        interrupt: &interrupt,
    };
    if args.dry_run {
        let plan = runner.plan()?;
        for step in &plan {
            let told = |number: Option<usize>, noun| match number {
                Some(number) => counted(number, noun),
                None => format!("? {noun}s"),
            };
            let done = if step.done { ", done" } else { "" };
            let (rows, questions) = (told(step.rows, "row"), told(step.questions, "question"));
            let line = format!("{} ({}): {rows}, {questions}{done}", step.step, step.kind);
            runner.progress.note(&line);
        }
        return context.print_json(&json!({ "plan": plan }));
    }
    let summary = runner.run().map_err(goes_on)?;
    for (name, spent) in &summary.spent {
        progress.note(&format!("{name}: {} requests, {} tokens", spent.requests, spent.tokens));
    }
    let mut unanswered = 0;
    for told in summary.steps.iter().filter(|told| told.made.unanswered() > 0) {
        let questions = counted(told.made.unanswered() as usize, "question");
        progress.note(&format!("{}: {questions} without an answer", told.step));
        unanswered += told.made.unanswered() as usize;
    }
    let rows = counted(summary.rows, "row");
    progress.note(&format!("{rows}: {}", summary.rows_file.display()));
    progress.note(&format!("report: {}", args.output.join("report.html").display()));
    context.print_json(&summary)?;
    match unanswered {
        0 => Ok(()),
        _ => {
            let message = format!("{} without an answer", counted(unanswered, "question"));
            let error = Error::new(ErrorKind::Network, message);
            Err(error.hint("the same command asks them again, and no others").into())
        }
    }
}

/// What was made stays: the same command goes on.
fn goes_on(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Interrupted | ErrorKind::Io if error.remedy().is_none() => {
            error.hint("the same command goes on where this one stopped")
        }
        _ => error,
    }
}
