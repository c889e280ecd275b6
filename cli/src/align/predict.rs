//! What commands that do not train will need, beforehand: at most, as no completion is longer than it
//! may be.

use std::path::PathBuf;

use halter_align::Prediction;
use halter_core::bundled;
use halter_core::memory::copying::CopyPlan;
use halter_core::memory::generation::{GenerationInput, GenerationPlan};
use halter_core::model::config::ModelConfig;
use halter_rejection_sampling::reward::model::BATCH_TOKENS;

use crate::Command;
use crate::answering::{BYTES_OF_A_TOKEN, Load, ModelArgs};

/// What a command does that makes models or rows of a model, and trains none.
pub enum Work {
    /// Writes a model that is made of others.
    Copy(Vec<String>),
    /// Reads rows.
    Read(Reading),
}

/// Rows that a model reads.
pub struct Reading {
    /// The models, one after the other.
    pub models: Vec<String>,
    /// Tokens of all rows, about.
    pub tokens: usize,
    /// Most tokens that go through it at once.
    pub together: usize,
    /// Most memory that it may take, where that is said.
    pub ceiling: Option<usize>,
    /// Bytes that are kept of a token.
    pub kept: usize,
}

/// Of a command whose inputs are there; `None` where nothing can be said of it.
pub(super) fn of(command: &Command) -> anyhow::Result<Option<Prediction>> {
    match command {
        Command::Sample(args) => completing(args.load()?, args.reward_models()?),
        Command::Eval(args) => completing(args.load()?, Vec::new()),
        Command::Generate(args) => completing(args.load()?, Vec::new()),
        Command::Distill(args) => args.work()?.map_or(Ok(None), working),
        Command::Merge(args) => working(Work::Copy(args.models())),
        Command::Drift(args) => working(Work::Read(args.reading()?)),
        _ => Ok(None),
    }
}

fn completing(
    (model, load): (&ModelArgs, Load),
    scorers: Vec<String>,
) -> anyhow::Result<Option<Prediction>> {
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
    let writes = Some((scored * BYTES_OF_A_TOKEN) as u64);
    Ok(Some(Prediction { peak_bytes, seconds, is_bound: load.completions > 0, writes }))
}

fn working(work: Work) -> anyhow::Result<Option<Prediction>> {
    let (peak_bytes, seconds, writes) = match work {
        Work::Copy(models) => {
            let mut found = Vec::new();
            for model in &models {
                let Some(weights) = weights(model)? else { return Ok(None) };
                found.push(weights);
            }
            let Some((config, _)) = found.first() else { return Ok(None) };
            let read = found.iter().map(|(_, bytes)| bytes).sum();
            let plan = CopyPlan::new(config, found.len(), read);
            (plan.peak_bytes, plan.seconds, None)
        }
        Work::Read(Reading { models, tokens, together, ceiling, kept }) => {
            let (mut peak, mut seconds) = (0, 0.0);
            for model in &models {
                let Some((config, bytes)) = weights(model)? else { return Ok(None) };
                let plan = GenerationPlan::new(&config, GenerationInput::default())
                    .with_reader(&config, tokens, together, bytes);
                peak = plan.peak_bytes.max(peak);
                seconds += plan.seconds;
            }
            let writes = (kept > 0).then_some((tokens * kept) as u64);
            (ceiling.unwrap_or(peak), seconds, writes)
        }
    };
    Ok(Some(Prediction { peak_bytes, seconds, is_bound: false, writes }))
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
