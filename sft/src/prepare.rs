//! Before a run: everything opened, checked and planned, nothing written.

use halter_core::data::encoded::TokenCount;
use halter_core::memory::plan::{Plan, PlanInput};
use halter_core::model::{Base, Decoder};
use halter_core::text::strftime::Moment;
use halter_core::train::checkpoint::CheckpointStore;
use halter_core::train::progress::{Progress, counted};
use halter_core::train::run_dir::{RunFiles, Start};
use halter_core::train::source::{Source, SourceSpec};
use halter_core::{Result, device};

use crate::config::SftConfig;
use crate::data::{Data, Encoder};
use crate::evaluation::Evaluation;
use crate::state::State;

/// About so many records are looked at to plan.
const PLAN_RECORDS: usize = 32;

/// A run that is ready to begin: everything opened and checked, nothing written.
pub struct Prepared {
    pub(crate) config: SftConfig,
    pub(crate) start: Start,
    pub(crate) source: Source,
    pub(crate) encoder: Encoder,
    pub(crate) data: Data,
    pub(crate) evaluation: Evaluation,
    pub(crate) model: Decoder,
    pub(crate) began_at: i64,
    /// Memory and time.
    pub plan: Plan,
    /// Steps in all.
    pub total_steps: u64,
}

impl Prepared {
    /// Opens model and data, and plans. Only a run that is resumed looks into its directory.
    ///
    /// # Errors
    /// Anything that would stop the run later.
    pub fn new(config: &SftConfig, start: Start, progress: &mut dyn Progress) -> Result<Self> {
        config.validate()?;
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
        let encoder = Encoder::new(config, &source);
        let evaluation = Evaluation::open(config, &encoder)?;
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
        let rows_per_epoch = data.mixture.rows_per_epoch() as f64;
        let total_steps = config.max_steps.unwrap_or_else(|| {
            (rows_per_epoch * config.epochs / config.batch_size as f64).ceil().max(1.0) as u64
        });
        let plan = plan(config, &data, &encoder, &evaluation, &model)?;
        Ok(Self {
            config: config.clone(),
            start,
            source,
            encoder,
            data,
            evaluation,
            model,
            began_at,
            plan,
            total_steps,
        })
    }

    /// The state of the run before its first step.
    ///
    /// # Errors
    /// A file that cannot be read any more.
    pub(crate) fn fresh_state(&self) -> Result<State> {
        let mut contents = self.data.contents()?;
        contents.extend(self.evaluation.contents().clone());
        Ok(State {
            began_at: self.began_at,
            data: self.data.mixture.fingerprint(),
            contents,
            base: self.model.frozen_fingerprint()?,
            ..State::default()
        })
    }

    /// The first lines of a run: what will be trained, on what, at what price.
    pub fn introduce(&self, progress: &mut dyn Progress) {
        use halter_core::memory::plan::gigabytes;
        let count = |params: Vec<&halter_core::model::param::Param>| -> usize {
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
            counted(self.config.batch_size, "row"),
            seconds,
            gigabytes(self.plan.peak_bytes())
        ));
    }
}

fn plan(
    config: &SftConfig,
    data: &Data,
    encoder: &Encoder,
    evaluation: &Evaluation,
    model: &Decoder,
) -> Result<Plan> {
    let mut rows = Vec::new();
    for record in data.sample(PLAN_RECORDS) {
        let (origin, record) = record?;
        rows.extend(encoder.encode(&origin, &record)?.into_kept().unwrap_or_default());
    }
    let tokens = rows.tokens() as f64;
    Ok(Plan::new(
        model,
        PlanInput {
            microbatch_tokens: config.microbatch_tokens,
            rows_per_step: config.batch_size,
            mean_row: tokens / rows.len().max(1) as f64,
            longest_row: config.max_seq_len,
            trained_share: rows.trained_tokens() as f64 / tokens.max(1.0),
            keep_blocks: config.keep_blocks,
            optim: config.optim,
            optimizer_in_backward: config.optimizer_in_backward,
            evaluation: evaluation.for_plan(config.max_new_tokens),
        },
    ))
}
