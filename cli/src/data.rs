//! `halter data`: looks at data sets before they are trained on.

pub mod explain;
pub mod inspect;
pub mod profile;

use std::path::PathBuf;
use std::str::FromStr;

use clap::Subcommand;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use halter_core::data::dataset::{DataOptions, DataSpec, Dataset};
use halter_core::data::format::{Columns, Format};
use halter_core::data::view::Encoder;
use halter_core::text::encode::EncodeOptions;
use halter_core::text::mask::MaskPolicy;
use halter_core::train::progress::{Progress, counted};
use halter_core::train::source::{Source, SourceSpec};
use halter_core::{Error, ErrorKind, bundled};
use serde::de::{DeserializeOwned, IntoDeserializer, value};

use crate::Context;

/// Look at data before training on it
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(inspect::Args),
    Explain(explain::Args),
    Profile(profile::Args),
}

/// Runs the subcommand.
pub fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    match args.command {
        Command::Inspect(args) => inspect::run(args, context),
        Command::Explain(args) => explain::run(args, context),
        Command::Profile(args) => profile::run(args, context),
    }
}

/// Which rows, and how they become tokens; the names are those of `halter sft`.
#[derive(Debug, clap::Args)]
pub struct Rows {
    /// Data set: file, directory or hub id; repeatable
    #[arg(long, alias = "dataset_name", value_name = "DATA")]
    data: Vec<String>,

    /// Format of the rows, where it is not to be detected
    #[arg(long)]
    format: Option<String>,

    /// Rename a column: wanted=own, e.g. prompt=question; repeatable
    #[arg(long, value_name = "WANTED=OWN")]
    column: Vec<String>,

    /// Model whose tokenizer and template are used: a directory, a .gguf file, or a hub id
    #[arg(long, alias = "model_name_or_path")]
    model: Option<String>,

    /// Branch, tag or commit on the hub
    #[arg(long)]
    revision: Option<String>,

    /// A config.json instead of a model; needs --tokenizer
    #[arg(long, value_name = "FILE")]
    init_from: Option<PathBuf>,

    /// Tokenizer and chat template from this directory, or tokenizer.json, instead of the model's
    /// own
    #[arg(long, value_name = "DIR|FILE")]
    tokenizer: Option<PathBuf>,

    /// Chat template (Jinja) instead of the model's own
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,

    /// Which assistant turns are trained
    #[arg(long, value_parser = word::<MaskPolicy>(&["all", "last"]), default_value = "all")]
    mask: MaskPolicy,

    /// Train what the template puts after the end-of-turn token
    #[arg(long)]
    train_on_trailing: bool,

    /// In prompt/completion rows, train the prompt as well
    #[arg(long)]
    train_on_prompt: bool,

    /// Let special tokens written in the data become special tokens
    #[arg(long)]
    allow_special_text: bool,
}

impl Rows {
    /// Puts the bundled model and data where nothing was named, and says so.
    pub(crate) fn or_bundled(mut self, progress: &mut dyn Progress) -> Self {
        if self.data.is_empty() && self.model.is_none() && self.init_from.is_none() {
            progress.note("no --model and no --data: the bundled tiny model and problems");
            self.model = Some(bundled::MODEL.into());
            self.data = vec![bundled::TRAIN.into()];
        }
        self
    }

    /// Opens the data sets; each with the name that the user gave it.
    pub(crate) fn open(&self) -> anyhow::Result<Vec<(String, Dataset)>> {
        if self.data.is_empty() {
            return Err(Error::config("no data: expected at least one `--data`").into());
        }
        let format = self.format.as_deref().map(Format::from_str).transpose()?;
        let options = DataOptions { format, columns: Columns::parse(&self.column)? };
        let open = |text: &String| {
            // A weight is of no consequence here: every row is looked at once.
            let spec = DataSpec::from_str(text)?;
            let set = Dataset::open(&spec.path, &options)?;
            anyhow::Ok((spec.path, set))
        };
        self.data.iter().map(open).collect()
    }

    /// The encoder of the model, where one was named.
    fn encoder(&self) -> anyhow::Result<Option<Encoder>> {
        if self.model.is_none() && self.init_from.is_none() {
            return Ok(None);
        }
        let source = Source::open(&self.source())?;
        Ok(Some(self.encoder_of(&source)))
    }

    /// The model that was named.
    pub(crate) fn source(&self) -> SourceSpec {
        SourceSpec {
            model: self.model.clone(),
            revision: self.revision.clone(),
            init_from: self.init_from.clone(),
            tokenizer: self.tokenizer.clone(),
            chat_template: self.chat_template.clone(),
            ..SourceSpec::default()
        }
    }

    /// The encoder of a model.
    pub(crate) fn encoder_of(&self, source: &Source) -> Encoder {
        let options = EncodeOptions {
            mask: self.mask,
            train_on_trailing: self.train_on_trailing,
            completion_only_loss: !self.train_on_prompt,
            allow_special_text: self.allow_special_text,
            ..EncodeOptions::default()
        };
        Encoder::new(source, options)
    }
}

/// Parses a word of a configuration as its file would have it.
pub(crate) fn word<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word| {
        T::deserialize(word.as_str().into_deserializer()) as Result<T, value::Error>
    })
}

/// A look at data that must not be trained on as it is fails, so that a script can rely on it.
fn refused(count: usize, rows: usize, name: &str) -> anyhow::Result<()> {
    match count {
        0 => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Data,
            format!("{count} of {} cannot be used", counted(rows, "row")),
        )
        .in_file(name)
        .hint("a run would stop at the first of them")
        .into()),
    }
}
