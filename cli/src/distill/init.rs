//! `halter distill init`: a student made of its teacher's blocks.

use std::str::FromStr;

use halter_core::data::dataset::{DataOptions, DataSpec, Dataset};
use halter_core::data::pack::packed;
use halter_core::data::view::Encoder;
use halter_core::model::Base;
use halter_core::model::config::ModelConfig;
use halter_core::model::merge::refuse_occupied;
use halter_core::model::weights::ModelFiles;
use halter_core::text::encode::EncodeOptions;
use halter_core::train::progress::{Progress, Unit};
use halter_core::train::source::{Source, SourceSpec};
use halter_core::{Error, device};
use halter_distill::init::{Blocks, keep_blocks};
use halter_distill::narrow::{Narrowed, Widths};
use serde_json::json;

use super::shown;
use crate::align::predict::{Reading, Work};
use crate::answering::tokens_of;
use crate::export::{self, Export};
use crate::{Context, interrupt, progress};

/// Make a student of some of a model's blocks, or a narrower one, for `halter distill` to heal
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
    /// Width of the student's stream; needs --data
    #[arg(long, value_name = "N")]
    hidden_size: Option<usize>,
    /// Width of its feed-forward layers; needs --data
    #[arg(long, value_name = "N")]
    intermediate_size: Option<usize>,
    /// Its key and value heads, each with its query heads; needs --data
    #[arg(long, value_name = "N")]
    num_key_value_heads: Option<usize>,
    /// Rows on which the teacher shows what it can do without; repeatable
    #[arg(long, alias = "dataset_name", value_name = "DATA")]
    data: Vec<String>,
    /// Most rows of them
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_rows: usize,
    #[command(flatten)]
    export: Export,
}

/// Which blocks stay.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
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
    fn blocks(&self) -> Blocks {
        match (self.keep_blocks.clone(), self.drop_every, self.num_blocks) {
            (Some(blocks), ..) => blocks,
            (None, Some(n), _) => Blocks::DropEvery(n),
            (None, None, Some(count)) => Blocks::Spread(count),
            (None, None, None) => Blocks::All,
        }
    }
}

impl Args {
    /// What it will do; of a narrower student, what the teacher reads takes longest.
    pub fn work(&self) -> anyhow::Result<Work> {
        let (mut tokens, mut rows) = (0, 0);
        for name in &self.data {
            let set = Dataset::open(&DataSpec::from_str(name)?.path, &DataOptions::default())?;
            tokens += tokens_of(set.len(), |row| set.row(row))?;
            rows += set.len();
        }
        if rows == 0 {
            return Ok(Work::Copy(vec![self.teacher.clone()]));
        }
        Ok(Work::Read(Reading {
            models: vec![self.teacher.clone()],
            tokens: tokens * self.max_rows.min(rows) / rows,
            together: MICROBATCH_TOKENS,
            ceiling: None,
            kept: 0,
        }))
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
    let widths = Widths {
        hidden_size: args.hidden_size,
        intermediate_size: args.intermediate_size,
        num_key_value_heads: args.num_key_value_heads,
    };
    widths.check(&teacher.config)?;
    if !widths.are_given() && matches!(blocks, Blocks::All) {
        return Err(Error::config("the student would be its teacher").hint(
            "say which blocks stay (`--keep-blocks`, `--drop-every`, `--num-blocks`), or how wide \
             it is (`--hidden-size`, `--intermediate-size`, `--num-key-value-heads`)",
        )
        .into());
    }
    if widths.are_given() == args.data.is_empty() {
        let message = match args.data.is_empty() {
            true => "no data: what the teacher can do without is seen on some rows",
            false => "`data` has no effect where the student is as wide as its teacher",
        };
        return Err(Error::config(message).hint("give `--data` with a width, or neither").into());
    }
    let kept = blocks.of(teacher.config.num_hidden_layers)?;
    let narrowed = match widths.are_given() {
        true => Some(narrowed(&args, widths, &teacher, progress.as_mut())?),
        false => None,
    };
    let files = keep_blocks(&teacher, &blocks, narrowed.as_ref(), &options, output)?;
    let student = ModelConfig::from_file(output.join("config.json"))?;
    let parameters = |config: &ModelConfig| -> usize {
        config.params().iter().map(|param| param.shape.iter().product::<usize>()).sum()
    };
    progress.note(&format!(
        "student: {} ({} of {} blocks, {} of {} parameters)",
        output.display(),
        kept.len(),
        teacher.config.num_hidden_layers,
        parameters(&student),
        parameters(&teacher.config)
    ));
    context.print_json(&json!({
        "output": output,
        "blocks": kept,
        "parameters": parameters(&student),
        "files": files,
    }))
}

/// What stays of the teacher's width, by what goes through it on rows of data.
fn narrowed(
    args: &Args,
    widths: Widths,
    teacher: &ModelFiles,
    progress: &mut dyn Progress,
) -> anyhow::Result<Narrowed> {
    let interrupt = interrupt::on_ctrl_c()?;
    let spec = SourceSpec {
        model: Some(args.teacher.clone()),
        revision: args.revision.clone(),
        ..SourceSpec::default()
    };
    let mut source = Source::open(&spec)?;
    let encoder = Encoder::new(&source, EncodeOptions::default());
    let mut rows = Vec::new();
    for name in &args.data {
        let set = Dataset::open(&DataSpec::from_str(name)?.path, &DataOptions::default())?;
        for at in 0..set.len() {
            if rows.len() >= args.max_rows {
                break;
            }
            let found = encoder.rows(&set.origin(at), &set.record(at)?)?;
            rows.extend(found.into_kept().unwrap_or_default());
        }
    }
    let batches = packed(&rows, MICROBATCH_TOKENS).collect::<Result<Vec<_>, _>>()?;
    if batches.is_empty() {
        return Err(Error::data("no row shows what the teacher can do without").into());
    }
    let model = source.decoder(Base::Frozen, &device::open("cpu")?, 0)?;
    progress.begin("weighing", batches.len() as u64, Unit::Items);
    let importance = model.importance(&batches, |done| {
        progress.advance(done as u64, "");
        interrupt.check()
    });
    progress.finish();
    Ok(Narrowed::new(&teacher.config, &importance?, widths))
}

/// Tokens that go through the teacher at once.
const MICROBATCH_TOKENS: usize = 1024;
