//! What commands that generate will need, beforehand: at most, as no completion is longer than it may
//! be.

use std::path::{Path, PathBuf};

use halter_align::Prediction;
use halter_core::bundled;
use halter_core::memory::generation::{GenerationInput, GenerationPlan};
use halter_core::model::config::ModelConfig;

use crate::Command;

/// Of a command whose inputs are there; `None` where nothing can be said of it.
pub(super) fn of(command: &Command) -> anyhow::Result<Option<Prediction>> {
    let (model, load) = match command {
        Command::Sample(args) => args.load()?,
        Command::Eval(args) => args.load()?,
        Command::Generate(args) => args.load()?,
        _ => return Ok(None),
    };
    let name = model.model.as_deref().unwrap_or(bundled::MODEL);
    let folder = bundled::path(name)?.unwrap_or_else(|| PathBuf::from(name));
    // Of a .gguf file or a model on the hub nothing is read beforehand.
    let Ok(config) = ModelConfig::from_file(folder.join("config.json")) else { return Ok(None) };
    let plan = GenerationPlan::new(
        &config,
        GenerationInput {
            completions: load.completions,
            max_new_tokens: load.max_new_tokens,
            together: model.batch_size.into(),
            read: load.read,
            mean_prompt: load.read / load.prompts.max(1),
            weights: weights(&folder),
        },
    );
    let (peak_bytes, seconds) = (plan.peak_bytes, plan.seconds);
    Ok(Some(Prediction { peak_bytes, seconds, is_bound: load.completions > 0 }))
}

/// Bytes of the weights in a model's directory.
fn weights(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let weights = entries
        .filter(|entry| entry.path().extension().is_some_and(|ending| ending == "safetensors"));
    weights.filter_map(|entry| Some(entry.metadata().ok()?.len() as usize)).sum()
}
