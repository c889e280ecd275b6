//! Preference learning from single completions that are said to be good or bad.

use std::sync::Arc;

use candle_core::Tensor;
use halter_core::data::branched::BranchedRow;
use halter_core::data::encoded::{Encoded, TokenCount};
use halter_core::data::record::{Origin, Record};
use halter_core::memory::plan::Needs;
use halter_core::model::Decoder;
use halter_core::model::linear::PassMode;
use halter_core::model::param::Grads;
use halter_core::text::branches::encode_judged;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::method::{
    Backward, Description, Figures, Method, RowEncoder, StepOptions, TrainRow,
};
use halter_core::train::pass::scalar;
use halter_core::train::progress::Progress;
use halter_core::train::run::Beginning;
use halter_core::train::source::Source;
use halter_core::{Error, Result};
use serde_json::Value;

use crate::config::{DpoConfig, DpoOptions};
use crate::loss::reference_free::nll;
use crate::loss::unpaired::{KtoConfig, UnpairedLoss, kto, kto_kl};
use crate::loss::{Losses, RunningMoments, Sums};
use crate::method::{counting, encode_options, one, restored, state_of};
use crate::reference::Reference;
use crate::step::{Completions, Counting, host, places};

/// A completion and the verdict on it.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgedRow {
    /// The prompt and one completion.
    pub row: BranchedRow,
    /// Whether the completion is wanted.
    pub desirable: bool,
}

impl TokenCount for JudgedRow {
    fn tokens(&self) -> usize {
        self.row.tokens()
    }

    fn trained_tokens(&self) -> usize {
        self.row.trained_tokens()
    }

    fn prompt_is_prefix(&self) -> bool {
        self.row.prompt_is_prefix
    }
}

impl TrainRow for JudgedRow {
    fn origin(&self) -> &Origin {
        &self.row.origin
    }

    fn trained_ids(&self) -> impl Iterator<Item = u32> {
        self.row.trained_ids()
    }
}

/// A policy that learns from single completions.
#[derive(Debug)]
pub struct Kto {
    options: DpoOptions,
    loss: UnpairedLoss,
    counting: Counting,
    reference: Reference,
    max_seq_len: usize,
    /// Rows of a step: so many held-out rows estimate a KL together.
    batch_size: usize,
}

impl Method for Kto {
    type Options = DpoOptions;
    type Row = JudgedRow;
    const DESCRIPTION: Description = Description {
        command: "dpo",
        title: "Preference optimisation",
        sentence: "Completions that are wanted are made likelier, and others less likely.",
    };

    fn new(config: &DpoConfig, source: &Source, model: &mut Decoder) -> Result<Self> {
        let options = config.method.clone();
        let Losses::Unpaired(loss) = options.loss else {
            let message = format!("`{}` is no loss of single completions", options.loss);
            return Err(Error::config(message));
        };
        Ok(Self {
            loss,
            counting: counting(&options, source),
            reference: Reference::open(config, source, model)?,
            max_seq_len: config.train.max_seq_len,
            batch_size: config.train.batch_size,
            options,
        })
    }

    fn encoder(config: &DpoConfig, source: &Source) -> RowEncoder<JudgedRow> {
        let options = encode_options(config, source);
        let counting = counting(&config.method, source);
        let (tokenizer, template) = (source.tokenizer.clone(), source.template.clone());
        Arc::new(move |origin, record| {
            let encoded = encode_judged(record, origin, &tokenizer, template.as_deref(), &options)?;
            encoded.kept().map(|row| counting.compared(row)).transpose()?;
            let desirable = matches!(record, Record::Unpaired { label: true, .. });
            let judged = |row| JudgedRow { row, desirable };
            Ok(one(match encoded {
                Encoded::Kept(row) => Encoded::Kept(judged(row)),
                Encoded::Cut { kept, reason, tokens } => {
                    Encoded::Cut { kept: judged(kept), reason, tokens }
                }
                Encoded::Dropped { reason, tokens } => Encoded::Dropped { reason, tokens },
            }))
        })
    }

    fn needs(&self) -> Needs {
        let reference = f64::from(u8::from(self.reference.is_held()));
        // The completions of other prompts go through both.
        let mismatched = if self.loss.estimates_kl() { 1.0 + reference } else { 0.0 };
        Needs {
            memory: self.reference.memory(),
            forward_passes: reference + mismatched,
            ..Needs::default()
        }
    }

    fn begin(
        &mut self,
        model: &Decoder,
        beginning: &Beginning<'_, JudgedRow>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let (loss, max_seq_len) = (self.loss, self.max_seq_len);
        let completions = |rows: &[JudgedRow]| {
            let own = rows.iter().map(|row| row.row.clone());
            own.chain(mismatched(loss, rows, max_seq_len)).collect()
        };
        self.reference.begin(model, &self.counting, beginning, progress, completions)
    }

    fn each_pass(
        &mut self,
        model: &Decoder,
        rows: &[JudgedRow],
        options: StepOptions,
        _grads: &Grads,
        backward: Backward,
    ) -> Result<Figures> {
        let kl = self.kl(model, rows, options.microbatch_tokens, &Interrupt::new())?;
        let mut figures = Figures::default();
        for (index, members) in places(rows, options.microbatch_tokens).into_iter().enumerate() {
            let (batch, desirable) = self.batch(model, rows, &members)?;
            let reference = self.reference(model, &batch)?;
            let pass = model.forward(&batch.branched.packed, options.pass(index))?;
            let logps = pass.per_token_logps();
            let sums = batch.sums(logps)?;
            let losses =
                self.losses(&sums, &batch.whole_sums(logps)?, &reference, &desirable, kl)?;
            let loss = (losses.sum_all()? / rows.len() as f64)?;
            figures.loss_sum += scalar(&loss)? * rows.len() as f64;
            self.note(&mut figures, &batch, &sums.logps, &reference, &desirable)?;
            figures.correct += pass.is_best().iter().filter(|&&best| best).count();
            backward(pass, &loss)?;
        }
        figures.note("kl", &[kl]);
        note_margin(&mut figures);
        Ok(figures)
    }

    fn after_update(&mut self, model: &Decoder, step: u64) -> Result<()> {
        self.reference.after_update(model, step)
    }

    fn evaluate(
        &self,
        model: &Decoder,
        rows: &[JudgedRow],
        microbatch_tokens: usize,
        interrupt: &Interrupt,
    ) -> Result<Figures> {
        let mut figures = Figures::default();
        for rows in rows.chunks(self.batch_size) {
            let kl = self.kl(model, rows, microbatch_tokens, interrupt)?;
            for members in places(rows, microbatch_tokens) {
                interrupt.check()?;
                let (batch, desirable) = self.batch(model, rows, &members)?;
                let reference = self.reference(model, &batch)?;
                let (logps, is_best) =
                    model.evaluate(&batch.branched.packed, PassMode::EVALUATE)?;
                let (sums, whole) = (batch.sums(&logps)?, batch.whole_sums(&logps)?);
                let losses = self.losses(&sums, &whole, &reference, &desirable, kl)?;
                figures.loss_sum += scalar(&losses.sum_all()?)?;
                self.note(&mut figures, &batch, &sums.logps, &reference, &desirable)?;
                figures.correct += is_best.iter().filter(|&&best| best).count();
            }
            figures.note("kl", &[kl]);
        }
        note_margin(&mut figures);
        Ok(figures)
    }

    fn tensors(&self) -> Vec<(String, &Tensor)> {
        self.reference.tensors()
    }

    fn state(&self) -> Value {
        state_of(&self.reference, &RunningMoments::default())
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        restored(state, &self.reference).map(drop)
    }
}

impl Kto {
    /// The KL of a step over `rows`: a constant of its loss.
    fn kl(
        &self,
        model: &Decoder,
        rows: &[JudgedRow],
        microbatch_tokens: usize,
        interrupt: &Interrupt,
    ) -> Result<f64> {
        let rows = mismatched(self.loss, rows, self.max_seq_len);
        if rows.is_empty() {
            return Ok(0.0);
        }
        let (mut policy, mut reference) = (Vec::new(), Vec::new());
        for members in places(&rows, microbatch_tokens) {
            interrupt.check()?;
            let members: Vec<BranchedRow> =
                members.into_iter().map(|at| rows[at].clone()).collect();
            let batch = Completions::new(&members, &self.counting, model.device())?;
            let (logps, _) = model.evaluate(&batch.branched.packed, PassMode::EVALUATE)?;
            policy.push(batch.sums(&logps)?.logps);
            reference.push(self.reference(model, &batch)?);
        }
        kto_kl(&Tensor::cat(&policy, 0)?, &Tensor::cat(&reference, 0)?)
    }

    /// The rows at `members`, and which of them are desirable.
    fn batch(
        &self,
        model: &Decoder,
        rows: &[JudgedRow],
        members: &[usize],
    ) -> Result<(Completions, Vec<bool>)> {
        let own: Vec<BranchedRow> = members.iter().map(|&at| rows[at].row.clone()).collect();
        let desirable = members.iter().map(|&at| rows[at].desirable).collect();
        Ok((Completions::new(&own, &self.counting, model.device())?, desirable))
    }

    fn reference(&self, model: &Decoder, batch: &Completions) -> Result<Tensor> {
        let none = || Error::config("a loss of single completions needs a reference");
        self.reference.sums(model, batch)?.ok_or_else(none)
    }

    /// The loss of each completion, `(completions,)`, from the sums of what is compared and of all
    /// tokens.
    fn losses(
        &self,
        sums: &Sums,
        whole: &Sums,
        reference: &Tensor,
        desirable: &[bool],
        kl: f64,
    ) -> Result<Tensor> {
        let config = KtoConfig {
            beta: self.options.beta,
            desirable_weight: self.options.desirable_weight,
            undesirable_weight: self.options.undesirable_weight,
        };
        let losses = kto(&sums.logps, reference, desirable, kl, &config)?;
        let weight = self.options.nll_weight();
        if weight == 0.0 {
            return Ok(losses);
        }
        let weights: Vec<f64> = desirable.iter().map(|&is| if is { weight } else { 0.0 }).collect();
        let weights = Tensor::new(weights, losses.device())?;
        Ok((losses + (nll(whole)? * weights)?)?)
    }

    fn note(
        &self,
        figures: &mut Figures,
        batch: &Completions,
        logps: &Tensor,
        reference: &Tensor,
        desirable: &[bool],
    ) -> Result<()> {
        figures.loss_count += desirable.len();
        batch.note(figures);
        let logps = host(logps)?;
        let beta = self.options.beta;
        let rewards: Vec<f64> =
            logps.iter().zip(host(reference)?).map(|(logp, r)| beta * (logp - r)).collect();
        for (side, wanted) in [("chosen", true), ("rejected", false)] {
            for (name, values) in [("rewards", &rewards), ("logps", &logps)] {
                let of_side = values.iter().zip(desirable).filter(|(_, is)| **is == wanted);
                let values: Vec<f64> = of_side.map(|(value, _)| *value).collect();
                if !values.is_empty() {
                    figures.note(&format!("{name}/{side}"), &values);
                }
            }
        }
        Ok(())
    }
}

/// How much further the rewards of desirable completions lie above, where there are both kinds.
fn note_margin(figures: &mut Figures) {
    let mean = |key: &str| figures.means.get(key).map(|mean| mean.sum / mean.count as f64);
    if let (Some(chosen), Some(rejected)) = (mean("rewards/chosen"), mean("rewards/rejected")) {
        figures.note("rewards/margins", &[chosen - rejected]);
    }
}

/// Each prompt with the completion of the row before it, the first with the last one's, as TRL's
/// KTOTrainer has them; none where the loss wants no KL. What is beyond `max_seq_len` is cut off.
fn mismatched(loss: UnpairedLoss, rows: &[JudgedRow], max_seq_len: usize) -> Vec<BranchedRow> {
    if !loss.estimates_kl() {
        return Vec::new();
    }
    let before = |at: usize| &rows[(at + rows.len() - 1) % rows.len()].row.branches;
    let each = rows.iter().enumerate().map(|(at, JudgedRow { row, .. })| {
        let mut row = BranchedRow { branches: before(at).clone(), ..row.clone() };
        let room = max_seq_len.saturating_sub(row.prompt.len());
        for branch in &mut row.branches {
            branch.tokens.truncate(room);
            branch.mask.truncate(room);
        }
        row
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use halter_core::data::branched::Branch;

    fn row(prompt: &[u32], completion: &[u32]) -> JudgedRow {
        let mask = vec![true; completion.len()];
        JudgedRow {
            row: BranchedRow {
                origin: Origin { path: Arc::new("a.jsonl".into()), line: 1 },
                prompt: prompt.to_vec(),
                branches: vec![Branch { tokens: completion.to_vec(), mask }],
                prompt_is_prefix: true,
            },
            desirable: true,
        }
    }

    #[test]
    fn each_prompt_gets_the_completion_before_it_as_far_as_there_is_room() {
        let rows = [row(&[1], &[2, 3]), row(&[4, 5], &[6]), row(&[7, 8, 9], &[10])];
        let found: Vec<(Vec<u32>, Vec<u32>)> = mismatched(UnpairedLoss::Kto, &rows, 4)
            .into_iter()
            .map(|row| (row.prompt, row.branches[0].tokens.clone()))
            .collect();
        let expected = [(vec![1], vec![10]), (vec![4, 5], vec![2, 3]), (vec![7, 8, 9], vec![6])];
        assert_eq!(found, expected);
        let cut = mismatched(UnpairedLoss::Kto, &rows, 3);
        assert_eq!(cut[1].branches[0], Branch { tokens: vec![2], mask: vec![true] });
        assert!(mismatched(UnpairedLoss::ApoZeroUnpaired, &rows, 4).is_empty());
    }
}
