//! Rows of one prompt with several completions: pairs, ranked lists. The prompt is computed once.

use std::ops::Range;

use super::batch::PackedBatch;
use super::encoded::TokenCount;
use super::record::Origin;
use crate::Result;
use crate::train::method::TrainRow;

/// A prompt and its completions, best first.
#[derive(Debug, Clone, PartialEq)]
pub struct BranchedRow {
    /// Where it came from.
    pub origin: Origin,
    /// Tokens that all completions begin with; none of them is trained.
    pub prompt: Vec<u32>,
    /// What follows in each.
    pub branches: Vec<Branch>,
    /// Whether the prompt is what generation would be given.
    pub prompt_is_prefix: bool,
}

/// One completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// Tokens.
    pub tokens: Vec<u32>,
    /// Same length; `true` where the token counts.
    pub mask: Vec<bool>,
}

impl Branch {
    /// Tokens that count, given `before` tokens of the prompt.
    pub fn counted(&self, before: usize) -> usize {
        // Nothing predicts the first token of a sequence.
        self.mask.iter().skip(usize::from(before == 0)).filter(|&&counts| counts).count()
    }
}

impl BranchedRow {
    /// Tokens that count of each branch.
    pub fn counted(&self) -> impl Iterator<Item = usize> {
        self.branches.iter().map(|branch| branch.counted(self.prompt.len()))
    }
}

impl TokenCount for BranchedRow {
    fn tokens(&self) -> usize {
        self.prompt.len() + self.branches.iter().map(|branch| branch.tokens.len()).sum::<usize>()
    }

    fn trained_tokens(&self) -> usize {
        self.counted().sum()
    }

    fn prompt_is_prefix(&self) -> bool {
        self.prompt_is_prefix
    }
}

impl TrainRow for BranchedRow {
    fn origin(&self) -> &Origin {
        &self.origin
    }

    fn trained_ids(&self) -> impl Iterator<Item = u32> {
        let tokens = self.branches.iter().flat_map(|b| b.tokens.iter().zip(&b.mask));
        tokens.filter(|&(_, &counts)| counts).map(|(&id, _)| id)
    }
}

/// A batch of branched rows, and where the targets of their branches lie.
#[derive(Debug, Clone)]
pub struct BranchedBatch {
    /// Tokens, spans and targets.
    pub packed: PackedBatch,
    /// For each branch of each row in turn: its targets.
    pub targets: Vec<Range<usize>>,
}

impl BranchedBatch {
    /// A tree for each row.
    ///
    /// # Errors
    /// No token at all, or a mask of another length than its tokens.
    pub fn new<'a>(rows: impl IntoIterator<Item = &'a BranchedRow>) -> Result<Self> {
        let mut builder = PackedBatch::builder();
        let mut spans = Vec::new();
        for row in rows {
            let prompt = builder.row(&row.prompt);
            for Branch { tokens, mask } in &row.branches {
                spans.push(builder.masked_branch(prompt, tokens, mask));
            }
        }
        let packed = builder.build()?;
        let targets = spans.iter().map(|span| packed.targets_of(span.index())).collect();
        Ok(Self { packed, targets })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use std::sync::Arc;

    use super::*;

    fn row(prompt: &[u32], branches: &[(&[u32], &[bool])]) -> BranchedRow {
        BranchedRow {
            origin: Origin { path: Arc::new("a.jsonl".into()), line: 1 },
            prompt: prompt.to_vec(),
            branches: branches
                .iter()
                .map(|(tokens, mask)| Branch { tokens: tokens.to_vec(), mask: mask.to_vec() })
                .collect(),
            prompt_is_prefix: true,
        }
    }

    #[test]
    fn targets_lie_by_row_and_branch() {
        let rows = [
            row(&[1, 2], &[(&[3, 4], &[true, true]), (&[5, 6, 7], &[true, false, true])]),
            row(&[], &[(&[8, 9], &[true, true])]),
        ];
        let batch = BranchedBatch::new(&rows).unwrap();
        batch.packed.validate().unwrap();
        assert_eq!(batch.packed.tokens, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(batch.targets, [0..2, 2..4, 4..5]);
        let tokens: Vec<u32> = batch.packed.targets.iter().map(|target| target.token).collect();
        assert_eq!(tokens, [3, 4, 5, 7, 9]);
        let counted: Vec<usize> = rows.iter().flat_map(BranchedRow::counted).collect();
        assert_eq!(counted, batch.targets.iter().map(Range::len).collect::<Vec<_>>());
        assert_eq!(rows[0].tokens(), 7);
        assert_eq!(rows[0].trained_ids().collect::<Vec<_>>(), [3, 4, 5, 7]);
    }
}
