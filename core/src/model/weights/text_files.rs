//! What stands beside a model's weights to turn text into tokens: tokenizer, chat template and
//! generation settings, from a directory or a GGUF file.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::export::SideFile;
use super::gguf::Gguf;
use crate::model::config::ModelConfig;
use crate::text::gguf_tokenizer;
use crate::text::template::ChatTemplate;
use crate::{Error, Result};

/// The generation settings' file.
pub const GENERATION: &str = "generation_config.json";

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// The chat template's own file.
const TEMPLATE: &str = "chat_template.jinja";

/// The name of the template for conversations without tools.
const DEFAULT: &str = "default";

/// Files beside the weights that are fetched from a hub, and that an export takes over as they are,
/// where they are there.
pub(super) const COPIED: &[&str] = &[
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    TEMPLATE,
    "chat_template.json",
    GENERATION,
];

/// Whether a file holds chat templates and nothing else.
pub fn is_template_file(name: &str) -> bool {
    name.starts_with("chat_template")
}

/// The files of `dir` that an export takes over.
fn side_files(dir: &Path) -> Vec<SideFile> {
    COPIED.iter().filter_map(|name| SideFile::copy(dir.join(name))).collect()
}

/// A tokenizer with its template and the generation settings.
#[derive(Default)]
pub struct TextFiles {
    /// The directory or file they come from.
    pub path: PathBuf,
    /// The tokenizer; a directory of weights alone has none.
    pub tokenizer: Option<Tokenizer>,
    /// `tokenizer_config.json`; empty where there is none.
    pub tokenizer_config: Map<String, Value>,
    /// Chat templates by name, as [`ChatTemplate::named`] takes them.
    pub chat_templates: Vec<(String, String)>,
    template_path: PathBuf,
    /// `generation_config.json`.
    pub generation_config: Option<Map<String, Value>>,
    /// All of it for an export: copies where there are files, texts where it is a GGUF file.
    pub side_files: Vec<SideFile>,
}

impl TextFiles {
    /// From a directory in Hugging Face's layout, or a `tokenizer.json` and what is beside it.
    ///
    /// # Errors
    /// Files that are damaged.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_file() {
            return Self::from_parts(path, path, &path.join("tokenizer.json"));
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        Self::from_parts(path, dir.unwrap_or(Path::new(".")), path)
    }

    fn from_parts(path: &Path, dir: &Path, tokenizer_json: &Path) -> Result<Self> {
        let mut files = Self { path: path.into(), ..Self::templates_of(dir)? };
        if tokenizer_json.exists() {
            files.tokenizer = Some(Tokenizer::from_file(tokenizer_json).map_err(|e| {
                Error::text(format!("not a tokenizer: {e}")).in_file(tokenizer_json)
            })?);
        }
        files.side_files.retain(|file| file.name != "tokenizer.json");
        files.side_files.extend(SideFile::copy_as("tokenizer.json", tokenizer_json));
        files.generation_config = read_object(&dir.join(GENERATION))?;
        Ok(files)
    }

    /// The chat templates of a directory, and its side files as they are; tokenizer and generation
    /// settings are not looked at.
    ///
    /// # Errors
    /// Files that are damaged.
    pub fn templates_of(dir: &Path) -> Result<Self> {
        let mut files = Self {
            path: dir.into(),
            tokenizer_config: read_object(&dir.join(TOKENIZER_CONFIG))?.unwrap_or_default(),
            side_files: side_files(dir),
            ..Self::default()
        };
        files.take_templates(dir)?;
        let own_file = files.side_files.iter().any(|file| file.name == TEMPLATE);
        if let (Some(template), false) = (only_default(&files.chat_templates), own_file) {
            files.side_files.push(SideFile::text(TEMPLATE, template));
        }
        Ok(files)
    }

    /// Chat templates, from wherever transformers looks for them: a file of its own goes before
    /// the tokenizer's configuration.
    fn take_templates(&mut self, dir: &Path) -> Result<()> {
        self.template_path = dir.join(TEMPLATE);
        match std::fs::read_to_string(&self.template_path) {
            Ok(text) => {
                self.chat_templates = vec![(DEFAULT.into(), text)];
                return Ok(());
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("read", &self.template_path, e)),
        }
        self.template_path = dir.join("chat_template.json");
        let value = match read_json(&self.template_path)? {
            Some(value) => value.get("chat_template").cloned(),
            None => {
                self.template_path = dir.join(TOKENIZER_CONFIG);
                self.tokenizer_config.get("chat_template").cloned()
            }
        };
        if let Some(value) = value.filter(|value| !value.is_null()) {
            self.chat_templates = named_templates(&value).ok_or_else(|| {
                Error::text(
                    "`chat_template` is neither a string nor a list of `{\"name\", \"template\"}`",
                )
                .in_file(&self.template_path)
            })?;
        }
        Ok(())
    }

    /// From a GGUF file's metadata.
    ///
    /// # Errors
    /// A tokenizer that cannot be rebuilt.
    pub fn from_gguf(gguf: &Gguf, config: &ModelConfig, path: &Path) -> Result<Self> {
        let rebuilt = gguf_tokenizer::from_gguf(gguf)?;
        let tokenizer_json = rebuilt
            .tokenizer
            .to_string(true)
            .map_err(|e| Error::text(format!("cannot write the tokenizer: {e}")).in_file(path))?;
        let mut tokenizer_config = rebuilt.config;
        let mut side_files = vec![SideFile::text("tokenizer.json", tokenizer_json)];
        let chat_templates = rebuilt.chat_templates;
        match (only_default(&chat_templates), chat_templates.as_slice()) {
            (Some(chat), _) => side_files.push(SideFile::text(TEMPLATE, chat)),
            (None, []) => {}
            (None, named) => {
                let list: Vec<Value> = named
                    .iter()
                    .map(|(name, template)| json!({ "name": name, "template": template }))
                    .collect();
                tokenizer_config.insert("chat_template".into(), list.into());
            }
        }
        side_files.push(SideFile::json(TOKENIZER_CONFIG, &tokenizer_config));
        let files = Self {
            path: path.into(),
            tokenizer: Some(rebuilt.tokenizer),
            tokenizer_config,
            chat_templates,
            template_path: path.into(),
            side_files,
            ..Self::default()
        };
        Ok(files.with_gguf_generation(config))
    }

    /// With the generation settings of a GGUF file, which are those of its configuration.
    pub(super) fn with_gguf_generation(mut self, config: &ModelConfig) -> Self {
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
        let ids = ids.into_iter().filter(|(_, value)| there(value));
        let settings: Map<String, Value> = ids.map(|(k, v)| (k.to_string(), v)).collect();
        let file = SideFile::json(GENERATION, &settings);
        self.take_generation(settings, file);
        self
    }

    /// With the generation settings of the model's own directory, where it has some.
    pub(super) fn with_generation_of(mut self, dir: &Path) -> Result<Self> {
        let path = dir.join(GENERATION);
        if let (Some(settings), Some(file)) = (read_object(&path)?, SideFile::copy(path)) {
            self.take_generation(settings, file);
        }
        Ok(self)
    }

    fn take_generation(&mut self, settings: Map<String, Value>, file: SideFile) {
        self.generation_config = Some(settings);
        self.side_files.retain(|other| other.name != GENERATION);
        self.side_files.push(file);
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// There is none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            let error = Error::text("no `tokenizer.json`").in_file(&self.path);
            if self.path.join("tokenizer.model").exists() {
                error.hint("load and save the tokenizer once with transformers: it writes one")
            } else {
                error.hint("fetch it from where the model is from, or give one with `--tokenizer`")
            }
        })
    }

    /// The chat template, compiled.
    ///
    /// # Errors
    /// Text that is not a template.
    pub fn template(&self) -> Result<Option<ChatTemplate>> {
        if self.chat_templates.is_empty() {
            return Ok(None);
        }
        let template = ChatTemplate::named(self.chat_templates.clone());
        template.map(Some).map_err(|error| error.in_file(&self.template_path))
    }

    /// The file that the chat template stands in; `None` where there is no template.
    pub fn template_path(&self) -> Option<&Path> {
        (!self.chat_templates.is_empty()).then_some(&*self.template_path)
    }

    /// What an export must hold for the same chat templates.
    pub fn template_files(&self) -> Vec<SideFile> {
        let own = self.side_files.iter().any(|file| is_template_file(&file.name));
        let holds = |file: &&SideFile| match own {
            true => is_template_file(&file.name),
            false => file.name == TOKENIZER_CONFIG,
        };
        self.side_files.iter().filter(holds).cloned().collect()
    }

    /// Every id that the tokenizer can give must have a row in the embedding.
    ///
    /// # Errors
    /// Names the token that has none.
    pub fn check_fits(&self, rows: usize) -> Result<()> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(()) };
        let vocabulary = tokenizer.get_vocab(true);
        match vocabulary.into_iter().max_by_key(|(_, id)| *id) {
            Some((token, id)) if id as usize >= rows => Err(Error::text(format!(
                "the tokenizer has a token {id}, `{}`, but the embedding has {rows} rows",
                token.escape_debug()
            ))
            .in_file(&self.path)
            .hint("the tokenizer is another model's, or tokens were added to it alone")),
            _ => Ok(()),
        }
    }
}

/// The templates of a `chat_template` in JSON: one text, or a list of named ones.
fn named_templates(value: &Value) -> Option<Vec<(String, String)>> {
    let named = |item: &Value| {
        let text = |key: &str| item.get(key)?.as_str().map(str::to_string);
        Some((text("name")?, text("template")?))
    };
    match value {
        Value::String(text) => Some(vec![(DEFAULT.into(), text.clone())]),
        Value::Array(items) if !items.is_empty() => items.iter().map(named).collect(),
        _ => None,
    }
}

/// The template, where there is one and it serves all conversations.
fn only_default(templates: &[(String, String)]) -> Option<String> {
    match templates {
        [(name, template)] if name == DEFAULT => Some(template.clone()),
        _ => None,
    }
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

/// The same, of an object.
fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    match read_json(path)? {
        Some(Value::Object(map)) => Ok(Some(map)),
        None => Ok(None),
        Some(_) => Err(Error::text("expected a JSON object").in_file(path)),
    }
}
