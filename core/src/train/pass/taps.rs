//! Values inside the model as further leaves of a loss.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use super::Pass;
use crate::model::Decoder;
use crate::model::block::Kept;
use crate::{Error, Result};

/// A place in the model, of which a pass gives the values `(tokens, hidden)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tap {
    /// The stream behind a block, counted from 0.
    Hidden(usize),
    /// What a block's attention adds to the stream.
    Attention(usize),
}

impl Tap {
    /// Its block.
    pub fn block(self) -> usize {
        match self {
            Self::Hidden(at) | Self::Attention(at) => at,
        }
    }
}

/// The values of taps as the blocks give them.
#[derive(Debug, Default)]
pub(super) struct Tapped<'t> {
    wanted: &'t [Tap],
    values: Vec<(Tap, Tensor)>,
}

impl<'t> Tapped<'t> {
    pub(super) fn new(model: &Decoder, wanted: &'t [Tap]) -> Result<Self> {
        let blocks = model.blocks.len();
        match wanted.iter().map(|tap| tap.block()).find(|&at| at >= blocks) {
            Some(at) => {
                Err(Error::config(format!("there is no block `{at}`: the model has `{blocks}`")))
            }
            None => Ok(Self { wanted, values: Vec::new() }),
        }
    }

    /// Takes what is wanted of a block, from its input and output.
    pub(super) fn take(&mut self, at: usize, x: &Tensor, y: &Tensor, kept: &Kept) -> Result<()> {
        for tap in [Tap::Attention(at), Tap::Hidden(at)] {
            if !self.wanted.contains(&tap) {
                continue;
            }
            let value = match tap {
                // The buffer goes back to the pool.
                Tap::Hidden(_) => y.copy()?,
                Tap::Attention(_) => (&*kept.middle - x)?,
            };
            self.values.push((tap, value));
        }
        Ok(())
    }

    pub(super) fn values(self) -> Vec<(Tap, Tensor)> {
        self.values
    }

    pub(super) fn leaves(self) -> Result<Vec<(Tap, Var)>> {
        let leaf = |(tap, value)| Ok((tap, Var::from_tensor(&value)?));
        self.values.into_iter().map(leaf).collect()
    }
}

/// The gradient at a tap, where the loss depends on it.
pub(super) fn gradient<'s>(
    tapped: &[(Tap, Var)],
    store: &'s GradStore,
    tap: Tap,
) -> Option<&'s Tensor> {
    let (_, leaf) = tapped.iter().find(|(other, _)| *other == tap)?;
    store.get(leaf)
}

impl Pass<'_> {
    /// The values at a tap of [`super::PassOptions`], `(tokens, hidden)`: a leaf that the loss may
    /// use beside the main one. The gradient goes no lower than the lowest trained block.
    ///
    /// # Errors
    /// A tap that the options do not name.
    pub fn tapped(&self, tap: Tap) -> Result<&Tensor> {
        let found = self.tapped.iter().find(|(other, _)| *other == tap);
        found.map(|(_, leaf)| leaf.as_tensor()).ok_or_else(|| {
            Error::config(format!("the pass was not told of `{tap:?}`"))
                .hint("name it in the options of the pass")
        })
    }
}
