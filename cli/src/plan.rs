//! `halter plan`: predicts memory and time of a run without running it.

use std::io::Write;

use clap::Subcommand;
use halter_core::memory::plan::gigabytes;
use halter_core::train::config::Config;
use halter_core::train::method::Method;
use halter_core::train::progress::counted;
use halter_core::train::run::Prepared;
use halter_core::train::run_dir::Start;
use halter_distill::Distill;
use halter_dpo::loss::Losses;
use halter_dpo::{Dpo, Kto};
use halter_rejection_sampling::Reward;
use halter_sft::Sft;
use serde_json::json;

use crate::distill::DistillArgs;
use crate::dpo::DpoArgs;
use crate::reward::RewardArgs;
use crate::sft::SftArgs;
use crate::train::Options;
use crate::{Context, progress};

/// Predict peak memory and time of a run: of `halter sft`, or of the command that comes next
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    sft: Options<SftArgs>,
}

/// The command that is planned, with its options.
#[derive(Debug, Subcommand)]
enum Command {
    /// Supervised fine-tuning
    Sft(Box<Options<SftArgs>>),
    /// Preference optimisation
    Dpo(Box<Options<DpoArgs>>),
    /// Distillation
    Distill(Box<Options<DistillArgs>>),
    /// A reward model
    Reward(Box<Options<RewardArgs>>),
}

/// Runs the subcommand.
pub fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    match args.command {
        None => plan::<Sft>(&args.sft.resolve()?, context),
        Some(Command::Sft(options)) => plan::<Sft>(&options.resolve()?, context),
        Some(Command::Dpo(options)) => {
            let config = options.resolve()?;
            match config.method.loss {
                Losses::Pairs(_) => plan::<Dpo>(&config, context),
                Losses::Unpaired(_) => plan::<Kto>(&config, context),
            }
        }
        Some(Command::Distill(options)) => plan::<Distill>(&options.resolve()?, context),
        Some(Command::Reward(options)) => plan::<Reward>(&options.resolve()?, context),
    }
}

fn plan<M: Method>(config: &Config<M::Options>, context: &Context) -> anyhow::Result<()> {
    let mut progress = progress::to_stderr();
    let prepared = Prepared::<M>::new(config, Start::Fresh, progress.as_mut())?;
    prepared.introduce(progress.as_mut());
    let plan = &prepared.plan;
    if !context.json {
        let mut out = std::io::stdout().lock();
        for (name, bytes) in &plan.parts {
            writeln!(out, "{name:<24}{:>10}", gigabytes(*bytes))?;
        }
        writeln!(out, "{:<24}{:>10}", "peak", gigabytes(plan.peak_bytes()))?;
        if let Some(available) = plan.available {
            writeln!(out, "{:<24}{:>10}", "available", gigabytes(available))?;
        }
        writeln!(out, "{:<24}{:>8.2} s", "step", plan.seconds_per_step)?;
        let hours = plan.seconds_per_step * prepared.total_steps as f64 / 3600.0;
        writeln!(out, "{:<24}{hours:>8.2} h", counted(prepared.total_steps as usize, "step"))?;
    }
    context.print_json(&json!({
        "steps": prepared.total_steps,
        "seconds_per_step": plan.seconds_per_step,
        "peak_bytes": plan.peak_bytes(),
        "available_bytes": plan.available,
        "microbatch_tokens": plan.microbatch_tokens,
        "keep_blocks": plan.keep_blocks,
        "parts": plan.parts.iter().map(|(name, bytes)| json!({ "name": name, "bytes": bytes })).collect::<Vec<_>>(),
    }))?;
    Ok(plan.check()?)
}
