//! Completions that go through a reward model together.

use candle_core::Tensor;
use halter_core::Result;
use halter_core::data::batch::{PackedBatch, SpanId};
use halter_core::data::branched::BranchedRow;
use halter_core::data::encoded::TokenCount;
use halter_core::data::pack::microbatches;

use super::loss::pair_loss;
use super::rows::RankedRow;

/// A prompt's completions are branches of it; each is scored at one token.
#[derive(Debug)]
pub struct Scored {
    /// Tokens.
    pub packed: PackedBatch,
    /// For each completion in turn, the row of the batch that its score is read from.
    pub rows: Vec<u32>,
}

impl Scored {
    /// A tree for each row. A score is read where transformers reads it: at the last token that is
    /// not `padding`.
    ///
    /// # Errors
    /// No token at all.
    pub fn new<'a>(
        rows: impl IntoIterator<Item = &'a BranchedRow>,
        padding: Option<u32>,
    ) -> Result<Self> {
        let mut builder = PackedBatch::builder();
        let mut spans = Vec::new();
        for row in rows {
            let prompt = builder.row(&row.prompt);
            for branch in &row.branches {
                spans.push([builder.branch(prompt, &branch.tokens), prompt]);
            }
        }
        let packed = builder.build()?;
        let read = |[branch, prompt]: &[SpanId; 2]| {
            let last = |span: usize| {
                let range = packed.spans[span].range();
                range.rev().find(|&at| Some(packed.tokens[at]) != padding)
            };
            let [branch, prompt] = [branch, prompt].map(|span| span.index());
            // Where all is padding, transformers reads the first token.
            let at = last(branch).or_else(|| last(prompt));
            let first = [prompt, branch].into_iter().find(|&span| packed.spans[span].len > 0);
            at.or(first.map(|span| packed.spans[span].start)).unwrap_or(0) as u32
        };
        let rows = spans.iter().map(read).collect();
        Ok(Self { packed, rows })
    }
}

/// Ranked rows as one batch.
#[derive(Debug)]
pub struct Batch {
    /// The completions.
    pub scored: Scored,
    /// For each pair, `(pairs,)`: which completions, by how much, and its weight: a row counts as
    /// one, however many pairs it has (Ouyang et al. 2022, equation 1).
    better: Tensor,
    worse: Tensor,
    margin: Tensor,
    weight: Tensor,
    /// How many rows.
    pub count: usize,
}

impl Batch {
    /// `rows` with numbers of the kind that `like` holds.
    ///
    /// # Errors
    /// See [`Scored::new`].
    pub fn new(rows: &[RankedRow], padding: Option<u32>, like: &Tensor) -> Result<Self> {
        let scored = Scored::new(rows.iter().map(|ranked| &ranked.row), padding)?;
        let (mut better, mut worse) = (Vec::new(), Vec::new());
        let (mut margin, mut weight) = (Vec::new(), Vec::new());
        let mut first = 0;
        for ranked in rows {
            for &(a, b) in &ranked.pairs {
                better.push((first + a) as u32);
                worse.push((first + b) as u32);
                margin.push(ranked.margin);
                weight.push(1.0 / ranked.pairs.len() as f64);
            }
            first += ranked.row.branches.len();
        }
        let numbers = |values: Vec<f64>| -> Result<Tensor> {
            Ok(Tensor::from_vec(values, better.len(), like.device())?.to_dtype(like.dtype())?)
        };
        let (margin, weight) = (numbers(margin)?, numbers(weight)?);
        let indices = |of: Vec<u32>| Tensor::new(of, like.device());
        let (better, worse) = (indices(better)?, indices(worse)?);
        Ok(Self { scored, better, worse, margin, weight, count: rows.len() })
    }

    /// Scores `(pairs,)` of the better and of the worse completions, from those of all.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn sides(&self, scores: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((scores.index_select(&self.better, 0)?, scores.index_select(&self.worse, 0)?))
    }

    /// The sum of the rows' losses.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn loss(&self, scores: &Tensor, center: f64) -> Result<Tensor> {
        let (better, worse) = self.sides(scores)?;
        let loss = pair_loss(&better, &worse, &self.margin, center)?;
        Ok((loss * &self.weight)?.sum_all()?)
    }
}

/// `rows` in microbatches of at most so many tokens (one row may have more).
///
/// # Errors
/// See [`Scored::new`].
pub fn pack(
    rows: &[RankedRow],
    microbatch_tokens: usize,
    padding: Option<u32>,
    like: &Tensor,
) -> Result<Vec<Batch>> {
    microbatches(rows.iter().map(TokenCount::tokens), microbatch_tokens)
        .into_iter()
        .map(|members| {
            let rows: Vec<RankedRow> = members.iter().map(|&at| rows[at].clone()).collect();
            Batch::new(&rows, padding, like)
        })
        .collect()
}
