//! `halter data profile`: a page about a data set, or about two side by side.

use std::path::{Path, PathBuf};

use halter_core::Error;
use halter_core::data::dataset::{DataOptions, Dataset};
use halter_core::data::format::{Columns, Format};
use halter_core::text::tokenizer::Tokenizer;
use halter_core::train::files::atomic_write;
use halter_core::train::progress::Progress;
use halter_core::train::source::{Source, SourceSpec};
use halter_core::{bundled, bundled::TRAIN};
use halter_synth::curate::bounds::open_tokenizer;
use halter_synth::curate::decontaminate::index::Index;
use halter_synth::profile::{self, Comparison, Lenses, Profile};
use serde::Serialize;

use crate::{Context, interrupt, progress};

/// Words of an n-gram by which rows of evaluations are found.
const NGRAM: usize = 8;
/// Words that an evaluation row needs to be looked for.
const MIN_WORDS: usize = 5;

/// Write a page about a data set: lengths, languages, duplicates, vocabulary, topics, secrets
///
/// With --against, two data sets side by side. With a model or a tokenizer, tokens are counted as
/// well. With no --data, the bundled problems are shown. With --json, the figures are printed. Rows
/// that cannot be read are counted and named; the rest is shown all the same.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Data set: file, directory or hub id
    #[arg(long, alias = "dataset_name", value_name = "DATA")]
    data: Option<String>,

    /// Another data set, shown beside it
    #[arg(long, value_name = "DATA", requires = "data")]
    against: Option<String>,

    /// File of evaluation rows that should not be in the data; repeatable
    #[arg(long, value_name = "FILE")]
    eval_data: Vec<PathBuf>,

    /// Column of these that holds what is asked; repeatable
    #[arg(long, value_name = "COLUMN", requires = "eval_data")]
    eval_column: Vec<String>,

    /// Share of an evaluation row's words in shared 8-grams from which on it counts as found
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    overlap: f64,

    /// Where the page is written
    #[arg(long, value_name = "FILE", default_value = "profile.html")]
    output: PathBuf,

    /// Format of the rows, where it is not to be detected
    #[arg(long)]
    format: Option<String>,

    /// Rename a column: wanted=own, e.g. prompt=question; repeatable
    #[arg(long, value_name = "WANTED=OWN")]
    column: Vec<String>,

    /// Model whose tokenizer counts tokens: a directory, a .gguf file, or a hub id
    #[arg(long, alias = "model_name_or_path")]
    model: Option<String>,

    /// Branch, tag or commit of the model on the hub
    #[arg(long, requires = "model")]
    revision: Option<String>,

    /// Tokenizer instead of a model's: a directory or a tokenizer.json
    #[arg(long, value_name = "DIR|FILE")]
    tokenizer: Option<PathBuf>,
}

#[derive(Serialize)]
struct Outcome<'a> {
    output: &'a Path,
    profiles: &'a [Profile],
    #[serde(skip_serializing_if = "Option::is_none")]
    comparison: Option<&'a Comparison>,
}

/// Runs the subcommand.
pub fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut progress = progress::to_stderr();
    if !(args.overlap > 0.0 && args.overlap <= 1.0) {
        let told = format!("`overlap` is `{}`: expected above 0 and at most 1", args.overlap);
        return Err(Error::config(told).into());
    }
    let sets = args.open(progress.as_mut())?;
    let tokenizer = args.tokenizer()?;
    let index = match args.eval_data.is_empty() {
        true => None,
        false => Some(Index::open(&args.eval_data, &args.eval_column, NGRAM, MIN_WORDS)?),
    };
    let lenses = Lenses {
        tokenizer: tokenizer.as_ref(),
        evaluation: index.as_ref().map(|index| (index, args.overlap)),
    };
    let interrupt = interrupt::on_ctrl_c()?;
    let (profiles, comparison) = profile::profile(&sets, lenses, progress.as_mut(), &interrupt)?;
    let page = profile::render(&profiles, comparison.as_ref())?;
    atomic_write(&args.output, page.as_bytes())?;
    progress.note(&format!("profile: {}", args.output.display()));
    context.print_json(&Outcome {
        output: &args.output,
        profiles: &profiles,
        comparison: comparison.as_ref(),
    })
}

impl Args {
    /// Opens the data sets, and says what they are.
    fn open(&self, progress: &mut dyn Progress) -> anyhow::Result<Vec<Dataset>> {
        let format = self.format.as_deref().map(str::parse::<Format>).transpose()?;
        let options = DataOptions { format, columns: Columns::parse(&self.column)? };
        if self.data.is_none() {
            progress.note("no --data: the bundled problems");
        }
        let first = self.data.as_deref().unwrap_or(TRAIN);
        let mut sets = Vec::new();
        for name in [Some(first), self.against.as_deref()].into_iter().flatten() {
            let set = Dataset::open(name, &options)?;
            progress.note(&set.to_string());
            sets.push(set);
        }
        Ok(sets)
    }

    fn tokenizer(&self) -> anyhow::Result<Option<Tokenizer>> {
        match (&self.model, &self.tokenizer) {
            (Some(_), _) => {
                let spec = SourceSpec {
                    model: self.model.clone(),
                    revision: self.revision.clone(),
                    tokenizer: self.tokenizer.clone(),
                    ..SourceSpec::default()
                };
                Ok(Some(Source::open(&spec)?.tokenizer))
            }
            (None, Some(path)) => {
                let bundled = bundled::path(&path.to_string_lossy())?;
                Ok(Some(open_tokenizer(bundled.as_deref().unwrap_or(path))?))
            }
            (None, None) => Ok(None),
        }
    }
}
