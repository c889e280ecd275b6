//! `halter report`: writes a run's `report.html` again.

use std::path::PathBuf;

use halter_core::train::report::Report;
use halter_core::train::run_dir::RunFiles;
use serde_json::json;

use crate::Context;
use crate::progress;

/// Write the report of a run again, from its metrics, ledger, summary and configuration
///
/// Works on a run that is finished, was interrupted, or is still going on.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run directory (the `--output` of the run)
    #[arg(value_name = "RUN_DIR")]
    run: PathBuf,

    /// Where to write the report [default: RUN_DIR/report.html]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs the subcommand.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let files = RunFiles::open(&args.run)?;
    let report = Report::from_run(&files)?;
    let output = args.output.clone().unwrap_or_else(|| files.report());
    report.write(&output)?;
    progress::to_stderr().note(&format!("report: {}", output.display()));
    context.print_json(&json!({ "report": output }))
}
