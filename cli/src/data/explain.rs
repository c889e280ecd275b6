//! `halter data explain`: the tokens of rows, and which of them are trained.

use std::io::{self, IsTerminal, Write};
use std::num::NonZeroUsize;

use clap::ValueEnum;
use halter_core::Error;
use halter_core::data::explain::ExplainStyle;
use halter_core::data::ledger::Fate;
use halter_core::data::view::{self, Place};
use halter_core::text::encode::Overlong;

use super::{Rows, word};
use crate::{Context, progress};

/// Show the tokens of rows, and which of them are trained
///
/// Trained tokens are green; without colours they stand between ⟦ and ⟧. Fails if a row that is
/// shown cannot be used. With no --model and no --data, a bundled problem is shown. With --json,
/// each row is a line.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    rows: Rows,

    /// Begin with this row of the data set, from one
    #[arg(long, value_name = "N", conflicts_with = "line")]
    row: Option<NonZeroUsize>,

    /// Begin with the row on this line of the file, from one
    #[arg(long, value_name = "N")]
    line: Option<NonZeroUsize>,

    /// Show so many rows
    #[arg(long = "rows", value_name = "N", default_value = "1")]
    count: NonZeroUsize,

    /// Most tokens of a row
    #[arg(long, alias = "max_length", value_name = "TOKENS")]
    max_seq_len: Option<NonZeroUsize>,

    /// What becomes of longer rows
    #[arg(long, value_parser = word::<Overlong>(&["refuse", "drop", "truncate", "split"]),
          default_value = "refuse")]
    overlong: Overlong,

    /// Show the id of each token
    #[arg(long)]
    ids: bool,

    /// When to use colours; `auto`: on a terminal, unless NO_COLOR is set
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Color::Auto)]
    color: Color,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Color {
    Always,
    Auto,
    Never,
}

impl Color {
    fn is_on(self, is_terminal: bool, no_color: Option<&str>) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            // https://no-color.org: set and not empty.
            Self::Auto => is_terminal && no_color.is_none_or(str::is_empty),
        }
    }
}

/// Runs the subcommand.
pub fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut progress = progress::to_stderr();
    let source = args.rows.or_bundled(progress.as_mut());
    let mut encoder = source.encoder()?.ok_or_else(|| {
        Error::config("no model: expected `--model`, or `--init-from` with `--tokenizer`")
            .hint("tokens are the model's; `halter data inspect` does without one")
    })?;
    encoder.options.max_seq_len = args.max_seq_len.map(NonZeroUsize::get);
    encoder.options.overlong = args.overlong;
    let place = match (args.row, args.line) {
        (_, Some(line)) => Place::Line(line.get()),
        (row, None) => Place::Row(row.map_or(1, NonZeroUsize::get)),
    };
    let no_color = std::env::var("NO_COLOR").ok();
    let color = args.color.is_on(io::stdout().is_terminal(), no_color.as_deref());
    let style = ExplainStyle { color, ids: args.ids };
    let mut wrong = Ok(());
    for (name, set) in source.open()? {
        progress.note(&set.to_string());
        let rows = view::rows_at(&set, place, args.count.get())?;
        let (mut refused, count) = (0, rows.len());
        for row in rows {
            let explained = view::explain_row(&set, row, &encoder)?;
            refused += usize::from(explained.fate == Some(Fate::Refused));
            if !context.json {
                io::stdout().lock().write_all(explained.show(style).as_bytes())?;
            }
            context.print_json(&explained)?;
        }
        wrong = wrong.and(super::refused(refused, count, &name));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::Color;

    #[test]
    fn colours_are_for_terminals_unless_no_color_is_set_or_somebody_insists() {
        for (color, is_terminal, no_color, expected) in [
            (Color::Auto, true, None, true),
            (Color::Auto, true, Some(""), true),
            (Color::Auto, true, Some("1"), false),
            (Color::Auto, false, None, false),
            (Color::Always, false, Some("1"), true),
            (Color::Never, true, None, false),
        ] {
            assert_eq!(color.is_on(is_terminal, no_color), expected, "{color:?} {no_color:?}");
        }
    }
}
