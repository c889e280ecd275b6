//! `halter merge`: a base and its adapter as one model.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use halter_core::model::merge::{merge, refuse_occupied};
use halter_core::model::weights::adapter::Adapter;
use halter_core::model::weights::{HubOptions, ModelFiles};
use halter_core::{Error, bundled};
use serde_json::json;

use crate::{Context, progress};

/// Add a LoRA adapter to its base and export the result as one model
///
/// The export loads in transformers as it is. It is read again and compared before it is called
/// done; one matrix is in memory at a time.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Base: a directory in Hugging Face's layout, a .gguf file, a hub id, or `bundled`
    #[arg(long, alias = "model_name_or_path")]
    model: String,

    /// Branch, tag or commit of the base on the hub
    #[arg(long)]
    revision: Option<String>,

    /// PEFT adapter: a directory with adapter_config.json and adapter_model.safetensors
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,

    /// Where to write the export: a directory that is not there, or is empty
    #[arg(long, alias = "output_dir", value_name = "DIR")]
    output: PathBuf,

    /// Type of the exported weights
    #[arg(long, value_name = "TYPE", default_value = "f32",
          value_parser = PossibleValuesParser::new(["f32", "bf16", "f16"]))]
    export_dtype: String,
}

/// Runs the subcommand.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let mut progress = progress::to_stderr();
    // Before anything is fetched.
    refuse_occupied(&args.output)?;
    let dtype = args
        .export_dtype
        .parse()
        .map_err(|error| Error::config("the type of the export is not known").because(error))?;
    let hub = HubOptions { revision: args.revision.clone(), ..HubOptions::default() };
    let bundled = bundled::path(&args.model)?.map(|path| path.display().to_string());
    let base = ModelFiles::open(bundled.as_ref().unwrap_or(&args.model), &hub)?;
    let adapter = Adapter::open(&args.adapter, &base.config)?;
    progress.note(&format!("base: {}", args.model));
    progress.note(&format!("adapter: {}", describe(&adapter)));
    let merged = merge(&base, &adapter, dtype, &args.output, progress.as_mut())?;
    progress.note(&format!(
        "export: {} ({} parameters, {}), read again and equal",
        args.output.display(),
        merged.parameters,
        args.export_dtype
    ));
    context.print_json(&json!({
        "output": args.output,
        "parameters": merged.parameters,
        "merged_matrices": merged.matrices,
        "export_dtype": args.export_dtype,
        "files": merged.files,
    }))
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
