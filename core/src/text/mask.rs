//! The completion mask: which part of a rendered conversation the model is to learn.
//!
//! An assistant turn is trained from where generation would begin (the end of the text that
//! `add_generation_prompt` renders) through its end-of-turn token. Neither place is guessed from
//! the look of the text:
//!
//! - The conversation is rendered again with the turn's content replaced by a sentinel that occurs
//!   nowhere else. The first end-of-turn token after the sentinel is the turn's own; what follows
//!   it must be, to the byte, what follows in the real text.
//! - The start is the length of the generation prompt where that is a prefix of the real text.
//!   Where it is not (a template that renders history otherwise, as Qwen3 does), the prompt's end is
//!   found before the sentinel. What precedes it must be, to the byte, what precedes in both.
//!
//! So everything outside a span is proved not to depend on the turn. Where that fails, the template
//! cannot be masked, and the row is refused rather than masked by a guess.

use std::ops::Range;

use serde_json::Value;

use super::template::{ChatTemplate, RenderOptions};
use super::tokenizer::Tokenizer;
use crate::data::record::Message;
use crate::{Error, Result};

/// How much of the generation prompt's end must reappear where it is looked for.
const RECOGNISED: usize = 4;

/// Which assistant turns are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskPolicy {
    /// Every one.
    #[default]
    All,
    /// The last one only.
    Last,
}

/// A trained part of a rendered conversation, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnSpan {
    /// Index of the message.
    pub message: usize,
    /// From the end of the generation prompt to the end of the end-of-turn token.
    pub span: Range<usize>,
    /// What the template puts after it, before the next message.
    pub trailing: Range<usize>,
    /// Whether the text before the span is what generation would be given. It is not where a
    /// template renders history otherwise than the present (Qwen3 drops earlier thoughts).
    pub prompt_is_prefix: bool,
}

/// A rendered conversation and its trained parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskedText {
    /// The text.
    pub text: String,
    /// The trained parts, in order.
    pub turns: Vec<TurnSpan>,
}

/// Tokens of a [`MaskedText`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskedTokens {
    /// Tokens.
    pub input_ids: Vec<u32>,
    /// `true` where the token is trained.
    pub completion_mask: Vec<bool>,
    /// Whether before every trained span the tokens are those of the generation prompt.
    pub prompt_is_prefix: bool,
}

/// Renders a conversation and finds what is trained: the assistant turns from message `first` on,
/// but those of which the row says otherwise ([`Message::is_trained`]).
///
/// # Errors
/// A template that refuses the conversation, leaves tools or a call out or cannot be masked; no
/// assistant turn.
pub fn mask_text(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[Message],
    tools: Option<&[Value]>,
    policy: MaskPolicy,
    first: usize,
) -> Result<MaskedText> {
    let options = RenderOptions { tools, ..RenderOptions::default() };
    let text = template.render(messages, &options)?;
    check_calls(template, messages, &options, &text)?;
    check_tools(template, messages, &options, &text)?;
    let ends: Vec<String> =
        tokenizer.end_of_turn_tokens().into_iter().map(|(token, _)| token).collect();
    if ends.is_empty() {
        return Err(Error::text("tokenizer has no end-of-sequence or end-of-turn token")
            .hint("name it as `eos_token` in tokenizer_config.json"));
    }
    let mut wanted: Vec<usize> =
        (first..messages.len()).filter(|&index| messages[index].role() == "assistant").collect();
    if policy == MaskPolicy::Last {
        wanted.drain(..wanted.len().saturating_sub(1));
    }
    wanted.retain(|&index| messages[index].is_trained() != Some(false));
    if wanted.is_empty() {
        return Err(Error::data("conversation has no assistant turn to train"));
    }
    let finder =
        Finder { template, options, messages, ends, text: &text, sentinel: sentinel(&text) };
    let mut turns: Vec<TurnSpan> = Vec::with_capacity(wanted.len());
    for index in wanted {
        let turn = finder.turn(index)?;
        if turns.last().is_some_and(|before| before.trailing.end > turn.span.start) {
            return Err(cannot(index, "its text overlaps that of the turn before"));
        }
        turns.push(turn);
    }
    Ok(MaskedText { text, turns })
}

/// Refuses a tool call that the template leaves out: the turn would train an empty answer, and
/// what the tool said would follow upon nothing.
fn check_calls(
    template: &ChatTemplate,
    messages: &[Message],
    options: &RenderOptions,
    text: &str,
) -> Result<()> {
    for (index, message) in messages.iter().enumerate() {
        let calls = message.0.get("tool_calls").and_then(Value::as_array);
        if calls.is_none_or(Vec::is_empty) {
            continue;
        }
        let mut without = messages.to_vec();
        without[index].0.shift_remove("tool_calls");
        // A template that refuses the conversation without the call does look at it.
        if template.render(&without, options).is_ok_and(|rendered| rendered == text) {
            return Err(Error::data(format!(
                "message `{}` calls a tool, but the chat template leaves the call out",
                index + 1
            ))
            .hint("use a model whose template knows tools, or rows without tool calls"));
        }
    }
    Ok(())
}

/// Refuses tools that the template leaves out: the model would learn to answer without them.
fn check_tools(
    template: &ChatTemplate,
    messages: &[Message],
    options: &RenderOptions,
    text: &str,
) -> Result<()> {
    let without = RenderOptions { tools: None, ..*options };
    let left_out = || template.render(messages, &without).is_ok_and(|rendered| rendered == text);
    if options.tools.is_some_and(|tools| !tools.is_empty()) && left_out() {
        return Err(Error::data("row declares tools, but the chat template leaves them out")
            .hint("use a model whose template knows tools, or rows without `tools`"));
    }
    Ok(())
}

/// A word that does not occur in the text and that no template changes.
fn sentinel(text: &str) -> String {
    let name = |n: usize| format!("hAlTeRsEnTiNeL{n}x");
    let mut n = 0;
    while text.contains(&name(n)) {
        n += 1;
    }
    name(n)
}

fn cannot(index: usize, why: &str) -> Error {
    let number = index + 1;
    Error::text(format!("message `{number}` cannot be masked with this chat template: {why}"))
        .hint("use prompt/completion rows, rows already tokenized, or another `--chat-template`")
}

struct Finder<'a> {
    template: &'a ChatTemplate,
    options: RenderOptions<'a>,
    messages: &'a [Message],
    ends: Vec<String>,
    text: &'a str,
    sentinel: String,
}

/// Where the sentinel is in a rendering.
struct Probed {
    text: String,
    at: Range<usize>,
}

impl Finder<'_> {
    fn turn(&self, index: usize) -> Result<TurnSpan> {
        let mut why = "the template leaves its content out".to_string();
        for message in probes(&self.messages[index], &self.sentinel) {
            match self.with_probe(index, &message) {
                Ok(turn) => return Ok(turn),
                Err(reason) => why = reason,
            }
        }
        Err(cannot(index, &why))
    }

    /// The span by one way of putting the sentinel, or why it gives none.
    fn with_probe(&self, index: usize, message: &Message) -> Result<TurnSpan, String> {
        let all = self.probe(index, message, self.messages.len())?;
        let upto = match index + 1 == self.messages.len() {
            true => None,
            false => Some(self.probe(index, message, index + 1)?),
        };
        let upto = upto.as_ref().unwrap_or(&all);

        // the end: the first end-of-turn token after the sentinel, with nothing later in sight
        let after = &upto.text[upto.at.end..];
        let Some(length) = self.first_end(after) else {
            return Err("no end-of-turn token follows its content".to_string());
        };
        if !all.text[all.at.end..].starts_with(&after[..length]) {
            return Err("what follows it depends on the messages after it".to_string());
        }
        let tail = &all.text[all.at.end + length..];
        let trailing = &after[length..];
        let trailing = if tail.starts_with(trailing) { trailing.len() } else { 0 };

        let (start, prompt_is_prefix) = self.start(index, &all, upto)?;
        if !all.text.is_char_boundary(start) || !self.text.starts_with(&all.text[..start]) {
            return Err("the text before it depends on its content".to_string());
        }
        if !self.text.ends_with(tail) || self.text.len() < start + tail.len() {
            return Err("the text after it depends on its content".to_string());
        }
        let end = self.text.len() - tail.len();
        if !self.ends.iter().any(|token| self.text[start..end].ends_with(token)) {
            return Err("its end-of-turn token depends on its content".to_string());
        }
        Ok(TurnSpan {
            message: index,
            span: start..end,
            trailing: end..end + trailing,
            prompt_is_prefix,
        })
    }

    /// Renders the first `count` messages with message `index` replaced, and finds the sentinel.
    fn probe(&self, index: usize, message: &Message, count: usize) -> Result<Probed, String> {
        let mut messages = self.messages[..count].to_vec();
        messages[index] = message.clone();
        let text = self
            .template
            .render(&messages, &self.options)
            .map_err(|error| format!("a probe failed: {}", error.message()))?;
        let Some(at) = text.find(&self.sentinel) else {
            return Err("the template leaves its content out".to_string());
        };
        let end = at + self.sentinel.len();
        if text[end..].contains(&self.sentinel) {
            return Err("the template puts its content in two places".to_string());
        }
        Ok(Probed { text, at: at..end })
    }

    /// Length of the text through the first end-of-turn token.
    fn first_end(&self, after: &str) -> Option<usize> {
        let found = self.ends.iter().filter_map(|token| Some((after.find(token)?, token.len())));
        let (at, length) = found.min_by_key(|(at, length)| (*at, usize::MAX - length))?;
        Some(at + length)
    }

    /// Where generation of the turn would begin, and whether all before is the generation prompt.
    fn start(&self, index: usize, all: &Probed, upto: &Probed) -> Result<(usize, bool), String> {
        let asked = RenderOptions { add_generation_prompt: true, ..self.options };
        let prompt = self.template.render_any(&self.messages[..index], &asked).ok();
        if let Some(prompt) = &prompt
            && self.text.starts_with(prompt)
            && all.text.starts_with(prompt)
            && prompt.len() <= all.at.start
        {
            return Ok((prompt.len(), true));
        }
        let before = &all.text[..all.at.start];
        // what the template puts between the prompt and the content, where the turn is the last
        if let Some(prompt) = &prompt
            && let Some(lead) = upto.text[..upto.at.start].strip_prefix(prompt.as_str())
            && let Some(head) = before.strip_suffix(lead)
            && common_suffix(head, prompt) >= RECOGNISED
        {
            return Ok((head.len(), false));
        }
        // the header that a generation prompt adds, or as much of it as stands before the content
        let header = self.header().unwrap_or_default();
        if !header.is_empty() {
            if let Some(at) = before.rfind(&header) {
                return Ok((at + header.len(), false));
            }
            let cut = header.char_indices().map(|(at, _)| at).rev();
            let part =
                cut.take_while(|at| *at >= RECOGNISED).find(|at| before.ends_with(&header[..*at]));
            if part.is_some() {
                return Ok((before.len(), false));
            }
        }
        // no header: the end of the prompt, perhaps followed by white space
        if let Some(prompt) = &prompt {
            let bare = before.trim_end().len();
            let cuts = (bare..=before.len()).filter(|at| before.is_char_boundary(*at));
            let best = cuts.max_by_key(|at| common_suffix(&before[..*at], prompt));
            if let Some(at) = best.filter(|at| common_suffix(&before[..*at], prompt) >= RECOGNISED)
            {
                return Ok((at, false));
            }
        }
        Err("the generation prompt does not occur before its content".to_string())
    }

    /// What `add_generation_prompt` adds to the conversation.
    fn header(&self) -> Option<String> {
        let asked = RenderOptions { add_generation_prompt: true, ..self.options };
        let longer = self.template.render(self.messages, &asked).ok()?;
        longer.strip_prefix(self.text).map(str::to_string)
    }
}

/// Bytes of the longest common suffix.
fn common_suffix(a: &str, b: &str) -> usize {
    a.bytes().rev().zip(b.bytes().rev()).take_while(|(a, b)| a == b).count()
}

/// The ways to put the sentinel into a message, best first: its content, its text parts, the name
/// of its first tool call.
fn probes(message: &Message, sentinel: &str) -> Vec<Message> {
    let mut probes = Vec::new();
    let content = message.0.get("content").filter(|content| !content.is_null());
    match content {
        Some(Value::Array(parts)) => {
            let mut parts = parts.clone();
            if let Some(text) = parts.iter_mut().rev().find_map(|part| part.get_mut("text")) {
                *text = sentinel.into();
                let mut probe = message.clone();
                probe.0.insert("content".into(), Value::Array(parts));
                probes.push(probe);
            }
        }
        _ => {
            let mut probe = message.clone();
            probe.0.insert("content".into(), sentinel.into());
            probes.push(probe);
        }
    }
    let mut probe = message.clone();
    let call = probe.0.get_mut("tool_calls").and_then(|calls| calls.get_mut(0));
    let name = call.and_then(|call| match call.get("function") {
        Some(_) => call.get_mut("function").and_then(|function| function.get_mut("name")),
        None => call.get_mut("name"),
    });
    if let Some(name) = name {
        *name = sentinel.into();
        probes.push(probe);
    }
    probes
}

/// Encodes a masked text, as transformers encodes a rendered chat (nothing added), and marks the
/// trained tokens: those that lie in a trained span.
///
/// A token that begins before a span and ends in it counts as prompt. Then, or where the tokens
/// before a span are not those of the generation prompt alone, `prompt_is_prefix` is false.
///
/// # Errors
/// Two BOS tokens; a span whose last token is not the end-of-turn token.
pub fn mask_tokens(
    tokenizer: &Tokenizer,
    masked: &MaskedText,
    train_on_trailing: bool,
) -> Result<MaskedTokens> {
    let tokens = tokenizer.encode(&masked.text, false)?;
    if let Some(bos) = tokenizer.bos_id()
        && tokens.ids.starts_with(&[bos, bos])
    {
        return Err(Error::text("the rendered conversation begins with two BOS tokens")
            .hint("the first message or a template argument holds the BOS token as text"));
    }
    let ends = tokenizer.end_of_turn_tokens();
    let mut completion_mask = vec![false; tokens.ids.len()];
    let mut prompt_is_prefix = masked.turns.iter().all(|turn| turn.prompt_is_prefix);
    for turn in &masked.turns {
        let last = if train_on_trailing { turn.trailing.end } else { turn.span.end };
        let mut ended = false;
        for (index, &(from, to)) in tokens.offsets.iter().enumerate() {
            // a token of no width (an inserted space mark) belongs to what follows it
            if from >= turn.span.start && to <= last && from < last {
                completion_mask[index] = true;
                ended |= to == turn.span.end && ends.iter().any(|(_, id)| *id == tokens.ids[index]);
            }
        }
        if !ended {
            return Err(cannot(turn.message, "its end-of-turn token is not one token").hint(
                "the tokenizer must know the end-of-turn token of the template as an added token",
            ));
        }
        prompt_is_prefix &= prompt_alone_is_same(tokenizer, &masked.text, &tokens, turn)?;
    }
    Ok(MaskedTokens { input_ids: tokens.ids, completion_mask, prompt_is_prefix })
}

/// Whether the tokens before a span are those of the text before it. Special tokens part a text
/// into pieces that are encoded on their own, so the last piece is enough.
fn prompt_alone_is_same(
    tokenizer: &Tokenizer,
    text: &str,
    tokens: &super::tokenizer::TokenizedText,
    turn: &TurnSpan,
) -> Result<bool> {
    let border = turn.span.start;
    let count = tokens.offsets.partition_point(|(from, to)| *from < border && *to <= border);
    let special = (0..count).rev().find(|&index| tokenizer.is_special(tokens.ids[index]));
    let from = special.unwrap_or(0);
    let byte = special.map_or(0, |index| tokens.offsets[index].0);
    let alone = tokenizer.encode(&text[byte..border], false)?;
    Ok(alone.ids == tokens.ids[from..count])
}
