//! What a model is asked, and what it says.

use serde_json::Value;

use crate::data::record::{Message, Turn};
use crate::generate::sampling::Sampling;

/// One completion that is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// A conversation, or a text that is to go on without a template.
    pub prompt: Turn,
    /// Tool declarations (JSON schemas).
    pub tools: Option<Vec<Value>>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Most tokens of the completion.
    pub max_new_tokens: usize,
    /// The completion ends before any of these texts.
    pub stop: Vec<String>,
    /// So many of the likeliest tokens are told at each position; `None`: no log-probs at all.
    pub top_logprobs: Option<usize>,
    /// The answer's format, as OpenAI's API has it; servers only.
    pub response_format: Option<Value>,
    /// Equal questions with unequal draws are answered each on its own. Part of the seed.
    pub draw: u64,
}

impl Question {
    /// A question with the model's own distribution, and nothing beyond it.
    pub fn new(prompt: Turn, max_new_tokens: usize) -> Self {
        Self {
            prompt,
            tools: None,
            sampling: Sampling::default(),
            max_new_tokens,
            stop: Vec::new(),
            top_logprobs: None,
            response_format: None,
            draw: 0,
        }
    }

    /// The user's message alone.
    pub fn of_user(text: &str, max_new_tokens: usize) -> Self {
        Self::new(Turn::Messages(vec![Message::new("user", text)]), max_new_tokens)
    }
}

/// What a model said.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The assistant's message: `content`, perhaps `tool_calls`. Of a text that goes on, its
    /// continuation.
    pub message: Message,
    /// Why it ended: `stop`, `length`, `tool_calls`, ….
    pub finish: String,
    /// Log-probs of the completion's tokens, where they were asked for, as the API has them
    /// (`choices[0].logprobs`).
    pub logprobs: Option<Value>,
    /// Tokens that it took.
    pub usage: Usage,
    /// The model that answered, as it calls itself.
    pub model: String,
}

impl Answer {
    /// The text; empty where there is none.
    pub fn text(&self) -> &str {
        self.message.content().unwrap_or_default()
    }

    /// Whether the completion came to its end by itself.
    pub fn is_whole(&self) -> bool {
        self.finish != "length"
    }
}

/// Tokens of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Of what was asked.
    pub prompt_tokens: u64,
    /// Of what was said.
    pub completion_tokens: u64,
}
