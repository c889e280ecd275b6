//! `halter distill`: a student learns from a teacher.

mod bundled;
mod capture;
mod init;

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Subcommand, ValueEnum};
use halter_distill::Distill;
use halter_distill::config::{DistillOptions, DivergenceKind};
use halter_distill::cross::CrossTokenizer;
use halter_distill::inside::{InsideDistance, LayerMap};
use halter_sft::config::SftOptions;

use crate::align::predict::Work;
use crate::data::word;
use crate::sft::SftArgs;
use crate::train::{self, MethodArgs};
use crate::{Context, progress};

/// Train a model to predict what a teacher predicts
///
/// With no --model and no --data, some blocks of the bundled tiny model learn from the whole of it.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: train::Args<DistillArgs>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(Box<init::Args>),
    Capture(Box<capture::Args>),
}

/// A value from its text; clap shows an error without its hint.
fn shown<T: FromStr<Err = halter_core::Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: halter_core::Error| match error.remedy() {
        Some(hint) => format!("{error} ({hint})"),
        None => error.to_string(),
    })
}

/// Its own flags.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DistillArgs {
    /// Model to learn from: a directory in Hugging Face's layout, a .gguf file, or a hub id
    #[arg(long, alias = "teacher_model_name_or_path", help_heading = "Distillation")]
    teacher: Option<String>,
    /// What a teacher said before, instead of one: a file of `halter distill capture`
    #[arg(long, value_name = "FILE", help_heading = "Distillation")]
    teacher_logps: Option<PathBuf>,
    /// Distance from the teacher's distribution
    #[arg(long, value_enum, help_heading = "Distillation")]
    divergence: Option<DivergenceArg>,
    /// Teacher's share in the mixture of jsd
    #[arg(long, value_name = "BETA", help_heading = "Distillation")]
    beta: Option<f64>,
    /// Logits of both are divided by it before they are compared
    #[arg(long, help_heading = "Distillation")]
    temperature: Option<f64>,
    /// Weight of the divergence
    #[arg(long, value_name = "WEIGHT", help_heading = "Distillation")]
    divergence_weight: Option<f64>,
    /// Weight of the cross-entropy of the rows' own tokens
    #[arg(long, value_name = "WEIGHT", help_heading = "Distillation")]
    ce_weight: Option<f64>,
    /// Compare with the teacher's K likeliest tokens, and all others together
    #[arg(long, value_name = "K", help_heading = "Distillation")]
    teacher_top_k: Option<usize>,
    /// How a teacher that reads other tokens is compared with, in texts
    #[arg(long, value_enum, value_name = "HOW", help_heading = "Distillation")]
    cross_tokenizer: Option<CrossArg>,
    /// Weight of the distance between the streams behind the blocks
    #[arg(long, value_name = "WEIGHT", help_heading = "Distillation")]
    hidden_weight: Option<f64>,
    /// Weight of the distance between what attention adds to the streams
    #[arg(long, value_name = "WEIGHT", help_heading = "Distillation")]
    attention_weight: Option<f64>,
    /// How far streams are apart
    #[arg(long, value_parser = word::<InsideDistance>(&["cosine", "mse"]), help_heading = "Distillation")]
    hidden_distance: Option<InsideDistance>,
    /// Which blocks are compared, the student's first, as 0:1,9:14
    #[arg(long, value_name = "MAP", value_parser = shown::<LayerMap>, help_heading = "Distillation")]
    layer_map: Option<LayerMap>,
    /// Share of the rows whose completion the student writes itself (GKD)
    #[arg(long, alias = "lmbda", value_name = "SHARE", help_heading = "Distillation")]
    on_policy_fraction: Option<f64>,
    /// Let the teacher write the completions of the other rows
    #[arg(long, alias = "seq_kd", help_heading = "Distillation")]
    teacher_completions: bool,
    /// Temperature at which completions are written
    #[arg(long, value_name = "T", help_heading = "Distillation")]
    sampling_temperature: Option<f64>,
    /// Most tokens of a completion that is written
    #[arg(
        long,
        alias = "max_completion_length",
        value_name = "TOKENS",
        help_heading = "Distillation"
    )]
    max_completion_tokens: Option<usize>,
    #[command(flatten)]
    rows: SftArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CrossArg {
    /// Sorted probabilities where a token of both begins
    Uld,
    /// Probabilities of the stretches between
    Alm,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum DivergenceArg {
    ForwardKl,
    ReverseKl,
    Jsd,
    Tv,
    Minillm,
}

impl MethodArgs for DistillArgs {
    type Options = DistillOptions;

    fn apply(self, options: &mut DistillOptions) {
        macro_rules! set {
            ($($field:ident),*) => { $( if let Some(value) = self.$field { options.$field = value; } )* };
        }
        set!(beta, temperature, divergence_weight, ce_weight);
        set!(hidden_weight, attention_weight, hidden_distance);
        set!(on_policy_fraction, sampling_temperature, max_completion_tokens);
        options.teacher_completions |= self.teacher_completions;
        if let Some(divergence) = self.divergence {
            options.divergence = match divergence {
                DivergenceArg::ForwardKl => DivergenceKind::ForwardKl,
                DivergenceArg::ReverseKl => DivergenceKind::ReverseKl,
                DivergenceArg::Jsd => DivergenceKind::Jsd,
                DivergenceArg::Tv => DivergenceKind::Tv,
                DivergenceArg::Minillm => DivergenceKind::Minillm,
            };
        }
        if let Some(cross) = self.cross_tokenizer {
            options.cross_tokenizer = Some(match cross {
                CrossArg::Uld => CrossTokenizer::Uld,
                CrossArg::Alm => CrossTokenizer::Alm,
            });
        }
        // A file takes the place of a recipe's teacher.
        if self.teacher_logps.is_some() {
            options.teacher = None;
        }
        if self.teacher.is_some() {
            options.teacher = self.teacher;
        }
        if self.teacher_logps.is_some() {
            options.teacher_logps = self.teacher_logps;
        }
        if self.layer_map.is_some() {
            options.layer_map = self.layer_map;
        }
        if self.teacher_top_k.is_some() {
            options.teacher_top_k = self.teacher_top_k;
        }
        let mut rows = SftOptions {
            mask: options.mask,
            train_on_trailing: options.train_on_trailing,
            completion_only_loss: options.completion_only_loss,
        };
        self.rows.apply(&mut rows);
        options.mask = rows.mask;
        options.train_on_trailing = rows.train_on_trailing;
        options.completion_only_loss = rows.completion_only_loss;
    }
}

impl Args {
    /// What is done in place of training; `None` where nothing can be said of it.
    pub fn work(&self) -> anyhow::Result<Option<Work>> {
        match &self.command {
            None => Ok(None),
            Some(Command::Init(args)) => args.work().map(Some),
            Some(Command::Capture(args)) => args.work(),
        }
    }
}

/// Runs the subcommand.
pub fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    match args.command {
        None => {
            let is_bundled = args.train.names_nothing() && !args.train.resumes();
            let run = args.train.resolve()?;
            if is_bundled {
                bundled::prepare(&run.config, progress::to_stderr().as_mut())?;
            }
            train::start::<Distill>(run, context)
        }
        Some(Command::Init(args)) => init::run(*args, context),
        Some(Command::Capture(args)) => capture::run(*args, context),
    }
}
