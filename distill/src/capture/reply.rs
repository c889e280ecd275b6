//! What a server tells of a text's tokens, as log-probs of this side's tokens.

use std::collections::{BTreeMap, HashMap};

use halter_core::ops::divergence::TopLogps;
use halter_core::text::tokenizer::Tokenizer;
use serde::Deserialize;
use serde_json::Value;

/// The least log-prob: that of tokens that only fill a position up, and of what is left at least.
const LEAST_TOLD: f32 = -32.0;
const LEAST_REST: f64 = 1e-7;
/// Mass above one that rounding explains.
const SLACK: f64 = 1e-3;

/// How tokens are named to servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptAs {
    /// By number.
    Tokens,
    /// As their text, which the server takes apart itself.
    Text,
}

impl PromptAs {
    /// What to do about a server that says nothing of any row.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Tokens => {
                "a server that reads texts alone, such as llama-cpp-python's, is asked with \
                 `--prompt-as text`"
            }
            Self::Text => {
                "a server must tell the log-probs of its prompt (`echo` with `logprobs`) of this \
                 model's tokens"
            }
        }
    }
}

/// `choices[0].logprobs` of a text completion that repeats its prompt.
#[derive(Deserialize)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<Option<BTreeMap<String, f64>>>,
}

/// Reads answers.
pub(super) struct Reader<'t> {
    tokenizer: &'t Tokenizer,
    /// Which token a text stands for; `None` where several look alike.
    texts: HashMap<String, Option<u32>>,
    vocab_size: usize,
    k: usize,
}

/// What was told of a row.
#[derive(Debug, PartialEq)]
pub(super) struct Heard {
    /// Of the positions that predict something.
    pub logps: TopLogps,
    /// Tokens that were told apart, over all positions.
    pub told: usize,
}

impl<'t> Reader<'t> {
    /// `vocab_size` is the model's, which may be more than its tokenizer has.
    pub fn new(tokenizer: &'t Tokenizer, vocab_size: usize, k: usize) -> Self {
        let mut texts = HashMap::new();
        for id in 0..tokenizer.id_limit().min(vocab_size) as u32 {
            let bytes = tokenizer.token_bytes(id);
            let (text, is_whole) = match String::from_utf8(bytes) {
                Ok(text) => (text, true),
                // As servers write it that leave out what is no character.
                Err(error) => (bare(&String::from_utf8_lossy(error.as_bytes())), false),
            };
            texts
                .entry(text)
                .and_modify(|known| *known = None)
                .or_insert_with(|| is_whole.then_some(id));
        }
        Self { tokenizer, texts, vocab_size, k }
    }

    /// What `logprobs` say behind tokens `rows` of `ids`.
    ///
    /// # Errors
    /// Why they cannot be those of `ids`.
    pub fn read(
        &self,
        ids: &[u32],
        rows: &[usize],
        prompt_as: PromptAs,
        logprobs: &Value,
    ) -> Result<Heard, String> {
        let told = Logprobs::deserialize(logprobs)
            .map_err(|error| format!("`logprobs` are not those of a text completion: {error}"))?;
        let entries = self.align(ids, &told.tokens, prompt_as)?;
        let logps = TopLogps { k: self.k, ..TopLogps::default() };
        let mut heard = Heard { logps, told: 0 };
        for &row in rows {
            let at = row + 1;
            let told_at = entries.get(at).copied().flatten().and_then(|entry| {
                let own = (ids[at], (*told.token_logprobs.get(entry)?)?);
                // The position's own token is told without a doubt, whatever it is called.
                let top = told.top_logprobs.get(entry)?.as_ref()?;
                let called = &told.tokens[entry];
                let others = top.iter().filter(move |(name, _)| *name != called);
                Some(std::iter::once(own).chain(self.ids_of(others)))
            });
            let Some(told) = told_at else {
                return Err(format!("nothing is told of token {at} of {}", ids.len()));
            };
            self.add(told, &mut heard)
                .map_err(|reason| format!("token {at} of {}: {reason}", ids.len()))?;
        }
        Ok(heard)
    }

    /// Which entry tells of each of `ids`.
    fn align(
        &self,
        ids: &[u32],
        tokens: &[String],
        prompt_as: PromptAs,
    ) -> Result<Vec<Option<usize>>, String> {
        // A server that takes the text apart may leave the one that it added out of the count; then
        // what it tells is one place off.
        let wanted = ids.len() + usize::from(prompt_as == PromptAs::Text);
        let fits = |at: &usize| tokens.get(*at).is_some_and(|told| self.is(ids[*at], told));
        let same = (0..ids.len()).take_while(fits).count();
        if same == ids.len() && tokens.len() >= wanted {
            return Ok((0..ids.len()).map(Some).collect());
        }
        // llama-cpp-python tells of no beginning of a sequence, wherever it is; where a text begins
        // with none, what it tells is one place off.
        let bos = self.tokenizer.bos_id().filter(|bos| ids.first() == Some(bos));
        if let Some(bos) = bos.filter(|_| prompt_as == PromptAs::Text) {
            let mut next = 0;
            let entries: Vec<Option<usize>> = ids
                .iter()
                .map(|&id| {
                    let entry = (id != bos).then_some(next);
                    next += usize::from(id != bos);
                    entry
                })
                .collect();
            let fits = |(&id, entry): (&u32, &Option<usize>)| {
                entry.is_none_or(|at| tokens.get(at).is_some_and(|told| self.is(id, told)))
            };
            if ids.iter().zip(&entries).all(fits) {
                return Ok(entries);
            }
        }
        if same == ids.len() {
            let reason = "log-probs of a text that does not begin with the beginning of a sequence \
                          may be one place off";
            return Err(reason.into());
        }
        let ours = String::from_utf8_lossy(&self.tokenizer.token_bytes(ids[same])).into_owned();
        let theirs = tokens.get(same).map_or("nothing".into(), |told| format!("`{told}`"));
        Err(format!("the server reads other tokens: token {same} is `{ours}` here, {theirs} there"))
    }

    /// Whether a server may call token `id` so.
    fn is(&self, id: u32, told: &str) -> bool {
        if let Some(number) = number_of(told) {
            return number == Some(id);
        }
        let bytes = self.tokenizer.token_bytes(id);
        let ours = bare(&String::from_utf8_lossy(&bytes));
        let theirs = bare(told);
        // Some servers write special tokens as nothing, and take a space off a text's beginning.
        theirs == ours
            || theirs == ours.trim_start()
            || (theirs.is_empty() && self.tokenizer.is_special(id))
    }

    /// Adds a position.
    fn add(&self, told: impl Iterator<Item = (u32, f64)>, heard: &mut Heard) -> Result<(), String> {
        let mut found: BTreeMap<u32, f64> = BTreeMap::new();
        for (id, logp) in told {
            if logp.is_nan() || logp > SLACK {
                return Err(format!("`{logp}` is no log-prob"));
            }
            if id as usize >= self.vocab_size {
                return Err(format!(
                    "token `{id}` is beyond the vocabulary of {}",
                    self.vocab_size
                ));
            }
            found.entry(id).or_insert(logp.min(0.0));
        }
        let mut found: Vec<(u32, f64)> = found.into_iter().collect();
        found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        found.truncate(self.k);
        let mass: f64 = found.iter().map(|(_, logp)| logp.exp()).sum();
        if mass > 1.0 + SLACK {
            return Err(format!("the probabilities of some tokens are {mass:.3} together"));
        }
        heard.told += found.len();
        let taken: Vec<u32> = found.iter().map(|&(id, _)| id).collect();
        let others = (0..self.vocab_size as u32).rev().filter(|id| !taken.contains(id));
        let told = found.into_iter().map(|(id, logp)| (id, (logp as f32).max(LEAST_TOLD)));
        let filled = told.chain(others.map(|id| (id, LEAST_TOLD))).take(self.k);
        for (id, logp) in filled {
            heard.logps.ids.push(id);
            heard.logps.logps.push(logp);
        }
        heard.logps.rest.push((1.0 - mass).max(LEAST_REST).ln() as f32);
        Ok(())
    }

    /// The tokens that are known by what they are called.
    fn ids_of<'a>(
        &'a self,
        top: impl Iterator<Item = (&'a String, &'a f64)>,
    ) -> impl Iterator<Item = (u32, f64)> {
        top.filter_map(|(told, &logp)| {
            let id = match number_of(told) {
                Some(number) => number,
                None => self.texts.get(told).copied().flatten(),
            };
            Some((id?, logp))
        })
    }
}

/// The number in `token_id:N`; `None` of a text.
fn number_of(told: &str) -> Option<Option<u32>> {
    told.strip_prefix("token_id:").map(|number| number.parse().ok())
}

/// A text without what stands for no character.
fn bare(text: &str) -> String {
    text.replace('\u{FFFD}', "")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use super::*;
    use serde_json::json;

    const VOCABULARY: usize = 512;

    /// Byte-level, with `<|im_start|>` as the beginning of a sequence.
    fn tokenizer() -> Tokenizer {
        let fixture = "../core/tests/fixtures/tiny_chatml/tokenizer.json";
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture);
        let inner = tokenizers::Tokenizer::from_file(path).unwrap();
        let config = json!({ "bos_token": "<|im_start|>" });
        Tokenizer::new(inner, Some(&config), &[]).unwrap()
    }

    fn read(
        ids: &[u32],
        rows: &[usize],
        prompt_as: PromptAs,
        logprobs: &Value,
    ) -> Result<Heard, String> {
        Reader::new(&tokenizer(), VOCABULARY, 3).read(ids, rows, prompt_as, logprobs)
    }

    /// What a server tells of `ids`, which are called as `name` says.
    fn told(ids: &[u32], tops: &[Value], name: impl Fn(u32) -> String) -> Value {
        let own = |at: usize| match at {
            0 => Value::Null,
            _ => tops[at].get(name(ids[at])).cloned().unwrap_or(json!(-9.0)),
        };
        json!({
            "tokens": ids.iter().map(|&id| name(id)).collect::<Vec<_>>(),
            "token_logprobs": (0..ids.len()).map(own).collect::<Vec<_>>(),
            "top_logprobs": tops,
        })
    }

    fn by_number(id: u32) -> String {
        format!("token_id:{id}")
    }

    #[test]
    fn numbers_are_read_as_they_are_told() {
        let (half, quarter) = (0.5f64.ln(), 0.25f64.ln());
        let tops = [
            Value::Null,
            json!({ "token_id:7": quarter, "token_id:300": half }),
            json!({ "token_id:20": half, "token_id:21": quarter, "token_id:22": -2.0, "token_id:5": -9 }),
        ];
        let answer = told(&[40, 7, 5], &tops, by_number);
        let heard = read(&[40, 7, 5], &[0, 1], PromptAs::Tokens, &answer).unwrap();
        // What is missing is filled up with the vocabulary's end, and what is too much left out.
        assert_eq!(heard.logps.ids, [300, 7, 511, 20, 21, 22]);
        assert_eq!(heard.told, 5);
        let logps = [half, quarter, -32.0, half, quarter, -2.0].map(|logp| logp as f32);
        assert_eq!(heard.logps.logps, logps);
        let rest = [0.25f64, 0.25 - (-2.0f64).exp()].map(|mass| mass.ln() as f32);
        assert_eq!(heard.logps.rest, rest);
        // One position alone, and a token that was added.
        let answer = told(&[40, 7, 5, 9], &[&tops[..], &[json!({})]].concat(), by_number);
        let heard = read(&[40, 7, 5], &[1], PromptAs::Tokens, &answer).unwrap();
        assert_eq!(heard.logps.ids, [20, 21, 22]);
    }

    #[test]
    fn texts_are_tokens_where_no_two_look_alike() {
        let tokenizer = tokenizer();
        let id = |token: &str| tokenizer.token_to_id(token).unwrap();
        let (bos, end, a, b) = (id("<|im_start|>"), id("<|im_end|>"), id("a"), id("b"));
        let ids = [bos, a, end, bos, b];
        let name = |id: u32| match tokenizer.is_special(id) {
            true => String::new(),
            false => String::from_utf8_lossy(&tokenizer.token_bytes(id)).into_owned(),
        };
        // llama-cpp-python: no beginnings, special tokens without a name.
        let shown = [a, end, b, a];
        let tops = [
            Value::Null,
            json!({ "": -0.5, "a": -1.5, "b": -3.0 }),
            json!({ "b": -0.25, "\u{FFFD}": -4.0, "?!": -5.0 }),
            json!({ "a": -0.1 }),
        ];
        let answer = told(&shown, &tops, name);
        let heard = read(&ids, &[1, 3], PromptAs::Text, &answer).unwrap();
        assert_eq!(heard.logps.ids, [end, a, b, b, 511, 510]);
        assert_eq!(heard.told, 4);
        // Of the first token nothing is told, nor of a beginning.
        for row in [0, 2] {
            read(&ids, &[row], PromptAs::Text, &answer).unwrap_err();
        }
        // Without a beginning it would be one place off.
        let answer = told(&[a, end], &[Value::Null, json!({ "": -0.5 })], name);
        let reason = read(&[a, end], &[0], PromptAs::Text, &answer).unwrap_err();
        assert!(reason.contains("one place off"), "{reason}");
        read(&[a, end], &[0], PromptAs::Tokens, &answer).unwrap();
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = json!({ "token_id:7": -1.0 });
        let answer = |top: Value| told(&[40, 7], &[Value::Null, top], by_number);
        read(&[40, 7], &[0], PromptAs::Tokens, &answer(good.clone())).unwrap();
        for (logprobs, reason) in [
            (json!(null), "`logprobs` are not"),
            (json!({ "content": [] }), "`logprobs` are not"),
            (answer(json!({ "token_id:7": "x" })), "`logprobs` are not"),
            (answer(Value::Null), "nothing is told of token 1 of 2"),
            (answer(json!({ "token_id:7": 0.5 })), "no log-prob"),
            (answer(json!({ "token_id:7": -0.1, "token_id:8": -0.1 })), "1.810 together"),
            (answer(json!({ "token_id:512": -1.0 })), "beyond the vocabulary of 512"),
            (
                told(&[40, 8], &[Value::Null, good.clone()], by_number),
                "the server reads other tokens",
            ),
            (told(&[40], &[Value::Null], by_number), "nothing there"),
            (
                json!({ "tokens": ["token_id:40", "token_id:7"], "token_logprobs": [null],
                "top_logprobs": [null, { "token_id:7": -1.0 }] }),
                "nothing is told",
            ),
            (
                told(&[40, 7], &[Value::Null, good.clone()], |_| "token_id:-1".into()),
                "other tokens",
            ),
        ] {
            let outcome = read(&[40, 7], &[0], PromptAs::Tokens, &logprobs);
            let told = outcome.unwrap_err();
            assert!(told.contains(reason), "{logprobs}: {told}");
        }
    }
}
