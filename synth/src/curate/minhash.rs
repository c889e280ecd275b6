//! MinHash and locality-sensitive hashing: which texts may share many n-grams (Broder 1997; Leskovec,
//! Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3).

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;

use super::words::mix;

/// Sets whose signatures are taken before `tick` is called.
const CHUNK: usize = 4096;
/// Pairs of a bucket that are compared before `tick` is called.
const PAIRS: usize = 1 << 22;
/// A pair goes uncompared where so many standard deviations fewer minima agree than at the threshold.
const SURE: f64 = 4.0;

/// Hashes each set with so many permutations and cuts the signature into bands: two sets of Jaccard
/// similarity s meet in a bucket with probability 1 − (1 − s^rows)^bands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lsh {
    /// Number of bands.
    pub bands: usize,
    /// Minima in each.
    pub rows: usize,
}

/// What is compared of a set before the set itself.
struct Signature {
    /// The minima of each band as one number.
    keys: Box<[u64]>,
    /// The last byte of every minimum.
    minima: Box<[u8]>,
}

impl Signature {
    /// Minima that agree, and a few that do by chance.
    fn agreeing(&self, other: &Self) -> usize {
        let chunks = self.minima.chunks(128).zip(other.minima.chunks(128));
        let equal = |(a, b): (&[u8], &[u8])| {
            a.iter().zip(b).map(|(a, b)| u8::from(a == b)).sum::<u8>() as usize
        };
        chunks.map(equal).sum()
    }

    /// Whether the two have met in a band before this one.
    fn met_before(&self, other: &Self, band: usize) -> bool {
        self.keys[..band].iter().zip(&other.keys).any(|(a, b)| a == b)
    }
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
        let mut signatures = Vec::with_capacity(sets.len());
        for some in sets.chunks(CHUNK) {
            tick(0)?;
            signatures.par_extend(some.par_iter().map(|set| self.signature(set)));
        }
        let least = self.least_agreeing(threshold);
        let mut ties = Ties::new(sets.len());
        for band in 0..self.bands {
            tick(band)?;
            let mut buckets: HashMap<u64, Vec<usize>> = HashMap::new();
            for (at, signature) in signatures.iter().enumerate() {
                if !sets[at].is_empty() {
                    buckets.entry(signature.keys[band]).or_default().push(at);
                }
            }
            for bucket in buckets.into_values().filter(|bucket| bucket.len() > 1) {
                // Which pairs are alike does not depend on the order in which they are looked at.
                let step = (PAIRS / bucket.len()).max(1);
                for start in (0..bucket.len()).step_by(step) {
                    tick(band)?;
                    let roots: Vec<usize> = bucket.iter().map(|&at| ties.find(at)).collect();
                    if roots.iter().all(|root| *root == roots[0]) {
                        break;
                    }
                    let those = start..(start + step).min(bucket.len());
                    let is_alike = |i: usize, j: usize| {
                        let (a, b) = (bucket[j], bucket[i]);
                        let (one, other) = (&signatures[a], &signatures[b]);
                        one.agreeing(other) >= least
                            && !one.met_before(other, band)
                            && jaccard(&sets[a], &sets[b]) >= threshold
                    };
                    let tied = |i: usize| {
                        // One of each group is enough.
                        let mut to: Vec<usize> = vec![roots[i]];
                        for (j, root) in roots[..i].iter().enumerate() {
                            if !to.contains(root) && is_alike(i, j) {
                                to.push(*root);
                            }
                        }
                        to
                    };
                    let found: Vec<Vec<usize>> = those.into_par_iter().map(tied).collect();
                    for to in found {
                        to.iter().for_each(|&root| ties.join(to[0], root));
                    }
                }
            }
        }
        tick(self.bands)?;
        Ok(ties.groups())
    }

    /// Minima of which a pair has at least so many in common where its similarity is `threshold`.
    fn least_agreeing(self, threshold: f64) -> usize {
        let all = (self.bands * self.rows) as f64;
        let deviation = (all * threshold * (1.0 - threshold)).max(0.0).sqrt();
        (all * threshold - SURE * deviation).max(0.0) as usize
    }

    fn signature(self, set: &[u64]) -> Signature {
        let minimum = |permutation: usize| {
            let seed = mix(permutation as u64 + 1);
            set.iter().map(|&hash| mix(hash ^ seed)).min().unwrap_or(u64::MAX)
        };
        let minima: Vec<u64> = (0..self.bands * self.rows).map(minimum).collect();
        let key = |band: &[u64]| band.iter().fold(0, |key, &minimum| mix(key ^ minimum));
        let keys = minima.chunks(self.rows).map(key).collect();
        Signature { keys, minima: minima.iter().map(|&minimum| minimum as u8).collect() }
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
    fn many_that_share_a_bucket_are_told_apart_and_the_work_can_be_broken_off() {
        // Half of each set is a template's: nearly all meet somewhere, and no two are alike.
        let one = |at: u64| {
            set([numbers(0..40), numbers(1000 * (at + 1)..1000 * (at + 1) + 40)].concat())
        };
        let mut sets: Vec<Vec<u64>> = (0..3000).map(one).collect();
        assert!(groups(&sets, 0.7).is_empty());
        sets.extend([one(7), one(2999)]);
        assert_eq!(groups(&sets, 0.7), [[7, 3000], [2999, 3001]]);
        let alike: Vec<Vec<u64>> = (0..3000).map(|_| one(0)).collect();
        assert_eq!(groups(&alike, 0.7), [(0..3000).collect::<Vec<_>>()]);
        let mut ticks = 0;
        let broken_off = LSH.groups(&sets, 0.7, |_| {
            ticks += 1;
            if ticks > 20 { Err(()) } else { Ok(()) }
        });
        assert_eq!((broken_off, ticks), (Err(()), 21));
    }

    #[test]
    fn empty_sets_are_like_nothing() {
        assert!(groups(&[vec![], vec![], numbers(0..3)], 0.0).is_empty());
    }
}
