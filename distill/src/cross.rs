//! A teacher whose tokens are others than the student's: both read the same text, and are compared
//! where tokens of both begin.

mod align;
mod loss;

use candle_core::{DType, Device, Tensor};
use halter_core::data::batch::PackedBatch;
use halter_core::data::encoded::Encoded;
use halter_core::data::pack::microbatches;
use halter_core::data::record::{Origin, Record, Row};
use halter_core::data::view::Encoder;
use halter_core::model::Decoder;
use halter_core::model::linear::PassMode;
use halter_core::model::param::Grads;
use halter_core::ops::divergence::TeacherRows;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::method::{Backward, Figures, StepOptions};
use halter_core::train::pass::{Logits, scalar};
use halter_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::config::DistillOptions;
use crate::row::TaughtRow;
use crate::step::nothing_trained;
use crate::teacher::{ModelTeacher, Reading};
use align::{Chunk, chunks};

/// Chunks whose logits the teacher computes at once.
const TEACHER_ROWS: usize = 64;

/// How models with other tokens are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CrossTokenizer {
    /// By sorted probabilities where a chunk of text begins that both read in whole tokens (universal
    /// logit distillation, Boizard et al. 2024).
    Uld,
    /// By the probability of each chunk (approximate likelihood matching, Minixhofer et al. 2025).
    Alm,
}

/// Who is learned from, and how.
#[derive(Debug, Clone, Copy)]
pub struct Cross<'o> {
    /// The model.
    pub teacher: &'o ModelTeacher,
    /// How it reads rows.
    pub theirs: &'o Encoder,
    /// How the student does; see [`read`].
    pub own: &'o Encoder,
    /// How they are compared.
    pub kind: CrossTokenizer,
    /// Weights and temperature.
    pub options: &'o DistillOptions,
}

/// What becomes of a record that both have to read: what is too long for one of them is as if it were
/// for both.
///
/// # Errors
/// A record that would train wrongly, or that the teacher cannot read, with its place.
pub fn read(
    own: &Encoder,
    theirs: &Encoder,
    origin: &Origin,
    record: &Record,
) -> Result<Encoded<Vec<TaughtRow>>> {
    let rows = own.rows(origin, record)?;
    let told = |error: Error| {
        let hint = error.remedy().map(str::to_string);
        let outer = Error::new(error.kind(), "the teacher cannot read the row")
            .at(&*origin.path, origin.line)
            .because(error);
        match hint {
            Some(hint) => outer.hint(hint),
            None => outer,
        }
    };
    let theirs = match theirs.rows(origin, record).map_err(told)? {
        Encoded::Dropped { reason, tokens } => {
            return Ok(Encoded::Dropped { reason: format!("for the teacher, {reason}"), tokens });
        }
        Encoded::Kept(rows) | Encoded::Cut { kept: rows, .. } => rows.into_iter().next(),
    };
    let taught = |row| TaughtRow { row, theirs: theirs.clone() };
    Ok(rows.map(|rows| rows.into_iter().map(taught).collect()))
}

/// Rows that go through both models together.
struct Lesson {
    own: PackedBatch,
    theirs: PackedBatch,
    /// By targets of the batches, in their order.
    chunks: Vec<Chunk>,
}

/// What a chunk and a token weigh in the loss of a step.
#[derive(Debug, Clone, Copy)]
struct Weights {
    targets: usize,
    chunk: f64,
    token: f64,
}

/// What was seen of a batch.
#[derive(Default)]
struct Seen {
    distances: Vec<f64>,
    logps: Vec<f64>,
    correct: usize,
}

impl Cross<'_> {
    /// Each microbatch of `rows` forward, and its loss with it to `backward`: the mean distance of the
    /// step's chunks and the mean cross-entropy of its trained tokens, weighted.
    ///
    /// # Errors
    /// No trained token in the whole step, texts that differ, or a loss that is not finite.
    pub fn each_pass(
        self,
        student: &Decoder,
        rows: &[TaughtRow],
        options: StepOptions,
        grads: &Grads,
        backward: Backward,
    ) -> Result<Figures> {
        let lessons = self.lessons(rows, options.microbatch_tokens)?;
        let weights = self.weights(&lessons)?;
        let mut figures = Figures::default();
        for (index, lesson) in lessons.iter().enumerate() {
            let reading = self.teacher.read(&lesson.theirs, &[])?;
            let (batch, options) = (&lesson.own, options.pass(index));
            let mut seen = Seen::default();
            let (pass, loss) = match self.kind {
                CrossTokenizer::Alm => {
                    let pass = student.forward(batch, options)?;
                    let logps = pass.per_token_logps();
                    let loss =
                        self.alm(logps, &pass.is_best(), lesson, &reading, weights, &mut seen)?;
                    (pass, loss)
                }
                CrossTokenizer::Uld => {
                    let part = |part: Logits| self.uld(&part, lesson, &reading, weights, &mut seen);
                    let pass = student.forward_on_logits(batch, options, part, grads)?;
                    let loss = pass.charged().sum_all()?;
                    (pass, loss)
                }
            };
            seen.note(&mut figures, batch, scalar(&loss)? * weights.targets as f64);
            backward(pass, &loss)?;
        }
        Ok(figures)
    }

    /// Loss and figures of `rows`; nothing is trained.
    ///
    /// # Errors
    /// No trained token at all, texts that differ, or an interruption between microbatches.
    pub fn evaluate(
        self,
        student: &Decoder,
        rows: &[TaughtRow],
        microbatch_tokens: usize,
        interrupt: &Interrupt,
    ) -> Result<Figures> {
        let lessons = self.lessons(rows, microbatch_tokens)?;
        let weights = self.weights(&lessons)?;
        let mut figures = Figures::default();
        for lesson in &lessons {
            interrupt.check()?;
            let reading = self.teacher.read(&lesson.theirs, &[])?;
            let mut seen = Seen::default();
            let loss = match self.kind {
                CrossTokenizer::Alm => {
                    let (logps, is_best) = student.evaluate(&lesson.own, PassMode::EVALUATE)?;
                    scalar(&self.alm(&logps, &is_best, lesson, &reading, weights, &mut seen)?)?
                }
                CrossTokenizer::Uld => {
                    let mut loss = 0.0;
                    student.evaluate_on_logits(&lesson.own, |part| {
                        loss += scalar(&self.uld(&part, lesson, &reading, weights, &mut seen)?)?;
                        Ok(())
                    })?;
                    loss
                }
            };
            seen.note(&mut figures, &lesson.own, loss * weights.targets as f64);
        }
        Ok(figures)
    }

    fn weights(&self, lessons: &[Lesson]) -> Result<Weights> {
        let targets: usize = lessons.iter().map(|lesson| lesson.own.targets.len()).sum();
        let chunks: usize = lessons.iter().map(|lesson| lesson.chunks.len()).sum();
        if targets == 0 {
            return Err(nothing_trained());
        }
        Ok(Weights {
            targets,
            chunk: self.options.divergence_weight / chunks.max(1) as f64,
            token: self.options.ce_weight / targets as f64,
        })
    }

    /// Rows as both read them, in microbatches of so many of the student's tokens.
    fn lessons(&self, rows: &[TaughtRow], microbatch_tokens: usize) -> Result<Vec<Lesson>> {
        let lengths = rows.iter().map(|taught| taught.row.input_ids.len());
        let lesson = |members: Vec<usize>| {
            let members: Vec<&TaughtRow> = members.iter().map(|&row| &rows[row]).collect();
            self.lesson(&members)
        };
        let lessons = microbatches(lengths, microbatch_tokens).into_iter().map(lesson);
        let has_chunk =
            |lesson: &Result<Lesson>| !lesson.as_ref().is_ok_and(|l| l.chunks.is_empty());
        lessons.filter(has_chunk).collect()
    }

    fn lesson(&self, rows: &[&TaughtRow]) -> Result<Lesson> {
        let unread = || Error::data("a row that the teacher has not read");
        let theirs = rows.iter().map(|taught| taught.theirs.as_ref().ok_or_else(unread));
        let theirs = theirs.collect::<Result<Vec<&Row>>>()?;
        let lesson = Lesson {
            own: PackedBatch::from_rows(rows.iter().map(|taught| &taught.row))?,
            theirs: PackedBatch::from_rows(theirs.iter().copied())?,
            chunks: Vec::new(),
        };
        let mut all = Vec::new();
        for (at, (taught, theirs)) in rows.iter().zip(&theirs).enumerate() {
            let origin = &taught.row.origin;
            let found =
                chunks((&taught.row, &*self.own.tokenizer), (*theirs, &*self.theirs.tokenizer))
                    .map_err(|error| error.at(&*origin.path, origin.line))?;
            let (own, other) =
                (lesson.own.targets_of(at).start, lesson.theirs.targets_of(at).start);
            all.extend(found.into_iter().map(|chunk| Chunk {
                own: chunk.own.start + own..chunk.own.end + own,
                theirs: chunk.theirs.start + other..chunk.theirs.end + other,
            }));
        }
        Ok(Lesson { chunks: all, ..lesson })
    }

    /// What is charged for some rows of the student's logits.
    fn uld(
        &self,
        part: &Logits,
        lesson: &Lesson,
        reading: &Reading,
        weights: Weights,
        seen: &mut Seen,
    ) -> Result<Tensor> {
        let logits = part.logits.to_dtype(DType::F32)?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
        let normalizer = shifted.exp()?.sum_keepdim(1)?.log()?;
        let targets: Vec<u32> = part.targets.iter().map(|target| target.token).collect();
        let count = targets.len();
        let targets = Tensor::from_vec(targets, (count, 1), logits.device())?;
        let logps = shifted.broadcast_sub(&normalizer)?.gather(&targets, 1)?;
        seen.logps.extend(of(&logps)?);
        let best: Vec<u32> = logits.detach().argmax(1)?.to_vec1()?;
        seen.correct += best.iter().zip(&part.targets).filter(|(id, t)| **id == t.token).count();
        let mut loss = (logps.sum_all()? * -weights.token)?;

        let first = lesson.chunks.partition_point(|chunk| chunk.own.start < part.rows.start);
        let end = lesson.chunks.partition_point(|chunk| chunk.own.start < part.rows.end);
        for chunks in lesson.chunks[first..end].chunks(TEACHER_ROWS) {
            let distances = self.uld_of(chunks, &logits, part.rows.start, reading)?;
            seen.distances.extend(of(&distances)?);
            loss = (loss + (distances.sum_all()? * weights.chunk)?)?;
        }
        Ok(loss)
    }

    /// Distances where `chunks` begin, from the student's `logits` from row `start` on.
    fn uld_of(
        &self,
        chunks: &[Chunk],
        logits: &Tensor,
        start: usize,
        reading: &Reading,
    ) -> Result<Tensor> {
        let own = select(logits, chunks.iter().map(|chunk| chunk.own.start - start))?;
        let theirs = chunks.iter().map(|chunk| chunk.theirs.start);
        let (first, last) = (theirs.clone().min().unwrap_or(0), theirs.clone().max().unwrap_or(0));
        let TeacherRows::Logits(teacher) = reading.rows(first..last + 1)? else {
            return Err(Error::config("the teacher's whole distribution is needed"));
        };
        let teacher = select(&teacher.to_dtype(DType::F32)?, theirs.map(|row| row - first))?;
        loss::uld(&own, &teacher, self.options.temperature)
    }

    /// What is charged for the student's log-probs of a batch.
    fn alm(
        &self,
        logps: &Tensor,
        is_best: &[bool],
        lesson: &Lesson,
        reading: &Reading,
        weights: Weights,
        seen: &mut Seen,
    ) -> Result<Tensor> {
        seen.correct = is_best.iter().filter(|&&best| best).count();
        seen.logps = of(logps)?;
        let of_chunks = |range: fn(&Chunk) -> std::ops::Range<usize>| -> Vec<(u32, u32)> {
            let chunks = lesson.chunks.iter().enumerate();
            chunks
                .flat_map(|(at, chunk)| range(chunk).map(move |t| (t as u32, at as u32)))
                .collect()
        };
        let count = lesson.chunks.len();
        let own = loss::by_chunk(logps, &of_chunks(|chunk| chunk.own.clone()), count)?;
        let told = reading.target_logps(&lesson.theirs)?;
        let told = Tensor::from_vec(told, lesson.theirs.targets.len(), &Device::Cpu)?;
        let told = loss::by_chunk(&told, &of_chunks(|chunk| chunk.theirs.clone()), count)?;
        let distances = loss::alm(&own, &told.to_device(own.device())?, self.options.temperature)?;
        seen.distances = of(&distances)?;
        let cross_entropy = (logps.to_dtype(DType::F64)?.sum_all()? * -weights.token)?;
        Ok(((distances.sum_all()? * weights.chunk)? + cross_entropy)?)
    }
}

impl Seen {
    fn note(&self, figures: &mut Figures, batch: &PackedBatch, loss_sum: f64) {
        figures.loss_sum += loss_sum;
        figures.loss_count += batch.targets.len();
        figures.supervised_tokens += batch.targets.len();
        figures.correct += self.correct;
        figures.tokens += batch.len();
        figures.note("divergence", &self.distances);
        let cross_entropy: Vec<f64> = self.logps.iter().map(|logp| -logp).collect();
        figures.note("cross_entropy", &cross_entropy);
    }
}

fn of(x: &Tensor) -> Result<Vec<f64>> {
    Ok(x.detach().flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
}

fn select(x: &Tensor, rows: impl Iterator<Item = usize>) -> Result<Tensor> {
    let rows: Vec<u32> = rows.map(|row| row as u32).collect();
    let count = rows.len();
    Ok(x.index_select(&Tensor::from_vec(rows, count, x.device())?, 0)?)
}
