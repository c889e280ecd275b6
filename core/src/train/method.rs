//! What a method of training adds to a run: how records become rows, and the loss of a step.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use serde_json::Value;

use super::config::{Config, MethodOptions};
use super::interrupt::Interrupt;
use super::pass::{Pass, PassOptions};
use super::progress::Progress;
use super::run::Beginning;
use super::source::Source;
use super::summary::CalibrationBin;
use crate::Result;
use crate::data::encoded::{Encoded, TokenCount};
use crate::data::record::{Origin, Record, Row};
use crate::memory::plan::Needs;
use crate::model::Decoder;
use crate::model::config::Head;
use crate::model::linear::PassMode;
use crate::model::param::Grads;

/// What a step takes `batch_size` of.
pub trait TrainRow: TokenCount + Clone + Send + Sync + 'static {
    /// Where it came from.
    fn origin(&self) -> &Origin;

    /// Ids of the tokens that are trained.
    fn trained_ids(&self) -> impl Iterator<Item = u32>;
}

impl TrainRow for Row {
    fn origin(&self) -> &Origin {
        &self.origin
    }

    fn trained_ids(&self) -> impl Iterator<Item = u32> {
        let tokens = self.input_ids.iter().zip(&self.completion_mask);
        tokens.filter(|&(_, &trained)| trained).map(|(&id, _)| id)
    }
}

/// What becomes of a record; called by several threads at once.
pub type RowEncoder<R> = Arc<dyn Fn(&Origin, &Record) -> Result<Encoded<Vec<R>>> + Send + Sync>;

/// What a method does with each pass of a step and the loss on it: [`Pass::backward`], or an update
/// inside it.
pub type Backward<'b> = &'b mut dyn FnMut(Pass<'_>, &Tensor) -> Result<GradStore>;

/// How the rows of a step go through the model.
#[derive(Debug, Clone, Copy)]
pub struct StepOptions {
    /// A microbatch holds at most this many tokens (one row may be longer).
    pub microbatch_tokens: usize,
    /// Blocks that keep their activations; see [`super::pass::PassOptions`].
    pub keep_blocks: usize,
    /// Decides what is random in the step: dropout, and what a method draws.
    pub seed: u64,
    /// Of the step, for parameters of the method's own.
    pub learning_rate: f64,
}

impl StepOptions {
    /// How one of the step's microbatches, counted from 0, goes through the model.
    pub fn pass(self, microbatch: usize) -> PassOptions<'static> {
        let dropout_seed = Some(self.seed.wrapping_add(microbatch as u64));
        let mode = PassMode { dropout_seed, ..PassMode::EVALUATE };
        PassOptions { keep_blocks: self.keep_blocks, mode, taps: &[] }
    }
}

/// What a step or an evaluation saw.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// Sum of what the loss is the mean of.
    pub loss_sum: f64,
    /// How many it is the mean of: trained tokens, or pairs.
    pub loss_count: usize,
    /// Trained tokens.
    pub supervised_tokens: usize,
    /// Trained tokens that were the likeliest.
    pub correct: usize,
    /// All tokens.
    pub tokens: usize,
    /// The method's own, by their key in `metrics.jsonl`.
    pub means: BTreeMap<String, Mean>,
    /// How far confidence can be trusted, where the method says how sure it is.
    pub calibration: Vec<CalibrationBin>,
}

/// A mean that grows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mean {
    /// Sum.
    pub sum: f64,
    /// Of so many.
    pub count: usize,
}

impl Figures {
    /// Mean loss.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.loss_count as f64
    }

    /// Share of trained tokens that were the likeliest.
    pub fn token_accuracy(&self) -> f64 {
        self.correct as f64 / self.supervised_tokens as f64
    }

    /// Takes `values` into the mean under `key`.
    pub fn note(&mut self, key: &str, values: &[f64]) {
        let mean = self.means.entry(key.to_string()).or_default();
        mean.sum += values.iter().sum::<f64>();
        mean.count += values.len();
    }

    /// Values of the method's own figures under `keys`, as far as they are there.
    pub fn told(&self, keys: &[&'static str]) -> Vec<(&'static str, f64)> {
        let value = |key: &&'static str| {
            let mean = self.means.get(*key)?;
            Some((*key, mean.sum / mean.count as f64))
        };
        keys.iter().filter_map(value).collect()
    }

    /// The method's own figures.
    pub fn own(&self) -> impl Iterator<Item = (&str, f64)> {
        self.means.iter().map(|(key, mean)| (key.as_str(), mean.sum / mean.count as f64))
    }
}

/// How a method is called.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// Its command, e.g. `sft`.
    pub command: &'static str,
    /// What a run of it is, e.g. `Supervised fine-tuning`.
    pub title: &'static str,
    /// What it trains on, in a sentence for the model card.
    pub sentence: &'static str,
}

/// A method of training. [`super::run::run`] does the rest.
pub trait Method: Sized {
    /// Its keys of the configuration.
    type Options: MethodOptions;
    /// What its records become.
    type Row: TrainRow;
    /// How it is called.
    const DESCRIPTION: Description;
    /// What it trains: which token comes next, or a score of the whole.
    const HEAD: Head = Head::Language;
    /// Keys of its own figures that its evaluations tell, most important first.
    const TOLD: &'static [&'static str] = &[];

    /// The method of a run. `model` is complete; a method may add to it, or read it.
    ///
    /// # Errors
    /// Anything that would stop the run later.
    fn new(config: &Config<Self::Options>, source: &Source, model: &mut Decoder) -> Result<Self>;

    /// What turns records into rows, before there is a model.
    fn encoder(config: &Config<Self::Options>, source: &Source) -> RowEncoder<Self::Row>;

    /// What the plan counts beside the pass that is trained.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Prepares what must be there before the first step. A resumed run does it as well, with the
    /// model as it was at its beginning.
    ///
    /// # Errors
    /// Anything that would stop the run later, or an interruption.
    fn begin(
        &mut self,
        _model: &Decoder,
        _beginning: &Beginning<'_, Self::Row>,
        _progress: &mut dyn Progress,
    ) -> Result<()> {
        Ok(())
    }

    /// Each pass of a step over `rows`, with the loss on it, to `backward`. The loss is normalised
    /// over all of `rows`, so that microbatches change nothing but rounding.
    ///
    /// # Errors
    /// Nothing to train in the whole step, or a loss that is not finite.
    fn each_pass(
        &mut self,
        model: &Decoder,
        rows: &[Self::Row],
        options: StepOptions,
        grads: &Grads,
        backward: Backward,
    ) -> Result<Figures>;

    /// Called after the update of each step, counted from 1.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn after_update(&mut self, _model: &Decoder, _step: u64) -> Result<()> {
        Ok(())
    }

    /// Loss and figures of held-out `rows`; nothing is trained.
    ///
    /// # Errors
    /// Nothing to evaluate, or an interruption between microbatches.
    fn evaluate(
        &self,
        model: &Decoder,
        rows: &[Self::Row],
        microbatch_tokens: usize,
        interrupt: &Interrupt,
    ) -> Result<Figures>;

    /// Its tensors that change while it trains, by name: a checkpoint keeps them, and writes them
    /// back in place.
    fn tensors(&self) -> Vec<(String, &Tensor)> {
        Vec::new()
    }

    /// What else a checkpoint must keep of it.
    fn state(&self) -> Value {
        Value::Null
    }

    /// Goes on from what [`Self::state`] gave.
    ///
    /// # Errors
    /// A state of another method.
    fn restore(&mut self, _state: &Value) -> Result<()> {
        Ok(())
    }
}
