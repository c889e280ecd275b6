//! What a user calls a model: a directory, a GGUF file or a hub id, opened.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::export::SideFile;
use super::files::WeightFiles;
use super::gguf::Gguf;
use super::hub::{self, HubOptions};
use crate::model::config::ModelConfig;
use crate::text::gguf_tokenizer;
use crate::{Error, Result};

/// Files that an export takes over as they are, where they are there.
const COPIED: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

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
    /// The tokenizer; a directory of weights alone has none.
    pub tokenizer: Option<Tokenizer>,
    /// `tokenizer_config.json`; empty where there is none.
    pub tokenizer_config: Map<String, Value>,
    /// The chat template.
    pub chat_template: Option<String>,
    /// The template for conversations with tools, where there is one of its own.
    pub tool_chat_template: Option<String>,
    /// `generation_config.json`.
    pub generation_config: Option<Value>,
    side_files: Vec<SideFile>,
}

impl ModelFiles {
    /// Opens a directory in Hugging Face's layout, a `.gguf` file, or `organisation/name` on the
    /// hub. What is on disk goes before the hub.
    ///
    /// # Errors
    /// Nothing there, files that are missing, damaged or do not fit one another, or a model that
    /// would not compute what its files say.
    pub fn open(spec: &str, hub_options: &HubOptions) -> Result<Self> {
        let path = Path::new(spec);
        if path.is_dir() {
            return Self::open_dir(spec, path);
        }
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if extension.eq_ignore_ascii_case("gguf") {
            return Self::open_gguf(spec, path);
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
        Self::open_dir(spec, &dir)
    }

    fn open_dir(spec: &str, dir: &Path) -> Result<Self> {
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
        let tokenizer_path = dir.join("tokenizer.json");
        let tokenizer = match tokenizer_path.exists() {
            true => Some(Tokenizer::from_file(&tokenizer_path).map_err(|e| {
                Error::text(format!("not a tokenizer: {e}")).in_file(&tokenizer_path)
            })?),
            false => None,
        };
        let tokenizer_config = match read_json(&dir.join("tokenizer_config.json"))? {
            Some(Value::Object(map)) => map,
            None => Map::new(),
            Some(_) => {
                let path = dir.join("tokenizer_config.json");
                return Err(Error::text("expected a JSON object").in_file(path));
            }
        };
        let templates = Templates::of_dir(dir, &tokenizer_config)?;
        let mut side_files: Vec<SideFile> =
            COPIED.iter().filter_map(|name| SideFile::copy(dir.join(name))).collect();
        let own_file = side_files.iter().any(|file| file.name == "chat_template.jinja");
        if let (Some(template), None, false) = (&templates.chat, &templates.tool, own_file) {
            side_files.push(SideFile::text("chat_template.jinja", template.clone()));
        }
        Self {
            spec: spec.into(),
            path: dir.into(),
            generation_config: read_json(&dir.join("generation_config.json"))?,
            config,
            weights,
            tokenizer,
            tokenizer_config,
            chat_template: templates.chat,
            tool_chat_template: templates.tool,
            side_files,
        }
        .checked()
    }

    fn open_gguf(spec: &str, path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let config = gguf.model_config()?;
        let rebuilt = gguf_tokenizer::from_gguf(&gguf)?;
        let weights = WeightFiles::from_gguf(gguf)?;
        weights.check(&config)?;
        let generation_config = generation_config(&config);
        let text = |value: &Value| format!("{value:#}\n");
        let tokenizer_json = rebuilt
            .tokenizer
            .to_string(true)
            .map_err(|e| Error::text(format!("cannot write the tokenizer: {e}")).in_file(path))?;
        let mut side_files = vec![
            SideFile::text("tokenizer.json", tokenizer_json),
            SideFile::text("generation_config.json", text(&generation_config)),
        ];
        let mut tokenizer_config = rebuilt.config;
        match (&rebuilt.chat_template, &rebuilt.tool_chat_template) {
            (Some(chat), None) => {
                side_files.push(SideFile::text("chat_template.jinja", chat.clone()));
            }
            (Some(chat), Some(tool)) => {
                let both = json!([{ "name": "default", "template": chat },
                                  { "name": "tool_use", "template": tool }]);
                tokenizer_config.insert("chat_template".into(), both);
            }
            (None, _) => {}
        }
        let config_text = text(&Value::Object(tokenizer_config.clone()));
        side_files.push(SideFile::text("tokenizer_config.json", config_text));
        Self {
            spec: spec.into(),
            path: path.into(),
            config,
            weights,
            tokenizer: Some(rebuilt.tokenizer),
            tokenizer_config,
            chat_template: rebuilt.chat_template,
            tool_chat_template: rebuilt.tool_chat_template,
            generation_config: Some(generation_config),
            side_files,
        }
        .checked()
    }

    /// Every id that the tokenizer can give must have a row in the embedding.
    fn checked(self) -> Result<Self> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(self) };
        let vocabulary = tokenizer.get_vocab(true);
        let rows = self.config.vocab_size;
        match vocabulary.into_iter().max_by_key(|(_, id)| *id) {
            Some((token, id)) if id as usize >= rows => Err(Error::text(format!(
                "the tokenizer has a token {id}, `{}`, but the embedding has {rows} rows",
                token.escape_debug()
            ))
            .in_file(&self.path)
            .hint("the tokenizer is another model's, or tokens were added to it alone")),
            _ => Ok(self),
        }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// The directory has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            let error = Error::text("no `tokenizer.json`").in_file(&self.path);
            if self.path.join("tokenizer.model").exists() {
                error.hint("load and save the tokenizer once with transformers: it writes one")
            } else {
                error.hint("fetch it beside `config.json`")
            }
        })
    }

    /// Tokenizer, template and generation settings for an export: copies where the model has
    /// files, texts where it is a GGUF file.
    pub fn side_files(&self) -> &[SideFile] {
        &self.side_files
    }
}

fn generation_config(config: &ModelConfig) -> Value {
    let eos = match config.eos_token_ids.as_slice() {
        [one] => json!(one),
        several => json!(several),
    };
    let ids = [
        ("bos_token_id", json!(config.bos_token_id)),
        ("eos_token_id", eos),
        ("pad_token_id", json!(config.pad_token_id)),
    ];
    let there = |value: &Value| !value.is_null() && *value != json!([]);
    Value::Object(
        ids.into_iter().filter(|(_, v)| there(v)).map(|(k, v)| (k.to_string(), v)).collect(),
    )
}

/// A JSON file, where it is there.
pub(super) fn read_json(path: &Path) -> Result<Option<Value>> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|e| Error::model(format!("not valid JSON: {e}")).at(path, e.line())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// Chat templates, from wherever transformers looks for them.
#[derive(Default)]
struct Templates {
    chat: Option<String>,
    tool: Option<String>,
}

impl Templates {
    /// A file of its own goes before the tokenizer's configuration.
    fn of_dir(dir: &Path, tokenizer_config: &Map<String, Value>) -> Result<Self> {
        let jinja = dir.join("chat_template.jinja");
        match std::fs::read_to_string(&jinja) {
            Ok(text) => return Ok(Self { chat: Some(text), tool: None }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("read", &jinja, e)),
        }
        let path = dir.join("chat_template.json");
        if let Some(value) = read_json(&path)? {
            return Self::of_value(value.get("chat_template"), &path);
        }
        let path = dir.join("tokenizer_config.json");
        Self::of_value(tokenizer_config.get("chat_template"), &path)
    }

    fn of_value(value: Option<&Value>, path: &Path) -> Result<Self> {
        match value {
            None | Some(Value::Null) => Ok(Self::default()),
            Some(Value::String(text)) => Ok(Self { chat: Some(text.clone()), tool: None }),
            Some(Value::Array(items)) => {
                let named = |name: &str| {
                    let item = items.iter().find(|item| item.get("name") == Some(&json!(name)));
                    item?.get("template")?.as_str().map(str::to_string)
                };
                Ok(Self { chat: named("default"), tool: named("tool_use") })
            }
            Some(_) => {
                Err(Error::text("`chat_template` is neither a string nor a list").in_file(path))
            }
        }
    }
}
