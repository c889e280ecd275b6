//! A teacher in this process.

use std::path::Path;

use candle_core::Device;
use halter_core::data::batch::PackedBatch;
use halter_core::data::dataset::Dataset;
use halter_core::data::pack::packed;
use halter_core::data::record::Row;
use halter_core::data::view::Encoder;
use halter_core::memory::layered::layered_tokens;
use halter_core::model::Base;
use halter_core::ops::divergence::{TeacherRows, TopLogps};
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::Progress;
use halter_core::train::source::Source;
use halter_core::{Error, Result};

use super::{Captured, Kept, Speaker, Watch, take_down};
use crate::store::{Header, sequences};
use crate::teacher::{ModelTeacher, Reading};

/// Rows of logits that are held at once.
const LOGIT_ROWS: usize = 64;

/// How a model is heard.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CaptureOptions {
    /// Likeliest tokens of a position.
    pub top_k: usize,
    /// Logits are divided by it.
    pub temperature: f64,
    /// Most tokens that go through the model at once.
    pub microbatch_tokens: usize,
    /// Bytes that the process may hold: the model stays in its file, and is read block by block for
    /// as many rows as fit.
    pub memory_ceiling: Option<usize>,
}

impl CaptureOptions {
    /// Refuses values without a meaning.
    ///
    /// # Errors
    /// Names the value, and what was expected.
    pub fn validate(&self) -> Result<()> {
        if self.top_k == 0 {
            return Err(Error::config("`top-k` is `0`: expected 1 or more"));
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            let message = format!("`temperature` is `{}`: expected above zero", self.temperature);
            return Err(Error::config(message));
        }
        Ok(())
    }
}

/// Takes down what the model of `source` says of `sets`, behind what the file at `path` has already.
///
/// # Errors
/// A model or record that cannot be used, a file of another teacher, an interruption; what was taken
/// until then stays.
pub fn capture(
    source: &mut Source,
    encoder: &Encoder,
    sets: &[Dataset],
    path: &Path,
    options: CaptureOptions,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Captured> {
    options.validate()?;
    let base = if options.memory_ceiling.is_some() { Base::Mapped } else { Base::Frozen };
    let model = source.decoder(base, &Device::Cpu, 0)?;
    let header = Header {
        teacher: source.name.clone().unwrap_or_default(),
        weights: model.fingerprint(true)?,
        tokenizer: source.tokenizer.fingerprint(),
        vocab_size: model.config.vocab_size,
        k: options.top_k.min(model.config.vocab_size),
        temperature: options.temperature,
    };
    let layer_major = match options.memory_ceiling {
        Some(ceiling) => {
            Some(layered_tokens(&model, ceiling, options.microbatch_tokens, LOGIT_ROWS)?)
        }
        None => None,
    };
    let teacher = ModelTeacher::new(model, Some(header.k), options.temperature);
    let mut model = Model { teacher, microbatch_tokens: options.microbatch_tokens, layer_major };
    take_down(&mut model, header, encoder, sets, path, progress, interrupt)
}

struct Model {
    teacher: ModelTeacher,
    microbatch_tokens: usize,
    /// Tokens that are read together, where the model is read block by block.
    layer_major: Option<usize>,
}

impl Speaker for Model {
    fn is_full(&self, _: usize, tokens: usize, more: usize) -> bool {
        tokens + more > self.layer_major.unwrap_or(self.microbatch_tokens)
    }

    fn say(&mut self, rows: &[Row], kept: &mut Kept, watch: &mut Watch<'_>) -> Result<()> {
        let batches = packed(rows, self.microbatch_tokens).collect::<Result<Vec<_>>>()?;
        if self.layer_major.is_none() {
            for batch in &batches {
                keep(batch, &self.teacher.read(batch, &[])?, kept)?;
            }
            return Ok(());
        }
        let blocks = self.teacher.blocks();
        let block_done = |done| {
            watch.progress.advance(watch.records, &format!("block {done}/{blocks}"));
            watch.interrupt.check()
        };
        self.teacher.read_layered(&batches, block_done, |batch, reading| keep(batch, reading, kept))
    }
}

/// Keeps what a teacher says of the sequences of `batch`.
fn keep(batch: &PackedBatch, reading: &Reading, kept: &mut Kept) -> Result<()> {
    let mut told = TopLogps { k: kept.header.k, ..TopLogps::default() };
    let sequences = sequences(batch);
    let rows = sequences.iter().map(|(_, positions)| positions).sum();
    for start in (0..rows).step_by(LOGIT_ROWS) {
        let range = start..(start + LOGIT_ROWS).min(rows);
        if let TeacherRows::Top(more) = reading.rows(range)? {
            told.extend(more);
        }
    }
    let mut start = 0;
    for (key, positions) in sequences {
        kept.keep(key, &told, start..start + positions)?;
        start += positions;
    }
    Ok(())
}
