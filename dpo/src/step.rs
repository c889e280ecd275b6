//! The loss of a step over pairs.

use candle_core::{DType, Tensor};
use halter_core::data::branched::{Branch, BranchedBatch, BranchedRow};
use halter_core::data::encoded::TokenCount;
use halter_core::data::pack::microbatches;
use halter_core::train::method::Figures;
use halter_core::{Error, Result};

use crate::formatting::FormattingTokens;
use crate::loss::length::ld_weights;
use crate::loss::{PairLogps, ReferenceLogps, Sums};

/// Pairs that go through the model together.
#[derive(Debug)]
pub struct Batch {
    /// Tokens, and where each completion's targets lie.
    pub branched: BranchedBatch,
    /// Which tokens count in the comparison, `(2 · pairs, targets)`: chosen first, then rejected.
    compared: Tensor,
    /// How many those are.
    compared_tokens: Vec<usize>,
    /// Which tokens count in the NLL, `(pairs, targets)`: all of the chosen completions.
    chosen: Tensor,
    chosen_tokens: Vec<usize>,
    tokens_per_pair: f64,
}

/// What counts of a completion.
#[derive(Debug, Clone, Default)]
pub struct Counting {
    /// What is left out of the comparison.
    pub formatting: Option<FormattingTokens>,
    /// LD-DPO's weight of what is beyond the shorter completion's length.
    pub ld_alpha: Option<f64>,
}

impl Counting {
    /// For each target of a branch: whether it counts in the comparison.
    fn compared(&self, row: &BranchedRow, branch: usize) -> Vec<bool> {
        let Branch { tokens, mask } = &row.branches[branch];
        let formatting = match &self.formatting {
            Some(formatting) => formatting.mask(tokens),
            None => vec![false; tokens.len()],
        };
        // As in the batch: nothing predicts the first token of a sequence.
        let first = usize::from(row.prompt.is_empty());
        let counted = mask.iter().zip(formatting).skip(first);
        counted.filter(|(counts, _)| **counts).map(|(_, formatting)| !formatting).collect()
    }
}

impl Batch {
    /// Pairs as one batch, with numbers of the kind that `like` holds. `tokens_per_pair` is
    /// [`PairLogps::tokens_per_pair`] of the whole step.
    ///
    /// # Errors
    /// A row of another number of completions than two, or a completion of which nothing counts.
    pub fn new(
        rows: &[BranchedRow],
        tokens_per_pair: f64,
        counting: &Counting,
        like: &Tensor,
    ) -> Result<Self> {
        if let Some(row) = rows.iter().find(|row| row.branches.len() != 2) {
            let message = format!("a row of `{}` completions: expected two", row.branches.len());
            return Err(Error::data(message).at(&*row.origin.path, row.origin.line));
        }
        let branched = BranchedBatch::new(rows)?;
        let targets = branched.packed.targets.len();
        let pairs = rows.len();
        let mut compared = vec![0f32; 2 * pairs * targets];
        let mut chosen = vec![0f32; pairs * targets];
        let mut compared_tokens = vec![0; 2 * pairs];
        for (pair, ranges) in branched.targets.chunks_exact(2).enumerate() {
            let lengths = [ranges[0].len(), ranges[1].len()];
            let weights = match counting.ld_alpha {
                Some(alpha) => {
                    let (chosen, rejected) = ld_weights(lengths[0], lengths[1], alpha);
                    [chosen, rejected]
                }
                None => lengths.map(|length| vec![1.0; length]),
            };
            for (side, (range, weights)) in ranges.iter().zip(weights).enumerate() {
                let line = side * pairs + pair;
                let is_compared = counting.compared(&rows[pair], side);
                for ((at, weight), _) in
                    range.clone().zip(weights).zip(is_compared).filter(|(_, compared)| *compared)
                {
                    compared[line * targets + at] = weight as f32;
                    compared_tokens[line] += 1;
                }
            }
            chosen[pair * targets..][ranges[0].clone()].fill(1.0);
            let origin = &rows[pair].origin;
            if compared_tokens[pair] == 0 || compared_tokens[pairs + pair] == 0 {
                return Err(Error::data("a completion of formatting tokens alone")
                    .hint("take the row out, or count them with `--mask-formatting false`")
                    .at(&*origin.path, origin.line));
            }
        }
        let matrix = |values: Vec<f32>, lines: usize| -> Result<Tensor> {
            Ok(Tensor::from_vec(values, (lines, targets), like.device())?.to_dtype(like.dtype())?)
        };
        Ok(Self {
            compared: matrix(compared, 2 * pairs)?,
            chosen: matrix(chosen, pairs)?,
            chosen_tokens: branched.targets.iter().step_by(2).map(|range| range.len()).collect(),
            compared_tokens,
            tokens_per_pair,
            branched,
        })
    }

    /// Pairs in it.
    pub fn pairs(&self) -> usize {
        self.chosen_tokens.len()
    }

    /// The sums that the losses want, from per-token log-probs of policy and reference.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn sums(&self, logps: &Tensor, reference: Option<&Tensor>) -> Result<PairLogps> {
        let pairs = self.pairs();
        let column = |matrix: &Tensor, logps: &Tensor| -> Result<Tensor> {
            Ok(matrix.matmul(&logps.unsqueeze(1)?)?.squeeze(1)?)
        };
        let compared = column(&self.compared, logps)?;
        let side = |all: &Tensor, side: usize| all.narrow(0, side * pairs, pairs);
        let sums = |at: usize| -> Result<Sums> {
            let tokens = self.compared_tokens[at * pairs..][..pairs].to_vec();
            Ok(Sums { logps: side(&compared, at)?, tokens })
        };
        let reference = match reference {
            None => None,
            Some(logps) => {
                let compared = column(&self.compared, logps)?;
                let (chosen, rejected) = (side(&compared, 0)?, side(&compared, 1)?);
                Some(ReferenceLogps { chosen, rejected })
            }
        };
        let nll = Sums { logps: column(&self.chosen, logps)?, tokens: self.chosen_tokens.clone() };
        Ok(PairLogps {
            chosen: sums(0)?,
            rejected: sums(1)?,
            reference,
            nll: Some(nll),
            tokens_per_pair: Some(self.tokens_per_pair),
        })
    }
}

/// `rows` in microbatches of at most so many tokens (one pair may have more).
///
/// # Errors
/// See [`Batch::new`].
pub fn pack(
    rows: &[BranchedRow],
    microbatch_tokens: usize,
    counting: &Counting,
    like: &Tensor,
) -> Result<Vec<Batch>> {
    let chosen: usize = rows.iter().filter_map(|row| row.counted().next()).sum();
    let tokens_per_pair = chosen as f64 / rows.len() as f64;
    microbatches(rows.iter().map(TokenCount::tokens), microbatch_tokens)
        .into_iter()
        .map(|members| {
            let rows: Vec<BranchedRow> = members.iter().map(|&at| rows[at].clone()).collect();
            Batch::new(&rows, tokens_per_pair, counting, like)
        })
        .collect()
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
    let host = |x: &Tensor| -> Result<Vec<f64>> { Ok(x.to_dtype(DType::F64)?.to_vec1::<f64>()?) };
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
