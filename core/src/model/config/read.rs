//! From JSON to `ModelConfig`. Whatever would change the computation and is not understood is an
//! error that names the key.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Family, Head, ModelConfig, keys, rope};
use crate::{Error, Result};

/// Nothing that exists comes near these; beyond them a file lies.
const MAX_WIDTH: usize = 1 << 24;
const MAX_LAYERS: usize = 1 << 14;
const MAX_POSITIONS: usize = 1 << 40;

/// A JSON object with typed access and errors that name the file and the key.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'a Path,
}

impl<'a> Fields<'a> {
    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        Error::model(message).in_file(self.path)
    }

    pub(super) fn wrong(&self, key: &str, expected: &str, got: &Value) -> Error {
        self.error(format!("`{key}` is {}: expected {expected}", brief(got)))
    }

    /// The value, unless it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn optional_number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key)
            .map(|value| value.as_f64().ok_or_else(|| self.wrong(key, "a number", value)))
            .transpose()
    }

    fn optional_count(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().map(usize::try_from) {
            Some(Ok(count)) if (1..=max).contains(&count) => Ok(Some(count)),
            _ => Err(self.wrong(key, &format!("a whole number from 1 to {max}"), value)),
        }
    }

    fn count(&self, key: &str, max: usize) -> Result<usize> {
        self.optional_count(key, max)?.ok_or_else(|| {
            self.error(format!("`{key}` is missing: expected a whole number from 1 to {max}"))
        })
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(key, "`true` or `false`", other)),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key)
            .map(|value| value.as_str().ok_or_else(|| self.wrong(key, "a string", value)))
            .transpose()
    }
}

/// A value short enough for a message.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}

impl ModelConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// A file that cannot be read, and everything that [`ModelConfig::from_json`] refuses.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| Error::model(format!("not valid JSON: {e}")).at(path, e.line()))?;
        Self::from_json(&value, path)
    }

    /// Reads the contents of a `config.json`; `path` is for the messages.
    ///
    /// # Errors
    /// An unknown family, a missing or impossible number, numbers that do not fit one another, or
    /// a key whose value would change the computation in a way that is not implemented.
    pub fn from_json(value: &Value, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let Value::Object(map) = value else {
            return Err(Error::model("expected a JSON object").in_file(path));
        };
        let fields = Fields { map, path };
        let family = family(&fields)?;
        refuse_unknown(&fields)?;
        let defaults = family.defaults();
        if let Some(act) = fields.text("hidden_act")?
            && !matches!(act, "silu" | "swish")
        {
            return Err(fields.error(format!("`hidden_act` is `{act}`: expected `silu`")));
        }
        let hidden_size = fields.count("hidden_size", MAX_WIDTH)?;
        let heads = fields.count("num_attention_heads", MAX_WIDTH)?;
        let kv_heads = match fields.optional_count("num_key_value_heads", MAX_WIDTH)? {
            Some(count) => count,
            None if fields.map.contains_key("num_key_value_heads") => heads,
            None => defaults.num_key_value_heads.unwrap_or(heads),
        };
        let head_dim = match fields.optional_count("head_dim", MAX_WIDTH)? {
            Some(dim) => dim,
            None => match defaults.head_dim.filter(|_| !fields.map.contains_key("head_dim")) {
                Some(dim) => dim,
                None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
                None => {
                    return Err(fields.error(format!(
                        "`hidden_size` {hidden_size} is not a multiple of \
                         `num_attention_heads` {heads}, and there is no `head_dim`"
                    )));
                }
            },
        };
        let layers = fields.count("num_hidden_layers", MAX_LAYERS)?;
        let (qkv_bias, o_bias, mlp_bias) = biases(&fields, family)?;
        let (rope_theta, rope_scaling) = rope::read(&fields)?;
        let config = Self {
            family,
            head: head(&fields, family)?,
            vocab_size: fields.count("vocab_size", MAX_WIDTH)?,
            hidden_size,
            intermediate_size: fields.count("intermediate_size", MAX_WIDTH)?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rms_norm_eps: fields.optional_number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            max_position_embeddings: fields
                .optional_count("max_position_embeddings", MAX_POSITIONS)?
                .unwrap_or(defaults.max_position_embeddings),
            tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
            qkv_bias,
            o_bias,
            mlp_bias,
            qk_norm: family == Family::Qwen3,
            sliding_window: windows(&fields, family, layers)?,
            bos_token_id: token(&fields, "bos_token_id")?,
            eos_token_ids: tokens(&fields, "eos_token_id")?,
            pad_token_id: token(&fields, "pad_token_id")?,
            raw: map.clone(),
        };
        config.check().map_err(|e| e.in_file(path))?;
        Ok(config)
    }

    /// Whether the numbers fit one another.
    ///
    /// # Errors
    /// Names the numbers that do not.
    pub fn check(&self) -> Result<()> {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        for (name, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", heads),
            ("num_key_value_heads", kv_heads),
            ("head_dim", self.head_dim),
        ] {
            if value == 0 {
                return Err(Error::model(format!("`{name}` is 0")));
            }
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(Error::model(format!(
                "`num_attention_heads` {heads} is not a multiple of `num_key_value_heads` {kv_heads}"
            )));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::model(format!(
                "`head_dim` is {}: expected an even number (rotary embeddings turn pairs)",
                self.head_dim
            )));
        }
        if heads.saturating_mul(self.head_dim) > MAX_WIDTH {
            return Err(Error::model(format!(
                "`num_attention_heads` {heads} times `head_dim` {} is more than {MAX_WIDTH}",
                self.head_dim
            )));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return Err(Error::model(format!(
                "`rms_norm_eps` is {}: expected a positive number",
                self.rms_norm_eps
            )));
        }
        if self.sliding_window.len() != self.num_hidden_layers {
            return Err(Error::model(format!(
                "{} sliding windows for {} layers",
                self.sliding_window.len(),
                self.num_hidden_layers
            )));
        }
        let ids = [("bos_token_id", self.bos_token_id), ("pad_token_id", self.pad_token_id)];
        let ends = self.eos_token_ids.iter().map(|&id| ("eos_token_id", Some(id)));
        for (name, id) in ids.into_iter().chain(ends) {
            if let Some(id) = id
                && id as usize >= self.vocab_size
            {
                return Err(Error::model(format!(
                    "`{name}` {id} is outside of the vocabulary of {} tokens",
                    self.vocab_size
                )));
            }
        }
        Ok(())
    }
}

fn family(fields: &Fields<'_>) -> Result<Family> {
    Ok(match fields.text("model_type")? {
        Some("llama") => Family::Llama,
        Some("mistral") => Family::Mistral,
        Some("qwen2") => Family::Qwen2,
        Some("qwen3") => Family::Qwen3,
        Some(other) => {
            return Err(fields.error(format!(
                "unknown `model_type` `{other}`: expected `llama`, `mistral`, `qwen2` or `qwen3`"
            )));
        }
        None => return Err(fields.error("`model_type` is missing")),
    })
}

fn head(fields: &Fields<'_>, family: Family) -> Result<Head> {
    let names = match fields.get("architectures") {
        None => return Ok(Head::Language),
        Some(Value::Array(names)) => names,
        Some(other) => return Err(fields.wrong("architectures", "a list", other)),
    };
    let [language, score] = [Head::Language, Head::Score].map(|head| family.architecture(head));
    if !names.is_empty() && names.iter().all(|name| *name == score) {
        let listed = fields.get("id2label").and_then(Value::as_object).map(|labels| labels.len());
        let stated = fields.optional_count("num_labels", MAX_WIDTH)?;
        // Two is what transformers assumes where nothing is said.
        return match listed.or(stated).unwrap_or(2) {
            1 => Ok(Head::Score),
            labels => Err(fields.error(format!(
                "a classifier of `{labels}` labels: expected one (a reward model)"
            ))),
        };
    }
    match names.iter().find(|name| **name != language) {
        None => Ok(Head::Language),
        Some(name) => Err(fields.error(format!(
            "`architectures` holds {}: expected `{language}`, or `{score}` with one label",
            brief(name)
        ))),
    }
}

/// Refuses keys that would change the computation.
fn refuse_unknown(fields: &Fields<'_>) -> Result<()> {
    for (key, value) in fields.map {
        let name = key.as_str();
        // A leading underscore marks what transformers notes for itself.
        if name.starts_with('_') || keys::READ.contains(&name) || keys::HARMLESS.contains(&name) {
            continue;
        }
        let empty = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(items) => items.is_empty(),
            _ => false,
        };
        if empty {
            continue;
        }
        let neutral = keys::NEUTRAL.iter().find(|(known, _)| *known == name);
        let message = match neutral {
            Some((_, number)) if value.as_f64() == Some(*number) => continue,
            Some((_, number)) if number.is_nan() => {
                format!("`{key}` is {}, which is not supported", brief(value))
            }
            Some((_, number)) => {
                format!("`{key}` is {}: only {number} is supported", brief(value))
            }
            None if name == "quantization_config" => {
                let method = value.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
                format!("the checkpoint is quantized (`quantization_config`, method `{method}`)")
            }
            None => format!("unknown key `{key}` ({}) could change the computation", brief(value)),
        };
        return Err(fields.error(message).hint(keys::remedy(name)));
    }
    Ok(())
}

/// Biases on (q, k, v), on o, and in the feed-forward layer.
fn biases(fields: &Fields<'_>, family: Family) -> Result<(bool, bool, bool)> {
    let attention = fields.flag("attention_bias", family == Family::Qwen2)?;
    let mlp = fields.flag("mlp_bias", false)?;
    let type_name = family.model_type();
    if mlp && family != Family::Llama {
        return Err(fields.error(format!("`mlp_bias` is true, but `{type_name}` has no such bias")));
    }
    match family {
        Family::Llama | Family::Qwen3 => Ok((attention, attention, mlp)),
        Family::Mistral if attention => Err(fields
            .error("`attention_bias` is true, but `mistral` has no such bias")
            .hint("a `llama` has: perhaps `model_type` is wrong")),
        Family::Mistral => Ok((false, false, false)),
        Family::Qwen2 if !attention => {
            Err(fields.error("`attention_bias` is false, but `qwen2` always has biases on q, k, v"))
        }
        Family::Qwen2 => Ok((true, false, false)),
    }
}

/// The window of each layer, as transformers works it out for each family.
fn windows(fields: &Fields<'_>, family: Family, layers: usize) -> Result<Vec<Option<usize>>> {
    let defaults = family.defaults();
    let listed = layer_types(fields, layers)?;
    let stated = fields.optional_count("sliding_window", MAX_POSITIONS)?;
    let absent = !fields.map.contains_key("sliding_window");
    let window = stated.or(defaults.sliding_window.filter(|_| absent));
    let derived: Vec<bool> = match family {
        // A llama has no windows, whatever the key says; better to refuse than to ignore it.
        Family::Llama => {
            if let Some(window) = stated {
                return Err(fields
                    .error(format!("`sliding_window` is {window}, but a `llama` has none"))
                    .hint("`model_type` should perhaps be `mistral`"));
            }
            vec![false; layers]
        }
        Family::Mistral => vec![window.is_some(); layers],
        Family::Qwen2 | Family::Qwen3 => {
            let used = fields.flag("use_sliding_window", false)?;
            let first = match fields.get("max_window_layers") {
                None => defaults.max_window_layers,
                Some(value) => match value.as_u64().map(usize::try_from) {
                    Some(Ok(first)) => first,
                    _ => return Err(fields.wrong("max_window_layers", "a whole number", value)),
                },
            };
            match &listed {
                Some(list) if used && window.is_some() => list.clone(),
                _ => (0..layers).map(|i| used && window.is_some() && i >= first).collect(),
            }
        }
    };
    if let Some(list) = listed
        && let Some(layer) = (0..layers).find(|&i| list[i] != derived[i])
    {
        let name = |sliding| if sliding { "sliding_attention" } else { "full_attention" };
        return Err(fields.error(format!(
            "`layer_types[{layer}]` is `{}`, but the other keys make it `{}`",
            name(list[layer]),
            name(derived[layer])
        )));
    }
    Ok(derived.into_iter().map(|sliding| window.filter(|_| sliding)).collect())
}

/// `true` for each layer listed as sliding.
fn layer_types(fields: &Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(value) = fields.get("layer_types") else { return Ok(None) };
    let Value::Array(items) = value else {
        return Err(fields.wrong("layer_types", "a list", value));
    };
    if items.len() != layers {
        return Err(fields.error(format!(
            "`layer_types` has {} entries: expected `num_hidden_layers`, {layers}",
            items.len()
        )));
    }
    let read = |(i, item): (usize, &Value)| match item.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(fields.wrong(
            &format!("layer_types[{i}]"),
            "`full_attention` or `sliding_attention`",
            item,
        )),
    };
    items.iter().enumerate().map(read).collect::<Result<Vec<_>>>().map(Some)
}

fn token(fields: &Fields<'_>, key: &str) -> Result<Option<u32>> {
    let Some(value) = fields.get(key) else { return Ok(None) };
    // LLaMA 1 wrote −1 for a token that is not there.
    if value.as_i64() == Some(-1) {
        return Ok(None);
    }
    match value.as_u64().map(u32::try_from) {
        Some(Ok(id)) => Ok(Some(id)),
        _ => Err(fields.wrong(key, "a token id", value)),
    }
}

fn tokens(fields: &Fields<'_>, key: &str) -> Result<Vec<u32>> {
    let Some(Value::Array(items)) = fields.get(key) else {
        return Ok(token(fields, key)?.into_iter().collect());
    };
    let read = |item: &Value| match item.as_u64().map(u32::try_from) {
        Some(Ok(id)) => Ok(id),
        _ => Err(fields.wrong(key, "token ids", item)),
    };
    items.iter().map(read).collect()
}
