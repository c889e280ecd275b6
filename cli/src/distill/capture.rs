//! `halter distill capture`: what a teacher says, kept for its students.

use std::path::PathBuf;

use halter_core::memory::plan::gigabytes;
use halter_core::memory::system::peak_memory;
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
    /// Leave the model in its file, and read it block by block for as many rows as fit under this
    /// much memory, as 300MB or 48GB
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    memory_ceiling: Option<usize>,
    /// File that is written
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// A number of bytes: `300MB`, `1.5GB`, `2GiB`.
fn bytes(text: &str) -> Result<usize, String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "mb" => 1e6,
        "gb" => 1e9,
        "mib" => 1_048_576.0,
        "gib" => 1_073_741_824.0,
        _ => return Err("expected a number with MB, GB, MiB or GiB".into()),
    };
    match number.parse::<f64>() {
        Ok(number) => Ok((number * unit) as usize),
        Err(_) => Err("expected a number with MB, GB, MiB or GiB".into()),
    }
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
        memory_ceiling: args.memory_ceiling,
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
    if let (Some(ceiling), Some(peak)) = (args.memory_ceiling, peak_memory()) {
        let (peak, ceiling) = (gigabytes(peak), gigabytes(ceiling));
        progress.note(&format!("memory: at most {peak} under a ceiling of {ceiling}"));
    }
    context.print_json(&found)
}
