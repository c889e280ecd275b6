//! `halter sft`: supervised fine-tuning.

use clap::ValueEnum;
use halter_core::text::mask::MaskPolicy;
use halter_sft::Sft;
use halter_sft::config::SftOptions;

use crate::Context;
use crate::train::{self, MethodArgs};

/// Fine-tune a model on conversations, prompts with completions, or text
///
/// With no --model and no --data, the bundled tiny model is trained on the bundled problems.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    train: train::Args<SftArgs>,
}

/// Its own flags.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SftArgs {
    /// Which assistant turns are trained
    #[arg(long, value_enum, help_heading = "Training")]
    mask: Option<MaskArg>,
    /// Train what the template puts after the end-of-turn token
    #[arg(long, help_heading = "Training")]
    train_on_trailing: bool,
    /// In prompt/completion rows, train the prompt as well
    #[arg(long, help_heading = "Training")]
    train_on_prompt: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MaskArg {
    All,
    Last,
}

impl MethodArgs for SftArgs {
    type Options = SftOptions;

    fn apply(self, options: &mut SftOptions) {
        if let Some(mask) = self.mask {
            options.mask = match mask {
                MaskArg::All => MaskPolicy::All,
                MaskArg::Last => MaskPolicy::Last,
            };
        }
        options.train_on_trailing |= self.train_on_trailing;
        options.completion_only_loss &= !self.train_on_prompt;
    }
}

/// Runs the subcommand.
pub fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    train::run::<SftArgs, Sft>(args.train, context)
}
