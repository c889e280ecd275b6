//! `halter data inspect`: what a data set holds.

use std::io::{self, Write};

use halter_core::data::inspect::Inspection;
use halter_core::data::view;
use serde::Serialize;

use super::Rows;
use crate::{Context, progress};

/// Count rows, lengths, duplicates, scripts and what is trained
///
/// With a model, rows are counted in its tokens and held to the rules of `halter sft`; without
/// one, in characters. With no --model and no --data, the bundled problems are shown. Fails if a
/// row cannot be used. With --json, each data set is a line.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    rows: Rows,

    /// Count rows longer than this
    #[arg(long, alias = "max_length", value_name = "TOKENS")]
    max_seq_len: Option<usize>,
}

#[derive(Serialize)]
struct Outcome<'a> {
    format: &'a str,
    #[serde(flatten)]
    inspection: &'a Inspection,
}

/// Runs the subcommand.
pub fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut progress = progress::to_stderr();
    let rows = args.rows.or_bundled(progress.as_mut());
    let (encoder, sets) = (rows.encoder()?, rows.open()?);
    let several = sets.len() > 1;
    let mut wrong = Ok(());
    for (index, (name, set)) in sets.into_iter().enumerate() {
        progress.note(&set.to_string());
        let format = set.format();
        if encoder.is_some() && !view::is_for_sft(format) {
            progress.note(&format!(
                "{name}: rows of `{format}` are not for `halter sft`: no tokens are counted"
            ));
        }
        let limit = args.max_seq_len;
        let inspection = view::inspect(set, &name, encoder.clone(), limit, progress.as_mut())?;
        if !context.json {
            let mut out = io::stdout().lock();
            if several && index > 0 {
                writeln!(out)?;
            }
            write!(out, "{inspection}")?;
        }
        context.print_json(&Outcome { format: format.name(), inspection: &inspection })?;
        wrong = wrong.and(super::refused(inspection.refused, inspection.rows, &name));
    }
    wrong
}
