//! Takes down what a teacher says of the rows of data sets, for any number of students.

use std::collections::HashSet;
use std::path::Path;

use candle_core::Device;
use halter_core::data::batch::PackedBatch;
use halter_core::data::dataset::Dataset;
use halter_core::data::encoded::TokenCount;
use halter_core::data::pack::packed;
use halter_core::data::record::Row;
use halter_core::data::view::Encoder;
use halter_core::memory::layered::layered_tokens;
use halter_core::model::Base;
use halter_core::ops::divergence::{TeacherRows, TopLogps};
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::{Progress, Unit};
use halter_core::train::source::Source;
use halter_core::{Error, Result};
use serde::Serialize;

use crate::store::{Header, Key, Store, StoreWriter, sequences};
use crate::teacher::{ModelTeacher, Reading};

/// How a teacher is heard.
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

/// What was taken down.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Captured {
    /// Rows in the file.
    pub rows: usize,
    /// Of these, taken now.
    pub taken: usize,
    /// Records that make no row.
    pub left_out: usize,
    /// Positions taken now.
    pub positions: usize,
    /// Bytes of a position.
    pub bytes_per_position: usize,
    /// Mean of KL(teacher ‖ file) over those positions, both over the likeliest tokens and all others
    /// together: what rounding costs.
    pub rounding_kl: f64,
    /// Mean mass of the tokens that are not told apart.
    pub rest_mass: f64,
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
    let (writer, known) = StoreWriter::open(path, &header)?;
    if let Some(damaged) = known.as_ref().map(Store::damaged_bytes).filter(|&bytes| bytes > 0) {
        progress.note(&format!("{}: {damaged} damaged bytes cut off its end", path.display()));
    }
    let layer_major = match options.memory_ceiling {
        Some(ceiling) => {
            Some(layered_tokens(&model, ceiling, options.microbatch_tokens, LOGIT_ROWS)?)
        }
        None => None,
    };
    let teacher = ModelTeacher::new(model, Some(header.k), options.temperature);
    let found = Captured {
        rows: known.as_ref().map_or(0, Store::len),
        bytes_per_position: header.position_bytes(),
        ..Captured::default()
    };
    let mut taker = Taker {
        teacher,
        writer,
        known,
        header,
        options,
        waiting: Vec::new(),
        taken: HashSet::new(),
        tokens: 0,
        layer_major,
        row: 0,
        found,
    };
    let records: usize = sets.iter().map(Dataset::len).sum();
    progress.begin("captured", records as u64, Unit::Rows);
    let taken = taker.take_all(encoder, sets, progress, interrupt);
    progress.finish();
    taker.writer.sync()?;
    taken?;
    let mut found = taker.found;
    if found.positions > 0 {
        found.rounding_kl /= found.positions as f64;
        found.rest_mass /= found.positions as f64;
    }
    Ok(found)
}

struct Taker {
    teacher: ModelTeacher,
    writer: StoreWriter,
    known: Option<Store>,
    header: Header,
    options: CaptureOptions,
    waiting: Vec<Row>,
    /// What is in `waiting` or was taken now.
    taken: HashSet<Key>,
    tokens: usize,
    /// Tokens that are read together, where the model is read block by block.
    layer_major: Option<usize>,
    /// Records that were seen.
    row: u64,
    found: Captured,
}

impl Taker {
    fn take_all(
        &mut self,
        encoder: &Encoder,
        sets: &[Dataset],
        progress: &mut dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<()> {
        for set in sets {
            for at in 0..set.len() {
                interrupt.check()?;
                let rows = encoder.rows(&set.origin(at), &set.record(at)?)?.into_kept();
                if rows.is_none() {
                    self.found.left_out += 1;
                }
                for row in rows.unwrap_or_default() {
                    self.take(row, progress, interrupt)?;
                }
                self.row += 1;
                progress.advance(self.row, "");
            }
        }
        self.flush(progress, interrupt)
    }

    fn take(&mut self, row: Row, progress: &mut dyn Progress, interrupt: &Interrupt) -> Result<()> {
        if row.trained_tokens() == 0 {
            self.found.left_out += 1;
            return Ok(());
        }
        let batch = PackedBatch::from_rows([&row])?;
        let is_new = |(key, _): &(Key, usize)| {
            let known = self.known.as_ref().is_some_and(|known| known.has(*key));
            !known && self.taken.insert(*key)
        };
        if !sequences(&batch).iter().any(is_new) {
            return Ok(());
        }
        let most = self.layer_major.unwrap_or(self.options.microbatch_tokens);
        if self.tokens + row.tokens() > most {
            self.flush(progress, interrupt)?;
        }
        self.tokens += row.tokens();
        self.waiting.push(row);
        Ok(())
    }

    fn flush(&mut self, progress: &mut dyn Progress, interrupt: &Interrupt) -> Result<()> {
        let rows = std::mem::take(&mut self.waiting);
        self.tokens = 0;
        let batches = packed(&rows, self.options.microbatch_tokens).collect::<Result<Vec<_>>>()?;
        if self.layer_major.is_none() {
            for batch in &batches {
                let reading = self.teacher.read(batch, &[])?;
                take_down(&mut self.writer, &self.header, batch, &reading, &mut self.found)?;
            }
            return Ok(());
        }
        let (row, blocks) = (self.row, self.teacher.blocks());
        let Self { teacher, writer, header, found, .. } = self;
        let block_done = |done| {
            progress.advance(row, &format!("block {done}/{blocks}"));
            interrupt.check()
        };
        teacher.read_layered(&batches, block_done, |batch, reading| {
            take_down(writer, header, batch, reading, found)
        })
    }
}

/// Rows of logits that are held at once.
const LOGIT_ROWS: usize = 64;

/// Writes what a teacher says of the sequences of `batch`.
fn take_down(
    writer: &mut StoreWriter,
    header: &Header,
    batch: &PackedBatch,
    reading: &Reading,
    found: &mut Captured,
) -> Result<()> {
    let mut told = TopLogps { k: header.k, ..TopLogps::default() };
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
        writer.append(key, &told, start..start + positions)?;
        start += positions;
        found.taken += 1;
        found.rows += 1;
    }
    found.positions += rows;
    measure(header, &told, found);
    Ok(())
}

fn measure(header: &Header, told: &TopLogps, found: &mut Captured) {
    let read = header.rounded(told);
    let kl = |p: f32, q: f32| f64::from(p).exp() * (f64::from(p) - f64::from(q));
    let logps = told.logps.iter().zip(&read.logps);
    let rest = told.rest.iter().zip(&read.rest).filter(|(p, _)| **p > -RANGE_OF_MASS);
    found.rounding_kl += logps.chain(rest).map(|(&p, &q)| kl(p, q)).sum::<f64>();
    found.rest_mass += told.rest.iter().map(|&logp| f64::from(logp).exp()).sum::<f64>();
}

/// Log-probs below its negative have no mass that counts.
const RANGE_OF_MASS: f32 = 80.0;
