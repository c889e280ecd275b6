//! A decoder from stored weights.

use super::config::ModelConfig;
use super::param::Value;
use super::weights::{StoredKind, StoredTensor, WeightFiles};
use super::{Decoder, init};
use crate::ops::Context;
use crate::{Error, Result};

/// What will become of the weights that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Read into memory in the type of the computation, so that it can be trained.
    Trainable,
    /// Frozen: matrices stay as the file has them and are widened at each use.
    Frozen,
    /// Frozen, and no matrix stays in memory: each is read from the mapped file at its use, for
    /// models larger than memory.
    Mapped,
}

impl Decoder {
    /// Builds the decoder of `config` from `weights`, which have been checked against it.
    ///
    /// # Errors
    /// A missing parameter, a shape that does not fit, or a value that is not finite.
    pub fn load(
        config: ModelConfig,
        weights: &WeightFiles,
        base: Base,
        ctx: Context,
    ) -> Result<Self> {
        weights.check(&config)?;
        let device = ctx.device().clone();
        Self::new(config, ctx, |name, shape| {
            let stored = weights.get(name)?;
            if stored.shape() != shape {
                return Err(Error::model(format!(
                    "`{name}` has the shape {:?}, expected {shape:?}",
                    stored.shape()
                )));
            }
            let stays = match base {
                Base::Trainable => false,
                Base::Frozen => stays_stored(&stored),
                Base::Mapped => stored.shape().len() == 2,
            };
            if stays {
                stored.check_finite()?;
                if base == Base::Mapped {
                    stored.forget();
                }
                return Ok(Value::Stored(stored));
            }
            Ok(Value::Dense(stored.into_finite_tensor(&device)?))
        })
    }

    /// Builds the decoder of `config` with fresh weights.
    ///
    /// # Errors
    /// When candle cannot allocate.
    pub fn fresh(config: ModelConfig, seed: u64, ctx: Context) -> Result<Self> {
        let scale = init::scale(&config);
        let device = ctx.device().clone();
        Self::new(config, ctx, |name, shape| {
            Ok(Value::Dense(init::tensor(name, shape, scale, seed, &device)?))
        })
    }
}

/// Widening costs time at each use: only matrices in a narrow type are worth it.
fn stays_stored(stored: &StoredTensor) -> bool {
    stored.shape().len() == 2 && stored.kind() != StoredKind::F32
}
