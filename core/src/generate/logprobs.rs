//! Log-probs as OpenAI's API tells them.

use serde_json::{Map, Value, json};

use crate::text::tokenizer::Tokenizer;

/// Less than any log-prob, where JSON has no number for one.
const LEAST: f64 = -9999.0;

/// A token with what is told of it: its log-prob and the likeliest in its place. A prompt's first
/// token has neither.
pub type Told<'a> = (u32, Option<(f32, &'a [(u32, f32)])>);

/// How tokens are told.
#[derive(Clone, Copy)]
pub struct Logprobs<'t> {
    /// Whose tokens they are.
    pub tokenizer: &'t Tokenizer,
    /// By number, so that no two look alike.
    pub token_ids: bool,
}

impl Logprobs<'_> {
    /// As a chat completion has them.
    pub fn chat<'a>(&self, told: impl IntoIterator<Item = Told<'a>>) -> Value {
        let entry = |token: u32, logprob: f32| {
            json!({
                "token": self.text_of(token),
                "logprob": number(logprob),
                "bytes": self.tokenizer.token_bytes(token),
            })
        };
        let content: Vec<Value> = told
            .into_iter()
            .filter_map(|(token, score)| Some((token, score?)))
            .map(|(token, (logprob, top))| {
                let mut told = entry(token, logprob);
                told["top_logprobs"] =
                    top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
                told
            })
            .collect();
        json!({ "content": content, "refusal": null })
    }

    /// Characters that tokens have; one of several tokens is the first one's.
    pub fn characters(&self, tokens: &[u32]) -> usize {
        let begins = |byte: &u8| byte & 0xc0 != 0x80;
        let bytes = tokens.iter().flat_map(|&token| self.tokenizer.token_bytes(token));
        bytes.filter(begins).count()
    }

    /// As a text completion has them. `offset` is where the first token begins in the text, in
    /// characters; below zero where tokens stand before it that the text does not show.
    pub fn text<'a>(&self, told: impl IntoIterator<Item = Told<'a>>, offset: &mut isize) -> Value {
        let (mut tokens, mut logprobs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        for (token, score) in told {
            logprobs.push(score.map_or(Value::Null, |(logprob, _)| number(logprob).into()));
            tops.push(score.map_or(Value::Null, |(logprob, top)| {
                let mut map = Map::new();
                for &(id, logprob) in top.iter().chain(&[(token, logprob)]) {
                    // Where two tokens look alike, the likelier one is told.
                    map.entry(self.text_of(id)).or_insert_with(|| number(logprob).into());
                }
                map.into()
            }));
            offsets.push((*offset).max(0));
            *offset += self.characters(&[token]).cast_signed();
            tokens.push(self.text_of(token));
        }
        json!({
            "tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops,
            "text_offset": offsets,
        })
    }

    fn text_of(&self, id: u32) -> String {
        match self.token_ids {
            true => format!("token_id:{id}"),
            false => String::from_utf8_lossy(&self.tokenizer.token_bytes(id)).into_owned(),
        }
    }
}

/// As many digits as the number has.
fn number(x: f32) -> f64 {
    if x.is_finite() { x.to_string().parse().unwrap_or(f64::from(x)) } else { LEAST }
}
