//! Which rows of a step go through the model together.

use super::batch::PackedBatch;
use super::record::Row;
use crate::Result;

/// [`microbatches`] of `rows`, packed one at a time; those without a trained token are left out.
pub fn packed(rows: &[Row], microbatch_tokens: usize) -> impl Iterator<Item = Result<PackedBatch>> {
    let lengths = rows.iter().map(|row| row.input_ids.len());
    let packed =
        |members: Vec<usize>| PackedBatch::from_rows(members.iter().map(|&index| &rows[index]));
    let is_empty = |batch: &PackedBatch| batch.targets.is_empty();
    microbatches(lengths, microbatch_tokens)
        .into_iter()
        .map(packed)
        .filter(move |batch| !batch.as_ref().is_ok_and(is_empty))
}

/// Cuts a step's rows, in their order, into microbatches of at most `microbatch_tokens` tokens and
/// gives the indices of each one's rows.
///
/// A row longer than that gets a microbatch of its own: whether it fits in memory is the planner's
/// business. The order is kept, rather than packed tighter, so that a run's metrics and its sums
/// follow the data order.
pub fn microbatches(
    lengths: impl IntoIterator<Item = usize>,
    microbatch_tokens: usize,
) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut held = 0usize;
    for (index, length) in lengths.into_iter().enumerate() {
        match batches.last_mut() {
            Some(batch) if held.saturating_add(length) <= microbatch_tokens => {
                batch.push(index);
                held += length;
            }
            _ => {
                batches.push(vec![index]);
                held = length;
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows_fill_microbatches_in_order() {
        assert_eq!(microbatches([3, 3, 3, 3], 6), [[0, 1], [2, 3]]);
        assert_eq!(microbatches([5, 9, 1, 1, 4], 6), [vec![0], vec![1], vec![2, 3, 4]]);
        assert_eq!(microbatches([2, 2], 0), [[0], [1]]);
        assert!(microbatches([], 6).is_empty());
    }

    proptest! {
        #[test]
        fn every_row_is_used_once_and_no_microbatch_could_take_the_next_row(
            lengths in prop::collection::vec(0usize..40, 0..60),
            limit in 0usize..100,
        ) {
            let batches = microbatches(lengths.iter().copied(), limit);
            let flat: Vec<usize> = batches.concat();
            prop_assert_eq!(flat, (0..lengths.len()).collect::<Vec<_>>());
            let sum = |batch: &[usize]| batch.iter().map(|&row| lengths[row]).sum::<usize>();
            for pair in batches.windows(2) {
                prop_assert!(sum(&pair[0]) + lengths[pair[1][0]] > limit);
            }
            for batch in &batches {
                prop_assert!(batch.len() == 1 || sum(batch) <= limit);
            }
        }
    }
}
