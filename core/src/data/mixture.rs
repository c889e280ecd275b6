//! Several data sets as one: how many rows of each make an epoch, and in which order.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A row of one of a mixture's data sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowRef {
    /// Which data set.
    pub dataset: u32,
    /// Which of its rows.
    pub row: u32,
}

/// A place in the endless order of a mixture's rows: what a checkpoint keeps.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Epochs before it.
    pub epoch: u64,
    /// Rows of its epoch before it.
    pub position: u64,
}

/// Data sets with weights, and the order that their rows are read in.
///
/// An epoch takes `round(weight × rows)` rows of a data set, and at least one: each row
/// `⌊weight⌋` times, and a seeded sample, without repetition, of the rest. Another epoch draws
/// another sample. With shuffling, all rows of the epoch are put into an order drawn from the seed
/// and the epoch's number; without, data sets and rows come in the order in which they were given.
///
/// The order depends on nothing but the lengths, the weights, the seed and the epoch: not on the
/// machine, and not on the number of threads.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixture {
    parts: Vec<Part>,
    seed: u64,
    shuffle: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Part {
    rows: u32,
    weight: f64,
    /// Rows drawn in an epoch.
    drawn: u64,
}

/// The most rows that an epoch may have: its order is held in memory, 8 bytes a row.
const MAX_EPOCH_ROWS: u64 = 1 << 33;

impl Mixture {
    /// A mixture of data sets of so many rows and such weights.
    ///
    /// # Errors
    /// If there is no data set, one is empty or has more than 2^32 rows, or a weight is not a
    /// finite number above zero.
    pub fn new(parts: &[(usize, f64)], seed: u64, shuffle: bool) -> Result<Self> {
        if parts.is_empty() {
            return Err(Error::config("expected at least one data set"));
        }
        let parts = parts
            .iter()
            .map(|&(rows, weight)| {
                if !(weight.is_finite() && weight > 0.0) {
                    return Err(Error::config(format!(
                        "expected a data set's weight to be above zero, got `{weight}`"
                    )));
                }
                if rows == 0 {
                    return Err(Error::data("a data set of the mixture holds no rows"));
                }
                let rows = u32::try_from(rows).map_err(|_| {
                    Error::data(format!("a data set of `{rows}` rows, expected fewer than 2^32"))
                })?;
                // Rounds half away from zero; exact as long as the product is below 2^53.
                let drawn = (weight * f64::from(rows)).round().max(1.0) as u64;
                Ok(Part { rows, weight, drawn })
            })
            .collect::<Result<Vec<_>>>()?;
        let total = parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.drawn));
        if total > MAX_EPOCH_ROWS {
            return Err(Error::config(format!("an epoch of `{total}` rows is too long"))
                .hint("lower the weights; run more epochs instead"));
        }
        Ok(Self { parts, seed, shuffle })
    }

    /// Rows of an epoch.
    pub fn rows_per_epoch(&self) -> u64 {
        self.parts.iter().map(|part| part.drawn).sum()
    }

    /// Rows of an epoch that each data set gives.
    pub fn rows_of_each(&self) -> Vec<u64> {
        self.parts.iter().map(|part| part.drawn).collect()
    }

    /// What the order depends on, hashed: a checkpoint that was made with another fingerprint
    /// cannot go on from its cursor.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"halter mixture 1");
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&[u8::from(self.shuffle)]);
        for part in &self.parts {
            hasher.update(&part.rows.to_le_bytes());
            hasher.update(&part.weight.to_bits().to_le_bytes());
        }
        hasher.finalize().to_hex()[..32].to_string()
    }

    /// The rows of one epoch, in order.
    pub fn epoch(&self, epoch: u64) -> Vec<RowRef> {
        let mut order = Vec::with_capacity(usize::try_from(self.rows_per_epoch()).unwrap_or(0));
        for (dataset, part) in (0u32..).zip(&self.parts) {
            let all = u64::from(part.rows);
            for _ in 0..part.drawn / all {
                order.extend((0..part.rows).map(|row| RowRef { dataset, row }));
            }
            let rest = (part.drawn % all) as usize;
            if rest > 0 {
                let mut rng = self.rng(epoch, dataset.wrapping_add(1));
                let sample = sample(part.rows, rest, &mut rng);
                order.extend(sample.into_iter().map(|row| RowRef { dataset, row }));
            }
        }
        if self.shuffle {
            let mut rng = self.rng(epoch, 0);
            for end in (1..order.len()).rev() {
                let other = below(&mut rng, end as u64 + 1) as usize;
                order.swap(end, other);
            }
        }
        order
    }

    /// The rows from a cursor on, epoch after epoch; for `epochs` epochs in all, or for ever.
    ///
    /// # Errors
    /// If the cursor lies beyond its epoch: it was made with other data.
    pub fn rows_from(&self, cursor: Cursor, epochs: Option<u64>) -> Result<Order> {
        let rows = self.rows_per_epoch();
        if cursor.position > rows {
            return Err(Error::data(format!(
                "the checkpoint goes on at row `{}` of an epoch of `{rows}` rows",
                cursor.position
            ))
            .hint("the data or its weights changed since; resume with the data of the first run"));
        }
        Ok(Order { mixture: self.clone(), next: cursor, epochs, held: None }.normalised())
    }

    /// A generator for one purpose of one epoch.
    fn rng(&self, epoch: u64, purpose: u32) -> ChaCha8Rng {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"halter data order 1");
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&epoch.to_le_bytes());
        hasher.update(&purpose.to_le_bytes());
        ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
    }
}

/// A number below `bound`. By a product rather than by rejection, so that every draw takes one
/// number of the generator; the bias is at most `bound / 2^64`.
fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    ((u128::from(rng.next_u64()) * u128::from(bound)) >> 64) as u64
}

/// `count` of the numbers below `rows`, ascending, each set equally likely (Knuth's algorithm S).
fn sample(rows: u32, count: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let mut chosen = Vec::with_capacity(count);
    for row in 0..rows {
        let (left, wanted) = (u64::from(rows - row), (count - chosen.len()) as u64);
        if below(rng, left) < wanted {
            chosen.push(row);
        }
    }
    chosen
}

/// The rows of a mixture from a cursor on.
#[derive(Debug)]
pub struct Order {
    mixture: Mixture,
    next: Cursor,
    epochs: Option<u64>,
    /// The epoch at hand.
    held: Option<(u64, Vec<RowRef>)>,
}

impl Order {
    /// The cursor of the next row.
    pub fn cursor(&self) -> Cursor {
        self.next
    }

    fn normalised(mut self) -> Self {
        self.next = self.after(self.next.epoch, self.next.position);
        self
    }

    /// The end of one epoch is the start of the next.
    fn after(&self, epoch: u64, position: u64) -> Cursor {
        if position >= self.mixture.rows_per_epoch() {
            Cursor { epoch: epoch + 1, position: 0 }
        } else {
            Cursor { epoch, position }
        }
    }
}

impl Iterator for Order {
    /// The row's own cursor, and the row.
    type Item = (Cursor, RowRef);

    fn next(&mut self) -> Option<Self::Item> {
        let cursor = self.next;
        if self.epochs.is_some_and(|epochs| cursor.epoch >= epochs) {
            return None;
        }
        if self.held.as_ref().is_none_or(|(epoch, _)| *epoch != cursor.epoch) {
            // Frees the epoch before it first: an order may be the largest thing in memory.
            self.held = None;
            self.held = Some((cursor.epoch, self.mixture.epoch(cursor.epoch)));
        }
        let (_, rows) = self.held.as_ref()?;
        let row = *rows.get(usize::try_from(cursor.position).ok()?)?;
        self.next = self.after(cursor.epoch, cursor.position + 1);
        Some((cursor, row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn counts(rows: &[RowRef]) -> HashMap<RowRef, u64> {
        let mut counts = HashMap::new();
        for &row in rows {
            *counts.entry(row).or_insert(0) += 1;
        }
        counts
    }

    #[test]
    fn a_weight_of_two_reads_each_row_twice_and_a_fraction_takes_its_share() {
        let mixture = Mixture::new(&[(10, 1.0), (7, 2.0), (10, 0.3), (4, 1.5)], 7, true).unwrap();
        assert_eq!(mixture.rows_of_each(), [10, 14, 3, 6]);
        let epoch = mixture.epoch(0);
        assert_eq!(epoch.len(), 33);
        let counts = counts(&epoch);
        for (row, count) in &counts {
            let expected = match row.dataset {
                0 | 2 => 1..=1,
                1 => 2..=2,
                _ => 1..=2,
            };
            assert!(expected.contains(count), "{row:?} {count}");
        }
        assert_eq!(counts.keys().filter(|row| row.dataset == 2).count(), 3);
    }

    #[test]
    fn without_shuffling_rows_come_in_file_order() {
        let mixture = Mixture::new(&[(3, 1.0), (2, 2.0)], 0, false).unwrap();
        let rows: Vec<_> = mixture.epoch(5).iter().map(|row| (row.dataset, row.row)).collect();
        assert_eq!(rows, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 0), (1, 1)]);
    }

    #[test]
    fn the_order_is_pinned() {
        // If this changes, checkpoints of earlier versions resume with other rows.
        let mixture = Mixture::new(&[(8, 1.0), (4, 0.5)], 42, true).unwrap();
        let shown = |epoch| {
            let rows = mixture.epoch(epoch);
            rows.iter().map(|row| format!("{}.{}", row.dataset, row.row)).collect::<Vec<_>>()
        };
        insta::assert_snapshot!(format!(
            "{}\n{}\n{}",
            shown(0).join(" "),
            shown(1).join(" "),
            mixture.fingerprint()
        ));
    }

    #[test]
    fn epochs_differ_and_seeds_differ() {
        let mixture = |seed| Mixture::new(&[(100, 1.0)], seed, true).unwrap();
        assert_ne!(mixture(1).epoch(0), mixture(1).epoch(1));
        assert_ne!(mixture(1).epoch(0), mixture(2).epoch(0));
        assert_eq!(mixture(1).epoch(3), mixture(1).epoch(3));
        assert_ne!(mixture(1).fingerprint(), mixture(2).fingerprint());
    }

    #[test]
    fn every_place_is_equally_likely() {
        // 6,000 shuffles of 4 rows: each row stands first 1,500 times, give or take 5 sigma (168).
        let mixture = Mixture::new(&[(4, 1.0)], 11, true).unwrap();
        let mut first = [0i64; 4];
        for epoch in 0..6000 {
            first[mixture.epoch(epoch)[0].row as usize] += 1;
        }
        assert!(first.iter().all(|count| (count - 1500).abs() < 168), "{first:?}");
    }

    #[test]
    fn a_run_resumed_at_any_row_reads_exactly_the_following_rows() {
        let mixture = Mixture::new(&[(5, 1.4), (3, 1.0)], 3, true).unwrap();
        let whole: Vec<_> = mixture.rows_from(Cursor::default(), Some(3)).unwrap().collect();
        assert_eq!(whole.len(), 30);
        for stop in 0..whole.len() {
            let mut order = mixture.rows_from(Cursor::default(), Some(3)).unwrap();
            for _ in 0..stop {
                order.next();
            }
            let stored = serde_json::to_string(&order.cursor()).unwrap();
            let cursor = serde_json::from_str(&stored).unwrap();
            let rest: Vec<_> = mixture.rows_from(cursor, Some(3)).unwrap().collect();
            assert_eq!(rest, whole[stop..], "stopped after {stop}");
        }
        // The end of an epoch, as a checkpoint might spell it, is the start of the next.
        let end = Cursor { epoch: 0, position: 10 };
        assert_eq!(mixture.rows_from(end, None).unwrap().next(), Some(whole[10]));
    }

    #[test]
    fn a_cursor_beyond_its_epoch_is_refused() {
        let mixture = Mixture::new(&[(5, 1.0)], 3, true).unwrap();
        let error = mixture.rows_from(Cursor { epoch: 0, position: 6 }, None).unwrap_err();
        assert_eq!(error.to_string(), "the checkpoint goes on at row `6` of an epoch of `5` rows");
    }

    proptest! {
        #[test]
        fn weighted_counts_are_exact(
            parts in prop::collection::vec((1usize..60, 0.01f64..4.0), 1..5),
            seed: u64,
            epoch in 0u64..5,
            shuffle: bool,
        ) {
            let mixture = Mixture::new(&parts, seed, shuffle).unwrap();
            let rows = mixture.epoch(epoch);
            prop_assert_eq!(rows.len() as u64, mixture.rows_per_epoch());
            let counts = counts(&rows);
            for (dataset, &(len, weight)) in parts.iter().enumerate() {
                let own = |row: &&RowRef| row.dataset as usize == dataset;
                let drawn = ((weight * len as f64).round() as u64).max(1);
                prop_assert_eq!(rows.iter().filter(own).count() as u64, drawn);
                let (low, high) = (drawn / len as u64, drawn.div_ceil(len as u64));
                for row in 0..len as u32 {
                    let count =
                        counts.get(&RowRef { dataset: dataset as u32, row }).copied().unwrap_or(0);
                    prop_assert!((low..=high).contains(&count));
                }
            }
        }
    }
}
