//! `halter align`: a recipe of stages as one run.

mod child;
mod commands;
pub mod predict;

use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use halter_align::cache::Check;
use halter_align::plan::{Plan, Status};
use halter_align::recipe::{self, Recipe};
use halter_core::{Error, ErrorKind};
use serde_json::{Value, json};

use crate::{Context, interrupt, progress};
use child::Children;
use commands::Binary;

/// How long another run is waited for that is just ending.
const PATIENCE: Duration = Duration::from_secs(10);

/// Run a recipe: stages over rounds, each done once
///
/// A recipe (TOML) says which commands make up a round and what each is made from; see
/// docs/guide/align.md. What is done is kept by its contents and not done again, so an interrupted or
/// changed recipe goes on by the same command. With no RECIPE, the bundled model and data go through
/// one round of everything.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Recipe file (TOML)
    #[arg(value_name = "RECIPE")]
    recipe: Option<PathBuf>,
    /// Directory of everything, instead of the recipe's
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Model that everything begins with, instead of the recipe's
    #[arg(long)]
    model: Option<String>,
    /// Rounds, instead of the recipe's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Seed of the first round, instead of the recipe's
    #[arg(long)]
    seed: Option<u32>,
    /// Show the stages, which of them are done, and what the others will need; run nothing
    #[arg(long)]
    dry_run: bool,
    /// Read all outputs of stages that are done, and not only the small ones
    #[arg(long)]
    verify: bool,
}

/// Runs the subcommand.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let mut progress = progress::to_stderr();
    let recipe = open(args, progress.as_mut())?;
    let check = if args.verify { Check::Full } else { Check::Quick };
    let binary = Binary { predicts: args.dry_run };
    if args.dry_run {
        let plan = Plan::new(recipe, &binary, check)?;
        if !context.json {
            std::io::stdout().lock().write_all(plan.table().as_bytes())?;
        }
        return context.print_json(&shown(&plan));
    }
    let lock = lock(&recipe.output)?;
    let mut plan = Plan::new(recipe, &binary, check)?;
    let interrupt = interrupt::on_ctrl_c()?;
    let mut children = Children::new(lock)?;
    let outcome = halter_align::run::run(&mut plan, &mut children, progress.as_mut(), &interrupt)?;
    if let Some(model) = &outcome.model {
        progress.note(&format!("model: {}", model.display()));
    }
    progress.note(&format!("report: {}", outcome.report.display()));
    context.print_json(&outcome)
}

/// The recipe, with what the arguments say instead.
fn open(
    args: &Args,
    progress: &mut dyn halter_core::train::progress::Progress,
) -> anyhow::Result<Recipe> {
    let (text, path) = match &args.recipe {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Error::config(format!("cannot read the recipe: {error}")).in_file(path)
            })?;
            (text, path.as_path())
        }
        None => {
            let (text, path) = recipe::BUNDLED;
            progress.note(&format!("no recipe: {path}, which is part of the program"));
            (text.to_string(), Path::new(path))
        }
    };
    let mut recipe = Recipe::parse(&text, path)?;
    if let Some(output) = &args.output {
        recipe.output.clone_from(output);
    }
    if let Some(model) = &args.model {
        recipe.model.clone_from(model);
    }
    if let Some(seed) = args.seed {
        recipe.seed = seed.into();
    }
    if let Some(rounds) = args.rounds {
        recipe.set_rounds(rounds.into());
    }
    Ok(recipe)
}

/// Nobody else may run stages in `output`. The lock goes to the children as well, and lasts as long
/// as one of them does.
fn lock(output: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(output).map_err(|error| Error::io("create", output, error))?;
    let path = output.join(".lock");
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|error| Error::io("write", &path, error))?;
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if began.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(ErrorKind::Io, "another process runs stages there")
                    .in_file(output)
                    .hint("wait until it is through, or choose another `--output`")
                    .into());
            }
            // A file system without locks.
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
                return Ok(file);
            }
            Err(TryLockError::Error(error)) => {
                return Err(Error::io("lock", &path, error).into());
            }
        }
    }
}

/// The plan, for programs.
fn shown(plan: &Plan) -> Value {
    let each = plan.graph.nodes.iter().zip(&plan.steps);
    let stages = each.map(|(node, step)| {
        let prediction = step.expected.figures();
        json!({
            "round": node.round,
            "name": node.name,
            "kind": node.kind.name,
            "key": step.key,
            "directory": step.directory,
            "done": matches!(step.status, Status::Done(_)),
            "missing": step.missing.iter().map(|(path, _)| path).collect::<Vec<_>>(),
            "seconds": prediction.map(|(seconds, _)| seconds),
            "peak_bytes": prediction.and_then(|(_, bytes)| bytes),
            "disk_bytes": step.disk.map(|(bytes, _)| bytes),
        })
    });
    json!({ "output": plan.recipe.output, "left": plan.left(), "stages": stages.collect::<Vec<_>>() })
}
