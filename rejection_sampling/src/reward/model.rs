//! A trained reward model that scores completions.

use std::sync::Arc;

use candle_core::DType;
use halter_core::data::branched::BranchedRow;
use halter_core::data::encoded::TokenCount;
use halter_core::data::pack::microbatches;
use halter_core::data::record::{Message, Origin, Record, Turn};
use halter_core::model::config::Head;
use halter_core::model::linear::PassMode;
use halter_core::model::{Base, Decoder};
use halter_core::text::branches::{encode_branches, encode_completions};
use halter_core::text::encode::EncodeOptions;
use halter_core::train::source::{Source, SourceSpec};
use halter_core::{Error, Result, device};

use super::batch::Scored;

/// Tokens that go through the model at once.
pub const BATCH_TOKENS: usize = 4096;

/// A reward model with its tokenizer and template.
pub struct RewardModel {
    source: Source,
    model: Decoder,
}

impl RewardModel {
    /// Opens an export of `halter reward`, or any `…ForSequenceClassification` of one label: a
    /// directory or a hub id; on `cpu` or `cuda:N`.
    ///
    /// # Errors
    /// Files that cannot be used, or a model that is no reward model.
    pub fn load(path: &str, device: &str) -> Result<Self> {
        Self::open(&SourceSpec { model: Some(path.into()), ..SourceSpec::default() }, device)
    }

    /// As [`Self::load`], with all that can be said of a model.
    ///
    /// # Errors
    /// As there.
    pub fn open(spec: &SourceSpec, device: &str) -> Result<Self> {
        let mut source = Source::open(spec)?;
        if source.config.head != Head::Score {
            let wanted = source.config.family.architecture(Head::Score);
            return Err(Error::model(format!(
                "`{}` is not a reward model: expected `{wanted}`",
                spec.model.as_deref().unwrap_or_default()
            ))
            .hint("train one with `halter reward`; merge an adapter with `halter merge`"));
        }
        let model = source.decoder(Base::Frozen, &device::open(device)?, 0)?;
        Ok(Self { source, model })
    }

    /// What its scores follow from, hashed: configuration and weights, the tokenizer, the template's
    /// text.
    ///
    /// # Errors
    /// When a tensor cannot be read, or the tokenizer not be written.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"halter reward model 1");
        hasher.update(self.model.fingerprint(true)?.as_bytes());
        self.source.tokenizer.hash_into(&mut hasher)?;
        for (name, source) in self.source.template.iter().flat_map(|template| template.sources()) {
            hasher.update(name.as_bytes()).update(source.as_bytes());
        }
        Ok(hasher.finalize().to_hex()[..32].to_string())
    }

    /// The score of each completion as the assistant's answer to its messages: the higher, the
    /// better. Completions whose prompts are equal and stand next to one another share it.
    ///
    /// # Errors
    /// A conversation that the template refuses.
    pub fn score(&self, completions: &[(Vec<Message>, String)]) -> Result<Vec<f64>> {
        let mut rows = Vec::new();
        for group in completions.chunk_by(|a, b| a.0 == b.0) {
            let prompt = Turn::Messages(group[0].0.clone());
            let answer = |text: &str| Turn::Messages(vec![Message::new("assistant", text)]);
            let answers: Vec<Turn> = group.iter().map(|(_, text)| answer(text)).collect();
            rows.push(self.encode(&prompt, &answers, rows.len() + 1)?);
        }
        self.score_rows(&rows)
    }

    /// The scores of tokens: each prompt with its completions, completions in turn.
    ///
    /// # Errors
    /// A token outside of the vocabulary, or no token.
    pub fn score_rows(&self, rows: &[BranchedRow]) -> Result<Vec<f64>> {
        let mut scores = Vec::new();
        for members in microbatches(rows.iter().map(TokenCount::tokens), BATCH_TOKENS) {
            let rows = members.iter().map(|&at| &rows[at]);
            let scored = Scored::new(rows, self.source.config.pad_token_id)?;
            let hidden =
                self.model.evaluate_hidden(&scored.packed, &scored.rows, PassMode::EVALUATE)?;
            let of_batch = self.model.scores(&hidden)?.to_dtype(DType::F64)?;
            scores.extend(of_batch.to_vec1::<f64>()?);
        }
        Ok(scores)
    }

    /// The tokens of a pair or a ranked list, as they were trained on.
    ///
    /// # Errors
    /// A record of another kind, or one that the template refuses.
    pub fn encode_record(&self, record: &Record, origin: &Origin) -> Result<BranchedRow> {
        let (tokenizer, template) = (&self.source.tokenizer, self.source.template.as_deref());
        let encoded = encode_branches(record, origin, tokenizer, template, &Self::encoding())?;
        encoded.into_kept().ok_or_else(|| Error::data("the row was dropped"))
    }

    fn encoding() -> EncodeOptions {
        // As in transformers: a completion with special tokens in its text has a score too.
        EncodeOptions { allow_special_text: true, ..EncodeOptions::default() }
    }

    fn encode(&self, prompt: &Turn, answers: &[Turn], number: usize) -> Result<BranchedRow> {
        let origin = Origin { path: Arc::new("completions".into()), line: number };
        let (tokenizer, template) = (&self.source.tokenizer, self.source.template.as_deref());
        encode_completions(prompt, answers, &origin, tokenizer, template, &Self::encoding())
            .map_err(|error| error.at(&*origin.path, origin.line))
    }
}
