//! Packed batches: a flat run of tokens, cut into spans that form trees.
//!
//! There is no padding. A root span is a sequence of its own; a span with a parent continues that
//! parent: it sees all of its ancestors and, causally, itself, and its positions go on from them.
//! A preference pair is one prompt and two branches, so the prompt is computed once.

use std::ops::Range;

use super::record::Row;
use crate::{Error, Result};

/// One span of a batch: `len` tokens from `start`, the first of them at position `position`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// The span that this one continues; `None` for the first span of a sequence.
    pub parent: Option<usize>,
    /// Index in the flat batch of the first token.
    pub start: usize,
    /// Number of tokens; zero is allowed (an empty prompt with two branches).
    pub len: usize,
    /// Position id of the first token: the parent's `position + len`, or 0.
    pub position: usize,
}

impl Span {
    /// The span's tokens in the flat batch.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// One token to be trained, and the row of the flat batch whose logits predict it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    /// Row of the flat batch that predicts `token`: the token before it in its sequence.
    pub row: u32,
    /// The token to be predicted.
    pub token: u32,
}

/// A span of a batch under construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(usize);

impl SpanId {
    /// Index into [`PackedBatch::spans`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// Tokens of several sequences laid end to end, with the spans that keep them apart.
///
/// Spans lie in order without gaps and parents come before children. Targets lie in the order of
/// the tokens they name, so `target_span` never falls.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackedBatch {
    /// `(tokens,)` token ids.
    pub tokens: Vec<u32>,
    /// `(tokens,)` position ids.
    pub positions: Vec<u32>,
    /// The spans, covering all tokens in order.
    pub spans: Vec<Span>,
    /// The tokens to be trained.
    pub targets: Vec<Target>,
    /// For each target, the span that its `token` (not its `row`) belongs to.
    pub target_span: Vec<u32>,
}

impl PackedBatch {
    /// Starts an empty batch.
    pub fn builder() -> PackedBatchBuilder {
        PackedBatchBuilder::default()
    }

    /// One root span per row, trained where its mask says so.
    ///
    /// # Errors
    /// If there is no token, or a mask has another length than its tokens.
    pub fn from_rows<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Result<Self> {
        let mut builder = Self::builder();
        for row in rows {
            builder.masked_row(&row.input_ids, &row.completion_mask);
        }
        builder.build()
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens (never so after [`PackedBatchBuilder::build`]).
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// `(tokens,)` position ids.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// The ancestors of `span` from the root down, without `span` itself.
    pub fn ancestors(&self, span: usize) -> Vec<usize> {
        let mut found = Vec::new();
        let mut next = self.spans.get(span).and_then(|span| span.parent);
        while let Some(parent) = next {
            found.push(parent);
            // Parents precede children, so this ends; a batch assembled by hand might not.
            next = self.spans[parent].parent.filter(|&above| above < parent);
        }
        found.reverse();
        found
    }

    /// The row whose logits predict the first token after `span`: its last token, or the last one
    /// of its nearest ancestor that has any. `None` if there is no token up to its end.
    pub fn last_row(&self, span: usize) -> Option<usize> {
        last_row(&self.spans, span)
    }

    /// The indices into [`targets`](Self::targets) whose token belongs to `span`.
    pub fn targets_of(&self, span: usize) -> Range<usize> {
        let before = |limit: usize| {
            self.target_span.partition_point(|&of| usize::try_from(of).is_ok_and(|of| of < limit))
        };
        before(span)..before(span.saturating_add(1))
    }

    /// Checks everything that the type's documentation promises; for a batch whose fields were
    /// filled in by hand.
    ///
    /// # Errors
    /// Names the first promise that does not hold.
    pub fn validate(&self) -> Result<()> {
        self.validate_spans()?;
        let broken = |what: String| Err(Error::data(format!("not a packed batch: {what}")));
        if self.targets.len() != self.target_span.len() {
            let (targets, spans) = (self.targets.len(), self.target_span.len());
            return broken(format!("`{targets}` targets but `{spans}` target spans"));
        }
        let mut previous = None;
        for (index, (target, &span)) in self.targets.iter().zip(&self.target_span).enumerate() {
            let Some(place) = self.place_of(target.row as usize, span as usize) else {
                return broken(format!(
                    "target {index}: row {} does not predict a token of span {span}",
                    target.row
                ));
            };
            if self.tokens[place] != target.token {
                return broken(format!(
                    "target {index} is token {}, but the batch holds {} there",
                    target.token, self.tokens[place]
                ));
            }
            if previous.is_some_and(|before| before >= place) {
                return broken(format!("target {index} is out of order"));
            }
            previous = Some(place);
        }
        Ok(())
    }

    fn validate_spans(&self) -> Result<()> {
        let broken = |what: String| Err(Error::data(format!("not a packed batch: {what}")));
        if self.tokens.len() != self.positions.len() {
            let (tokens, positions) = (self.tokens.len(), self.positions.len());
            return broken(format!("`{tokens}` tokens but `{positions}` positions"));
        }
        let mut end = 0;
        for (index, span) in self.spans.iter().enumerate() {
            let position = match span.parent {
                None => 0,
                Some(parent) if parent < index => {
                    self.spans[parent].position + self.spans[parent].len
                }
                Some(parent) => {
                    return broken(format!("span {index} comes before its parent {parent}"));
                }
            };
            if span.start != end {
                return broken(format!("span {index} starts at {}, expected {end}", span.start));
            }
            if span.position != position {
                return broken(format!(
                    "span {index} is at position {}, expected {position}",
                    span.position
                ));
            }
            end = match end.checked_add(span.len) {
                Some(end) if end <= self.tokens.len() => end,
                _ => return broken(format!("span {index} runs past the last token")),
            };
            let ids = &self.positions[span.range()];
            if !ids.iter().zip(position..).all(|(&id, expected)| id as usize == expected) {
                return broken(format!("the positions of span {index} are not consecutive"));
            }
        }
        if end != self.tokens.len() {
            return broken(format!("spans hold {end} of {} tokens", self.tokens.len()));
        }
        Ok(())
    }

    /// The index of the token of `span` that `row` predicts.
    fn place_of(&self, row: usize, span: usize) -> Option<usize> {
        let of = self.spans.get(span)?;
        if of.range().contains(&row) {
            return Some(row + 1).filter(|place| of.range().contains(place));
        }
        let first = last_row(&self.spans, of.parent?)?;
        (first == row && of.len > 0).then_some(of.start)
    }
}

fn last_row(spans: &[Span], span: usize) -> Option<usize> {
    let mut next = Some(span);
    while let Some(index) = next {
        let span = spans.get(index)?;
        if span.len > 0 {
            return Some(span.start + span.len - 1);
        }
        next = span.parent.filter(|&above| above < index);
    }
    None
}

/// Builds a [`PackedBatch`] span by span; the first mistake is reported by [`build`](Self::build).
#[derive(Debug, Default)]
pub struct PackedBatchBuilder {
    batch: PackedBatch,
    mistake: Option<Error>,
}

impl PackedBatchBuilder {
    /// Adds a sequence of its own, nothing of it trained.
    pub fn row(&mut self, tokens: &[u32]) -> SpanId {
        self.push(None, tokens, None)
    }

    /// Adds a sequence of its own, trained where `mask` is `true`.
    ///
    /// Nothing precedes the first token, so nothing can predict it: it is not a target even where
    /// `mask` says so.
    pub fn masked_row(&mut self, tokens: &[u32], mask: &[bool]) -> SpanId {
        self.push(None, tokens, Some(mask))
    }

    /// Adds a continuation of `parent`, nothing of it trained.
    pub fn branch(&mut self, parent: SpanId, tokens: &[u32]) -> SpanId {
        self.push(Some(parent), tokens, None)
    }

    /// Adds a continuation of `parent`, trained where `mask` is `true`. Its first token is
    /// predicted by the last token before it among its ancestors.
    pub fn masked_branch(&mut self, parent: SpanId, tokens: &[u32], mask: &[bool]) -> SpanId {
        self.push(Some(parent), tokens, Some(mask))
    }

    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.batch.tokens.len()
    }

    /// Whether there are no tokens yet.
    pub fn is_empty(&self) -> bool {
        self.batch.tokens.is_empty()
    }

    /// Finishes the batch.
    ///
    /// # Errors
    /// If it holds no token or more than `u32` can count, a mask had another length than its
    /// tokens, or a branch named a span of another batch.
    pub fn build(self) -> Result<PackedBatch> {
        if let Some(mistake) = self.mistake {
            return Err(mistake);
        }
        if self.batch.is_empty() {
            return Err(Error::data("a batch needs at least one token"));
        }
        Ok(self.batch)
    }

    fn push(&mut self, parent: Option<SpanId>, tokens: &[u32], mask: Option<&[bool]>) -> SpanId {
        let index = self.batch.spans.len();
        if let Err(mistake) = self.try_push(parent, tokens, mask) {
            self.mistake.get_or_insert(mistake);
            // Keeps the ids that are handed out valid until `build` reports the mistake.
            let (start, position) = (self.batch.tokens.len(), 0);
            self.batch.spans.push(Span { parent: None, start, len: 0, position });
        }
        SpanId(index)
    }

    fn try_push(
        &mut self,
        parent: Option<SpanId>,
        tokens: &[u32],
        mask: Option<&[bool]>,
    ) -> Result<()> {
        let batch = &mut self.batch;
        let (index, start) = (batch.spans.len(), batch.tokens.len());
        if let Some(mask) = mask.filter(|mask| mask.len() != tokens.len()) {
            return Err(Error::data(format!(
                "expected a mask of `{}` tokens, got `{}`",
                tokens.len(),
                mask.len()
            )));
        }
        let position = match parent {
            None => 0,
            Some(SpanId(parent)) => match batch.spans.get(parent) {
                Some(above) => above.position + above.len,
                None => {
                    let what = format!("span `{parent}` is not one of this batch's `{index}`");
                    return Err(Error::data(what));
                }
            },
        };
        // Positions never exceed the number of tokens, so this bounds them as well.
        if u32::try_from(start + tokens.len()).is_err() {
            return Err(Error::data("a batch of more than 2^32 tokens")
                .hint("lower `microbatch_tokens` or `max_seq_len`"));
        }
        let parent = parent.map(SpanId::index);
        batch.spans.push(Span { parent, start, len: tokens.len(), position });
        batch.tokens.extend_from_slice(tokens);
        batch.positions.extend((position..position + tokens.len()).map(|id| id as u32));
        let before = parent.and_then(|parent| last_row(&batch.spans, parent));
        for (t, (&token, _)) in
            tokens.iter().zip(mask.unwrap_or_default()).enumerate().filter(|(_, (_, on))| **on)
        {
            let row = if t > 0 { Some(start + t - 1) } else { before };
            if let Some(row) = row {
                batch.targets.push(Target { row: row as u32, token });
                batch.target_span.push(index as u32);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(row: u32, token: u32) -> Target {
        Target { row, token }
    }

    #[test]
    fn a_preference_pair_shares_its_prompt() {
        let mut builder = PackedBatch::builder();
        let prompt = builder.row(&[10, 11, 12]);
        let chosen = builder.masked_branch(prompt, &[20, 21], &[true, true]);
        let rejected = builder.masked_branch(prompt, &[30, 31, 32], &[true, false, true]);
        let batch = builder.build().unwrap();
        assert_eq!(batch.tokens, [10, 11, 12, 20, 21, 30, 31, 32]);
        assert_eq!(batch.positions(), [0, 1, 2, 3, 4, 3, 4, 5]);
        assert_eq!(batch.targets, [target(2, 20), target(3, 21), target(2, 30), target(6, 32)]);
        assert_eq!(batch.target_span, [1, 1, 2, 2]);
        assert_eq!(batch.targets_of(prompt.index()), 0..0);
        assert_eq!(batch.targets_of(chosen.index()), 0..2);
        assert_eq!(batch.targets_of(rejected.index()), 2..4);
        assert_eq!(batch.ancestors(2), [0]);
        batch.validate().unwrap();
    }

    #[test]
    fn the_first_token_of_a_row_is_never_a_target() {
        let mut builder = PackedBatch::builder();
        builder.masked_row(&[1, 2, 3], &[true, true, true]);
        builder.masked_row(&[4], &[true]);
        builder.masked_row(&[5, 6], &[true, true]);
        let batch = builder.build().unwrap();
        assert_eq!(batch.targets, [target(0, 2), target(1, 3), target(4, 6)]);
        assert_eq!(batch.positions, [0, 1, 2, 0, 0, 1]);
    }

    #[test]
    fn an_empty_parent_hands_prediction_to_its_own_parent() {
        let mut builder = PackedBatch::builder();
        let root = builder.row(&[7, 8]);
        let empty = builder.branch(root, &[]);
        let leaf = builder.masked_branch(empty, &[9], &[true]);
        let bare = builder.row(&[]);
        builder.masked_branch(bare, &[5, 6], &[true, true]);
        let batch = builder.build().unwrap();
        assert_eq!(batch.targets, [target(1, 9), target(3, 6)]);
        assert_eq!(batch.ancestors(leaf.index()), [0, 1]);
        assert_eq!(batch.last_row(bare.index()), None);
        assert_eq!(batch.positions, [0, 1, 2, 0, 1]);
        batch.validate().unwrap();
    }

    #[test]
    fn mistakes_are_reported_by_build() {
        let mut other = PackedBatch::builder();
        let mut foreign = other.row(&[1]);
        for _ in 0..3 {
            foreign = other.branch(foreign, &[1]);
        }
        let mut builder = PackedBatch::builder();
        builder.row(&[1]);
        builder.branch(foreign, &[2]);
        let text = builder.build().unwrap_err().to_string();
        assert_eq!(text, "span `3` is not one of this batch's `1`");

        let mut builder = PackedBatch::builder();
        builder.masked_row(&[1, 2], &[true]);
        let text = builder.build().unwrap_err().to_string();
        assert_eq!(text, "expected a mask of `2` tokens, got `1`");

        let text = PackedBatch::builder().build().unwrap_err().to_string();
        assert_eq!(text, "a batch needs at least one token");
    }

    #[test]
    fn validate_sees_every_broken_promise() {
        let mut builder = PackedBatch::builder();
        let root = builder.masked_row(&[1, 2, 3], &[false, true, true]);
        builder.masked_branch(root, &[4, 5], &[true, true]);
        let good = builder.build().unwrap();
        good.validate().unwrap();
        type Spoil = fn(&mut PackedBatch);
        let breaks: [(&str, Spoil); 11] = [
            ("positions length", |b| b.positions.truncate(2)),
            ("position id", |b| b.positions[4] = 9),
            ("span start", |b| b.spans[1].start = 2),
            ("span length", |b| b.spans[1].len = usize::MAX),
            ("token without span", |b| b.spans[1].len = 1),
            ("span position", |b| b.spans[1].position = 0),
            ("parent after child", |b| b.spans[0].parent = Some(1)),
            ("target span length", |b| b.target_span.truncate(1)),
            ("target row", |b| b.targets[2].row = 1),
            ("target token", |b| b.targets[0].token = 7),
            ("target order", |b| {
                b.targets.swap(0, 1);
            }),
        ];
        for (what, spoil) in breaks {
            let mut batch = good.clone();
            spoil(&mut batch);
            assert!(batch.validate().is_err(), "{what} was not seen");
        }
    }

    proptest! {
        #[test]
        fn any_tree_of_spans_is_valid_and_trains_what_its_masks_say(
            spans in prop::collection::vec(
                (any::<Option<u8>>(), prop::collection::vec((0u32..50, any::<bool>()), 0..6)),
                1..12,
            )
        ) {
            let mut builder = PackedBatch::builder();
            let mut ids: Vec<SpanId> = Vec::new();
            // The sequence that each span ends, with the mask, built the slow way.
            let mut sequences: Vec<Vec<u32>> = Vec::new();
            let mut expected = 0;
            for (parent, tokens) in &spans {
                let (tokens, mask): (Vec<u32>, Vec<bool>) = tokens.iter().copied().unzip();
                let parent = parent.filter(|_| !ids.is_empty()).map(|p| p as usize % ids.len());
                let before = parent.map(|p| sequences[p].clone()).unwrap_or_default();
                expected += mask
                    .iter()
                    .enumerate()
                    .filter(|(t, on)| **on && before.len() + t > 0)
                    .count();
                let id = match parent {
                    Some(p) => builder.masked_branch(ids[p], &tokens, &mask),
                    None => builder.masked_row(&tokens, &mask),
                };
                ids.push(id);
                sequences.push([before, tokens].concat());
            }
            prop_assume!(!builder.is_empty());
            let batch = builder.build().unwrap();
            batch.validate().unwrap();
            prop_assert_eq!(batch.targets.len(), expected);
            for (span, sequence) in sequences.iter().enumerate() {
                let mut path = batch.ancestors(span);
                path.push(span);
                let rows: Vec<usize> =
                    path.iter().flat_map(|&span| batch.spans[span].range()).collect();
                let along: Vec<u32> = rows.iter().map(|&row| batch.tokens[row]).collect();
                prop_assert_eq!(&along, sequence);
                prop_assert!(rows
                    .iter()
                    .enumerate()
                    .all(|(position, &row)| batch.positions[row] as usize == position));
            }
        }
    }
}
