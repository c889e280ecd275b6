//! Losses over the log-probs of chosen and rejected completions.
//!
//! Each loss is a small candle graph from per-completion log-probs to one value per pair; nothing
//! here knows a model. `docs/reference/losses.md` has them all in a table.
//!
//! ```text
//! let losses: PairLosses = "sigmoid:1.0,sft:0.2".parse()?;
//! let loss = losses.loss(&pairs, &LossConfig::default(), 0.0)?;      // (pairs,)
//! let (chosen, rejected) = losses.rewards(&pairs, 0.1)?;             // for the metrics
//! ```

mod choice;
mod kind;
pub mod length;
mod moments;
pub mod paired;
pub mod reference_free;
mod sum;
pub mod unpaired;

use candle_core::Tensor;
use halter_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

pub use choice::Losses;
pub use kind::PairLoss;
pub use moments::RunningMoments;
pub use sum::PairLosses;

/// Log-probs of completions, summed over their counted tokens.
#[derive(Debug, Clone)]
pub struct Sums {
    /// `(pairs,)`; of the policy, with its graph.
    pub logps: Tensor,
    /// Tokens counted in each sum.
    pub tokens: Vec<usize>,
}

impl Sums {
    /// Log-probs per token; those of a completion without a counted token are its sum, zero.
    ///
    /// # Errors
    /// Not one count per completion.
    pub fn per_token(&self) -> Result<Tensor> {
        per_token(&self.logps, &self.tokens)
    }
}

fn per_token(logps: &Tensor, tokens: &[usize]) -> Result<Tensor> {
    let counts: Vec<f64> = tokens.iter().map(|&count| count.max(1) as f64).collect();
    let counts = Tensor::from_vec(counts, tokens.len(), logps.device())?.to_dtype(logps.dtype())?;
    Ok((logps / counts)?)
}

/// The reference's log-probs of the same tokens, without a graph.
#[derive(Debug, Clone)]
pub struct ReferenceLogps {
    /// Of the chosen completions, `(pairs,)`.
    pub chosen: Tensor,
    /// Of the rejected completions, `(pairs,)`.
    pub rejected: Tensor,
}

/// What the loss of a batch of pairs is computed from.
#[derive(Debug, Clone)]
pub struct PairLogps {
    /// Chosen completions.
    pub chosen: Sums,
    /// Rejected completions.
    pub rejected: Sums,
    /// What the reference gives for both; not needed by every loss.
    pub reference: Option<ReferenceLogps>,
    /// The chosen completions as [`reference_free::nll`] is to count them, where other tokens
    /// count there than in `chosen` (the formatting tokens, or the prompt).
    pub nll: Option<Sums>,
    /// Chosen tokens of a mean pair of the whole step, with which `sft` weighs every token alike, as
    /// TRL does; without it, every pair.
    pub tokens_per_pair: Option<f64>,
}

impl PairLogps {
    /// Refuses parts of different lengths.
    fn check(&self) -> Result<()> {
        let pairs = self.chosen.tokens.len();
        let sums = [Some(&self.chosen), Some(&self.rejected), self.nll.as_ref()];
        for Sums { logps, tokens } in sums.into_iter().flatten() {
            check_length(logps, pairs)?;
            check_length_of(tokens.len(), pairs)?;
        }
        if let Some(ReferenceLogps { chosen, rejected }) = &self.reference {
            check_length(chosen, pairs)?;
            check_length(rejected, pairs)?;
        }
        Ok(())
    }

    fn reference(&self, loss: PairLoss) -> Result<&ReferenceLogps> {
        self.reference.as_ref().ok_or_else(|| {
            Error::config(format!("the loss `{loss}` needs the log-probs of a reference"))
                .hint("`simpo`, `cpo`, `orpo` and `sft` need none")
        })
    }

    /// Log-probs of the policy minus those of the reference: of the chosen, of the rejected.
    fn logratios(&self, loss: PairLoss) -> Result<(Tensor, Tensor)> {
        let reference = self.reference(loss)?;
        let chosen = (&self.chosen.logps - &reference.chosen)?;
        let rejected = (&self.rejected.logps - &reference.rejected)?;
        Ok((chosen, rejected))
    }
}

fn check_length(x: &Tensor, expected: usize) -> Result<()> {
    check_length_of(x.dims1()?, expected)
}

fn check_length_of(got: usize, expected: usize) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    let message = format!("expected one number for each of {expected} completions, got {got}");
    Err(Error::new(ErrorKind::Tensor, message))
}

/// The constants of the losses. Each loss uses those that its documentation names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// How strongly the policy is held to the reference; IPO's τ, ORPO's λ.
    pub beta: f64,
    /// Share of labels that are thought to be wrong.
    pub label_smoothing: f64,
    /// SimPO's γ: the margin that is wanted, in rewards.
    pub simpo_gamma: f64,
    /// Weight of the NLL term in `cpo`.
    pub cpo_alpha: f64,
    /// DiscoPOP's τ.
    pub discopop_tau: f64,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            beta: 0.1,
            label_smoothing: 0.0,
            simpo_gamma: 0.5,
            cpo_alpha: 1.0,
            discopop_tau: 0.05,
        }
    }
}
