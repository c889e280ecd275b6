//! `halter dpo`: preference optimisation.

use std::path::PathBuf;

use halter_dpo::config::DpoOptions;
use halter_dpo::loss::Losses;
use halter_dpo::{Dpo, Kto};

use crate::Context;
use crate::train::{self, MethodArgs};

/// Train a model on preferences: pairs of completions, or single ones with a verdict
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    train: train::Args<DpoArgs>,
}

/// Its own flags.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DpoArgs {
    /// Loss, or a weighted sum of losses, as sigmoid:1,sft:0.2; kto and apo_zero_unpaired are of
    /// single completions
    #[arg(
        long,
        alias = "loss_type",
        value_name = "LOSS",
        value_parser = losses,
        help_heading = "Preferences"
    )]
    loss: Option<Losses>,
    /// How strongly the model is held to the reference
    #[arg(long, value_name = "BETA", help_heading = "Preferences")]
    beta: Option<f64>,
    /// Share of labels that are thought to be wrong
    #[arg(long, alias = "label_smoothing", value_name = "SHARE", help_heading = "Preferences")]
    label_smoothing: Option<f64>,
    /// Weight of the chosen (desirable) completions' negative log-likelihood (default: 0.2, or 0 where
    /// the loss holds it: sft, cpo, orpo)
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
    /// Take the reference's log-probs before the first step, and do not hold it while training
    #[arg(long, alias = "precompute_ref_log_probs", help_heading = "Preferences")]
    precompute_ref_log_probs: bool,
    /// File that keeps them, also for other runs (default: in the run directory)
    #[arg(long, value_name = "FILE", help_heading = "Preferences")]
    ref_log_probs: Option<PathBuf>,
    /// Move the reference towards the model while it is trained (TR-DPO)
    #[arg(long, alias = "sync_ref_model", help_heading = "Preferences")]
    sync_ref_model: bool,
    /// The model's share in the new reference
    #[arg(
        long,
        alias = "ref_model_mixup_alpha",
        value_name = "ALPHA",
        help_heading = "Preferences"
    )]
    ref_model_mixup_alpha: Option<f64>,
    /// Steps between two moves of the reference
    #[arg(long, alias = "ref_model_sync_steps", value_name = "N", help_heading = "Preferences")]
    ref_model_sync_steps: Option<u64>,
    /// Weight of desirable completions in kto
    #[arg(long, alias = "desirable_weight", value_name = "WEIGHT", help_heading = "Preferences")]
    desirable_weight: Option<f64>,
    /// Weight of undesirable completions in kto
    #[arg(long, alias = "undesirable_weight", value_name = "WEIGHT", help_heading = "Preferences")]
    undesirable_weight: Option<f64>,
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
        set!(loss, beta, label_smoothing, mask_formatting, simpo_gamma, cpo_alpha);
        set!(discopop_tau, ref_model_mixup_alpha, ref_model_sync_steps);
        set!(desirable_weight, undesirable_weight);
        if self.nll_weight.is_some() {
            options.nll_weight = self.nll_weight;
        }
        if self.ld_alpha.is_some() {
            options.ld_alpha = self.ld_alpha;
        }
        if self.ref_model.is_some() {
            options.ref_model = self.ref_model;
        }
        if self.ref_log_probs.is_some() {
            options.ref_log_probs = self.ref_log_probs;
        }
        options.precompute_ref_log_probs |= self.precompute_ref_log_probs;
        options.sync_ref_model |= self.sync_ref_model;
        options.train_on_trailing |= self.train_on_trailing;
    }
}

/// clap shows an error without its hint.
fn losses(text: &str) -> Result<Losses, String> {
    text.parse().map_err(|error: halter_core::Error| match error.remedy() {
        Some(hint) => format!("{error} ({hint})"),
        None => error.to_string(),
    })
}

/// Runs the subcommand.
pub fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let run = args.train.resolve()?;
    match run.config.method.loss {
        Losses::Pairs(_) => train::start::<Dpo>(run, context),
        Losses::Unpaired(_) => train::start::<Kto>(run, context),
    }
}
