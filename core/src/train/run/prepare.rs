//! Before a run: everything opened, checked and planned, nothing written.

use std::path::Path;

use crate::data::encoded::TokenCount;
use crate::memory::plan::{Plan, PlanInput};
use crate::model::config::Head;
use crate::model::{Base, Decoder, init};
use crate::text::strftime::Moment;
use crate::train::checkpoint::CheckpointStore;
use crate::train::config::{Config, TrainConfig};
use crate::train::interrupt::Interrupt;
use crate::train::method::{Figures, Method, RowEncoder};
use crate::train::progress::{Progress, counted};
use crate::train::run_dir::{RunFiles, Start};
use crate::train::source::{Source, SourceSpec};
use crate::{Result, device};

use super::beginning::Beginning;
use super::data::Data;
use super::evaluation::Evaluation;
use super::state::State;

/// About so many records are looked at to plan.
const PLAN_RECORDS: usize = 32;

/// A run that is ready to begin: everything opened and checked, nothing written.
pub struct Prepared<M: Method> {
    pub(super) config: Config<M::Options>,
    pub(super) start: Start,
    pub(super) source: Source,
    pub(super) encoder: RowEncoder<M::Row>,
    pub(super) data: Data,
    pub(super) evaluation: Evaluation<M::Row>,
    pub(super) model: Decoder,
    pub(super) method: M,
    pub(super) began_at: i64,
    /// Memory and time.
    pub plan: Plan,
    /// Steps in all.
    pub total_steps: u64,
}

impl<M: Method> Prepared<M> {
    /// Opens model and data, and plans. Only a run that is resumed looks into its directory.
    ///
    /// # Errors
    /// Anything that would stop the run later.
    pub fn new(
        config: &Config<M::Options>,
        start: Start,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        config.validate()?;
        let whole = config;
        let config = &whole.train;
        let device = device::open(&config.device)?;
        // However often a run is resumed, templates are told the time at which it began.
        let before: Option<State> = match start {
            Start::Fresh => None,
            Start::Resume => {
                CheckpointStore::any_state(&RunFiles::new(&config.output).checkpoints())
            }
        };
        let began_at = before.map_or_else(|| Moment::now().0, |state| state.began_at);
        let mut source = Source::open(&SourceSpec { now: Some(began_at), ..config.source() })?;
        if let (Some(_), Some(path)) = (&config.adapter, &source.template_path) {
            progress.note(&format!("chat template: {}", path.display()));
        }
        let data = Data::open(&config.data, config, config.shuffle)?;
        for set in data.sets.iter() {
            progress.note(&format!("data: {set}"));
        }
        let encoder = M::encoder(whole, &source);
        let evaluation = Evaluation::open(config, &source, &encoder)?;
        if evaluation.left_out() > 0 {
            progress.note(&format!(
                "evaluation: {} left out, {} used",
                counted(evaluation.left_out(), "record"),
                counted(evaluation.rows().len(), "row")
            ));
        }
        let base = if config.is_lora() { Base::Frozen } else { Base::Trainable };
        let mut model = source.decoder(base, &device, config.seed)?;
        match &config.adapter {
            Some(dir) => model.load_lora(&source.adapter(dir)?)?,
            None if config.lora_rank > 0 => {
                model.add_lora(&config.adapter_config(), config.seed)?
            }
            None => model.train_where(|_| true)?,
        }
        fit_head::<M>(&mut model, &source, config.seed)?;
        let rows_per_epoch = data.mixture.rows_per_epoch() as f64;
        let total_steps = config.max_steps.unwrap_or_else(|| {
            (rows_per_epoch * config.epochs / config.batch_size as f64).ceil().max(1.0) as u64
        });
        let method = M::new(whole, &source, &mut model)?;
        let plan = plan(config, &data, &encoder, &evaluation, &model, &method)?;
        Ok(Self {
            config: whole.clone(),
            start,
            source,
            encoder,
            data,
            evaluation,
            model,
            method,
            began_at,
            plan,
            total_steps,
        })
    }

    /// The state of the run before its first step.
    ///
    /// # Errors
    /// A file that cannot be read any more.
    pub(super) fn fresh_state(&self) -> Result<State> {
        let mut contents = self.data.contents()?;
        contents.extend(self.evaluation.contents().clone());
        Ok(State {
            began_at: self.began_at,
            data: self.data.mixture.fingerprint(),
            contents,
            base: self.model.frozen_fingerprint()?,
            method: self.method.state(),
            ..State::default()
        })
    }

    /// Passes over the data after which it ends; `None` where steps are counted.
    pub(super) fn epochs(&self) -> Option<u64> {
        let config = &self.config.train;
        config.max_steps.is_none().then(|| config.epochs.ceil() as u64)
    }

    /// See [`Method::begin`].
    ///
    /// # Errors
    /// Those of the method.
    pub(super) fn begin(
        &mut self,
        dir: &Path,
        progress: &mut dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let beginning = Beginning {
            dir,
            held_out: self.evaluation.rows(),
            steps: self.total_steps,
            batch_size: self.config.train.batch_size,
            microbatch_tokens: self.plan.microbatch_tokens,
            interrupt,
            data: &self.data,
            encoder: &self.encoder,
            epochs: self.epochs(),
        };
        self.method.begin(&self.model, &beginning, progress)
    }

    /// Loss and figures of the held-out rows.
    ///
    /// # Errors
    /// A loss that is not finite, or an interruption.
    pub(super) fn held_out(&self, interrupt: &Interrupt) -> Result<Figures> {
        let (rows, tokens) = (self.evaluation.rows(), self.plan.evaluation_tokens);
        self.method.evaluate(&self.model, rows, tokens, interrupt)
    }

    /// The first lines of a run: what will be trained, on what, at what price.
    pub fn introduce(&self, progress: &mut dyn Progress) {
        use crate::memory::plan::gigabytes;
        let count = |params: Vec<&crate::model::param::Param>| -> usize {
            params.iter().map(|param| param.elem_count()).sum()
        };
        let (all, trained) = (count(self.model.params()), count(self.model.trained()));
        progress.note(&format!(
            "model: {} ({:.2} M parameters, {:.2} M trained)",
            self.source.name.as_deref().unwrap_or("fresh weights"),
            all as f64 / 1e6,
            trained as f64 / 1e6
        ));
        let seconds = self.plan.seconds_per_step;
        progress.note(&format!(
            "plan: {} of {}, about {:.2} s each; peak memory about {}",
            counted(self.total_steps as usize, "step"),
            counted(self.config.train.batch_size, "row"),
            seconds,
            gigabytes(self.plan.peak_bytes())
        ));
    }
}

/// Gives the model the head that the method trains.
fn fit_head<M: Method>(model: &mut Decoder, source: &Source, seed: u64) -> Result<()> {
    match M::HEAD {
        Head::Language => model.refuse_reward_model(),
        Head::Score => {
            let score = match &model.score {
                Some(score) => score.to_f32()?.to_device(model.device())?,
                None => {
                    let shape = [1, model.config.hidden_size];
                    let scale = init::scale(&model.config);
                    init::tensor("score.weight", &shape, scale, seed, model.device())?
                }
            };
            model.set_score(score)?;
            let padding = source.tokenizer.pad_id().or(source.tokenizer.eos_id());
            model.config.pad_token_id = model.config.pad_token_id.or(padding);
            Ok(())
        }
    }
}

fn plan<M: Method>(
    config: &TrainConfig,
    data: &Data,
    encoder: &RowEncoder<M::Row>,
    evaluation: &Evaluation<M::Row>,
    model: &Decoder,
    method: &M,
) -> Result<Plan> {
    let mut rows = Vec::new();
    for record in data.sample(PLAN_RECORDS) {
        let (origin, record) = record?;
        rows.extend(encoder(&origin, &record)?.into_kept().unwrap_or_default());
    }
    let tokens = rows.tokens() as f64;
    // A row of several completions may be longer than each of them may be.
    let longest_seen = rows.iter().map(TokenCount::tokens).max().unwrap_or(0);
    let mean_row = tokens / rows.len().max(1) as f64;
    let squares = rows.iter().map(|row| (row.tokens() as f64 - mean_row).powi(2));
    let row_deviation = (squares.sum::<f64>() / rows.len().max(1) as f64).sqrt();
    Ok(Plan::new(
        model,
        &method.needs(),
        PlanInput {
            microbatch_tokens: config.microbatch_tokens,
            rows_per_step: config.batch_size,
            mean_row,
            row_deviation,
            longest_row: config.max_seq_len.max(longest_seen),
            trained_share: rows.trained_tokens() as f64 / tokens.max(1.0),
            keep_blocks: config.keep_blocks,
            optim: config.optim,
            optimizer_in_backward: config.optimizer_in_backward,
            evaluation: evaluation.for_plan(config.max_new_tokens),
        },
    ))
}
