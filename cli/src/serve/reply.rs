//! What is sent back: OpenAI's objects, whole or in chunks.

use std::sync::Arc;

use halter_core::generate::Generator;
use halter_core::generate::engine::Finish;
use halter_core::generate::logprobs::{Logprobs, Told};
use halter_core::generate::score::TokenScore;
use halter_core::generate::session::{Completion, Update};
use serde_json::{Map, Value, json};

use super::ask::Style;

/// A request as far as its answer depends on it.
pub struct Reply {
    pub generator: Arc<Generator>,
    pub id: String,
    pub created: u64,
    pub model: String,
    pub fingerprint: String,
    pub style: Style,
    /// Tokens of each prompt.
    pub prompts: Vec<Vec<u32>>,
    /// Completions of each prompt.
    pub completions: usize,
}

impl Reply {
    /// Completions of all prompts together.
    pub fn choices(&self) -> usize {
        self.prompts.len() * self.completions
    }

    /// The whole answer; completions lie prompt by prompt.
    pub fn whole(&self, completions: &[Completion], scores: &[Vec<TokenScore>]) -> Value {
        let choices = completions.iter().enumerate().map(|(index, completion)| {
            let told = completion.tokens.iter().zip(&completion.logprobs).zip(&completion.top);
            let told = told.map(|((&token, &logprob), top)| (token, Some((logprob, &top[..]))));
            let finish = finish_reason(completion.finish);
            if self.style.is_chat {
                let text = &completion.text;
                return json!({
                    "index": index,
                    "message": { "role": "assistant", "content": text, "refusal": null },
                    "logprobs": self.chat_logprobs(told),
                    "finish_reason": finish,
                });
            }
            let (echo, before, mut offset) = self.echo(index, scores);
            json!({
                "index": index,
                "text": format!("{echo}{}", completion.text),
                "logprobs": self.text_logprobs(before.into_iter().chain(told), &mut offset),
                "finish_reason": finish,
            })
        });
        let choices: Vec<Value> = choices.collect();
        let tokens = completions.iter().map(|completion| completion.tokens.len()).sum();
        let kind = if self.style.is_chat { "chat.completion" } else { "text_completion" };
        let mut answer = self.object(kind, choices);
        answer.insert("usage".into(), self.usage(tokens));
        answer.into()
    }

    /// What stands before a completion where the prompt is to be repeated, and where its first token
    /// begins: before the text, if the tokenizer put something there, such as BOS.
    fn echo<'a>(
        &'a self,
        index: usize,
        scores: &'a [Vec<TokenScore>],
    ) -> (&'a str, Vec<Told<'a>>, isize) {
        let prompt = index / self.completions;
        let Some(texts) = &self.style.echo else { return ("", Vec::new(), 0) };
        let (text, tokens) = (&texts[prompt], &self.prompts[prompt]);
        let more = self.form().characters(tokens).saturating_sub(text.chars().count());
        let scores = scores[prompt].iter().map(|score| Some((score.logprob, &score.top[..])));
        let told = tokens.iter().copied().zip(std::iter::once(None).chain(scores));
        (text, told.collect(), -more.cast_signed())
    }

    fn object(&self, kind: &str, choices: Vec<Value>) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("id".into(), self.id.clone().into());
        map.insert("object".into(), kind.into());
        map.insert("created".into(), self.created.into());
        map.insert("model".into(), self.model.clone().into());
        map.insert("system_fingerprint".into(), self.fingerprint.clone().into());
        map.insert("choices".into(), choices.into());
        map
    }

    fn usage(&self, completion_tokens: usize) -> Value {
        let prompt_tokens: usize = self.prompts.iter().map(Vec::len).sum();
        json!({
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        })
    }

    fn chat_logprobs<'a>(&self, told: impl IntoIterator<Item = Told<'a>>) -> Value {
        self.style.logprobs.map_or(Value::Null, |_| self.form().chat(told))
    }

    /// `offset` is where the first token begins in the text, in characters.
    fn text_logprobs<'a>(
        &self,
        told: impl IntoIterator<Item = Told<'a>>,
        offset: &mut isize,
    ) -> Value {
        self.style.logprobs.map_or(Value::Null, |_| self.form().text(told, offset))
    }

    fn form(&self) -> Logprobs<'_> {
        Logprobs { tokenizer: &self.generator.tokenizer, token_ids: self.style.token_ids }
    }
}

/// An answer that is sent as it is made.
pub struct Chunks {
    reply: Reply,
    /// For each choice whether it has begun, and how many characters its tokens have.
    begun: Vec<(bool, isize)>,
    tokens: usize,
}

impl Chunks {
    pub fn new(reply: Reply) -> Self {
        let begun = vec![(false, 0); reply.choices()];
        Self { reply, begun, tokens: 0 }
    }

    /// What a token adds, of the prompt of that number.
    pub fn add(
        &mut self,
        prompt: usize,
        update: &Update,
        scores: &[Vec<TokenScore>],
    ) -> Vec<Value> {
        let event = &update.event;
        let index = prompt * self.reply.completions + event.completion;
        let mut chunks = self.begin(index, scores);
        self.tokens += 1;
        let told = [(event.token, Some((event.logprob, &event.top[..])))];
        let is_silent = update.text.is_empty() && self.reply.style.logprobs.is_none();
        let finish = event.finish.map(|finish| finish_reason(Some(finish)));
        if self.reply.style.is_chat {
            if !is_silent {
                let logprobs = self.reply.chat_logprobs(told);
                chunks.push(self.chat(index, json!({ "content": update.text }), logprobs, None));
            }
            if finish.is_some() {
                chunks.push(self.chat(index, json!({}), Value::Null, finish));
            }
        } else if !is_silent || finish.is_some() {
            let logprobs = self.reply.text_logprobs(told, &mut self.begun[index].1);
            chunks.push(self.text(index, &update.text, logprobs, finish));
        }
        chunks
    }

    /// The first chunks of a choice: who speaks, or the prompt again.
    fn begin(&mut self, index: usize, scores: &[Vec<TokenScore>]) -> Vec<Value> {
        if std::mem::replace(&mut self.begun[index].0, true) {
            return Vec::new();
        }
        if self.reply.style.is_chat {
            let delta = json!({ "role": "assistant", "content": "", "refusal": null });
            return vec![self.chat(index, delta, Value::Null, None)];
        }
        if self.reply.style.echo.is_none() {
            return Vec::new();
        }
        let (text, before, mut offset) = self.reply.echo(index, scores);
        let logprobs = self.reply.text_logprobs(before, &mut offset);
        let chunk = self.text(index, text, logprobs, None);
        self.begun[index].1 = offset;
        vec![chunk]
    }

    /// What is left to say when all has come: choices of which only the prompt was wanted, and what
    /// was used.
    pub fn end(&mut self, scores: &[Vec<TokenScore>]) -> Vec<Value> {
        let mut chunks = Vec::new();
        for index in 0..self.begun.len() {
            let begun = self.begin(index, scores);
            if !begun.is_empty() {
                chunks.extend(begun);
                chunks.push(self.text(index, "", Value::Null, Some("length")));
            }
        }
        if self.reply.style.include_usage {
            let mut chunk = self.chunk(Vec::new());
            chunk["usage"] = self.reply.usage(self.tokens);
            chunks.push(chunk);
        }
        chunks
    }

    fn chat(&self, index: usize, delta: Value, logprobs: Value, finish: Option<&str>) -> Value {
        self.chunk(vec![json!({
            "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish,
        })])
    }

    fn text(&self, index: usize, text: &str, logprobs: Value, finish: Option<&str>) -> Value {
        self.chunk(vec![json!({
            "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish,
        })])
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        let is_chat = self.reply.style.is_chat;
        let kind = if is_chat { "chat.completion.chunk" } else { "text_completion" };
        let mut chunk = self.reply.object(kind, choices);
        if self.reply.style.include_usage {
            chunk.insert("usage".into(), Value::Null);
        }
        chunk.into()
    }
}

fn finish_reason(finish: Option<Finish>) -> &'static str {
    match finish {
        Some(Finish::Stop) => "stop",
        Some(Finish::Length) | None => "length",
    }
}
