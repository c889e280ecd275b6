//! The completions of a microbatch: their tokens, and what of them is summed.

use candle_core::{DType, Device, Tensor};
use halter_core::data::branched::{Branch, BranchedBatch, BranchedRow};
use halter_core::data::encoded::TokenCount;
use halter_core::data::pack::microbatches;
use halter_core::train::method::Figures;
use halter_core::{Error, Result};

use crate::cache::Key;
use crate::formatting::FormattingTokens;
use crate::loss::length::ld_weights;
use crate::loss::{PairLogps, ReferenceLogps, Sums};

/// What counts of a completion.
#[derive(Debug, Clone, Default)]
pub struct Counting {
    /// What is left out of the comparison.
    pub formatting: Option<FormattingTokens>,
    /// LD-DPO's weight of what is beyond the shorter completion's length.
    pub ld_alpha: Option<f64>,
}

/// What is compared of a completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// Weight of each of its targets in the sum of its log-probs.
    pub weights: Vec<f64>,
    /// Targets that count.
    pub tokens: usize,
    /// What the sum follows from, beside the model.
    pub key: Key,
}

impl Counting {
    /// What is compared of each completion of a row.
    ///
    /// # Errors
    /// A completion of formatting tokens alone.
    pub fn compared(&self, row: &BranchedRow) -> Result<Vec<Compared>> {
        let counts: Vec<Vec<bool>> =
            row.branches.iter().map(|branch| self.counts(branch, row.prompt.is_empty())).collect();
        let mut weights: Vec<Vec<f64>> = match (self.ld_alpha, counts.as_slice()) {
            (Some(alpha), [chosen, rejected]) => {
                let (chosen, rejected) = ld_weights(chosen.len(), rejected.len(), alpha);
                vec![chosen, rejected]
            }
            _ => counts.iter().map(|counts| vec![1.0; counts.len()]).collect(),
        };
        for (weights, counts) in weights.iter_mut().zip(&counts) {
            let left_out = weights.iter_mut().zip(counts).filter(|(_, counts)| !**counts);
            left_out.for_each(|(weight, _)| *weight = 0.0);
        }
        let compared = row.branches.iter().zip(weights).zip(counts);
        compared
            .map(|((branch, weights), counts)| {
                let tokens = counts.into_iter().filter(|&counts| counts).count();
                if tokens == 0 {
                    return Err(Error::data("a completion of formatting tokens alone")
                        .hint("take the row out, or count them with `--mask-formatting false`")
                        .at(&*row.origin.path, row.origin.line));
                }
                let key = Key::new(&row.prompt, branch, &weights);
                Ok(Compared { weights, tokens, key })
            })
            .collect()
    }

    /// For each target of a completion, whether it is compared.
    fn counts(&self, branch: &Branch, is_first: bool) -> Vec<bool> {
        let Branch { tokens, mask } = branch;
        let formatting = match &self.formatting {
            Some(formatting) => formatting.mask(tokens),
            None => vec![false; tokens.len()],
        };
        // As in the batch: nothing predicts the first token of a sequence.
        let counted = mask.iter().zip(formatting).skip(usize::from(is_first));
        counted.filter(|(counts, _)| **counts).map(|(_, formatting)| !formatting).collect()
    }
}

/// Completions that go through the model together. Their log-probs are summed in f64: a difference
/// of two sums of some hundreds has few digits left in f32.
#[derive(Debug)]
pub struct Completions {
    /// Tokens, and where each completion's targets lie.
    pub branched: BranchedBatch,
    /// What is compared of each.
    pub compared: Vec<Compared>,
    /// The weights of all targets in each completion's sum, `(completions, targets)`.
    compared_weights: Tensor,
    /// 1 where a target is the completion's, `(completions, targets)`.
    all_weights: Tensor,
}

impl Completions {
    /// The completions of `rows`, row by row.
    ///
    /// # Errors
    /// A completion of which nothing counts.
    pub fn new(rows: &[BranchedRow], counting: &Counting, device: &Device) -> Result<Self> {
        let branched = BranchedBatch::new(rows)?;
        let targets = branched.packed.targets.len();
        let mut compared = Vec::with_capacity(branched.targets.len());
        for row in rows {
            compared.extend(counting.compared(row)?);
        }
        let matrix = |weights: &dyn Fn(usize, &mut [f64])| -> Result<Tensor> {
            let mut all = vec![0.0; compared.len() * targets];
            for (line, range) in branched.targets.iter().enumerate() {
                weights(line, &mut all[line * targets..][range.clone()]);
            }
            Ok(Tensor::from_vec(all, (compared.len(), targets), device)?)
        };
        Ok(Self {
            compared_weights: matrix(&|line, out| out.copy_from_slice(&compared[line].weights))?,
            all_weights: matrix(&|_, out| out.fill(1.0))?,
            compared,
            branched,
        })
    }

    /// Log-probs of what is compared of each completion, `(completions,)`, from those of the
    /// targets.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn sums(&self, logps: &Tensor) -> Result<Sums> {
        let tokens = self.compared.iter().map(|compared| compared.tokens).collect();
        Ok(Sums { logps: weighted(&self.compared_weights, logps)?, tokens })
    }

    /// Log-probs of each whole completion, `(completions,)`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn whole_sums(&self, logps: &Tensor) -> Result<Sums> {
        let tokens = self.branched.targets.iter().map(ExactSizeIterator::len).collect();
        Ok(Sums { logps: weighted(&self.all_weights, logps)?, tokens })
    }

    /// Notes what all methods count.
    pub fn note(&self, figures: &mut Figures) {
        figures.supervised_tokens += self.branched.packed.targets.len();
        figures.tokens += self.branched.packed.len();
    }
}

fn weighted(weights: &Tensor, logps: &Tensor) -> Result<Tensor> {
    Ok(weights.matmul(&logps.to_dtype(DType::F64)?.unsqueeze(1)?)?.squeeze(1)?)
}

/// `rows` in microbatches of at most so many tokens (one row may have more), as their places.
pub fn places(rows: &[impl TokenCount], microbatch_tokens: usize) -> Vec<Vec<usize>> {
    microbatches(rows.iter().map(TokenCount::tokens), microbatch_tokens)
}

/// What the losses want of pairs, whose completions are chosen and rejected in turn, from the
/// log-probs of the targets and the reference's sums. `tokens_per_pair` is
/// [`PairLogps::tokens_per_pair`] of the whole step.
///
/// # Errors
/// When a tensor operation fails.
pub fn pair_logps(
    completions: &Completions,
    logps: &Tensor,
    reference: Option<&Tensor>,
    tokens_per_pair: f64,
) -> Result<PairLogps> {
    let side = |sums: &Tensor, side: usize| -> Result<Tensor> {
        let pairs = sums.elem_count() / 2;
        Ok(sums.reshape((pairs, 2))?.narrow(1, side, 1)?.squeeze(1)?.contiguous()?)
    };
    let half = |sums: &Sums, at: usize| -> Result<Sums> {
        let tokens = sums.tokens.iter().copied().skip(at).step_by(2).collect();
        Ok(Sums { logps: side(&sums.logps, at)?, tokens })
    };
    let compared = completions.sums(logps)?;
    let reference = match reference {
        Some(sums) => Some(ReferenceLogps { chosen: side(sums, 0)?, rejected: side(sums, 1)? }),
        None => None,
    };
    Ok(PairLogps {
        chosen: half(&compared, 0)?,
        rejected: half(&compared, 1)?,
        reference,
        nll: Some(half(&completions.whole_sums(logps)?, 0)?),
        tokens_per_pair: Some(tokens_per_pair),
    })
}

/// Numbers on the host.
///
/// # Errors
/// When a tensor operation fails.
pub fn host(x: &Tensor) -> Result<Vec<f64>> {
    Ok(x.to_dtype(DType::F64)?.to_vec1::<f64>()?)
}

/// Notes what TRL reports of a batch: rewards and log-probs.
///
/// # Errors
/// When a tensor operation fails.
pub fn note_rewards(
    figures: &mut Figures,
    logps: &PairLogps,
    (chosen, rejected): (&Tensor, &Tensor),
) -> Result<Vec<f64>> {
    let (chosen, rejected) = (host(chosen)?, host(rejected)?);
    let pairs = || chosen.iter().zip(&rejected);
    figures.note("rewards/chosen", &chosen);
    figures.note("rewards/rejected", &rejected);
    figures.note("rewards/margins", &pairs().map(|(c, r)| c - r).collect::<Vec<_>>());
    figures.note("rewards/accuracies", &pairs().map(|(c, r)| f64::from(c > r)).collect::<Vec<_>>());
    figures.note("logps/chosen", &host(&logps.chosen.logps)?);
    figures.note("logps/rejected", &host(&logps.rejected.logps)?);
    Ok([chosen, rejected].concat())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use halter_core::data::record::Origin;

    use super::*;

    /// Completions of four tokens and of two, behind a prompt.
    fn pair() -> BranchedRow {
        let branch =
            |tokens: &[u32]| Branch { tokens: tokens.to_vec(), mask: vec![true; tokens.len()] };
        BranchedRow {
            origin: Origin { path: Arc::new("pairs.jsonl".into()), line: 1 },
            prompt: vec![1, 2],
            branches: vec![branch(&[3, 4, 5, 6]), branch(&[7, 8])],
            prompt_is_prefix: true,
        }
    }

    #[test]
    fn tokens_beyond_the_shorter_completion_weigh_alpha_in_the_sums() {
        let counting = Counting { formatting: None, ld_alpha: Some(0.25) };
        let batch = Completions::new(&[pair()], &counting, &Device::Cpu).unwrap();
        let logps = Tensor::new(&[-1f32, -2.0, -4.0, -8.0, -16.0, -32.0], &Device::Cpu).unwrap();
        let pairs = pair_logps(&batch, &logps, None, 4.0).unwrap();
        // −1 − 2 − (4 + 8)/4, and the whole of what is not longer
        assert_eq!(host(&pairs.chosen.logps).unwrap(), [-6.0]);
        assert_eq!(host(&pairs.rejected.logps).unwrap(), [-48.0]);
        assert_eq!((pairs.chosen.tokens, pairs.rejected.tokens), (vec![4], vec![2]));
        assert_eq!(host(&pairs.nll.unwrap().logps).unwrap(), [-15.0], "the NLL has every token");
        let keys = |alpha| {
            let counting = Counting { formatting: None, ld_alpha: alpha };
            counting.compared(&pair()).unwrap().into_iter().map(|compared| compared.key)
        };
        let same = keys(None).zip(keys(Some(0.25))).map(|(a, b)| a == b).collect::<Vec<_>>();
        assert_eq!(same, [false, true], "log-probs that are kept are of the same weights");
    }
}
