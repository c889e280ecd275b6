//! Chat templates: the model's own Jinja, rendered to the byte as transformers'
//! `apply_chat_template` renders it.
//!
//! A rendering is bounded in instructions and in output, so that a template that never ends is an
//! error. The date that a template may put is pinned when the template is built.
//!
//! Known limits: a tuple printed whole shows as a list (`[1, 2]` for `(1, 2)`), and the operator `~`
//! shows a mapping as JSON. Neither occurs in the templates of the supported families. A template
//! that doubles a string in memory, without putting it out, is bounded by its instructions only.

use std::io;

use minijinja::{Environment, ErrorKind, Value as JinjaValue};
use serde_json::{Map, Value};

use super::jinja::{self, MARK, MARKS, Raised};
use super::strftime::Moment;
use crate::data::record::Message;
use crate::{Error, Result};

/// Bytes that one rendering may put out beyond a fixed multiple of what went in.
const OUTPUT_FLOOR: usize = 4 << 20;
/// What transformers appends to the final message to find where it ends.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
/// Names a message's reasoning goes by; templates read the first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A model's chat template, ready to render.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    sources: Vec<(String, String)>,
    special_tokens: Map<String, Value>,
    args: Map<String, Value>,
    now: Moment,
}

/// What to render besides the messages.
#[derive(Debug, Clone, Copy, Default)]
pub struct RenderOptions<'a> {
    /// Tool declarations (JSON schemas); `None` where the row has none.
    pub tools: Option<&'a [Value]>,
    /// Documents for retrieval templates.
    pub documents: Option<&'a [Value]>,
    /// End with the header of an assistant turn.
    pub add_generation_prompt: bool,
    /// Leave the last message open, to be continued.
    pub continue_final_message: bool,
}

impl ChatTemplate {
    /// A template from its text (`chat_template.jinja`, a string of `tokenizer_config.json`, or
    /// GGUF metadata).
    ///
    /// # Errors
    /// The text is not a template.
    pub fn new(source: &str) -> Result<Self> {
        Self::named(vec![("default".to_string(), source.to_string())])
    }

    /// Several templates by name, as `tokenizer_config.json` may hold them; `tool_use` is taken
    /// for conversations with tools, `default` for the others.
    ///
    /// # Errors
    /// One of them is not a template.
    pub fn named(sources: Vec<(String, String)>) -> Result<Self> {
        let mut template = Self {
            env: Environment::new(),
            sources,
            special_tokens: Map::new(),
            args: Map::new(),
            now: Moment::now(),
        };
        template.build()?;
        Ok(template)
    }

    fn build(&mut self) -> Result<()> {
        let mut env = jinja::environment(self.now);
        for (name, source) in &self.sources {
            env.add_template_owned(name.clone(), jinja::prepare(source))
                .map_err(|error| self.explain(&error))?;
        }
        self.env = env;
        Ok(())
    }

    /// Special tokens that the template may name (`bos_token`, `eos_token`, …); see
    /// [`Tokenizer::special_tokens_map`](super::tokenizer::Tokenizer::special_tokens_map).
    #[must_use]
    pub fn with_special_tokens(mut self, tokens: Map<String, Value>) -> Self {
        self.special_tokens = tokens;
        self
    }

    /// Further variables for the template (`enable_thinking`, `date_string`, …); they win over
    /// special tokens of the same name.
    ///
    /// # Errors
    /// A name that the renderer itself sets.
    pub fn with_args(mut self, args: Map<String, Value>) -> Result<Self> {
        for name in ["messages", "tools", "documents", "add_generation_prompt", MARK] {
            if args.contains_key(name) {
                return Err(Error::config(format!(
                    "template argument `{name}` is set by halter and cannot be given"
                )));
            }
        }
        self.args = args;
        Ok(self)
    }

    /// Pins what `strftime_now` reads, in seconds since 1970 (taken as UTC). Without it, the moment
    /// the template was built.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`]; in fact none, since the sources were compiled before.
    pub fn with_now(mut self, unix_seconds: i64) -> Result<Self> {
        self.now = Moment(unix_seconds);
        self.build()?;
        Ok(self)
    }

    /// The template's text, for an export: the one used without tools.
    ///
    /// # Errors
    /// Several templates, none of them named `default`.
    pub fn source(&self) -> Result<&str> {
        self.pick(false).map(|(_, source)| source)
    }

    /// All templates with their names, in the order they were given.
    pub fn sources(&self) -> &[(String, String)] {
        &self.sources
    }

    /// Whether the template marks what the model generates.
    pub fn has_generation_blocks(&self) -> bool {
        self.sources.iter().any(|(_, source)| jinja::prepare(source).contains("__generation()"))
    }

    fn pick(&self, with_tools: bool) -> Result<(&str, &str)> {
        let find = |wanted: &str| self.sources.iter().find(|(name, _)| name == wanted);
        let found = match with_tools {
            true => find("tool_use").or_else(|| find("default")),
            false => find("default"),
        };
        found.map(|(name, source)| (name.as_str(), source.as_str())).ok_or_else(|| {
            let names: Vec<&str> = self.sources.iter().map(|(name, _)| name.as_str()).collect();
            Error::text(format!(
                "the model has no `default` chat template, only `{}`",
                names.join("`, `")
            ))
            .hint("give the template to use with `--chat-template FILE`")
        })
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// No message; a template that refuses the conversation (`raise_exception`), fails, does not
    /// end or writes without bound; with `continue_final_message`, a last message that cannot be
    /// found again.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        if messages.is_empty() {
            return Err(Error::text("conversation has no messages"));
        }
        if !options.continue_final_message {
            return self.render_values(normalise(messages), options, false);
        }
        self.render_open(messages, options)
    }

    /// Renders a conversation and says which byte ranges `{% generation %}` blocks rendered.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with_generation_spans(
        &self,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<(String, Vec<std::ops::Range<usize>>)> {
        if messages.is_empty() {
            return Err(Error::text("conversation has no messages"));
        }
        let marked = self.render_values(normalise(messages), options, true)?;
        let (mut text, mut spans) = (String::with_capacity(marked.len()), Vec::new());
        let mut start = None;
        for char in marked.chars() {
            if char == MARKS[0] {
                start = Some(text.len());
            } else if char == MARKS[1] {
                spans.extend(start.take().map(|start| start..text.len()));
            } else {
                text.push(char);
            }
        }
        Ok((text, spans))
    }

    /// Renders messages that may be empty in number, for the prompt before the first turn.
    pub(crate) fn render_any(
        &self,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<String> {
        self.render_values(normalise(messages), options, false)
    }

    fn render_open(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        if options.add_generation_prompt {
            return Err(Error::text(
                "`continue_final_message` and `add_generation_prompt` exclude each other",
            ));
        }
        let mut values = normalise(messages);
        let last = values.last_mut().and_then(Value::as_object_mut);
        let content = last.and_then(|message| message.get_mut("content"));
        let text = match content {
            Some(Value::String(text)) => Some(text),
            Some(Value::Array(parts)) => {
                parts.iter_mut().rev().find_map(|part| match part.get_mut("text") {
                    Some(Value::String(text)) => Some(text),
                    _ => None,
                })
            }
            _ => None,
        };
        let Some(text) = text else {
            return Err(Error::text("the final message has no text to continue"));
        };
        let content = text.clone();
        text.push_str(CONTINUE_TAG);
        let rendered = self.render_values(values, options, false)?;
        let at = rendered.rfind(CONTINUE_TAG.trim_end());
        match at {
            Some(at) if rendered.contains(content.trim_matches(super::python::is_space)) => {
                let kept = &rendered[..at];
                Ok(match rendered[at..].starts_with(CONTINUE_TAG) {
                    true => kept.to_string(),
                    false => kept.trim_end_matches(super::python::is_space).to_string(),
                })
            }
            _ => Err(Error::text(
                "the final message does not appear in the rendered text, so it cannot be continued",
            )),
        }
    }

    fn render_values(
        &self,
        messages: Vec<Value>,
        options: &RenderOptions,
        mark: bool,
    ) -> Result<String> {
        let (name, source) = self.pick(options.tools.is_some())?;
        let template = self.env.get_template(name).map_err(|error| self.explain(&error))?;
        let mut context = self.special_tokens.clone();
        context.extend(self.args.clone());
        context.insert("messages".into(), Value::Array(messages));
        let list = |list: Option<&[Value]>| list.map_or(Value::Null, |list| list.to_vec().into());
        context.insert("tools".into(), list(options.tools));
        context.insert("documents".into(), list(options.documents));
        context.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        if mark {
            context.insert(MARK.into(), true.into());
        }
        let size = source.len() + context.values().map(weight).sum::<usize>();
        let context = JinjaValue::from_serialize(&context);
        let mut out =
            Bounded { bytes: Vec::new(), limit: OUTPUT_FLOOR + 64 * size, overrun: false };
        let outcome = template.render_captured_to(context, &mut out);
        if out.overrun {
            return Err(Error::text(format!(
                "the chat template wrote more than {} bytes and was stopped",
                out.limit
            ))
            .hint("the template repeats itself without end; give another with `--chat-template`"));
        }
        outcome.map_err(|error| self.explain(&error))?;
        String::from_utf8(out.bytes)
            .map_err(|_| Error::text("the chat template wrote text that is not utf-8"))
    }

    fn explain(&self, error: &minijinja::Error) -> Error {
        let line = error.line().map_or_else(String::new, |line| format!(" (template line {line})"));
        if let Some(raised) = raised(error) {
            return Error::text(format!(
                "the chat template refused the conversation: `{raised}`{line}"
            ))
            .hint("the order or kind of roles does not suit this model's template");
        }
        let what = match error.kind() {
            ErrorKind::OutOfFuel => {
                return Error::text(format!("the chat template did not end and was stopped{line}"))
                    .hint("the template loops; give another with `--chat-template`");
            }
            ErrorKind::SyntaxError => "is not valid",
            _ => "failed",
        };
        let detail = match error.detail() {
            Some(detail) => format!("{}: {detail}", error.kind()),
            None => error.kind().to_string(),
        };
        Error::text(format!("the chat template {what}: {detail}{line}"))
    }
}

/// The message of a `raise_exception`, however deep a macro or call block buried it.
fn raised(error: &minijinja::Error) -> Option<String> {
    let mut current: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = current {
        if let Some(raised) = error.downcast_ref::<Raised>() {
            return Some(raised.0.clone());
        }
        current = error.source();
    }
    None
}

/// What transformers does to messages before a template sees them: keys without a value go, and
/// reasoning is given under the names that templates read.
fn normalise(messages: &[Message]) -> Vec<Value> {
    messages.iter().map(|message| normalise_one(&message.0)).collect()
}

fn normalise_one(message: &Map<String, Value>) -> Value {
    let reasoning = REASONING.iter().find_map(|key| message.get(*key).filter(|v| !v.is_null()));
    let mut map = Map::new();
    if let Some(reasoning) = reasoning {
        map.insert("thinking".into(), reasoning.clone());
    }
    for (key, value) in message.iter().filter(|(_, value)| !value.is_null()) {
        map.insert(key.clone(), value.clone());
    }
    if let Some(reasoning) = reasoning {
        map.insert("reasoning_content".into(), reasoning.clone());
    }
    Value::Object(map)
}

/// About how many bytes a value takes as text.
fn weight(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|item| weight(item) + 2).sum(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() + 4 + weight(value)).sum(),
        _ => 8,
    }
}

/// A writer that refuses to grow past its limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    overrun: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            self.overrun = true;
            return Err(io::Error::other("output limit"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
