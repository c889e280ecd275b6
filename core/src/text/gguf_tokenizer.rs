//! The tokenizer of a GGUF file, rebuilt from its metadata as a `tokenizer.json`.
//!
//! Two kinds exist for the supported models: byte-level BPE (`gpt2`), whose splitting of the text
//! goes by a name in `tokenizer.ggml.pre`, and SentencePiece BPE (`llama`), whose merges follow
//! from the scores.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::model::weights::gguf::Gguf;
use crate::{Error, Result};

/// Splits of the text before byte-level BPE.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// llama.cpp's splits where the converter knew no better: applied one after another.
const DEFAULT: [&str; 4] = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"];

/// Merges of SentencePiece pieces take the square of their length to find.
const MAX_PIECE: usize = 1024;

/// Values of `tokenizer.ggml.token_type`.
const UNKNOWN: u32 = 2;
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;
const BYTE: u32 = 6;

/// A tokenizer rebuilt from GGUF metadata.
pub struct GgufTokenizer {
    /// The tokenizer; `to_string` gives its `tokenizer.json`.
    pub tokenizer: Tokenizer,
    /// The `tokenizer_config.json` that goes with it, without the chat template.
    pub config: Map<String, Value>,
    /// Chat templates by name: `default`, and `tool_use` where conversations with tools have one
    /// of their own.
    pub chat_templates: Vec<(String, String)>,
}

/// The vocabulary as the file lists it.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<u32>,
}

/// Rebuilds the tokenizer of a GGUF file and tries it.
///
/// # Errors
/// A tokenizer model or pre-tokenizer that is not known (it is named), metadata that is missing or
/// inconsistent, or a tokenizer that does not give a text back.
pub fn from_gguf(gguf: &Gguf) -> Result<GgufTokenizer> {
    build(gguf).map_err(|error| gguf.place(error))
}

fn build(gguf: &Gguf) -> Result<GgufTokenizer> {
    let kind = gguf.string("tokenizer.ggml.model")?.ok_or_else(|| missing("model"))?;
    let vocabulary = vocabulary(gguf)?;
    let ids = ids(&vocabulary)?;
    let mut parts = match kind {
        "gpt2" => byte_level(gguf, &ids)?,
        "llama" => sentencepiece(gguf, &vocabulary, &ids)?,
        other => {
            return Err(Error::text(format!(
                "unknown tokenizer model `{other}`: expected `gpt2` or `llama`"
            ))
            .hint("give the checkpoint's `tokenizer.json` with `--tokenizer`"));
        }
    };
    let special = SpecialTokens::read(gguf, &vocabulary, parts.adds_bos)?;
    parts.json.insert("version".into(), "1.0".into());
    parts.json.insert("added_tokens".into(), added_tokens(&vocabulary));
    parts.json.insert("post_processor".into(), special.post_processor());
    let bytes = serde_json::to_vec(&parts.json)
        .map_err(|e| Error::text("cannot write the tokenizer").because(e))?;
    let tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| inconsistent(&e.to_string()))?;
    check_round_trip(&tokenizer, &vocabulary, parts.has_bytes)?;
    let mut config = special.config();
    if let Some(arch) = gguf.string("general.architecture")?
        && let Some(length) = gguf.unsigned(&format!("{arch}.context_length"))?
    {
        config.insert("model_max_length".into(), length.into());
    }
    let mut chat_templates = Vec::new();
    for (name, key) in
        [("default", "tokenizer.chat_template"), ("tool_use", "tokenizer.chat_template.tool_use")]
    {
        chat_templates
            .extend(gguf.string(key)?.map(|template| (name.to_string(), template.to_string())));
    }
    Ok(GgufTokenizer { tokenizer, config, chat_templates })
}

/// The tokenizer was never a file of the user's: a line in it would say nothing.
fn inconsistent(error: &str) -> Error {
    let message = error.split(" at line ").next().unwrap_or(error);
    Error::text(format!("the tokenizer's metadata is inconsistent: {message}"))
}

fn missing(name: &str) -> Error {
    Error::text(format!("`tokenizer.ggml.{name}` is missing from the file's metadata"))
        .hint("give a tokenizer of your own with `--tokenizer`, or use the safetensors checkpoint")
}

fn vocabulary(gguf: &Gguf) -> Result<Vocabulary<'_>> {
    let tokens = gguf.strings("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokens"))?;
    let types = match gguf.numbers("tokenizer.ggml.token_type")? {
        Some(types) => types.into_iter().map(|kind| kind as u32).collect(),
        None => vec![1; tokens.len()],
    };
    if types.len() != tokens.len() {
        return Err(Error::text(format!(
            "`tokenizer.ggml.token_type` has {} entries for {} tokens",
            types.len(),
            tokens.len()
        )));
    }
    if tokens.is_empty() {
        return Err(Error::text("`tokenizer.ggml.tokens` is empty"));
    }
    Ok(Vocabulary { tokens, types })
}

fn ids<'a>(vocabulary: &Vocabulary<'a>) -> Result<HashMap<&'a str, u32>> {
    let mut ids = HashMap::with_capacity(vocabulary.tokens.len());
    for (id, &token) in (0u32..).zip(&vocabulary.tokens) {
        if let Some(first) = ids.insert(token, id) {
            return Err(Error::text(format!(
                "tokens {first} and {id} are both `{}`",
                token.escape_debug()
            )));
        }
    }
    Ok(ids)
}

/// What the two kinds of tokenizer differ in.
struct Parts {
    json: Map<String, Value>,
    adds_bos: bool,
    has_bytes: bool,
}

fn byte_level(gguf: &Gguf, ids: &HashMap<&str, u32>) -> Result<Parts> {
    let pre = gguf.string("tokenizer.ggml.pre")?.unwrap_or("default");
    let split = |regex: &str| {
        json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated",
                "invert": false })
    };
    let digits = json!({ "type": "Digits", "individual_digits": true });
    // Splits, the model's `ignore_merges`, and whether BOS is added unless the file says not.
    let (splits, ignore_merges, adds_bos) = match pre {
        "llama-bpe" | "llama3" | "llama-v3" => (vec![split(LLAMA3)], true, true),
        "smaug-bpe" => (vec![split(LLAMA3)], false, false),
        "qwen2" => (vec![split(QWEN2)], false, false),
        "tekken" => (vec![split(TEKKEN)], true, true),
        "smollm" | "starcoder" | "refact" | "codeshell" => {
            (vec![digits, split(GPT2)], false, false)
        }
        "gpt-2" | "gpt2" | "mpt" | "olmo" | "phi-2" => (vec![split(GPT2)], false, false),
        "default" => (DEFAULT.into_iter().map(split).collect(), false, false),
        other => {
            return Err(Error::text(format!(
                "unknown pre-tokenizer `{other}` in `tokenizer.ggml.pre`: expected `llama-bpe`, \
                 `qwen2`, `smollm`, `tekken`, `gpt-2` or `default`"
            ))
            .hint(
                "give the `tokenizer.json` of the checkpoint, which says how, with `--tokenizer`",
            ));
        }
    };
    let merges = gguf.strings("tokenizer.ggml.merges")?.ok_or_else(|| missing("merges"))?;
    let pair = |merge: &str| match merge.split_once(' ') {
        Some((left, right)) if !right.contains(' ') => Ok(json!([left, right])),
        _ => Err(Error::text(format!(
            "`{}` in `tokenizer.ggml.merges` is not a pair of tokens",
            merge.escape_debug()
        ))),
    };
    let merges = merges.into_iter().map(pair).collect::<Result<Vec<_>>>()?;
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false,
                             "trim_offsets": false, "use_regex": false });
    let mut steps = splits;
    steps.push(byte_level.clone());
    // Qwen's own tokenizer composes characters first.
    let normalizer = if pre == "qwen2" { json!({ "type": "NFC" }) } else { Value::Null };
    let mut json = Map::new();
    json.insert("normalizer".into(), normalizer);
    json.insert("pre_tokenizer".into(), json!({ "type": "Sequence", "pretokenizers": steps }));
    json.insert("decoder".into(), byte_level);
    json.insert(
        "model".into(),
        json!({ "type": "BPE", "vocab": vocab_json(ids), "merges": merges,
                "ignore_merges": ignore_merges }),
    );
    Ok(Parts { json, adds_bos, has_bytes: true })
}

fn vocab_json(ids: &HashMap<&str, u32>) -> Value {
    let mut sorted: Vec<_> = ids.iter().collect();
    sorted.sort_unstable_by_key(|(_, id)| **id);
    Value::Object(sorted.into_iter().map(|(token, id)| (token.to_string(), json!(id))).collect())
}

fn sentencepiece(
    gguf: &Gguf,
    vocabulary: &Vocabulary<'_>,
    ids: &HashMap<&str, u32>,
) -> Result<Parts> {
    let scores = gguf.numbers("tokenizer.ggml.scores")?.ok_or_else(|| missing("scores"))?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(Error::text(format!(
            "`tokenizer.ggml.scores` has {} entries for {} tokens",
            scores.len(),
            vocabulary.tokens.len()
        )));
    }
    let unknown = vocabulary.types.iter().position(|&kind| kind == UNKNOWN);
    let has_bytes = vocabulary.types.contains(&BYTE);
    let merges = merges_from_scores(vocabulary, ids, &scores)?;
    let prefix = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = vec![];
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        normalizers.push(json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    normalizers.push(json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" }));
    let mut json = Map::new();
    json.insert("normalizer".into(), json!({ "type": "Sequence", "normalizers": normalizers }));
    json.insert("pre_tokenizer".into(), Value::Null);
    json.insert("decoder".into(), json!({ "type": "Sequence", "decoders": decoders }));
    json.insert(
        "model".into(),
        json!({ "type": "BPE", "vocab": vocab_json(ids), "merges": merges,
                "unk_token": unknown.map(|id| vocabulary.tokens[id]),
                "fuse_unk": true, "byte_fallback": has_bytes }),
    );
    Ok(Parts { json, adds_bos: true, has_bytes })
}

/// SentencePiece joins the neighbours whose union has the best score. As a list of merges: every
/// way of making a piece out of two others, best score first, longer left parts first.
fn merges_from_scores<'a>(
    vocabulary: &Vocabulary<'a>,
    ids: &HashMap<&'a str, u32>,
    scores: &[f64],
) -> Result<Vec<Value>> {
    let mut found: Vec<(f64, usize, usize, &str, &str)> = Vec::new();
    for (id, &piece) in vocabulary.tokens.iter().enumerate() {
        if matches!(vocabulary.types[id], UNKNOWN | CONTROL | USER_DEFINED | BYTE) {
            continue;
        }
        if piece.len() > MAX_PIECE {
            return Err(Error::text(format!(
                "token {id} is {} bytes long: expected at most {MAX_PIECE}",
                piece.len()
            )));
        }
        if scores[id].is_nan() {
            return Err(Error::text(format!("the score of token {id} is not a number")));
        }
        let first = found.len();
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                let lengths = (left.chars().count(), right.chars().count());
                found.push((scores[id], lengths.0, lengths.1, left, right));
            }
        }
        found[first..].sort_by_key(|(_, _, _, left, right)| (ids.get(left), ids.get(right)));
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
    Ok(found.into_iter().map(|(.., left, right)| json!([left, right])).collect())
}

fn added_tokens(vocabulary: &Vocabulary<'_>) -> Value {
    let added = |(id, (&kind, &content)): (usize, (&u32, &&str))| {
        let special = matches!(kind, UNKNOWN | CONTROL);
        (special || kind == USER_DEFINED).then(|| {
            json!({ "id": id, "content": content, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": special })
        })
    };
    let all = vocabulary.types.iter().zip(&vocabulary.tokens).enumerate();
    // An empty token would match everywhere.
    all.filter(|(_, (_, content))| !content.is_empty()).filter_map(added).collect()
}

/// Tokens with a role, and which of them encoding adds.
struct SpecialTokens<'a> {
    roles: Vec<(&'static str, &'a str)>,
    bos: Option<(&'a str, u64)>,
    eos: Option<(&'a str, u64)>,
}

impl<'a> SpecialTokens<'a> {
    fn read(gguf: &Gguf, vocabulary: &Vocabulary<'a>, adds_bos: bool) -> Result<Self> {
        let find = |name: &str| -> Result<Option<(&'a str, u64)>> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match gguf.unsigned(&key)? {
                None => Ok(None),
                Some(id) if id == u64::from(u32::MAX) => Ok(None),
                Some(id) => {
                    let token = usize::try_from(id).ok().and_then(|i| vocabulary.tokens.get(i));
                    let token = token.ok_or_else(|| {
                        let count = vocabulary.tokens.len();
                        Error::text(format!("`{key}` is {id}, but there are {count} tokens"))
                    })?;
                    Ok(Some((token, id)))
                }
            }
        };
        let mut roles = Vec::new();
        for (role, name) in [
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("unk_token", "unknown"),
            ("pad_token", "padding"),
        ] {
            if let Some((token, _)) = find(name)? {
                roles.push((role, token));
            }
        }
        let add = |name: &str, default: bool| -> Result<bool> {
            let key = format!("tokenizer.ggml.add_{name}_token");
            Ok(gguf.flag(&key)?.unwrap_or(default))
        };
        let bos = if add("bos", adds_bos)? { find("bos")? } else { None };
        let eos = if add("eos", false)? { find("eos")? } else { None };
        Ok(Self { roles, bos, eos })
    }

    fn post_processor(&self) -> Value {
        if self.bos.is_none() && self.eos.is_none() {
            return Value::Null;
        }
        let special = |token: Option<(&str, u64)>, segment: u8| {
            token.map(|(name, _)| json!({ "SpecialToken": { "id": name, "type_id": segment } }))
        };
        let sequence = |name: &str, segment: u8| {
            let text = json!({ "Sequence": { "id": name, "type_id": segment } });
            [special(self.bos, segment), Some(text), special(self.eos, segment)]
        };
        let single: Vec<Value> = sequence("A", 0).into_iter().flatten().collect();
        let second = sequence("B", 1).into_iter().flatten();
        let pair: Vec<Value> = single.iter().cloned().chain(second).collect();
        let mut tokens = Map::new();
        for (name, id) in [self.bos, self.eos].into_iter().flatten() {
            tokens.insert(name.into(), json!({ "id": name, "ids": [id], "tokens": [name] }));
        }
        json!({ "type": "TemplateProcessing", "single": single, "pair": pair,
                "special_tokens": tokens })
    }

    fn config(&self) -> Map<String, Value> {
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        for (role, token) in &self.roles {
            config.insert((*role).into(), (*token).into());
        }
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        config
    }
}

/// Encodes a text and decodes it again; and every added token must be one token of its own id.
fn check_round_trip(
    tokenizer: &Tokenizer,
    vocabulary: &Vocabulary<'_>,
    has_bytes: bool,
) -> Result<()> {
    let failed = |e| Error::text(format!("the rebuilt tokenizer does not work: {e}"));
    // A SentencePiece vocabulary without byte tokens cannot express every text.
    if has_bytes {
        let text = "The quick brown fox, 12345 + 67!\n\n  tab\tcafé 東京 🦙 it's";
        let ids = tokenizer.encode(text, true).map_err(failed)?;
        let back = tokenizer.decode(ids.get_ids(), true).map_err(failed)?;
        if back != text {
            return Err(Error::text(format!(
                "the rebuilt tokenizer gives `{}` back for `{}`",
                back.escape_debug(),
                text.escape_debug()
            ))
            .hint("the vocabulary lacks bytes; give a tokenizer of your own with `--tokenizer`"));
        }
    }
    for (id, &token) in vocabulary.tokens.iter().enumerate() {
        let added = matches!(vocabulary.types[id], CONTROL | USER_DEFINED) && !token.is_empty();
        if !added {
            continue;
        }
        let encoded = tokenizer.encode(token, false).map_err(failed)?;
        if encoded.get_ids() != [id as u32] {
            return Err(Error::text(format!(
                "token {id}, `{}`, is encoded as {:?}",
                token.escape_debug(),
                encoded.get_ids()
            )));
        }
    }
    Ok(())
}
