//! What this binary's commands say of the stages of a recipe.

use clap::{CommandFactory, Parser};
use halter_align::inputs::Checksums;
use halter_align::kind::{Form, Kind};
use halter_align::recipe::{Recipe, Stage, nearest};
use halter_align::{Commands, Prediction, run::flags};
use halter_core::train::config::{Config, MethodOptions};
use halter_core::train::method::Method;
use halter_core::train::progress::Silent;
use halter_core::train::run::Prepared;
use halter_core::train::run_dir::Start;
use halter_core::{Error, Result};
use halter_distill::Distill;
use halter_distill::config::DistillOptions;
use halter_dpo::config::DpoOptions;
use halter_dpo::loss::Losses;
use halter_dpo::{Dpo, Kto};
use halter_rejection_sampling::Reward;
use halter_sft::Sft;
use halter_sft::config::SftOptions;

use super::predict;
use crate::Cli;

/// The commands of this binary.
pub struct Binary {
    /// Whether it takes the time to predict.
    pub predicts: bool,
}

type RewardOptions = <Reward as Method>::Options;

impl Commands for Binary {
    fn version(&self, checksums: &mut Checksums) -> Result<String> {
        let program = std::env::current_exe()
            .map_err(|error| Error::config("cannot tell where this program is").because(error))?;
        checksums.of(&program)
    }

    fn check(&self, stage: &Stage, recipe: &Recipe) -> Result<()> {
        let (text, path) = (&stage.alone, &recipe.path);
        match (stage.kind.form, stage.kind.name) {
            (Form::Flags, _) => check_flags(stage, recipe),
            (_, "sft") => Config::<SftOptions>::from_toml(text, path).map(drop),
            (_, "dpo") => Config::<DpoOptions>::from_toml(text, path).map(drop),
            (_, "reward") => Config::<RewardOptions>::from_toml(text, path).map(drop),
            _ => Config::<DistillOptions>::from_toml(text, path).map(drop),
        }
    }

    fn predict(
        &self,
        kind: &Kind,
        options: &toml::Table,
        is_there: bool,
    ) -> Result<Option<Prediction>> {
        let is_there = is_there && self.predicts;
        match (kind.form, kind.name) {
            (Form::Flags, _) => match parse(kind, options)? {
                Some(cli) if is_there => predict::of(&cli.command).map_err(told),
                _ => Ok(None),
            },
            (_, "sft") => of_training::<Sft>(&config(options)?, is_there),
            (_, "reward") => of_training::<Reward>(&config(options)?, is_there),
            (_, "dpo") => {
                let config = config::<DpoOptions>(options)?;
                match config.method.loss {
                    Losses::Pairs(_) => of_training::<Dpo>(&config, is_there),
                    Losses::Unpaired(_) => of_training::<Kto>(&config, is_there),
                }
            }
            _ => of_training::<Distill>(&config(options)?, is_there),
        }
    }
}

fn config<O: MethodOptions>(options: &toml::Table) -> Result<Config<O>> {
    let text = toml::to_string(options)
        .map_err(|error| Error::config("options that are not TOML").because(error))?;
    Config::from_toml(&text, std::path::Path::new("options"))
}

fn of_training<M: Method>(
    config: &Config<M::Options>,
    is_there: bool,
) -> Result<Option<Prediction>> {
    config.validate()?;
    if !is_there {
        return Ok(None);
    }
    let prepared = Prepared::<M>::new(config, Start::Fresh, &mut Silent)?;
    Ok(Some(Prediction {
        peak_bytes: prepared.plan.peak_bytes(),
        seconds: prepared.plan.seconds_per_step * prepared.total_steps as f64,
        is_bound: false,
        writes: None,
    }))
}

/// The command of a kind; `None` where this build leaves it out, which it says itself once it is run.
fn command(kind: &Kind) -> Option<clap::Command> {
    let whole = Cli::command();
    let mut command = &whole;
    for word in kind.name.split(' ') {
        command = command.find_subcommand(word)?;
    }
    Some(command.clone())
}

/// Whether every key is an option of the command.
fn check_flags(stage: &Stage, recipe: &Recipe) -> Result<()> {
    let Some(command) = command(stage.kind) else { return Ok(()) };
    let mut keys: Vec<String> = command
        .get_arguments()
        .filter(|argument| !argument.is_hide_set())
        .filter_map(|argument| argument.get_long())
        .map(|long| long.replace('-', "_"))
        .collect();
    keys.extend(stage.kind.positional.map(str::to_string));
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    for key in stage.options.keys() {
        if !keys.contains(&key.as_str()) {
            let name = stage.kind.name;
            let error = Error::config(format!("`halter {name}` has no option `{key}`"))
                .at(&recipe.path, stage.line_of(key));
            return Err(match nearest(key, &keys) {
                Some(near) => error.hint(format!("did you mean `{near}`?")),
                None => error.hint(format!(
                    "its options are what `halter {name} --help` lists, with `_` for `-`"
                )),
            });
        }
    }
    Ok(())
}

/// What a command says of its data, as this crate's error.
fn told(error: anyhow::Error) -> Error {
    error.downcast().unwrap_or_else(|other| Error::data(format!("{other:#}")))
}

/// The command with these options, if it takes them.
fn parse(kind: &Kind, options: &toml::Table) -> Result<Option<Cli>> {
    if command(kind).is_none() {
        return Ok(None);
    }
    let words = ["halter"].into_iter().chain(kind.name.split(' ')).map(str::to_string);
    let rest = flags(kind, options).into_iter();
    let output = ["--output".to_string(), "output".to_string()];
    match Cli::try_parse_from(words.chain(rest).chain(output)) {
        Ok(cli) => Ok(Some(cli)),
        Err(error) => {
            let text = error.to_string();
            let told = text.lines().take_while(|line| !line.trim().is_empty());
            let told: Vec<&str> = told.map(str::trim).collect();
            let told = told.join(" ").replace('\'', "`");
            Err(Error::config(told.trim_start_matches("error: ").to_string())
                .hint(format!("see `halter {} --help`", kind.name)))
        }
    }
}
