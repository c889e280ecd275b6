//! What a checkpoint of a run holds beside its tensors, and the way in and out.

use std::collections::{BTreeMap, BTreeSet};

use crate::data::ledger::LedgerState;
use crate::data::mixture::Cursor;
use crate::model::Decoder;
use crate::model::param::Param;
use crate::train::checkpoint::{Checkpoint, CheckpointStore, Group};
use crate::train::method::{Method, TrainRow};
use crate::train::metrics::StepMetrics;
use crate::train::optimizer::AdamW;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// When the run began, in seconds since 1970: the time that a chat template is told.
    pub began_at: i64,
    /// Updates done.
    pub step: u64,
    /// Rows used.
    pub cursor: Cursor,
    /// Rows that were encoded from a record of which others were used before: only `split` makes
    /// more rows than one of a record.
    pub rows_into_record: usize,
    /// What the order of the rows depends on.
    pub data: String,
    /// The fingerprint of each data set, by its name.
    pub contents: BTreeMap<String, String>,
    /// Whether a row that cannot be used ended the run: its file may be corrected.
    pub wrong_row: bool,
    /// The fingerprint of the parameters that are not trained.
    pub base: String,
    /// The ledger.
    pub ledger: LedgerState,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Trained tokens.
    pub supervised_tokens: u64,
    /// Seconds spent in steps.
    pub seconds: f64,
    /// End-of-turn tokens that were trained.
    pub trained_ends: BTreeSet<u32>,
    /// Whether every trained parameter has been seen to get a gradient.
    pub gradients_checked: bool,
    /// Metrics of the newest step, where its evaluation was interrupted and is still to be done.
    pub unevaluated: Option<StepMetrics>,
    /// The method's own.
    pub method: serde_json::Value,
    /// Evaluation loss before training.
    pub loss_before: Option<f64>,
    /// The method's own figures that are told of an evaluation, before training.
    #[serde(default)]
    pub told_before: Vec<f64>,
    /// Answers before training: text, and whether right.
    pub answers_before: Vec<(String, Option<bool>)>,
}

impl State {
    /// Notes which of the end-of-turn tokens `ends` are trained in `rows`.
    pub fn note_ends(&mut self, rows: &[impl TrainRow], ends: &[(String, u32)]) {
        let trained = rows.iter().flat_map(TrainRow::trained_ids);
        self.trained_ends.extend(trained.filter(|id| ends.iter().any(|(_, end)| end == id)));
    }

    /// The newest step whose metrics were written.
    pub fn recorded(&self) -> u64 {
        self.step - u64::from(self.unevaluated.is_some())
    }

    /// Writes a checkpoint.
    ///
    /// # Errors
    /// A full disk; the checkpoints before are intact.
    pub fn save(
        &self,
        store: &CheckpointStore,
        model: &Decoder,
        optimizer: &AdamW,
        method: &impl Method,
    ) -> Result<()> {
        let trained = model.trained();
        let weights = trained
            .iter()
            .filter_map(|param| Some((param.name().to_string(), param.dense()?.into())))
            .collect();
        let moments = optimizer
            .tensors(&trained)
            .into_iter()
            .map(|(name, tensor)| (name, tensor.into()))
            .collect();
        let own: Vec<_> =
            method.tensors().into_iter().map(|(name, tensor)| (name, tensor.into())).collect();
        let mut groups = vec![
            Group { name: "weights", tensors: weights },
            Group { name: "optimizer", tensors: moments },
        ];
        if !own.is_empty() {
            groups.push(Group { name: "method", tensors: own });
        }
        store.save(self.step, &groups, self).map(drop)
    }

    /// Puts a checkpoint's tensors into `model`, `optimizer` and `method`, and returns its state. `fresh` is
    /// the state of a run that begins now.
    ///
    /// # Errors
    /// A checkpoint of another model or data.
    pub fn load(
        checkpoint: &Checkpoint,
        fresh: &Self,
        model: &Decoder,
        optimizer: &mut AdamW,
        method: &impl Method,
    ) -> Result<Self> {
        let state: Self = checkpoint.state()?;
        if state.data != fresh.data {
            return Err(Error::data("the data is not what the checkpoint was made with")
                .in_file(checkpoint.path())
                .hint("resume with the same files, weights and seed"));
        }
        let changed =
            fresh.contents.iter().find(|(name, now)| state.contents.get(*name) != Some(*now));
        if let Some((name, _)) = changed.filter(|_| !state.wrong_row) {
            return Err(Error::data(format!("`{name}` is not what the checkpoint was made with"))
                .in_file(checkpoint.path())
                .hint("put the data back as it was, or begin anew in another `--output`"));
        }
        if state.base != fresh.base {
            return Err(Error::model(
                "the base is not the model that the checkpoint was made with",
            )
            .in_file(checkpoint.path())
            .hint("put the model back as it was, or begin anew in another `--output`"));
        }
        let device = model.device();
        let trained: Vec<&Param> = model.trained();
        let weights = checkpoint.tensors("weights", device)?;
        let moments = checkpoint.tensors("optimizer", device)?;
        let own = match method.tensors().is_empty() {
            true => BTreeMap::new(),
            false => checkpoint.tensors("method", device)?,
        };
        let values = trained.iter().filter_map(|p| Some((p.name().to_string(), p.dense()?)));
        let all = values
            .map(|(name, tensor)| (name, tensor, &weights))
            .chain(optimizer.tensors(&trained).into_iter().map(|(n, tensor)| (n, tensor, &moments)))
            .chain(method.tensors().into_iter().map(|(name, tensor)| (name, tensor, &own)));
        for (name, tensor, saved) in all {
            let saved = saved.get(&name).filter(|saved| saved.dims() == tensor.dims());
            let saved = saved.ok_or_else(|| {
                Error::model(format!("the checkpoint has no `{name}` of this model's shape"))
                    .in_file(checkpoint.path())
            })?;
            tensor.slice_set(saved, 0, 0)?;
        }
        optimizer.set_steps(state.step);
        Ok(Self { contents: fresh.contents.clone(), wrong_row: false, ..state })
    }
}
