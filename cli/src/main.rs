//! The `halter` command: arguments, one call of a library, and how its outcome is told.

mod align;
mod answering;
mod chat;
mod data;
mod distill;
mod dpo;
mod drift;
mod eval;
mod export;
mod failure;
mod generate;
mod interrupt;
mod logging;
mod merge;
mod plan;
mod progress;
mod report;
mod reward;
mod sample;
mod serve;
mod sft;
mod synth;
mod train;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;

use failure::Failure;

/// Post-training alignment for Llama-family models.
#[derive(Debug, Parser)]
#[command(name = "halter", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Print a machine-readable summary on stdout
    #[arg(long, global = true)]
    json: bool,

    /// Use no wider vector instructions than these: to compare with older machines
    #[arg(long, global = true, hide = true, env = "HALTER_ISA", value_enum)]
    isa: Option<Isa>,
}

/// See [`halter_core::ops::Isa`].
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Isa {
    Avx2,
    Avx512,
}

/// One file for each subcommand.
#[derive(Debug, Subcommand)]
enum Command {
    Sft(Box<sft::Args>),
    Dpo(Box<dpo::Args>),
    Distill(Box<distill::Args>),
    Reward(Box<reward::Args>),
    Align(align::Args),
    Plan(Box<plan::Args>),
    Report(report::Args),
    Merge(Box<merge::Args>),
    Data(data::Args),
    Sample(Box<sample::Args>),
    Synth(Box<synth::Args>),
    Eval(Box<eval::Args>),
    Generate(Box<generate::Args>),
    Chat(Box<chat::Args>),
    Serve(Box<serve::Args>),
    #[command(hide = true)]
    Drift(Box<drift::Args>),
}

/// What every subcommand is given beside its own arguments.
struct Context {
    json: bool,
}

impl Context {
    /// Prints the outcome for programs, where `--json` asks for it.
    fn print_json(&self, outcome: &impl Serialize) -> anyhow::Result<()> {
        if self.json {
            let mut stdout = io::stdout().lock();
            serde_json::to_writer(&mut stdout, outcome)?;
            writeln!(stdout)?;
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = Context { json: cli.json };
    let limit = match cli.isa {
        Some(Isa::Avx2) => halter_core::ops::Isa::Avx2,
        Some(Isa::Avx512) | None => halter_core::ops::Isa::Best,
    };
    limit.set_limit();
    let outcome = logging::start().and_then(|()| match cli.command {
        Command::Sft(args) => sft::run(*args, &context),
        Command::Dpo(args) => dpo::run(*args, &context),
        Command::Distill(args) => distill::run(*args, &context),
        Command::Reward(args) => reward::run(*args, &context),
        Command::Align(args) => align::run(&args, &context),
        Command::Plan(args) => plan::run(*args, &context),
        Command::Report(args) => report::run(&args, &context),
        Command::Merge(args) => merge::run(&args, &context),
        Command::Data(args) => data::run(args, &context),
        Command::Sample(args) => sample::run(*args, &context),
        Command::Synth(args) => synth::run(&args, &context),
        Command::Eval(args) => eval::run(*args, &context),
        Command::Generate(args) => generate::run(*args, &context),
        Command::Chat(args) => chat::run(&args, &context),
        Command::Serve(args) => serve::run(&args, &context),
        Command::Drift(args) => drift::run(&args, &context),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = Failure::of(&error);
            // A failure that cannot be told is a failure all the same.
            let _ = failure.print(&context);
            ExitCode::from(failure.exit_code())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_well_formed() {
        super::Cli::command().debug_assert();
    }
}
