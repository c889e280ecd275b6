//! Reward modelling as a method of training.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use halter_core::Result;
use halter_core::model::Decoder;
use halter_core::model::config::Head;
use halter_core::model::linear::PassMode;
use halter_core::model::param::Grads;
use halter_core::text::branches::encode_branches;
use halter_core::text::encode::EncodeOptions;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::method::{Backward, Description, Figures, Method, RowEncoder, StepOptions};
use halter_core::train::pass::scalar;
use halter_core::train::source::Source;

use super::batch::{Batch, pack};
use super::calibration;
use super::config::{RewardConfig, RewardOptions};
use super::rows::{Judgement, RankedRow, rank};

/// Scores that rank completions as people did.
#[derive(Debug)]
pub struct Reward {
    options: RewardOptions,
}

/// What a step or an evaluation saw.
#[derive(Default)]
struct Seen {
    figures: Figures,
    scores: Vec<f64>,
    margins: Vec<f64>,
}

impl Method for Reward {
    type Options = RewardOptions;
    type Row = RankedRow;
    const DESCRIPTION: Description = Description {
        command: "reward",
        title: "Reward modelling",
        sentence: "Scores of better completions are made higher than those of worse ones.",
    };
    const HEAD: Head = Head::Score;
    const TOLD: &'static [&'static str] = &["accuracy", "margin", "calibration_error"];

    fn new(config: &RewardConfig, _source: &Source, _model: &mut Decoder) -> Result<Self> {
        Ok(Self { options: config.method.clone() })
    }

    fn encoder(config: &RewardConfig, source: &Source) -> RowEncoder<RankedRow> {
        let options = EncodeOptions {
            vocab_size: Some(source.config.vocab_size),
            drop_identical: true,
            ..config.train.encode_options()
        };
        let (tokenizer, template) = (source.tokenizer.clone(), source.template.clone());
        let own = config.method.clone();
        Arc::new(move |origin, record| {
            let judgement = Judgement::of(record, origin, &own)?;
            let encoded =
                encode_branches(record, origin, &tokenizer, template.as_deref(), &options)?;
            Ok(rank(encoded, judgement, &own))
        })
    }

    fn each_pass(
        &mut self,
        model: &Decoder,
        rows: &[RankedRow],
        options: StepOptions,
        _grads: &Grads,
        backward: Backward,
    ) -> Result<Figures> {
        let mut seen = Seen::default();
        let batches = self.pack(model, rows, options.microbatch_tokens)?;
        for (index, batch) in batches.iter().enumerate() {
            let scored = &batch.scored;
            let pass = model.forward_hidden(&scored.packed, &scored.rows, options.pass(index))?;
            let scores = pass.scores()?;
            let sum = batch.loss(&scores, self.options.center_rewards_coefficient)?;
            seen.note(batch, &scores, &sum)?;
            backward(pass, &(sum / rows.len() as f64)?)?;
        }
        Ok(seen.into_figures())
    }

    fn evaluate(
        &self,
        model: &Decoder,
        rows: &[RankedRow],
        microbatch_tokens: usize,
        interrupt: &Interrupt,
    ) -> Result<Figures> {
        let mut seen = Seen::default();
        for batch in self.pack(model, rows, microbatch_tokens)? {
            interrupt.check()?;
            let scored = &batch.scored;
            let hidden = model.evaluate_hidden(&scored.packed, &scored.rows, PassMode::EVALUATE)?;
            let scores = model.scores(&hidden)?;
            let sum = batch.loss(&scores, self.options.center_rewards_coefficient)?;
            seen.note(&batch, &scores, &sum)?;
        }
        let bins = calibration::bins(&seen.margins);
        let mut figures = seen.into_figures();
        figures.note("calibration_error", &[calibration::expected_error(&bins)]);
        figures.calibration = bins;
        Ok(figures)
    }
}

impl Reward {
    fn pack(&self, model: &Decoder, rows: &[RankedRow], tokens: usize) -> Result<Vec<Batch>> {
        let norm = model.norm.widened(model.context())?;
        pack(rows, tokens, model.config.pad_token_id, &norm)
    }
}

impl Seen {
    /// Notes a batch and the sum of its losses.
    fn note(&mut self, batch: &Batch, scores: &Tensor, sum: &Tensor) -> Result<()> {
        self.figures.loss_sum += scalar(sum)?;
        self.figures.loss_count += batch.count;
        self.figures.supervised_tokens += batch.scored.rows.len();
        self.figures.tokens += batch.scored.packed.len();
        let host = |x: &Tensor| -> Result<Vec<f64>> { Ok(x.to_dtype(DType::F64)?.to_vec1()?) };
        let (better, worse) = batch.sides(scores)?;
        self.scores.extend(host(scores)?);
        self.margins.extend(host(&better)?.iter().zip(host(&worse)?).map(|(b, w)| b - w));
        Ok(())
    }

    /// With what TRL reports, under its names.
    fn into_figures(self) -> Figures {
        let Self { mut figures, scores, margins } = self;
        let right: Vec<f64> = margins.iter().map(|&margin| f64::from(margin > 0.0)).collect();
        figures.note("accuracy", &right);
        figures.note("margin", &margins);
        figures.note("mean_reward", &scores);
        figures.note("min_reward", &[scores.iter().copied().fold(f64::INFINITY, f64::min)]);
        figures.note("max_reward", &[scores.iter().copied().fold(f64::NEG_INFINITY, f64::max)]);
        figures
    }
}
