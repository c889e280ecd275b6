//! Preference learning from pairs as a method of training.

use std::sync::Arc;

use candle_core::Tensor;
use halter_core::data::branched::BranchedRow;
use halter_core::data::encoded::Encoded;
use halter_core::data::record::Record;
use halter_core::memory::plan::Needs;
use halter_core::model::Decoder;
use halter_core::model::linear::PassMode;
use halter_core::model::param::Grads;
use halter_core::text::branches::encode_branches;
use halter_core::text::encode::EncodeOptions;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::method::{Backward, Description, Figures, Method, RowEncoder, StepOptions};
use halter_core::train::pass::scalar;
use halter_core::train::progress::Progress;
use halter_core::train::run::Beginning;
use halter_core::train::source::Source;
use halter_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{DpoConfig, DpoOptions};
use crate::formatting::FormattingTokens;
use crate::loss::reference_free::nll;
use crate::loss::{Losses, PairLogps, PairLosses, RunningMoments};
use crate::reference::Reference;
use crate::step::{Completions, Counting, note_rewards, pair_logps, places};

/// A policy that learns from pairs of completions.
#[derive(Debug)]
pub struct Dpo {
    options: DpoOptions,
    losses: PairLosses,
    counting: Counting,
    reference: Reference,
    batch_size: usize,
    /// Of the rewards so far, for the losses that are shifted by their mean.
    rewards: RunningMoments,
}

/// What a checkpoint keeps.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub rewards: RunningMoments,
    /// See [`Reference::fingerprint`].
    pub reference: Option<String>,
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
        let Losses::Pairs(losses) = options.loss.clone() else {
            return Err(Error::config(format!("`{}` is no loss of pairs", options.loss)));
        };
        Ok(Self {
            losses,
            counting: counting(&options, source),
            reference: Reference::open(config, source, model)?,
            batch_size: config.train.batch_size,
            rewards: RunningMoments::default(),
            options,
        })
    }

    fn encoder(config: &DpoConfig, source: &Source) -> RowEncoder<BranchedRow> {
        let options = encode_options(config, source);
        let counting = counting(&config.method, source);
        let (tokenizer, template) = (source.tokenizer.clone(), source.template.clone());
        Arc::new(move |origin, record| {
            if matches!(record, Record::Unpaired { .. }) {
                return Err(Error::data("a single completion, where the loss is of pairs")
                    .hint("completions with a verdict are of `--loss kto`")
                    .at(&*origin.path, origin.line));
            }
            let encoded =
                encode_branches(record, origin, &tokenizer, template.as_deref(), &options)?;
            if let Some(row) = encoded.kept() {
                let completions = row.branches.len();
                if completions != 2 {
                    let message = format!("a row of `{completions}` completions: expected two");
                    return Err(Error::data(message).at(&*origin.path, origin.line));
                }
                counting.compared(row)?;
            }
            Ok(one(encoded))
        })
    }

    fn needs(&self) -> Needs {
        Needs {
            memory: self.reference.memory(),
            forward_passes: f64::from(u8::from(self.reference.is_held())),
            whole_step: self.losses.compares_pairs(),
        }
    }

    fn begin(
        &mut self,
        model: &Decoder,
        beginning: &Beginning<'_, BranchedRow>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let completions = <[BranchedRow]>::to_vec;
        self.reference.begin(model, &self.counting, beginning, progress, completions)
    }

    fn each_pass(
        &mut self,
        model: &Decoder,
        rows: &[BranchedRow],
        options: StepOptions,
        _grads: &Grads,
        backward: Backward,
    ) -> Result<Figures> {
        let mut figures = Figures::default();
        let mut rewards = Vec::new();
        let batches = self.pack(model, rows, options.microbatch_tokens)?;
        for (index, batch) in batches.iter().enumerate() {
            let reference = self.reference.sums(model, batch)?;
            let pass = model.forward(&batch.branched.packed, options.pass(index))?;
            let per_pair = chosen_tokens(rows);
            let logps = pair_logps(batch, pass.per_token_logps(), reference.as_ref(), per_pair)?;
            let loss = (self.loss(&logps)?.sum_all()? / rows.len() as f64)?;
            rewards.extend(self.note(&mut figures, batch, &logps, &loss, rows.len())?);
            figures.correct += pass.is_best().iter().filter(|&&best| best).count();
            backward(pass, &loss)?;
        }
        self.rewards.update(&rewards);
        Ok(figures)
    }

    fn after_update(&mut self, model: &Decoder, step: u64) -> Result<()> {
        self.reference.after_update(model, step)
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
            let reference = self.reference.sums(model, &batch)?;
            let (logps, is_best) = model.evaluate(&batch.branched.packed, PassMode::EVALUATE)?;
            let logps = pair_logps(&batch, &logps, reference.as_ref(), chosen_tokens(rows))?;
            let loss = self.loss(&logps)?.sum_all()?;
            self.note(&mut figures, &batch, &logps, &loss, 1)?;
            figures.correct += is_best.iter().filter(|&&best| best).count();
        }
        Ok(figures)
    }

    fn tensors(&self) -> Vec<(String, &Tensor)> {
        self.reference.tensors()
    }

    fn state(&self) -> Value {
        state_of(&self.reference, &self.rewards)
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        self.rewards = restored(state, &self.reference)?;
        Ok(())
    }
}

impl Dpo {
    /// Microbatches of `rows`; where a pair's loss depends on the others, one for each step's worth.
    fn pack(
        &self,
        model: &Decoder,
        rows: &[BranchedRow],
        microbatch_tokens: usize,
    ) -> Result<Vec<Completions>> {
        let batch = |members: Vec<usize>| {
            let rows: Vec<BranchedRow> = members.into_iter().map(|at| rows[at].clone()).collect();
            Completions::new(&rows, &self.counting, model.device())
        };
        let all: Vec<usize> = (0..rows.len()).collect();
        let members: Vec<Vec<usize>> = match self.losses.compares_pairs() {
            true => all.chunks(self.batch_size).map(<[usize]>::to_vec).collect(),
            false => places(rows, microbatch_tokens),
        };
        members.into_iter().map(batch).collect()
    }

    /// The loss of each pair, `(pairs,)`.
    fn loss(&self, logps: &PairLogps) -> Result<Tensor> {
        let constants = self.options.constants();
        let loss = self.losses.loss(logps, &constants, self.rewards.mean())?;
        match (self.options.nll_weight(), &logps.nll) {
            (weight, Some(chosen)) if weight > 0.0 => Ok((loss + (nll(chosen)? * weight)?)?),
            _ => Ok(loss),
        }
    }

    /// Notes a batch, whose `loss` is its sum by `share`; returns the rewards.
    fn note(
        &self,
        figures: &mut Figures,
        batch: &Completions,
        logps: &PairLogps,
        loss: &Tensor,
        share: usize,
    ) -> Result<Vec<f64>> {
        figures.loss_sum += scalar(loss)? * share as f64;
        figures.loss_count += logps.chosen.tokens.len();
        batch.note(figures);
        let (chosen, rejected) = self.losses.rewards(logps, self.options.beta)?;
        note_rewards(figures, logps, (&chosen, &rejected))
    }
}

/// Chosen tokens of a mean pair.
fn chosen_tokens(rows: &[BranchedRow]) -> f64 {
    let chosen: usize = rows.iter().filter_map(|row| row.counted().next()).sum();
    chosen as f64 / rows.len() as f64
}

/// What the options say of the tokens that count.
pub(crate) fn counting(options: &DpoOptions, source: &Source) -> Counting {
    let formatting =
        options.mask_formatting.then(|| FormattingTokens::of_tokenizer(&source.tokenizer));
    Counting { formatting, ld_alpha: options.ld_alpha }
}

/// What the options say of encoding.
pub(crate) fn encode_options(config: &DpoConfig, source: &Source) -> EncodeOptions {
    EncodeOptions {
        train_on_trailing: config.method.train_on_trailing,
        vocab_size: Some(source.config.vocab_size),
        ..config.train.encode_options()
    }
}

/// The fate of a record that makes one row.
pub(crate) fn one<R>(encoded: Encoded<R>) -> Encoded<Vec<R>> {
    match encoded {
        Encoded::Kept(row) => Encoded::Kept(vec![row]),
        Encoded::Cut { kept, reason, tokens } => Encoded::Cut { kept: vec![kept], reason, tokens },
        Encoded::Dropped { reason, tokens } => Encoded::Dropped { reason, tokens },
    }
}

/// What a checkpoint keeps of a method.
pub(crate) fn state_of(reference: &Reference, rewards: &RunningMoments) -> Value {
    let reference = reference.fingerprint().map(str::to_string);
    serde_json::to_value(State { rewards: rewards.clone(), reference }).unwrap_or_default()
}

/// The rewards of a checkpoint.
///
/// # Errors
/// A state of another method, or of another reference.
pub(crate) fn restored(state: &Value, reference: &Reference) -> Result<RunningMoments> {
    let state: State = serde_json::from_value(state.clone()).map_err(|error| {
        Error::data("the checkpoint holds the state of another method").because(error)
    })?;
    if state.reference.as_deref() != reference.fingerprint() {
        return Err(Error::model("the reference is not the model that the run began with")
            .hint("put the model back as it was, or begin anew in another `--output`"));
    }
    Ok(state.rewards)
}
