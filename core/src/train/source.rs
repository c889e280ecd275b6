//! What a run starts from: a model with its tokenizer and template, or a configuration to
//! initialise afresh.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use serde_json::Value;

use crate::model::config::ModelConfig;
use crate::model::weights::adapter::Adapter;
use crate::model::weights::export::SideFile;
use crate::model::weights::{HubOptions, ModelFiles, WeightFiles};
use crate::model::{Base, Decoder};
use crate::ops::Context;
use crate::text::template::ChatTemplate;
use crate::text::tokenizer::Tokenizer;
use crate::{Error, Result, bundled};

/// How the user names the model.
#[derive(Debug, Clone, Default)]
pub struct SourceSpec {
    /// Directory, `.gguf` file, or hub id.
    pub model: Option<String>,
    /// Branch, tag or commit on the hub.
    pub revision: Option<String>,
    /// A `config.json` for fresh weights, instead of a model.
    pub init_from: Option<PathBuf>,
    /// A directory with `tokenizer.json` that goes with `init_from`.
    pub tokenizer: Option<PathBuf>,
    /// Arguments of the chat template.
    pub template_args: serde_json::Map<String, Value>,
}

/// A model's files, opened and checked; weights are mapped, not read.
pub struct Source {
    /// As the user named it; `None` for fresh weights.
    pub name: Option<String>,
    /// The configuration.
    pub config: ModelConfig,
    weights: Option<WeightFiles>,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template, where the model has one.
    pub template: Option<Arc<ChatTemplate>>,
    /// Tokenizer, template and generation files for the export.
    pub side_files: Vec<SideFile>,
}

impl Source {
    /// Opens what `spec` names.
    ///
    /// # Errors
    /// Neither or both of `model` and `init_from`, or files that cannot be used.
    pub fn open(spec: &SourceSpec) -> Result<Self> {
        match (&spec.model, &spec.init_from) {
            (Some(model), None) => Self::open_model(model, spec),
            (None, Some(config)) => Self::open_fresh(config, spec),
            (Some(_), Some(_)) => Err(Error::config("both `model` and `init-from` are given")
                .hint("`--init-from` makes fresh weights; leave out `--model`")),
            (None, None) => Err(Error::config("no model: expected `--model` or `--init-from`")),
        }
    }

    fn open_model(model: &str, spec: &SourceSpec) -> Result<Self> {
        let hub = HubOptions { revision: spec.revision.clone(), ..HubOptions::default() };
        let bundled = bundled::path(model)?.map(|path| path.display().to_string());
        let files = ModelFiles::open(bundled.as_deref().unwrap_or(model), &hub)?;
        let tokenizer_config = Value::Object(files.tokenizer_config.clone());
        let eos_ids = eos_ids(&files.config, files.generation_config.as_ref());
        let tokenizer =
            Tokenizer::new(files.tokenizer()?.clone(), Some(&tokenizer_config), &eos_ids)?;
        let template = match (&files.chat_template, &files.tool_chat_template) {
            (Some(chat), None) => Some(ChatTemplate::new(chat)?),
            (Some(chat), Some(tool)) => Some(ChatTemplate::named(vec![
                ("default".into(), chat.clone()),
                ("tool_use".into(), tool.clone()),
            ])?),
            (None, _) => None,
        };
        Ok(Self {
            name: Some(model.to_string()),
            template: finish(template, &tokenizer, spec)?,
            tokenizer,
            side_files: files.side_files().to_vec(),
            config: files.config,
            weights: Some(files.weights),
        })
    }

    fn open_fresh(config: &Path, spec: &SourceSpec) -> Result<Self> {
        let config = ModelConfig::from_file(config)?;
        let dir = spec.tokenizer.as_ref().ok_or_else(|| {
            Error::config("`init-from` needs a tokenizer")
                .hint("give the directory that holds `tokenizer.json` with `--tokenizer`")
        })?;
        let generation = read_json(&dir.join("generation_config.json"))?;
        let tokenizer_config = read_json(&dir.join("tokenizer_config.json"))?;
        let eos_ids = eos_ids(&config, generation.as_ref());
        let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json"), &eos_ids)?;
        tokenizer.check_fits(config.vocab_size)?;
        let jinja = dir.join("chat_template.jinja");
        let template = match std::fs::read_to_string(&jinja) {
            Ok(text) => Some(ChatTemplate::new(&text).map_err(|error| error.in_file(&jinja))?),
            Err(_) => match &tokenizer_config {
                Some(config) => ChatTemplate::from_tokenizer_config(config)?,
                None => None,
            },
        };
        let names = [
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
            "generation_config.json",
        ];
        Ok(Self {
            name: None,
            template: finish(template, &tokenizer, spec)?,
            tokenizer,
            side_files: names.iter().filter_map(|name| SideFile::copy(dir.join(name))).collect(),
            config,
            weights: None,
        })
    }

    /// The decoder: its weights read, or made fresh from `seed`. The files are unmapped, so that
    /// their pages do not count; a frozen base keeps the parts it needs.
    ///
    /// # Errors
    /// Weights that cannot be used.
    pub fn decoder(&mut self, base: Base, device: &Device, seed: u64) -> Result<Decoder> {
        let ctx = Context::new(device);
        match self.weights.take() {
            Some(weights) => Decoder::load(self.config.clone(), &weights, base, ctx),
            None => Decoder::fresh(self.config.clone(), seed, ctx),
        }
    }

    /// A PEFT adapter for this model.
    ///
    /// # Errors
    /// One that does not fit.
    pub fn adapter(&self, dir: &Path) -> Result<Adapter> {
        Adapter::open(dir, &self.config)
    }
}

fn finish(
    template: Option<ChatTemplate>,
    tokenizer: &Tokenizer,
    spec: &SourceSpec,
) -> Result<Option<Arc<ChatTemplate>>> {
    let Some(template) = template else { return Ok(None) };
    let template = template.with_special_tokens(tokenizer.special_tokens_map());
    Ok(Some(Arc::new(template.with_args(spec.template_args.clone())?)))
}

/// End-of-sequence tokens of the configuration and of the generation settings.
fn eos_ids(config: &ModelConfig, generation: Option<&Value>) -> Vec<u32> {
    let mut ids = config.eos_token_ids.clone();
    let more = generation.and_then(|value| value.get("eos_token_id"));
    let more: Vec<&Value> = match more {
        Some(Value::Array(all)) => all.iter().collect(),
        Some(one) => vec![one],
        None => Vec::new(),
    };
    for id in more.into_iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|e| Error::text(format!("not valid JSON: {e}")).at(path, e.line())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}
