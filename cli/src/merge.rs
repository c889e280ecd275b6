//! `halter merge`: a base and its adapter, or several models, as one model.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use halter_core::Error;
use halter_core::model::merge::{self, Weighted, merge_models, refuse_occupied};
use halter_core::model::weights::ModelFiles;
use halter_core::model::weights::adapter::Adapter;
use halter_core::train::progress::Progress;
use serde_json::{Value, json};

use crate::export::{self, Export};
use crate::{Context, progress};

/// Add a LoRA adapter to its base, or average models, and export the result as one model
///
/// The export loads in transformers as it is. It is read again and compared before it is called
/// done; one matrix (of every model) is in memory at a time.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Base of the adapter: a directory in Hugging Face's layout, a .gguf file, a hub id, or
    /// `bundled`. With --method: one of the models, with its weight behind a colon; repeat for each
    #[arg(long, alias = "model_name_or_path", required = true, value_name = "MODEL[:WEIGHT]")]
    model: Vec<String>,

    /// Branch, tag or commit of the adapter's base on the hub
    #[arg(long, conflicts_with = "Models")]
    revision: Option<String>,

    #[command(flatten)]
    what: What,

    #[command(flatten)]
    settings: Settings,

    #[command(flatten)]
    export: Export,
}

/// What is merged.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// PEFT adapter: a directory with adapter_config.json and adapter_model.safetensors
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,

    /// How several models become one
    #[arg(long, value_enum, group = "Models")]
    method: Option<Method>,

    /// Short for --method average
    #[arg(long, group = "Models")]
    average: bool,
}

/// See [`merge::Method`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Method {
    /// The mean
    Average,
    /// The weighted mean
    Linear,
    /// Two models, along the arc between them
    Slerp,
    /// Changes of a base, trimmed, where they agree in sign
    Ties,
    /// Changes of a base, a random share of them rescaled
    DareLinear,
    /// The same, where they agree in sign
    DareTies,
}

impl Method {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().into())
    }

    /// Options of [`Settings`] that the method has.
    fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Average | Self::Linear => &[],
            Self::Slerp => &["t"],
            Self::Ties => &["base", "density"],
            Self::DareLinear | Self::DareTies => &["base", "density", "seed"],
        }
    }
}

/// Settings of the methods.
#[derive(Debug, clap::Args)]
#[group(skip)]
struct Settings {
    /// What the models were trained from, for ties and dare_*
    #[arg(long, value_name = "MODEL", conflicts_with = "adapter")]
    base: Option<String>,

    /// How far from the first model to the second, for slerp [default: 0.5]
    #[arg(long, conflicts_with = "adapter")]
    t: Option<f64>,

    /// Share of the changes that stays, for ties and dare_* [default: 0.5]
    #[arg(long, value_name = "SHARE", conflicts_with = "adapter")]
    density: Option<f64>,

    /// Decides which changes stay, for dare_* [default: 0]
    #[arg(long, conflicts_with = "adapter")]
    seed: Option<u64>,
}

impl Settings {
    /// The method of the library; `base` is what `--base` names.
    fn of<'a>(
        &self,
        method: Method,
        base: Option<&'a ModelFiles>,
    ) -> Result<merge::Method<'a>, Error> {
        let base = || {
            base.ok_or_else(|| {
                Error::config(format!("`{}` needs `--base`", method.name()))
                    .hint("give what the models were trained from")
            })
        };
        let (density, seed) = (self.density.unwrap_or(0.5), self.seed.unwrap_or(0));
        let dare = |elect| Ok(merge::Method::Dare { base: base()?, density, seed, elect });
        match method {
            Method::Average | Method::Linear => Ok(merge::Method::Linear),
            Method::Slerp => Ok(merge::Method::Slerp { t: self.t.unwrap_or(0.5) }),
            Method::Ties => Ok(merge::Method::Ties { base: base()?, density }),
            Method::DareLinear => dare(false),
            Method::DareTies => dare(true),
        }
    }

    /// Refuses what the method has no use for.
    fn check(&self, method: Method) -> Result<(), Error> {
        let given = [
            ("base", self.base.is_some()),
            ("t", self.t.is_some()),
            ("density", self.density.is_some()),
            ("seed", self.seed.is_some()),
        ];
        let other = |&(name, given): &(&str, bool)| given && !method.settings().contains(&name);
        match given.into_iter().find(other) {
            None => Ok(()),
            Some((name, _)) => {
                let message = format!("`{}` has no `--{name}`", method.name());
                Err(Error::config(message).hint(format!("leave out `--{name}`")))
            }
        }
    }
}

impl Args {
    /// The models that are read.
    pub fn models(&self) -> Vec<String> {
        let models = self.model.iter().map(|spec| split_weight(spec).0.to_string());
        models.chain(self.settings.base.clone()).collect()
    }
}

/// Runs the subcommand.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let mut progress = progress::to_stderr();
    // Before anything is fetched.
    refuse_occupied(&args.export.output)?;
    let outcome = match (&args.what.adapter, args.what.method) {
        (Some(adapter), _) => merge_adapter(args, adapter, progress.as_mut())?,
        (None, method) => {
            merge_several(args, method.unwrap_or(Method::Average), progress.as_mut())?
        }
    };
    progress.note(&format!(
        "export: {} ({} parameters, {}), read again and equal",
        args.export.output.display(),
        outcome["parameters"],
        args.export.export_dtype
    ));
    context.print_json(&outcome)
}

/// Returns what was written, for programs.
fn merge_adapter(
    args: &Args,
    adapter: &Path,
    progress: &mut dyn Progress,
) -> anyhow::Result<Value> {
    let [model] = args.model.as_slice() else {
        let message = format!("`{}` models are given: an adapter has one base", args.model.len());
        return Err(Error::config(message).hint("give one `--model`").into());
    };
    let options = args.export.options()?;
    let base = export::open(model, args.revision.as_deref())?;
    let adapter = Adapter::open(adapter, &base.config)?;
    progress.note(&format!("base: {model}"));
    progress.note(&format!("adapter: {}", describe(&adapter)));
    let merged = merge::merge(&base, &adapter, options.dtype, &args.export.output, progress)?;
    Ok(json!({
        "output": args.export.output,
        "parameters": merged.parameters,
        "merged_matrices": merged.matrices,
        "export_dtype": args.export.export_dtype,
        "files": merged.files,
    }))
}

/// Returns what was written, for programs.
fn merge_several(
    args: &Args,
    method: Method,
    progress: &mut dyn Progress,
) -> anyhow::Result<Value> {
    args.settings.check(method)?;
    let options = args.export.options()?;
    let base = args.settings.base.as_deref().map(|base| export::open(base, None)).transpose()?;
    let how = args.settings.of(method, base.as_ref())?;
    let (mut models, mut told) = (Vec::new(), Vec::new());
    for spec in &args.model {
        let (path, weight) = split_weight(spec);
        if method == Method::Average && weight.is_some() {
            return Err(Error::config(format!("`average` takes no weights: `{spec}` has one"))
                .hint("use `--method linear`")
                .into());
        }
        let weight = weight.unwrap_or(1.0);
        models.push(Weighted { files: export::open(path, None)?, weight });
        progress.note(&format!("model: {path}, weight {weight}"));
        told.push(json!({ "model": path, "weight": weight }));
    }
    if let Some(base) = &args.settings.base {
        progress.note(&format!("base: {base}"));
    }
    let written = merge_models(&models, &how, options.dtype, &args.export.output, progress)?;
    Ok(json!({
        "output": args.export.output,
        "parameters": written.parameters,
        "method": method.name(),
        "models": told,
        "export_dtype": args.export.export_dtype,
        "files": written.files,
    }))
}

/// `PATH:WEIGHT` taken apart. What is on disk goes by its whole name.
fn split_weight(spec: &str) -> (&str, Option<f64>) {
    let weighted = || {
        let (path, weight) = spec.rsplit_once(':')?;
        Some((path, weight.parse().ok()?))
    };
    match weighted() {
        Some((path, weight)) if !Path::new(spec).exists() => (path, Some(weight)),
        _ => (spec, None),
    }
}

/// What the adapter says of itself, its base above all: shapes cannot tell two models of one
/// architecture apart.
fn describe(adapter: &Adapter) -> String {
    let config = &adapter.config;
    let matrices = adapter.factors.len();
    let made_for = match &config.base_model {
        Some(base) => format!(", made for `{base}`"),
        None => String::new(),
    };
    format!("rank {}, alpha {} on {matrices} matrices{made_for}", config.rank, config.alpha)
}
