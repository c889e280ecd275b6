//! Who is learned from.

use std::ops::Range;

use candle_core::{Device, Tensor};
use halter_core::data::batch::PackedBatch;
use halter_core::data::view::Encoder;
use halter_core::model::linear::PassMode;
use halter_core::model::param::Widened;
use halter_core::model::{Base, Decoder};
use halter_core::ops::divergence::{TeacherRows, TopLogps};
use halter_core::train::pass::Tap;
use halter_core::train::source::{Source, SourceSpec};
use halter_core::{Error, Result};

use crate::config::DistillConfig;
use crate::method::encode_options;
use crate::store::Store;

/// A teacher.
#[derive(Debug)]
pub enum Teacher {
    /// In this process.
    Model(Box<ModelTeacher>),
    /// What one said before.
    Store(Store),
}

/// A model in this process.
#[derive(Debug)]
pub struct ModelTeacher {
    model: Decoder,
    /// Likeliest tokens that are told; all where there is none.
    top_k: Option<usize>,
    temperature: f64,
    /// How it reads rows, where it reads other tokens than the student.
    encoder: Option<Encoder>,
}

impl Teacher {
    /// The teacher of `config`, for a student made from `source`.
    ///
    /// # Errors
    /// None that is named, one that cannot be read, or one that reads other tokens.
    pub fn open(config: &DistillConfig, source: &Source, device: &Device) -> Result<Self> {
        let options = &config.method;
        if let Some(path) = &options.teacher_logps {
            let store = Store::open(path)?;
            let (got, wanted) = (store.header.temperature, options.temperature);
            if store.header.tokenizer != source.tokenizer.fingerprint() {
                return Err(Error::data("the teacher read other tokens than the student")
                    .in_file(path)
                    .hint("distill from a model with the student's tokenizer"));
            }
            if got != wanted {
                return Err(Error::config(format!(
                    "`temperature` is `{wanted}`, and the log-probs were taken at `{got}`"
                ))
                .in_file(path));
            }
            return Ok(Self::Store(store));
        }
        let spec = spec(config)?;
        let name = spec.model.as_deref().unwrap_or_default();
        let mut other = Source::open(&spec)?;
        let encoder = match options.cross_tokenizer {
            None => same_tokens(name, &other, source).map(|()| None)?,
            Some(_) => Some(Encoder::new(&other, encode_options(config))),
        };
        let model = other.decoder(Base::Frozen, device, config.train.seed)?;
        let model = ModelTeacher::new(model, options.teacher_top_k, options.temperature);
        let model = ModelTeacher { encoder, ..model };
        Ok(Self::Model(Box::new(model)))
    }

    /// What it says of the rows of `batch` that predict a target, to be asked for in their order, and
    /// a model's values at `taps`.
    ///
    /// # Errors
    /// When the model cannot be computed, or a row is not in the store.
    pub fn read(&self, batch: &PackedBatch, taps: &[Tap]) -> Result<Reading<'_>> {
        match self {
            Self::Model(model) => model.read(batch, taps),
            Self::Store(store) => Ok(Reading::Told(store.read(batch)?)),
        }
    }

    /// What it says follows from this, hashed: the model, or whose words a file holds.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        match self {
            Self::Model(teacher) => teacher.model.fingerprint(true),
            Self::Store(store) => {
                let hash = blake3::hash(format!("{:?}", store.header).as_bytes());
                Ok(hash.to_hex()[..32].to_string())
            }
        }
    }

    /// The model, where it is one.
    pub fn model(&self) -> Option<&Decoder> {
        match self {
            Self::Model(teacher) => Some(&teacher.model),
            Self::Store(_) => None,
        }
    }

    /// Bytes that it holds in memory, its scratch left out.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Model(teacher) => teacher.model.bytes(),
            Self::Store(_) => 0,
        }
    }

    /// Parameters that each step goes through.
    pub fn parameters(&self) -> usize {
        match self {
            Self::Model(teacher) => teacher.model.parameters(),
            Self::Store(_) => 0,
        }
    }
}

impl ModelTeacher {
    /// `model`, which tells its `top_k` likeliest tokens under a temperature, or all.
    pub fn new(model: Decoder, top_k: Option<usize>, temperature: f64) -> Self {
        Self { model, top_k, temperature, encoder: None }
    }

    /// How it reads rows, where it reads other tokens than the student.
    pub fn encoder(&self) -> Option<&Encoder> {
        self.encoder.as_ref()
    }

    /// Blocks of the model.
    pub fn blocks(&self) -> usize {
        self.model.blocks.len()
    }

    /// As [`Teacher::read`].
    ///
    /// # Errors
    /// When the model cannot be computed.
    pub fn read(&self, batch: &PackedBatch, taps: &[Tap]) -> Result<Reading<'_>> {
        let rows = batch.target_rows()?;
        let (hidden, tapped) =
            self.model.evaluate_tapped(batch, &rows, PassMode::EVALUATE, taps)?;
        self.reading(hidden, tapped)
    }

    fn reading(&self, hidden: Tensor, tapped: Vec<(Tap, Tensor)>) -> Result<Reading<'_>> {
        let head = self.model.widened_head()?;
        Ok(Reading::Hidden { teacher: self, head, hidden, tapped })
    }

    /// [`Self::read`] of many batches, each block of the model read once for all of them; see
    /// [`Decoder::evaluate_layered`]. `each` gets every batch's reading.
    ///
    /// # Errors
    /// When the model cannot be computed, or those of `done` and `each`.
    pub fn read_layered(
        &self,
        batches: &[PackedBatch],
        done: impl FnMut(usize) -> Result<()>,
        mut each: impl FnMut(&PackedBatch, &Reading<'_>) -> Result<()>,
    ) -> Result<()> {
        let all = self.model.evaluate_layered(batches, done)?;
        let mut reading = None;
        for (batch, hidden) in batches.iter().zip(all) {
            // The head is widened once.
            let reading = match &mut reading {
                None => reading.insert(self.reading(hidden, Vec::new())?),
                Some(reading) => {
                    reading.turn_to(hidden);
                    reading
                }
            };
            each(batch, reading)?;
        }
        Ok(())
    }
}

/// What a teacher makes of a batch.
pub enum Reading<'t> {
    /// Its final hidden states, whose logits are computed when they are asked for.
    Hidden {
        /// Whose.
        teacher: &'t ModelTeacher,
        /// The teacher's, in the type of the computation.
        head: Widened<'t>,
        /// `(rows, hidden)`.
        hidden: Tensor,
        /// Its values at the taps.
        tapped: Vec<(Tap, Tensor)>,
    },
    /// All that it said.
    Told(TopLogps),
}

impl Reading<'_> {
    /// What it says of `rows`.
    ///
    /// # Errors
    /// When the head cannot be computed.
    pub fn rows(&self, rows: Range<usize>) -> Result<TeacherRows> {
        match self {
            Self::Hidden { teacher, head, hidden, .. } => {
                let told = teacher.model.teacher_rows(hidden, head, rows)?;
                match (teacher.top_k, told) {
                    (Some(k), TeacherRows::Logits(logits)) => {
                        Ok(TeacherRows::Top(TopLogps::of(&logits, k, teacher.temperature)?))
                    }
                    (_, told) => Ok(told),
                }
            }
            Self::Told(all) => Ok(TeacherRows::Top(all.rows(rows))),
        }
    }

    /// Reads other hidden states with the same head.
    fn turn_to(&mut self, other: Tensor) {
        if let Self::Hidden { hidden, .. } = self {
            *hidden = other;
        }
    }

    /// The teacher's values at the taps, each once.
    pub fn take_tapped(&mut self) -> Vec<(Tap, Tensor)> {
        match self {
            Self::Hidden { tapped, .. } => std::mem::take(tapped),
            Self::Told(_) => Vec::new(),
        }
    }

    /// Log-probs of the batch's own targets.
    ///
    /// # Errors
    /// A teacher that only said which tokens are the likeliest.
    pub fn target_logps(&self, batch: &PackedBatch) -> Result<Vec<f64>> {
        match self {
            Self::Hidden { teacher, hidden, .. } => teacher.model.target_logps(batch, hidden),
            Self::Told(_) => Err(Error::data("a file has no log-probs of other tokens")),
        }
    }
}

/// How the teacher of `config` reads rows.
///
/// # Errors
/// None that is named, or one that cannot be read.
pub fn encoder(config: &DistillConfig) -> Result<Encoder> {
    let source = Source::open(&spec(config)?)?;
    Ok(Encoder::new(&source, encode_options(config)))
}

/// Where the model is.
fn spec(config: &DistillConfig) -> Result<SourceSpec> {
    let model = config.method.teacher.clone().ok_or_else(|| {
        Error::config("no teacher").hint(
            "name the model to learn from with `--teacher`, or what it said with \
             `--teacher-logps`",
        )
    })?;
    Ok(SourceSpec { model: Some(model), ..SourceSpec::default() })
}

/// Refuses a teacher whose ids mean other tokens. Padding beyond the tokens may differ.
fn same_tokens(name: &str, teacher: &Source, student: &Source) -> Result<()> {
    let (theirs, ours) = (&teacher.tokenizer, &student.tokenizer);
    let limit = theirs.id_limit().max(ours.id_limit()) as u32;
    let differs = (0..limit).find(|&id| theirs.id_to_token(id) != ours.id_to_token(id));
    let Some(id) = differs else { return Ok(()) };
    let shown =
        |token: Option<String>| token.map_or("nothing".into(), |token| format!("`{token}`"));
    Err(Error::model(format!(
        "the teacher `{name}` reads other tokens: `{id}` is {} there and {} in the student",
        shown(theirs.id_to_token(id)),
        shown(ours.id_to_token(id)),
    ))
    .hint("compare texts instead of tokens: `--cross-tokenizer uld` or `alm`"))
}
