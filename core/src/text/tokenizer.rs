//! The model's tokenizer: text to tokens with byte offsets and back, and what is special.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::PostProcessor;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::processors::PostProcessorWrapper;

use crate::{Error, Result};

/// Tokens that end a turn in the families there are, looked for where a tokenizer's own
/// configuration names only one of several.
const END_OF_TURN: [&str; 14] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|return|>",
    "<|call|>",
    "</s>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<｜end▁of▁sentence｜>",
];
/// The names of `tokenizer_config.json` that hold special tokens.
const SPECIAL_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Tokens of a text, and the bytes of the text that each stands for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenizedText {
    /// Tokens.
    pub ids: Vec<u32>,
    /// First byte and the byte after the last, per token; both zero for a token that was added.
    pub offsets: Vec<(usize, usize)>,
}

/// A tokenizer with its special tokens. Padding and truncation are off.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    /// Without its post-processor, which may trim offsets.
    inner: tokenizers::Tokenizer,
    post_processor: Option<PostProcessorWrapper>,
    /// Special tokens by their name in `tokenizer_config.json`.
    named: BTreeMap<&'static str, String>,
    eos_ids: Vec<u32>,
    /// Added tokens that are special, and the lengths they have, for [`Tokenizer::special_in`].
    special: HashMap<String, u32>,
    special_lengths: BTreeSet<usize>,
    special_starts: Vec<char>,
    special_ids: HashSet<u32>,
}

impl Tokenizer {
    /// From a loaded tokenizer, the `tokenizer_config.json` beside it, and the end-of-sequence ids
    /// of `generation_config.json` or `config.json`.
    ///
    /// # Errors
    /// A special token that the tokenizer does not have, or an end-of-sequence id beyond it.
    pub fn new(
        mut inner: tokenizers::Tokenizer,
        config: Option<&Value>,
        eos_ids: &[u32],
    ) -> Result<Self> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| failed("cannot be set up", error))?;
        let post_processor = inner.get_post_processor().cloned();
        inner.with_post_processor(None::<PostProcessorWrapper>);
        let special: HashMap<String, u32> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .map(|(id, token)| (token.content, id))
            .collect();
        let special_lengths = special.keys().map(String::len).collect();
        let starts: BTreeSet<char> = special.keys().filter_map(|s| s.chars().next()).collect();
        let special_ids = special.values().copied().collect();
        let mut named = BTreeMap::new();
        for name in SPECIAL_NAMES {
            let value = config.and_then(|config| config.get(name));
            let text = value.and_then(|value| {
                value.as_str().or_else(|| value.get("content").and_then(Value::as_str))
            });
            if let Some(text) = text {
                named.insert(name, text.to_string());
            }
        }
        let mut tokenizer = Self {
            inner,
            post_processor,
            named,
            eos_ids: Vec::new(),
            special,
            special_lengths,
            special_starts: starts.into_iter().collect(),
            special_ids,
        };
        tokenizer.check_named()?;
        for &id in eos_ids {
            let token = tokenizer.inner.id_to_token(id).ok_or_else(|| {
                Error::text(format!("end-of-sequence id `{id}` is not a token of the tokenizer"))
            })?;
            tokenizer.named.entry("eos_token").or_insert(token);
        }
        tokenizer.eos_ids = tokenizer.eos_id().into_iter().chain(eos_ids.iter().copied()).collect();
        let mut seen = BTreeSet::new();
        tokenizer.eos_ids.retain(|id| seen.insert(*id));
        Ok(tokenizer)
    }

    /// From `tokenizer.json`, with the `tokenizer_config.json` beside it, if there is one.
    ///
    /// # Errors
    /// A file that cannot be read or is not what its name says; see [`Tokenizer::new`].
    pub fn from_file(path: impl AsRef<Path>, eos_ids: &[u32]) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| failed("is not valid", error).in_file(path))?;
        let config_path = path.with_file_name("tokenizer_config.json");
        let config: Option<Value> = match std::fs::read(&config_path) {
            Ok(bytes) => Some(serde_json::from_slice(&bytes).map_err(|error| {
                Error::text(format!("not valid json: {error}")).in_file(&config_path)
            })?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("read", &config_path, error)),
        };
        Self::new(inner, config.as_ref(), eos_ids).map_err(|error| error.in_file(path))
    }

    fn check_named(&self) -> Result<()> {
        for (name, token) in &self.named {
            // an unknown or padding token that does not exist is never produced
            let needed = matches!(*name, "bos_token" | "eos_token");
            if needed && self.inner.token_to_id(token).is_none() {
                return Err(Error::text(format!(
                    "`{name}` is `{token}`, which is not a token of the tokenizer"
                )));
            }
        }
        Ok(())
    }

    /// The tokens of a text. Special tokens in the text become themselves; with
    /// `add_special_tokens`, the tokenizer's own (often BOS) are put around.
    ///
    /// # Errors
    /// The tokenizer cannot encode the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<TokenizedText> {
        let mut encoding = self
            .inner
            .encode(text, false)
            .map_err(|error| failed("cannot encode the text", error))?;
        let offsets = encoding.get_offsets().to_vec();
        let added = match (&self.post_processor, add_special_tokens) {
            (Some(processor), true) => {
                let plain = encoding.get_ids().to_vec();
                encoding = processor
                    .process(encoding, None, true)
                    .map_err(|error| failed("cannot encode the text", error))?;
                let mask = encoding.get_special_tokens_mask();
                added_around(&plain, encoding.get_ids(), mask)
            }
            _ => (0, 0),
        };
        let mut all = vec![(0, 0); added.0];
        all.extend(offsets);
        all.extend(vec![(0, 0); added.1]);
        let ids = encoding.get_ids().to_vec();
        all.resize(ids.len(), (0, 0));
        Ok(TokenizedText { ids, offsets: all })
    }

    /// The text of tokens.
    ///
    /// # Errors
    /// The decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.inner
            .decode(ids, skip_special_tokens)
            .map_err(|error| failed("cannot decode the tokens", error))
    }

    /// What each token adds to the text: empty for one that only begins a character.
    ///
    /// # Errors
    /// The decoder fails.
    pub fn pieces(&self, ids: &[u32]) -> Result<Vec<String>> {
        let mut stream = self.inner.decode_stream(false);
        ids.iter()
            .map(|&id| {
                let piece = stream.step(id).map_err(|e| failed("cannot decode the tokens", e))?;
                Ok(piece.unwrap_or_default())
            })
            .collect()
    }

    /// The number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// One more than the greatest id there is.
    pub fn id_limit(&self) -> usize {
        let ids = self.inner.get_vocab(true).into_values();
        ids.max().map_or(0, |id| id as usize + 1)
    }

    /// Which ids mean which tokens, hashed.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"halter tokens 1");
        for id in 0..self.id_limit() as u32 {
            let token = self.id_to_token(id).unwrap_or_default();
            hasher.update(&(token.len() as u64).to_le_bytes()).update(token.as_bytes());
        }
        hasher.finalize().to_hex()[..32].to_string()
    }

    /// Adds everything that texts and tokens depend on to `hasher`.
    ///
    /// # Errors
    /// A tokenizer that cannot be written.
    pub fn hash_into(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        let unwritten = |error| failed("cannot be written", error);
        let inner = self.inner.to_string(false).map_err(unwritten)?;
        let post_processor = serde_json::to_string(&self.post_processor);
        let post_processor = post_processor.map_err(|error| unwritten(error.into()))?;
        let named = self.named.iter().flat_map(|(name, token)| [*name, token.as_str()]);
        for part in [&*inner, &*post_processor].into_iter().chain(named) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        Ok(())
    }

    /// The id of a token given as text.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a token as the vocabulary spells it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The bytes that a token stands for; several tokens may share a character.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let text = self.id_to_token(id).unwrap_or_default();
        if self.is_special(id) {
            return text.into_bytes();
        }
        let of_bytes = || text.chars().map(byte_of).collect::<Option<Vec<u8>>>();
        let is_byte_level = matches!(self.inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        if let Some(bytes) = is_byte_level.then(of_bytes).flatten() {
            return bytes;
        }
        let hex = text.strip_prefix("<0x").and_then(|text| text.strip_suffix('>'));
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => vec![byte],
            None => text.replace('▁', " ").into_bytes(),
        }
    }

    /// Whether the id is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// A special token by its name in `tokenizer_config.json`, e.g. `bos_token`.
    pub fn special_token(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(String::as_str)
    }

    /// The beginning-of-sequence token's id.
    pub fn bos_id(&self) -> Option<u32> {
        self.token_to_id(self.special_token("bos_token")?)
    }

    /// The end-of-sequence token's id.
    pub fn eos_id(&self) -> Option<u32> {
        self.token_to_id(self.special_token("eos_token")?)
    }

    /// The padding token's id.
    pub fn pad_id(&self) -> Option<u32> {
        self.token_to_id(self.special_token("pad_token")?)
    }

    /// The ids at which generation ends: the tokenizer's own first, then the model's.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Special tokens under their names, for a chat template.
    pub fn special_tokens_map(&self) -> Map<String, Value> {
        self.named.iter().map(|(name, token)| ((*name).to_string(), token.clone().into())).collect()
    }

    /// Tokens that may end a turn: those of [`Tokenizer::eos_ids`], and the well-known ones that
    /// this tokenizer has as added tokens.
    pub fn end_of_turn_tokens(&self) -> Vec<(String, u32)> {
        let own = self.eos_ids.iter().filter_map(|&id| Some((self.id_to_token(id)?, id)));
        let known = END_OF_TURN
            .iter()
            .filter_map(|token| Some(((*token).to_string(), *self.special.get(*token)?)));
        let mut tokens: Vec<(String, u32)> = Vec::new();
        for token in own.chain(known) {
            if !tokens.contains(&token) {
                tokens.push(token);
            }
        }
        tokens
    }

    /// Whether encoding with special tokens puts BOS before the text. A chat template that puts it
    /// too would then give two, which is why chats are encoded without.
    pub fn adds_bos(&self) -> bool {
        self.bos_id().is_some_and(|bos| self.added(true).first() == Some(&bos))
    }

    /// Whether encoding with special tokens puts EOS after the text.
    pub fn adds_eos(&self) -> bool {
        self.eos_id().is_some_and(|eos| self.added(false).last() == Some(&eos))
    }

    fn added(&self, before: bool) -> Vec<u32> {
        let probe = |special| self.encode("a", special).map(|tokens| tokens.ids);
        let (Ok(plain), Ok(full)) = (probe(false), probe(true)) else { return Vec::new() };
        let Some(at) = full.windows(plain.len().max(1)).position(|window| window == plain) else {
            return Vec::new();
        };
        if before { full[..at].to_vec() } else { full[at + plain.len()..].to_vec() }
    }

    /// The first special token that occurs in a text.
    pub fn special_in<'a>(&self, text: &'a str) -> Option<&'a str> {
        text.match_indices(self.special_starts.as_slice()).find_map(|(at, _)| {
            self.special_lengths.iter().rev().find_map(|length| {
                let found = text.get(at..at + length)?;
                self.special.contains_key(found).then_some(found)
            })
        })
    }
}

/// The byte that a character stands for in byte-level vocabularies (GPT-2): itself where it can be
/// seen, the others in their order from U+0100 on.
fn byte_of(char: char) -> Option<u8> {
    let is_seen = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(char) {
        code @ 0..256 => Some(code as u8).filter(is_seen),
        code => (0..=u8::MAX).filter(|byte| !is_seen(byte)).nth(code as usize - 256),
    }
}

/// How many tokens a post-processor put before and after the text's own.
fn added_around(plain: &[u32], all: &[u32], special: &[u32]) -> (usize, usize) {
    let more = all.len().saturating_sub(plain.len());
    let before = special.iter().take_while(|flag| **flag == 1).count().min(more);
    let before = (0..=before).rev().find(|&at| all[at..].starts_with(plain)).unwrap_or(0);
    (before, more - before)
}

fn failed(what: &str, error: tokenizers::Error) -> Error {
    Error::text(format!("tokenizer {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_tokens_spell_the_text() {
        let text = "héllo\twörld 🦙 日本語\n\u{1}\u{ad}  end<|im_end|>";
        for name in ["tiny_chatml", "tiny_llama3"] {
            let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
            let path = Path::new(fixtures).join(name).join("tokenizer.json");
            let tokenizer = Tokenizer::from_file(path, &[]).unwrap();
            let ids = tokenizer.encode(text, false).unwrap().ids;
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).collect();
            assert_eq!(String::from_utf8(bytes).unwrap(), text, "{name}");
        }
    }
}
