//! Preference learning as a method of training.

use std::sync::Arc;

use candle_core::Tensor;
use halter_core::data::branched::BranchedRow;
use halter_core::data::encoded::Encoded;
use halter_core::model::Decoder;
use halter_core::model::linear::PassMode;
use halter_core::model::param::Grads;
use halter_core::text::branches::encode_branches;
use halter_core::text::encode::EncodeOptions;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::method::{Backward, Description, Figures, Method, RowEncoder, StepOptions};
use halter_core::train::pass::{PassOptions, scalar};
use halter_core::train::source::Source;
use halter_core::{Error, Result};
use serde_json::Value;

use crate::config::{DpoConfig, DpoOptions};
use crate::formatting::FormattingTokens;
use crate::loss::reference_free::nll;
use crate::loss::{PairLogps, RunningMoments};
use crate::reference::Reference;
use crate::step::{Batch, Counting, note_rewards, pack};

/// A policy that learns from pairs of completions.
#[derive(Debug)]
pub struct Dpo {
    options: DpoOptions,
    counting: Counting,
    reference: Reference,
    /// Of the rewards so far, for the losses that are shifted by their mean.
    rewards: RunningMoments,
}

impl Method for Dpo {
    type Options = DpoOptions;
    type Row = BranchedRow;
    const DESCRIPTION: Description = Description {
        command: "dpo",
        title: "Preference optimisation",
        sentence: "Chosen completions are made likelier than rejected ones of the same prompt.",
    };

    fn new(config: &DpoConfig, source: &Source, model: &mut Decoder) -> Result<Self> {
        let options = config.method.clone();
        let formatting = match options.mask_formatting {
            // Headers stand between the turns of a completion, where nothing is trained anyway.
            true => Some(FormattingTokens::of_template(&source.tokenizer, &[])?),
            false => None,
        };
        Ok(Self {
            counting: Counting { formatting, ld_alpha: options.ld_alpha },
            reference: Reference::open(config, source, model)?,
            rewards: RunningMoments::default(),
            options,
        })
    }

    fn encoder(config: &DpoConfig, source: &Source) -> RowEncoder<BranchedRow> {
        let options = EncodeOptions {
            max_seq_len: Some(config.train.max_seq_len),
            overlong: config.train.overlong,
            train_on_trailing: config.method.train_on_trailing,
            allow_special_text: config.train.allow_special_text,
            vocab_size: Some(source.config.vocab_size),
            ..EncodeOptions::default()
        };
        let (tokenizer, template) = (source.tokenizer.clone(), source.template.clone());
        Arc::new(move |origin, record| {
            let encoded =
                encode_branches(record, origin, &tokenizer, template.as_deref(), &options)?;
            Ok(match encoded {
                Encoded::Kept(row) => Encoded::Kept(vec![row]),
                Encoded::Cut { kept, reason, tokens } => {
                    Encoded::Cut { kept: vec![kept], reason, tokens }
                }
                Encoded::Dropped { reason, tokens } => Encoded::Dropped { reason, tokens },
            })
        })
    }

    fn memory(&self) -> Vec<(&'static str, usize)> {
        match self.reference.memory() {
            0 => Vec::new(),
            bytes => vec![("reference", bytes)],
        }
    }

    fn each_pass(
        &mut self,
        model: &Decoder,
        rows: &[BranchedRow],
        options: StepOptions,
        _grads: &Grads,
        backward: Backward,
    ) -> Result<Figures> {
        let microbatch_tokens = match self.options.loss.compares_pairs() {
            true => usize::MAX,
            false => options.microbatch_tokens,
        };
        let mut figures = Figures::default();
        let mut rewards = Vec::new();
        for (index, batch) in self.pack(model, rows, microbatch_tokens)?.iter().enumerate() {
            let reference = self.reference.logps(model, &batch.branched)?;
            let dropout_seed = options.dropout_seed.map(|seed| seed.wrapping_add(index as u64));
            let mode = PassMode { dropout_seed, ..PassMode::EVALUATE };
            let pass_options = PassOptions { keep_blocks: options.keep_blocks, mode };
            let pass = model.forward(&batch.branched.packed, pass_options)?;
            let sums = batch.sums(pass.per_token_logps(), reference.as_ref())?;
            let loss = (self.loss(&sums)?.sum_all()? / rows.len() as f64)?;
            rewards.extend(self.note(&mut figures, batch, &sums, &loss, rows.len())?);
            figures.correct += pass.is_best().iter().filter(|&&best| best).count();
            backward(pass, &loss)?;
        }
        self.rewards.update(&rewards);
        Ok(figures)
    }

    fn evaluate(
        &self,
        model: &Decoder,
        rows: &[BranchedRow],
        microbatch_tokens: usize,
        interrupt: &Interrupt,
    ) -> Result<Figures> {
        let mut figures = Figures::default();
        for batch in self.pack(model, rows, microbatch_tokens)? {
            interrupt.check()?;
            let reference = self.reference.logps(model, &batch.branched)?;
            let (logps, is_best) = model.evaluate(&batch.branched.packed, PassMode::EVALUATE)?;
            let sums = batch.sums(&logps, reference.as_ref())?;
            let loss = self.loss(&sums)?.sum_all()?;
            self.note(&mut figures, &batch, &sums, &loss, 1)?;
            figures.correct += is_best.iter().filter(|&&best| best).count();
        }
        Ok(figures)
    }

    fn state(&self) -> Value {
        serde_json::to_value(&self.rewards).unwrap_or_default()
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        self.rewards = serde_json::from_value(state.clone()).map_err(|error| {
            Error::data("the checkpoint holds the state of another method").because(error)
        })?;
        Ok(())
    }
}

impl Dpo {
    fn pack(&self, model: &Decoder, rows: &[BranchedRow], tokens: usize) -> Result<Vec<Batch>> {
        let norm = model.norm.widened(model.context())?;
        pack(rows, tokens, &self.counting, &norm)
    }

    /// The loss of each pair, `(pairs,)`.
    fn loss(&self, sums: &PairLogps) -> Result<Tensor> {
        let constants = self.options.constants();
        let loss = self.options.loss.loss(sums, &constants, self.rewards.mean())?;
        match (self.options.nll_weight, &sums.nll) {
            (weight, Some(chosen)) if weight > 0.0 => Ok((loss + (nll(chosen)? * weight)?)?),
            _ => Ok(loss),
        }
    }

    /// Notes a batch, whose `loss` is its sum by `share`; returns the rewards.
    fn note(
        &self,
        figures: &mut Figures,
        batch: &Batch,
        sums: &PairLogps,
        loss: &Tensor,
        share: usize,
    ) -> Result<Vec<f64>> {
        figures.loss_sum += scalar(loss)? * share as f64;
        figures.loss_count += batch.pairs();
        figures.supervised_tokens += batch.branched.packed.targets.len();
        figures.tokens += batch.branched.packed.len();
        let (chosen, rejected) = self.options.loss.rewards(sums, self.options.beta)?;
        note_rewards(figures, sums, (&chosen, &rejected))
    }
}
