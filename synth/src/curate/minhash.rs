//! MinHash and locality-sensitive hashing: which texts may share many n-grams (Broder 1997; Leskovec,
//! Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3).

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;

use super::words::mix;

/// Hashes each set with so many permutations and cuts the signature into bands: two sets of Jaccard
/// similarity s meet in a bucket with probability 1 − (1 − s^rows)^bands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lsh {
    /// Number of bands.
    pub bands: usize,
    /// Minima in each.
    pub rows: usize,
}

impl Lsh {
    /// The groups of sets that are alike: any two whose Jaccard similarity is at least `threshold` and
    /// that meet in a bucket, and whatever these are tied to. Each group in ascending order, groups by
    /// their first; sets that are like no other are in none. `tick` is called now and then.
    ///
    /// # Errors
    /// What `tick` says.
    pub fn groups<E>(
        self,
        sets: &[Vec<u64>],
        threshold: f64,
        mut tick: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<Vec<Vec<usize>>, E> {
        let mut ties = Ties::new(sets.len());
        for band in 0..self.bands {
            tick(band)?;
            let keys: Vec<u64> = sets.par_iter().map(|set| self.key(set, band)).collect();
            let mut buckets: HashMap<u64, Vec<usize>> = HashMap::new();
            for (at, key) in keys.into_iter().enumerate() {
                if !sets[at].is_empty() {
                    buckets.entry(key).or_default().push(at);
                }
            }
            let mut buckets: Vec<Vec<usize>> =
                buckets.into_values().filter(|bucket| bucket.len() > 1).collect();
            buckets.sort_unstable();
            for bucket in buckets {
                for (i, &b) in bucket.iter().enumerate() {
                    for &a in &bucket[..i] {
                        if ties.find(a) != ties.find(b) && jaccard(&sets[a], &sets[b]) >= threshold
                        {
                            ties.join(a, b);
                        }
                    }
                }
            }
        }
        tick(self.bands)?;
        Ok(ties.groups())
    }

    /// The minima of a band under its permutations, as one number.
    fn key(self, set: &[u64], band: usize) -> u64 {
        let minimum = |permutation: usize| {
            let seed = mix(permutation as u64 + 1);
            set.iter().map(|&hash| mix(hash ^ seed)).min().unwrap_or(u64::MAX)
        };
        let minima = (band * self.rows..(band + 1) * self.rows).map(minimum);
        minima.fold(0, |key, minimum| mix(key ^ minimum))
    }
}

/// A sorted set of hashes.
pub fn set(mut hashes: Vec<u64>) -> Vec<u64> {
    hashes.sort_unstable();
    hashes.dedup();
    hashes
}

/// |a ∩ b| ⁄ |a ∪ b| of two sorted sets; 0 of two empty ones.
pub fn jaccard(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut shared) = (0, 0, 0usize);
    while i < a.len() && j < b.len() {
        let (x, y) = (a[i], b[j]);
        shared += usize::from(x == y);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    match a.len() + b.len() - shared {
        0 => 0.0,
        union => shared as f64 / union as f64,
    }
}

/// Union-find with halved paths; the least member stands for its group.
struct Ties(Vec<usize>);

impl Ties {
    fn new(len: usize) -> Self {
        Self((0..len).collect())
    }

    fn find(&mut self, mut at: usize) -> usize {
        while self.0[at] != at {
            self.0[at] = self.0[self.0[at]];
            at = self.0[at];
        }
        at
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        self.0[a.max(b)] = a.min(b);
    }

    fn groups(mut self) -> Vec<Vec<usize>> {
        let roots: Vec<usize> = (0..self.0.len()).map(|at| self.find(at)).collect();
        let mut sizes: HashMap<usize, usize> = HashMap::new();
        roots.iter().for_each(|root| *sizes.entry(*root).or_default() += 1);
        let several: HashSet<usize> =
            sizes.into_iter().filter(|(_, size)| *size > 1).map(|(root, _)| root).collect();
        let mut places: HashMap<usize, usize> = HashMap::new();
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (at, root) in roots.into_iter().enumerate().filter(|(_, root)| several.contains(root)) {
            let place = *places.entry(root).or_insert(groups.len());
            if place == groups.len() {
                groups.push(Vec::new());
            }
            groups[place].push(at);
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::words::hash;

    const LSH: Lsh = Lsh { bands: 32, rows: 4 };

    fn numbers(range: std::ops::Range<u64>) -> Vec<u64> {
        set(range.map(|number| hash(&number.to_le_bytes())).collect())
    }

    fn groups(sets: &[Vec<u64>], threshold: f64) -> Vec<Vec<usize>> {
        LSH.groups(sets, threshold, |_| Ok::<_, ()>(())).unwrap()
    }

    #[test]
    fn jaccard_is_the_share_of_what_is_common() {
        assert_eq!(jaccard(&numbers(0..10), &numbers(0..10)), 1.0);
        assert_eq!(jaccard(&numbers(0..10), &numbers(5..15)), 5.0 / 15.0);
        assert_eq!(jaccard(&numbers(0..10), &[]), 0.0);
        assert_eq!(jaccard(&[], &[]), 0.0);
    }

    #[test]
    fn the_groups_are_those_of_all_pairs_compared() {
        // Chains: each set shares nine tenths with the next, and eight tenths with the one after.
        let mut sets = Vec::new();
        for chain in 0..20u64 {
            for link in 0..4 {
                let from = chain * 100_000 + link * 5;
                sets.push(numbers(from..from + 95));
            }
        }
        let found = groups(&sets, 0.85);
        let expected: Vec<Vec<usize>> = (0..20).map(|c| (4 * c..4 * c + 4).collect()).collect();
        assert_eq!(found, expected);
        assert!(groups(&sets, 0.95).is_empty());
    }

    #[test]
    fn the_share_that_meets_follows_the_formula() {
        // Jaccard similarity 1/3: 1 − (1 − 3⁻⁴)³² = 0.328.
        let pairs: Vec<_> = (0..600u64)
            .flat_map(|at| {
                [numbers(at * 1000..at * 1000 + 100), numbers(at * 1000 + 50..at * 1000 + 150)]
            })
            .collect();
        let met = groups(&pairs, 0.0).iter().map(Vec::len).sum::<usize>() as f64 / 2.0 / 600.0;
        assert!((met - 0.328).abs() < 0.06, "{met}");
    }

    #[test]
    fn empty_sets_are_like_nothing() {
        assert!(groups(&[vec![], vec![], numbers(0..3)], 0.0).is_empty());
    }
}
