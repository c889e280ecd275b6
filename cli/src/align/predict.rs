//! What commands that generate will need, beforehand: at most, as no completion is longer than it may
//! be.

use std::path::PathBuf;

use halter_align::Prediction;
use halter_core::bundled;
use halter_core::memory::generation::{GenerationInput, GenerationPlan};
use halter_core::model::config::ModelConfig;
use halter_rejection_sampling::reward::model::BATCH_TOKENS;

use crate::Command;

/// Of a command whose inputs are there; `None` where nothing can be said of it.
pub(super) fn of(command: &Command) -> anyhow::Result<Option<Prediction>> {
    let ((model, load), scorers) = match command {
        Command::Sample(args) => (args.load()?, args.reward_models()?),
        Command::Eval(args) => (args.load()?, Vec::new()),
        Command::Generate(args) => (args.load()?, Vec::new()),
        _ => return Ok(None),
    };
    let Some((config, bytes)) = weights(model.model.as_deref().unwrap_or(bundled::MODEL))? else {
        return Ok(None);
    };
    let mean_prompt = load.read / load.prompts.max(1);
    let mut plan = GenerationPlan::new(
        &config,
        GenerationInput {
            completions: load.completions,
            max_new_tokens: load.max_new_tokens,
            together: model.batch_size.into(),
            read: load.read,
            mean_prompt,
            weights: bytes,
        },
    );
    // Completions of one prompt stand next to one another and share it.
    let scored = load.read + load.completions * load.max_new_tokens;
    for scorer in scorers {
        let Some((config, bytes)) = weights(&scorer)? else { return Ok(None) };
        plan = plan.with_reader(&config, scored, BATCH_TOKENS, bytes);
    }
    let (peak_bytes, seconds) = (plan.peak_bytes, plan.seconds);
    Ok(Some(Prediction { peak_bytes, seconds, is_bound: load.completions > 0 }))
}

/// A model's shape and the bytes of its weights; `None` of a .gguf file or a model on the hub, of
/// which nothing is read beforehand.
fn weights(model: &str) -> anyhow::Result<Option<(ModelConfig, usize)>> {
    let folder = bundled::path(model)?.unwrap_or_else(|| PathBuf::from(model));
    let Ok(config) = ModelConfig::from_file(folder.join("config.json")) else { return Ok(None) };
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let weights = entries
        .filter(|entry| entry.path().extension().is_some_and(|ending| ending == "safetensors"));
    let bytes = weights.filter_map(|entry| Some(entry.metadata().ok()?.len() as usize)).sum();
    Ok(Some((config, bytes)))
}
