//! A BERT as sentence-transformers runs it: tokens, encoder, pooling, length one (Devlin et al. 2018;
//! Reimers and Gurevych 2019).

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use halter_core::{Error, Result};
use serde_json::Value;
use tokenizers::{Tokenizer, TruncationParams};

use super::Embedder;
use crate::curate::clusters::Vectors;

/// Texts that go through the encoder together.
const BATCH: usize = 32;

/// How token vectors become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    Mean,
    First,
}

/// A BERT with its tokenizer.
pub struct Bert {
    model: BertModel,
    tokenizer: Tokenizer,
    pooling: Pooling,
    dimensions: usize,
    device: Device,
}

impl Bert {
    /// Opens a folder as sentence-transformers writes it: `config.json`, `model.safetensors`,
    /// `tokenizer.json`, perhaps `sentence_bert_config.json` and `1_Pooling/config.json`. `max_tokens`
    /// is put in the place of the model's own limit.
    ///
    /// # Errors
    /// A file that is missing or is not what its name says, another architecture than BERT, or a way
    /// of pooling other than the mean and the first token.
    pub fn open(folder: &Path, max_tokens: Option<usize>, device: &Device) -> Result<Self> {
        let path = folder.join("config.json");
        let config = read_config(&path)?;
        let limit = max_tokens.or(own_limit(folder)?).unwrap_or(config.max_position_embeddings);
        let limit = limit.min(config.max_position_embeddings);
        let pooling = pooling(folder)?;
        let path = folder.join("tokenizer.json");
        let bytes = fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| broken(&path, error))?;
        tokenizer.with_padding(None);
        let params = TruncationParams { max_length: limit, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(params)).map_err(|error| broken(&path, error))?;
        let path = folder.join("model.safetensors");
        fs::metadata(&path).map_err(|error| Error::io("open", &path, error))?;
        let wrong = |error: candle_core::Error| {
            Error::model("not the weights of this BERT").because(error).in_file(&path)
        };
        let tensors = candle_core::safetensors::load(&path, device).map_err(wrong)?;
        let weights = VarBuilder::from_tensors(tensors, DType::F32, device);
        let model = BertModel::load(weights, &config).map_err(wrong)?;
        let device = device.clone();
        Ok(Self { model, tokenizer, pooling, dimensions: config.hidden_size, device })
    }

    /// The vectors of texts, (texts, hidden).
    fn batch(&self, texts: &[&str]) -> Result<Tensor> {
        let encoded = self
            .tokenizer
            .encode_batch(texts.to_vec(), true)
            .map_err(|error| Error::text("the tokenizer cannot encode a text").because(error))?;
        let longest = encoded.iter().map(|text| text.len()).max().unwrap_or(0).max(1);
        let shape = (encoded.len(), longest);
        let mut ids = vec![0u32; encoded.len() * longest];
        let mut mask = vec![0f32; encoded.len() * longest];
        for (row, text) in encoded.iter().enumerate() {
            let start = row * longest;
            ids[start..start + text.len()].copy_from_slice(text.get_ids());
            mask[start..start + text.len()].fill(1.0);
            // A text without tokens is the vector of its padding, not a division by zero.
            mask[start] = 1.0;
        }
        let ids = Tensor::from_vec(ids, shape, &self.device)?;
        let mask = Tensor::from_vec(mask, shape, &self.device)?;
        // (texts, tokens, hidden)
        let hidden = self.model.forward(&ids, &ids.zeros_like()?, Some(&mask))?;
        let pooled = match self.pooling {
            Pooling::First => hidden.narrow(1, 0, 1)?.squeeze(1)?,
            Pooling::Mean => {
                let mask = mask.unsqueeze(2)?;
                let sums = hidden.broadcast_mul(&mask)?.sum(1)?;
                sums.broadcast_div(&mask.sum(1)?)?
            }
        };
        Ok(pooled)
    }
}

impl Embedder for Bert {
    fn embed(
        &self,
        texts: &[String],
        done: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vectors> {
        // Texts of about one length together: padding costs as much as tokens.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&at| (texts[at].len(), at));
        let mut found: Vec<Vec<f32>> = vec![Vec::new(); texts.len()];
        for (batch, places) in order.chunks(BATCH).enumerate() {
            let batch_texts: Vec<&str> = places.iter().map(|&at| texts[at].as_str()).collect();
            let vectors = self.batch(&batch_texts)?.to_vec2::<f32>()?;
            places.iter().zip(vectors).for_each(|(&at, vector)| found[at] = vector);
            done((batch * BATCH + places.len()).min(texts.len()))?;
        }
        let mut vectors = Vectors::new(self.dimensions);
        found.iter().for_each(|vector| vectors.push(vector));
        Ok(vectors)
    }
}

fn broken(path: &Path, error: tokenizers::Error) -> Error {
    Error::text("the tokenizer is not valid").because(error).in_file(path)
}

fn read_config(path: &Path) -> Result<Config> {
    let value = read_json(path)?.ok_or_else(|| {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        Error::io("read", path, missing)
            .hint("a folder as sentence-transformers writes it is needed")
    })?;
    let kind = value.get("model_type").and_then(Value::as_str).unwrap_or("bert").to_string();
    if kind != "bert" {
        return Err(
            Error::model(format!("expected `model_type` `bert`, got `{kind}`")).in_file(path)
        );
    }
    let config: Config = serde_json::from_value(value).map_err(|error| {
        Error::model(format!("not a configuration of BERT: {error}")).in_file(path)
    })?;
    let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
    if heads == 0 || hidden == 0 || !hidden.is_multiple_of(heads) {
        return Err(Error::model(format!(
            "expected a `hidden_size` that is a multiple of `num_attention_heads`, got `{hidden}` and \
             `{heads}`"
        ))
        .in_file(path));
    }
    // A text has two special tokens around it.
    if config.max_position_embeddings < 4 {
        let got = config.max_position_embeddings;
        let told = format!("expected `max_position_embeddings` of at least 4, got `{got}`");
        return Err(Error::model(told).in_file(path));
    }
    Ok(config)
}

/// A JSON file; `None` where there is none.
fn read_json(path: &Path) -> Result<Option<Value>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    let value = serde_json::from_slice(&bytes);
    value.map(Some).map_err(|error| Error::model(format!("not JSON: {error}")).in_file(path))
}

/// The model's own limit of tokens, where it states one.
fn own_limit(folder: &Path) -> Result<Option<usize>> {
    let stated = read_json(&folder.join("sentence_bert_config.json"))?;
    let limit = stated.and_then(|value| value.get("max_seq_length")?.as_u64());
    Ok(limit.filter(|limit| *limit >= 4).map(|limit| limit as usize))
}

/// How the model pools; the mean where it does not say.
fn pooling(folder: &Path) -> Result<Pooling> {
    let path = folder.join("1_Pooling/config.json");
    let Some(stated) = read_json(&path)? else { return Ok(Pooling::Mean) };
    let on: Vec<&str> = stated
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| name.starts_with("pooling_mode_") && **value == Value::Bool(true))
        .map(|(name, _)| name.trim_start_matches("pooling_mode_"))
        .collect();
    match on.as_slice() {
        [] | ["mean_tokens"] => Ok(Pooling::Mean),
        ["cls_token"] => Ok(Pooling::First),
        other => Err(Error::model(format!(
            "expected pooling by `mean_tokens` or `cls_token`, got `{}`",
            other.join("`, `")
        ))
        .in_file(path)),
    }
}
