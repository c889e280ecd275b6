//! A model that answers: its weights with the tokenizer, the template and what ends an answer.

use std::sync::Arc;

use candle_core::Device;
use serde_json::Value;

use super::engine::EngineOptions;
use super::pages::PAGE;
use super::score::{TokenScore, score};
use crate::data::record::{Message, Record, Turn};
use crate::memory::system::available_memory;
use crate::model::{Base, Decoder};
use crate::ops::attention::Shape;
use crate::text::check::{check_messages, check_special_text};
use crate::text::encode::{no_template, prompt_tokens, render_prompt};
use crate::text::template::ChatTemplate;
use crate::text::tokenizer::Tokenizer;
use crate::train::source::{Source, SourceSpec};
use crate::{Error, Result};

/// Most tokens whose keys and values are held where nothing is said.
pub(crate) const CACHE_TOKENS: usize = 1 << 16;

/// A model that answers.
pub struct Generator {
    /// The weights; they stay as they are.
    pub model: Decoder,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template, where the model has one.
    pub template: Option<Arc<ChatTemplate>>,
    /// The model as the user named it.
    pub name: String,
    /// Tokens that end a completion.
    pub stop_tokens: Vec<u32>,
    /// Let special tokens that stand as text in a conversation become special tokens.
    pub allow_special_text: bool,
}

impl Generator {
    /// Loads what `spec` names, with its adapter.
    ///
    /// # Errors
    /// Files that cannot be used, or a reward model.
    pub fn open(spec: &SourceSpec, device: &Device) -> Result<Self> {
        let mut source = Source::open(spec)?;
        let mut model = source.decoder(Base::Frozen, device, 0)?;
        if let Some(dir) = &spec.adapter {
            model.load_lora(&source.adapter(dir)?)?;
        }
        model.refuse_reward_model()?;
        let ends = source.tokenizer.end_of_turn_tokens();
        Ok(Self {
            model,
            stop_tokens: ends.into_iter().map(|(_, id)| id).collect(),
            tokenizer: source.tokenizer,
            template: source.template,
            name: source.name.unwrap_or_default(),
            allow_special_text: false,
        })
    }

    /// The prompt of a conversation: its rendering, with the header of an assistant's turn.
    ///
    /// # Errors
    /// No template, one that refuses the conversation, or special tokens in it.
    pub fn chat_prompt(&self, messages: &[Message], tools: Option<&[Value]>) -> Result<Vec<u32>> {
        let template = self.template.as_deref().ok_or_else(no_template)?;
        check_messages(messages)?;
        if !self.allow_special_text {
            check_special_text(messages, tools, &self.tokenizer)?;
        }
        let text = render_prompt(template, messages, tools)?;
        Ok(self.tokenizer.encode(&text, false)?.ids)
    }

    /// The prompt that a text is. Special tokens written in it are special tokens.
    ///
    /// # Errors
    /// The tokenizer cannot encode it.
    pub fn text_prompt(&self, text: &str) -> Result<Vec<u32>> {
        prompt_tokens(&self.tokenizer, text)
    }

    /// What a record asks: everything before the last assistant turn, a prompt, or a text that is to
    /// go on.
    ///
    /// # Errors
    /// A record without a prompt, or one that [`Self::chat_prompt`] refuses.
    pub fn record_prompt(&self, record: &Record) -> Result<(Turn, Vec<u32>)> {
        let (turn, tools) = match record {
            Record::Chat { messages, tools } => (question(messages), tools.as_deref()),
            Record::PromptCompletion { prompt, tools, .. } | Record::Prompt { prompt, tools } => {
                (prompt.clone(), tools.as_deref())
            }
            Record::Text { text } => (Turn::Text(text.clone()), None),
            Record::Preference { prompt: Some(prompt), .. }
            | Record::Ranked { prompt, .. }
            | Record::Unpaired { prompt, .. } => (prompt.clone(), None),
            Record::Preference { chosen: Turn::Messages(chosen), .. } => (question(chosen), None),
            Record::Preference { .. }
            | Record::Tokenized { .. }
            | Record::TokenizedPreference { .. } => {
                return Err(Error::data("the row has no prompt as text")
                    .hint("give `messages`, `prompt`, or `text` to go on from"));
            }
        };
        let ids = match &turn {
            Turn::Messages(messages) if messages.is_empty() => {
                return Err(Error::data("nothing stands before the assistant's turn"));
            }
            Turn::Messages(messages) => self.chat_prompt(messages, tools)?,
            Turn::Text(text) => self.text_prompt(text)?,
        };
        match ids.is_empty() {
            true => Err(Error::data("the prompt is empty")),
            false => Ok((turn, ids)),
        }
    }

    /// Tokens that the model can look at.
    pub fn context_len(&self) -> usize {
        self.model.config.max_position_embeddings
    }

    /// Most tokens of a sequence that an engine holds.
    pub fn longest(&self, options: &EngineOptions) -> usize {
        // A prompt's last page is held beside its copy.
        self.context_len().min((options.cache_tokens / PAGE).saturating_sub(1) * PAGE)
    }

    /// How many tokens may follow a prompt of so many, at least one.
    ///
    /// # Errors
    /// A prompt that fills the context.
    pub fn room_after(&self, prompt: usize, options: &EngineOptions) -> Result<usize> {
        let (context, held) = (self.context_len(), self.longest(options));
        match held.checked_sub(prompt) {
            Some(room) if room > 0 => Ok(room),
            _ if context == held => Err(Error::data(format!(
                "the prompt has `{prompt}` tokens, and the model's context `{context}`"
            ))
            .hint("shorten the prompt")),
            _ => Err(Error::data(format!(
                "the prompt has `{prompt}` tokens, and `{held}` fit the cache of keys and values"
            ))
            .hint("shorten the prompt, or raise `--cache-tokens`")),
        }
    }

    /// Scores of all tokens but the first.
    ///
    /// # Errors
    /// As [`score`].
    pub fn score(&self, tokens: &[u32], top: usize) -> Result<Vec<TokenScore>> {
        score(&self.model, tokens, top)
    }

    /// An engine's options: `cache_tokens`, or what a third of the available memory holds, but no
    /// more than 65,536 and no less than one context or 1,024.
    pub fn engine_options(&self, completions: usize, cache_tokens: Option<usize>) -> EngineOptions {
        let number = |shape: Shape| 2 * shape.kv_heads * shape.head_dim * size_of::<f32>();
        let token: usize = self.model.blocks.iter().map(|block| number(block.shape)).sum();
        let cache_tokens = cache_tokens.unwrap_or_else(|| {
            let held = available_memory().map_or(CACHE_TOKENS, |bytes| bytes / 3 / token.max(1));
            let least = (self.context_len() + 2 * PAGE).min(CACHE_TOKENS);
            held.clamp(least.min(1024), CACHE_TOKENS)
        });
        EngineOptions { cache_tokens, completions, ..EngineOptions::default() }
    }

    /// What the model is, hashed: configuration and weights, the tokenizer, the template's text and the
    /// stop tokens.
    ///
    /// # Errors
    /// When a tensor cannot be read, or the tokenizer not be written.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"halter generator 2");
        hasher.update(self.model.fingerprint(true)?.as_bytes());
        self.tokenizer.hash_into(&mut hasher)?;
        for (name, source) in self.template.iter().flat_map(|template| template.sources()) {
            hasher.update(name.as_bytes()).update(source.as_bytes());
        }
        self.stop_tokens.iter().for_each(|id| _ = hasher.update(&id.to_le_bytes()));
        Ok(hasher.finalize().to_hex()[..32].to_string())
    }
}

/// Everything before the last assistant turn; all of it where somebody else speaks last.
pub fn question(messages: &[Message]) -> Turn {
    let end = match messages.last() {
        Some(message) if message.role() == "assistant" => messages.len() - 1,
        _ => messages.len(),
    };
    Turn::Messages(messages[..end].to_vec())
}
