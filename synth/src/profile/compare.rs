//! What sets two data sets apart.

use std::collections::HashMap;

use serde::Serialize;

use super::collect::Collected;

/// Words that are told of each side.
const TOLD: usize = 20;

/// Two data sets side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Distinct texts that are in both.
    pub shared: usize,
    /// Their share of the first one's distinct texts, and of the other's.
    pub shares: (f64, f64),
    /// Words that are more frequent in the first, with their z-score.
    pub first_words: Vec<(String, f64)>,
    /// Words that are more frequent in the other.
    pub other_words: Vec<(String, f64)>,
}

impl Comparison {
    pub(super) fn of(first: &Collected, other: &Collected) -> Self {
        let shared = first.seen.keys().filter(|digest| other.seen.contains_key(*digest)).count();
        let share = |of: &Collected| shared as f64 / of.seen.len().max(1) as f64;
        let mut words = weighed(&first.words, &other.words);
        let first_words = words.iter().take(TOLD).filter(|(_, z)| *z > 2.0).cloned().collect();
        words.reverse();
        let other_words = words.iter().take(TOLD).filter(|(_, z)| *z < -2.0);
        let other_words = other_words.map(|(word, z)| (word.clone(), -z)).collect();
        Self { shared, shares: (share(first), share(other)), first_words, other_words }
    }
}

/// The z-score of the difference of log-odds of each word, with half a word added everywhere (Monroe,
/// Colaresi, Quinn 2008, "Fightin' Words"); the first one's words first.
fn weighed(first: &HashMap<String, u64>, other: &HashMap<String, u64>) -> Vec<(String, f64)> {
    let total = |words: &HashMap<String, u64>| words.values().sum::<u64>() as f64 + 1.0;
    let (all_first, all_other) = (total(first), total(other));
    let all = first.keys().chain(other.keys().filter(|word| !first.contains_key(*word)));
    let z = |word: &String| {
        let count = |words: &HashMap<String, u64>| words.get(word).map_or(0.5, |n| *n as f64 + 0.5);
        let (a, b) = (count(first), count(other));
        let odds = |n: f64, all: f64| (n / (all - n).max(0.5)).ln();
        (odds(a, all_first) - odds(b, all_other)) / (1.0 / a + 1.0 / b).sqrt()
    };
    let long = all.filter(|word| word.chars().count() > 2);
    let mut weighed: Vec<(String, f64)> = long.map(|word| (word.clone(), z(word))).collect();
    weighed.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    weighed
}
