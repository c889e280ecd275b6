//! What a user calls a model: a directory, a GGUF file or a hub id, opened.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::files::WeightFiles;
use super::gguf::Gguf;
use super::hub::{self, HubOptions};
use super::text_files::TextFiles;
use crate::model::config::ModelConfig;
use crate::text::tokenizer::Tokenizer;
use crate::{Error, Result};

/// A model's configuration, weights and tokenizer. Weights are mapped, not read.
pub struct ModelFiles {
    /// As the user named it.
    pub spec: String,
    /// The directory or file that was opened.
    pub path: PathBuf,
    /// The configuration.
    pub config: ModelConfig,
    /// The weights, checked against the configuration.
    pub weights: WeightFiles,
    /// Tokenizer, template and generation settings.
    pub text: TextFiles,
}

impl ModelFiles {
    /// Opens a directory in Hugging Face's layout, a `.gguf` file, or `organisation/name` on the
    /// hub. What is on disk goes before the hub.
    ///
    /// # Errors
    /// Nothing there, files that are missing, damaged or do not fit one another, or a model that
    /// would not compute what its files say.
    pub fn open(spec: &str, hub_options: &HubOptions) -> Result<Self> {
        Self::open_with(spec, hub_options, None)
    }

    /// [`Self::open`] with the tokenizer and template at `tokenizer` (see [`TextFiles::open`])
    /// instead of the model's, which are not looked at.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(
        spec: &str,
        hub_options: &HubOptions,
        tokenizer: Option<&Path>,
    ) -> Result<Self> {
        let path = Path::new(spec);
        if path.exists() && hub_options.revision.is_some() {
            return Err(Error::config("`revision` is given, but the model is on disk")
                .hint("a revision is of a hub id: leave out `--revision`"));
        }
        if path.is_dir() {
            return Self::open_dir(spec, path, tokenizer);
        }
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if extension.eq_ignore_ascii_case("gguf") {
            return Self::open_gguf(spec, path, tokenizer);
        }
        if path.exists() {
            return Err(Error::model("not a model: expected a directory or a `.gguf` file")
                .in_file(path)
                .hint("give the directory that holds `config.json`"));
        }
        if !hub::is_hub_id(spec) {
            return Err(Error::model(format!(
                "no model `{spec}`: expected a directory, a `.gguf` file or a hub id such as \
                 `organisation/name`"
            )));
        }
        let dir = hub::fetch(spec, hub_options)?;
        Self::open_dir(spec, &dir, tokenizer)
    }

    /// Whether it was fetched from a hub rather than found on disk.
    pub fn is_from_hub(&self) -> bool {
        Path::new(&self.spec) != self.path
    }

    /// The token that batches are padded with where the configuration names none, as TRL chooses it.
    ///
    /// # Errors
    /// A tokenizer that cannot be used.
    pub fn padding(&self) -> Result<Option<u32>> {
        let tokenizer = self.tokenizer()?;
        Ok(tokenizer.pad_id().or(tokenizer.eos_id()))
    }

    /// The tokenizer with the tokens that the configurations name.
    ///
    /// # Errors
    /// There is none, or one that cannot be used.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let config = Value::Object(self.text.tokenizer_config.clone());
        let inner = self.text.tokenizer()?.clone();
        Tokenizer::new(inner, Some(&config), &self.config.eos_token_ids)
    }

    fn open_dir(spec: &str, dir: &Path, tokenizer: Option<&Path>) -> Result<Self> {
        let config_path = dir.join("config.json");
        if !config_path.exists() {
            let error = Error::model("no `config.json`").in_file(dir);
            return Err(if dir.join("adapter_config.json").exists() {
                error
                    .hint("this is an adapter: give its base with `--model`, this with `--adapter`")
            } else {
                error.hint("give a directory in Hugging Face's layout, or a `.gguf` file")
            });
        }
        let config = ModelConfig::from_file(&config_path)?;
        let weights = WeightFiles::open(dir)?;
        weights.check(&config)?;
        let text = match tokenizer {
            Some(path) => TextFiles::open(path)?.with_generation_of(dir)?,
            None => TextFiles::open(dir)?,
        };
        text.check_fits(config.vocab_size)?;
        Ok(Self { spec: spec.into(), path: dir.into(), config, weights, text })
    }

    fn open_gguf(spec: &str, path: &Path, tokenizer: Option<&Path>) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let config = gguf.model_config()?;
        let text = match tokenizer {
            Some(path) => TextFiles::open(path)?.with_gguf_generation(&config),
            None => TextFiles::from_gguf(&gguf, &config, path)?,
        };
        let weights = WeightFiles::from_gguf(gguf)?;
        weights.check(&config)?;
        text.check_fits(config.vocab_size)?;
        Ok(Self { spec: spec.into(), path: path.into(), config, weights, text })
    }
}
