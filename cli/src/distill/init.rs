//! `halter distill init`: a student made of its teacher's blocks.

use halter_core::model::merge::refuse_occupied;
use halter_distill::init::{Blocks, keep_blocks};
use serde_json::json;

use super::shown;
use crate::export::{self, Export};
use crate::{Context, progress};

/// Make a student of some of a model's blocks, for `halter distill` to heal
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Teacher: a directory in Hugging Face's layout, a .gguf file, a hub id, or `bundled`
    #[arg(long, alias = "model")]
    teacher: String,
    /// Branch, tag or commit on the hub
    #[arg(long)]
    revision: Option<String>,
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    export: Export,
}

/// Which blocks stay.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// These blocks, counted from 0, as 0-9,20-29
    #[arg(long, value_name = "BLOCKS", value_parser = shown::<Blocks>)]
    keep_blocks: Option<Blocks>,
    /// All but every N-th
    #[arg(long, value_name = "N")]
    drop_every: Option<usize>,
    /// So many, evenly spread
    #[arg(long, value_name = "N")]
    num_blocks: Option<usize>,
}

impl Which {
    fn blocks(self) -> Blocks {
        match (self.keep_blocks, self.drop_every, self.num_blocks) {
            (Some(blocks), ..) => blocks,
            (None, Some(n), _) => Blocks::DropEvery(n),
            (None, None, count) => Blocks::Spread(count.unwrap_or(0)),
        }
    }
}

/// Runs the subcommand.
pub fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut progress = progress::to_stderr();
    // Before anything is fetched.
    let output = &args.export.output;
    refuse_occupied(output)?;
    let options = args.export.options()?;
    let teacher = export::open(&args.teacher, args.revision.as_deref())?;
    let blocks = args.which.blocks();
    let kept = blocks.of(teacher.config.num_hidden_layers)?;
    let files = keep_blocks(&teacher, &blocks, &options, output)?;
    progress.note(&format!(
        "student: {} ({} of {} blocks)",
        output.display(),
        kept.len(),
        teacher.config.num_hidden_layers
    ));
    context.print_json(&json!({ "output": output, "blocks": kept, "files": files }))
}
