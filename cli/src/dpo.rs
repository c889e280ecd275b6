//! `halter dpo`: preference optimisation.

use halter_dpo::Dpo;
use halter_dpo::config::DpoOptions;
use halter_dpo::loss::PairLosses;

use crate::Context;
use crate::train::{self, MethodArgs};

/// Train a model on pairs of completions: chosen and rejected
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    train: train::Args<DpoArgs>,
}

/// Its own flags.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DpoArgs {
    /// Loss, or a weighted sum of losses, as sigmoid:1,sft:0.2
    #[arg(long, alias = "loss_type", value_name = "LOSS", help_heading = "Preferences")]
    loss: Option<PairLosses>,
    /// How strongly the model is held to the reference
    #[arg(long, value_name = "BETA", help_heading = "Preferences")]
    beta: Option<f64>,
    /// Share of labels that are thought to be wrong
    #[arg(long, alias = "label_smoothing", value_name = "SHARE", help_heading = "Preferences")]
    label_smoothing: Option<f64>,
    /// Weight of the chosen completions' negative log-likelihood
    #[arg(long, alias = "rpo_alpha", value_name = "WEIGHT", help_heading = "Preferences")]
    nll_weight: Option<f64>,
    /// Leave special tokens (headers, ends of turns) out of the comparison
    #[arg(long, value_name = "BOOL", help_heading = "Preferences")]
    mask_formatting: Option<bool>,
    /// Weight of tokens beyond the length of the shorter completion (LD-DPO)
    #[arg(long, alias = "ld_alpha", value_name = "ALPHA", help_heading = "Preferences")]
    ld_alpha: Option<f64>,
    /// SimPO's margin
    #[arg(long, alias = "simpo_gamma", value_name = "GAMMA", help_heading = "Preferences")]
    simpo_gamma: Option<f64>,
    /// Weight of the NLL term of the loss `cpo`
    #[arg(long, alias = "cpo_alpha", value_name = "ALPHA", help_heading = "Preferences")]
    cpo_alpha: Option<f64>,
    /// Temperature of the loss `discopop`
    #[arg(long, alias = "discopop_tau", value_name = "TAU", help_heading = "Preferences")]
    discopop_tau: Option<f64>,
    /// Model whose log-probs are the reference (default: the policy before training)
    #[arg(long, value_name = "MODEL", help_heading = "Preferences")]
    ref_model: Option<String>,
    /// Count what the template puts after the end-of-turn token, as TRL does
    #[arg(long, help_heading = "Preferences")]
    train_on_trailing: bool,
}

impl MethodArgs for DpoArgs {
    type Options = DpoOptions;

    fn apply(self, options: &mut DpoOptions) {
        macro_rules! set {
            ($($field:ident),*) => { $( if let Some(value) = self.$field { options.$field = value; } )* };
        }
        set!(loss, beta, label_smoothing, nll_weight, mask_formatting, simpo_gamma, cpo_alpha);
        set!(discopop_tau);
        if self.ld_alpha.is_some() {
            options.ld_alpha = self.ld_alpha;
        }
        if self.ref_model.is_some() {
            options.ref_model = self.ref_model;
        }
        options.train_on_trailing |= self.train_on_trailing;
    }
}

/// Runs the subcommand.
pub fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    train::run::<DpoArgs, Dpo>(args.train, context)
}
