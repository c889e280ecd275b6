//! What the commands that generate have in common: the model, and how tokens are drawn.

use std::path::PathBuf;

use halter_core::data::rows::Rows;
use halter_core::generate::Generator;
use halter_core::generate::engine::{EngineOptions, Request};
use halter_core::generate::sampling::Sampling;
use halter_core::generate::session::Job;
use halter_core::train::source::SourceSpec;
use halter_core::{Error, ErrorKind, bundled, device};
use serde_json::{Map, Value};

/// Tokens of a completion where nothing is said.
pub const MAX_NEW_TOKENS: usize = 256;

/// Rows whose lengths are looked at beforehand.
const LOOKED_AT: usize = 32;
/// Of text, about.
pub const BYTES_OF_A_TOKEN: usize = 4;

/// The model that answers.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// Model: a directory in Hugging Face's layout, a .gguf file, or a hub id
    #[arg(long, alias = "model_name_or_path", help_heading = "Model")]
    pub model: Option<String>,
    /// Branch, tag or commit on the hub
    #[arg(long, help_heading = "Model")]
    revision: Option<String>,
    /// Tokenizer and chat template from this directory, or tokenizer.json, instead of the model's
    /// own
    #[arg(long, value_name = "DIR|FILE", help_heading = "Model")]
    tokenizer: Option<PathBuf>,
    /// Chat template (Jinja) instead of the model's own
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    chat_template: Option<PathBuf>,
    /// PEFT adapter on the model
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    adapter: Option<PathBuf>,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", help_heading = "Model")]
    device: String,
    /// Let special tokens written in conversations become special tokens
    #[arg(long, help_heading = "Model")]
    allow_special_text: bool,
    /// Most tokens whose keys and values are held (default: as memory allows, up to 65536)
    #[arg(long, value_name = "TOKENS", help_heading = "Model")]
    cache_tokens: Option<usize>,
    /// Most completions that are generated at once
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Model",
          value_parser = clap::value_parser!(u16).range(1..))]
    pub batch_size: u16,
}

/// What a command that generates has before it.
pub struct Load {
    /// Prompts, and texts that are scored.
    pub prompts: usize,
    /// About how many tokens these have.
    pub read: usize,
    /// Completions in all.
    pub completions: usize,
    /// Most tokens of one.
    pub max_new_tokens: usize,
}

impl Load {
    /// Completions of the rows of data sets. Their tokens are guessed from the first rows' lengths.
    pub fn of_rows(rows: &Rows, each: usize, max_new_tokens: usize) -> anyhow::Result<Self> {
        let prompts = rows.len() as usize;
        let row = |at| rows.find(at as u64).map_or(Ok(Map::new()), |(set, row)| set.row(row));
        let read = tokens_of(prompts, row)?;
        Ok(Self { prompts, read, completions: each * prompts, max_new_tokens })
    }
}

/// About how many tokens so many rows have, guessed from the lengths of the first ones.
pub fn tokens_of(
    rows: usize,
    row: impl Fn(usize) -> halter_core::Result<Map<String, Value>>,
) -> halter_core::Result<usize> {
    let looked_at = rows.min(LOOKED_AT);
    let mut bytes = 0;
    for at in 0..looked_at {
        bytes += Value::Object(row(at)?).to_string().len();
    }
    Ok(bytes / BYTES_OF_A_TOKEN * rows / looked_at.max(1))
}

impl ModelArgs {
    /// Loads the model. `now` is the time that its chat template is told.
    pub fn open(&self, now: Option<i64>) -> anyhow::Result<Generator> {
        let spec = SourceSpec {
            model: Some(self.model.clone().unwrap_or_else(|| bundled::MODEL.into())),
            revision: self.revision.clone(),
            tokenizer: self.tokenizer.clone(),
            chat_template: self.chat_template.clone(),
            adapter: self.adapter.clone(),
            now,
            ..SourceSpec::default()
        };
        let mut generator = Generator::open(&spec, &device::open(&self.device)?)?;
        generator.allow_special_text = self.allow_special_text;
        Ok(generator)
    }

    /// How much the engine takes on. `before` are the settings of results that go on: the cache limits
    /// how long a completion becomes, and what memory allows may have changed.
    pub fn engine(
        &self,
        generator: &Generator,
        before: Option<&Map<String, Value>>,
    ) -> EngineOptions {
        let before = before.and_then(|settings| settings.get("cache_tokens")?.as_u64());
        let cache_tokens = self.cache_tokens.or(before.map(|tokens| tokens as usize));
        generator.engine_options(self.batch_size.into(), cache_tokens)
    }

    /// The adapter's directory, where there is one.
    pub fn adapter(&self) -> Option<&PathBuf> {
        self.adapter.as_ref()
    }
}

/// How tokens are drawn, and when a completion ends.
#[derive(Debug, clap::Args)]
pub struct SamplingArgs {
    /// Logits are divided by it; 0: the likeliest token, always
    #[arg(long, value_name = "T", help_heading = "Sampling")]
    temperature: Option<f32>,
    /// So many of the likeliest tokens stay (0: all)
    #[arg(long, alias = "top_k", value_name = "K", help_heading = "Sampling")]
    top_k: Option<usize>,
    /// The likeliest tokens stay whose probabilities add up to it
    #[arg(long, alias = "top_p", value_name = "P", help_heading = "Sampling")]
    top_p: Option<f32>,
    /// Tokens stay whose probability is at least this share of the likeliest one's
    #[arg(long, alias = "min_p", value_name = "P", help_heading = "Sampling")]
    min_p: Option<f32>,
    /// Tokens that have occurred become less likely where it is above 1
    #[arg(long, alias = "repetition_penalty", value_name = "R", help_heading = "Sampling")]
    repetition_penalty: Option<f32>,
    /// Most tokens of a completion
    #[arg(long, alias = "max_new_tokens", value_name = "N", help_heading = "Sampling")]
    pub max_new_tokens: Option<usize>,
    /// A completion ends before this text; repeatable
    #[arg(long, value_name = "TEXT", help_heading = "Sampling")]
    pub stop: Vec<String>,
    /// A completion ends at this token as well; repeatable
    #[arg(long, value_name = "TOKEN", help_heading = "Sampling")]
    stop_token: Vec<String>,
    /// Seed of the draws
    #[arg(long, default_value_t = 0, help_heading = "Sampling")]
    pub seed: u64,
}

impl SamplingArgs {
    /// The distribution; `temperature` where none was given.
    pub fn sampling(&self, temperature: f32) -> anyhow::Result<Sampling> {
        let plain = Sampling::default();
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(temperature),
            top_k: self.top_k.unwrap_or(plain.top_k),
            top_p: self.top_p.unwrap_or(plain.top_p),
            min_p: self.min_p.unwrap_or(plain.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(plain.repetition_penalty),
        };
        sampling.validate()?;
        if self.max_new_tokens == Some(0) {
            return Err(Error::config("`max-new-tokens` is `0`: expected at least 1").into());
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::config("`stop` is empty: expected a text").into());
        }
        Ok(sampling)
    }

    /// The ids of the tokens that were named.
    pub fn stop_tokens(&self, generator: &Generator) -> anyhow::Result<Vec<u32>> {
        let id = |token: &String| {
            generator.tokenizer.token_to_id(token).ok_or_else(|| {
                Error::config(format!("`{token}` is not a token of the model"))
                    .hint("give the token as the vocabulary spells it, or a text with `--stop`")
            })
        };
        Ok(self.stop_token.iter().map(id).collect::<Result<_, _>>()?)
    }
}

/// A job for one prompt; what is left of the context limits its length.
pub fn job(
    generator: &Generator,
    options: &EngineOptions,
    prompt: Vec<u32>,
    is_text: bool,
    args: &SamplingArgs,
    request: &Request,
) -> halter_core::Result<Job> {
    let room = generator.room_after(prompt.len(), options)?;
    let max_new_tokens = request.max_new_tokens.min(room);
    let request = Request { prompt, max_new_tokens, ..request.clone() };
    Ok(Job { request, stop: args.stop.clone(), is_text })
}

/// What an interruption or a full disk leaves is whole.
pub fn resumable(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Interrupted | ErrorKind::Io if error.remedy().is_none() => {
            error.hint("`--resume` goes on")
        }
        _ => error,
    }
}
