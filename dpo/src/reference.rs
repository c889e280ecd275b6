//! Whose log-probs the policy's are compared with.

use candle_core::Tensor;
use halter_core::data::branched::BranchedBatch;
use halter_core::model::linear::PassMode;
use halter_core::model::{Base, Decoder};
use halter_core::train::source::{Source, SourceSpec};
use halter_core::{Error, Result};

use crate::config::DpoConfig;

/// The reference of a run.
#[derive(Debug)]
pub enum Reference {
    /// The loss needs none.
    None,
    /// The policy without its fresh adapter, which is what it was before training.
    WithoutAdapter,
    /// A model of its own.
    Model(Box<Decoder>),
}

impl Reference {
    /// The reference that `config` asks for, for a policy made from `source`.
    ///
    /// # Errors
    /// A model that cannot be read, or of another vocabulary than the policy.
    pub fn open(config: &DpoConfig, source: &Source, policy: &Decoder) -> Result<Self> {
        let train = &config.train;
        if !config.method.loss.needs_reference() {
            return Ok(Self::None);
        }
        let device = policy.device();
        if let Some(name) = &config.method.ref_model {
            let spec = SourceSpec { model: Some(name.clone()), ..SourceSpec::default() };
            let mut other = Source::open(&spec)?;
            let (got, expected) = (other.config.vocab_size, source.config.vocab_size);
            if got != expected {
                let message = format!(
                    "`ref-model` has a vocabulary of `{got}`: expected the policy's `{expected}`"
                );
                return Err(Error::config(message).hint("both must read the same tokens"));
            }
            return Ok(Self::Model(Box::new(other.decoder(Base::Frozen, device, train.seed)?)));
        }
        if train.lora_rank > 0 {
            return Ok(Self::WithoutAdapter);
        }
        Ok(Self::Model(Box::new(policy.frozen_copy()?)))
    }

    /// Bytes that it holds.
    pub fn memory(&self) -> usize {
        let Self::Model(model) = self else { return 0 };
        let bytes = |param: &halter_core::model::param::Param| match param.dense() {
            Some(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
            None => param.stored_bytes(),
        };
        model.params().into_iter().map(bytes).sum()
    }

    /// Log-probs of the batch's targets, `(targets,)`; `None` where the loss needs none.
    ///
    /// # Errors
    /// A token that it does not know.
    pub fn logps(&self, policy: &Decoder, batch: &BranchedBatch) -> Result<Option<Tensor>> {
        let (model, without_adapter) = match self {
            Self::None => return Ok(None),
            Self::WithoutAdapter => (policy, true),
            Self::Model(model) => (&**model, false),
        };
        let mode = PassMode { without_adapter, ..PassMode::EVALUATE };
        Ok(Some(model.evaluate(&batch.packed, mode)?.0))
    }
}
