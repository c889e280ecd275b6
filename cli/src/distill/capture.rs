//! `halter distill capture`: what a teacher says, kept for its students.

use std::path::PathBuf;

use halter_core::text::encode::Overlong;
use halter_core::train::source::Source;
use halter_distill::capture::{CaptureOptions, capture};

use crate::data::{Rows, word};
use crate::{Context, interrupt, progress};

/// Keep what a model says of the rows of data sets, for `--teacher-logps`
///
/// A file that is there already is continued.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    rows: Rows,
    /// Most tokens of a row
    #[arg(long, alias = "max_length", value_name = "TOKENS", default_value_t = 1024)]
    max_seq_len: usize,
    /// What becomes of longer rows
    #[arg(long, value_parser = word::<Overlong>(&["refuse", "truncate", "split", "drop"]), default_value = "refuse")]
    overlong: Overlong,
    /// Likeliest tokens that are kept of each position
    #[arg(long, value_name = "K", default_value_t = 64)]
    top_k: usize,
    /// Logits are divided by it first
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Most tokens that go through the model at once
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    microbatch_tokens: usize,
    /// File that is written
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// Runs the subcommand.
pub fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut progress = progress::to_stderr();
    let interrupt = interrupt::on_ctrl_c()?;
    let rows = args.rows.or_bundled(progress.as_mut());
    let sets: Vec<_> = rows.open()?.into_iter().map(|(_, set)| set).collect();
    let mut source = Source::open(&rows.source())?;
    let mut encoder = rows.encoder_of(&source);
    encoder.options.max_seq_len = Some(args.max_seq_len);
    encoder.options.overlong = args.overlong;
    let options = CaptureOptions {
        top_k: args.top_k,
        temperature: args.temperature,
        microbatch_tokens: args.microbatch_tokens,
    };
    let found = capture(
        &mut source,
        &encoder,
        &sets,
        &args.output,
        options,
        progress.as_mut(),
        &interrupt,
    )?;
    progress.note(&format!(
        "{}: {} rows, {} taken now with {} positions of {} bytes; {} records left out",
        args.output.display(),
        found.rows,
        found.taken,
        found.positions,
        found.bytes_per_position,
        found.left_out
    ));
    if found.positions > 0 {
        progress.note(&format!(
            "mean mass of the other tokens {:.4}; KL by rounding {:.1e}",
            found.rest_mass, found.rounding_kl
        ));
    }
    context.print_json(&found)
}
