//! What a run starts from: a model with its tokenizer and template, or a configuration to
//! initialise afresh.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use serde_json::{Map, Value, json};

use crate::model::config::ModelConfig;
use crate::model::weights::adapter::Adapter;
use crate::model::weights::export::SideFile;
use crate::model::weights::text_files::{GENERATION, TextFiles, is_template_file};
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
    /// A directory with `tokenizer.json`, or that file, with the chat template beside it: needed
    /// with `init_from`, else instead of the model's.
    pub tokenizer: Option<PathBuf>,
    /// A chat template instead of the model's own.
    pub chat_template: Option<PathBuf>,
    /// The adapter that will be loaded, where there is one: a chat template beside it goes before
    /// the model's own, as the adapter was trained with it.
    pub adapter: Option<PathBuf>,
    /// The time that the chat template is told, in seconds since 1970; the clock's where `None`.
    pub now: Option<i64>,
    /// Arguments of the chat template.
    pub template_args: serde_json::Map<String, Value>,
}

/// A model's files, opened and checked; weights are mapped, not read.
pub struct Source {
    /// As the user named it; `None` for fresh weights.
    pub name: Option<String>,
    /// Whether `name` is a hub id.
    pub is_from_hub: bool,
    /// The configuration.
    pub config: ModelConfig,
    weights: Option<WeightFiles>,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template, where the model has one.
    pub template: Option<Arc<ChatTemplate>>,
    /// The file that the template stands in.
    pub template_path: Option<PathBuf>,
    generation_config: Option<Map<String, Value>>,
    /// Tokenizer, template and generation files, as they came.
    pub side_files: Vec<SideFile>,
}

impl Source {
    /// Opens what `spec` names.
    ///
    /// # Errors
    /// Neither or both of `model` and `init_from`, or files that cannot be used.
    pub fn open(spec: &SourceSpec) -> Result<Self> {
        let mut source = match (&spec.model, &spec.init_from) {
            (Some(model), None) => Self::open_model(model, spec),
            (None, Some(_)) if spec.revision.is_some() => {
                Err(Error::config("`revision` is given with `init-from`")
                    .hint("a revision is of a hub id: leave out `--revision`"))
            }
            (None, Some(config)) => Self::open_fresh(config, spec),
            (Some(_), Some(_)) => Err(Error::config("both `model` and `init-from` are given")
                .hint("`--init-from` makes fresh weights; leave out `--model`")),
            (None, None) => Err(Error::config("no model: expected `--model` or `--init-from`")),
        }?;
        // What the user gave goes before what lies beside the adapter.
        let was_given = spec.tokenizer.is_some() && source.template.is_some();
        match (&spec.chat_template, &spec.adapter) {
            (Some(path), _) => source.take_template_file(path, spec)?,
            (None, Some(dir)) if dir.is_dir() && !was_given => {
                source.take_templates_of(dir, spec)?;
            }
            _ => {}
        }
        Ok(source)
    }

    fn take_template_file(&mut self, path: &Path, spec: &SourceSpec) -> Result<()> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let template = ChatTemplate::new(&text).map_err(|error| error.in_file(path))?;
        self.take_template(template, path, vec![SideFile::text("chat_template.jinja", text)], spec)
    }

    /// Takes the chat template that lies in `dir`, if there is one.
    fn take_templates_of(&mut self, dir: &Path, spec: &SourceSpec) -> Result<()> {
        let text = TextFiles::templates_of(dir)?;
        match (text.template()?, text.template_path()) {
            (Some(template), Some(path)) => {
                self.take_template(template, path, text.template_files(), spec)
            }
            _ => Ok(()),
        }
    }

    /// Takes a chat template and its files in place of the model's, in the export as well.
    fn take_template(
        &mut self,
        template: ChatTemplate,
        path: &Path,
        files: Vec<SideFile>,
        spec: &SourceSpec,
    ) -> Result<()> {
        self.template = finish(Some(template), &self.tokenizer, spec)?;
        self.template_path = Some(path.into());
        let is_replaced = |name: &str| files.iter().any(|file| file.name == name);
        self.side_files.retain(|file| !is_template_file(&file.name) && !is_replaced(&file.name));
        self.side_files.extend(files);
        Ok(())
    }

    fn open_model(model: &str, spec: &SourceSpec) -> Result<Self> {
        let hub = HubOptions { revision: spec.revision.clone(), ..HubOptions::default() };
        let bundled = bundled::path(model)?.map(|path| path.display().to_string());
        let opened = bundled.as_deref().unwrap_or(model);
        let files = ModelFiles::open_with(opened, &hub, spec.tokenizer.as_deref())?;
        let is_from_hub = files.is_from_hub();
        let source = Self::new(files.config, Some(files.weights), files.text, spec)?;
        Ok(Self { name: Some(model.to_string()), is_from_hub, ..source })
    }

    fn open_fresh(config: &Path, spec: &SourceSpec) -> Result<Self> {
        let config = ModelConfig::from_file(config)?;
        let tokenizer = spec.tokenizer.as_ref().ok_or_else(|| {
            Error::config("`init-from` needs a tokenizer")
                .hint("give the directory that holds `tokenizer.json` with `--tokenizer`")
        })?;
        let text = TextFiles::open(tokenizer)?;
        text.check_fits(config.vocab_size)?;
        Self::new(config, None, text, spec)
    }

    fn new(
        config: ModelConfig,
        weights: Option<WeightFiles>,
        text: TextFiles,
        spec: &SourceSpec,
    ) -> Result<Self> {
        let mut eos_ids = config.eos_token_ids.clone();
        eos_ids.extend(text.generation_config.iter().flat_map(stops));
        let tokenizer_config = Value::Object(text.tokenizer_config.clone());
        let tokenizer =
            Tokenizer::new(text.tokenizer()?.clone(), Some(&tokenizer_config), &eos_ids)
                .map_err(|error| error.in_file(&text.path))?;
        Ok(Self {
            name: None,
            is_from_hub: false,
            template: finish(text.template()?, &tokenizer, spec)?,
            template_path: text.template_path().map(Path::to_path_buf),
            tokenizer,
            generation_config: text.generation_config,
            side_files: text.side_files,
            config,
            weights,
        })
    }

    /// The side files of an export of which the end-of-turn tokens `trained` were trained, and
    /// those of them that the model's generation settings lacked: transformers stops at no others.
    pub fn export_files(&self, trained: &BTreeSet<u32>) -> (Vec<SideFile>, Vec<u32>) {
        let mut settings =
            self.generation_config.clone().unwrap_or_else(|| self.fresh_generation_config());
        let mut stops = stops(&settings);
        let missing: Vec<u32> = trained.iter().copied().filter(|id| !stops.contains(id)).collect();
        if self.generation_config.is_some() && missing.is_empty() {
            return (self.side_files.clone(), missing);
        }
        stops.extend(&missing);
        let stops = match stops.as_slice() {
            [one] => json!(one),
            all => json!(all),
        };
        settings.insert("eos_token_id".into(), stops);
        let mut files = self.side_files.clone();
        files.retain(|file| file.name != GENERATION);
        files.push(SideFile::json(GENERATION, &settings));
        (files, missing)
    }

    /// Generation settings for a model that came without: where it stops.
    fn fresh_generation_config(&self) -> Map<String, Value> {
        let ends = self.tokenizer.end_of_turn_tokens().into_iter().map(|(_, id)| id);
        let mut settings = Map::new();
        settings.insert("_from_model_config".into(), true.into());
        for (key, id) in
            [("bos_token_id", self.config.bos_token_id), ("pad_token_id", self.config.pad_token_id)]
        {
            settings.extend(id.map(|id| (key.to_string(), id.into())));
        }
        settings.insert("eos_token_id".into(), ends.collect());
        settings
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
    let Some(mut template) = template else { return Ok(None) };
    if let Some(now) = spec.now {
        template = template.with_now(now)?;
    }
    let template = template.with_special_tokens(tokenizer.special_tokens_map());
    Ok(Some(Arc::new(template.with_args(spec.template_args.clone())?)))
}

/// The tokens at which generation ends, by its settings.
fn stops(settings: &Map<String, Value>) -> Vec<u32> {
    let ids = match settings.get("eos_token_id") {
        Some(Value::Array(all)) => all.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    ids.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()).collect()
}
