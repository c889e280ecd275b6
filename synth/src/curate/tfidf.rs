//! Texts as vectors of their words' weights: tf-idf, the tf on a logarithmic scale (Manning, Raghavan,
//! Schütze, "Introduction to Information Retrieval", section 6.4).

use std::collections::{BTreeMap, HashMap};

use super::clusters::Vectors;
use super::words::words;

/// Words that are in more than this share of the texts tell nothing about topics.
const COMMON: f64 = 0.6;
/// Most words that count, those of the most texts.
const TERMS: usize = 2000;

/// The words that count and their weights, learnt from texts.
#[derive(Debug, Clone, PartialEq)]
pub struct TfIdf {
    /// By dimension.
    pub terms: Vec<String>,
    /// Dimension and inverse document frequency of each.
    places: HashMap<String, (usize, f32)>,
}

impl TfIdf {
    /// Learns from texts, of each its words ([`split`]). Words of three letters and more count, which
    /// are in at least two texts.
    pub fn learn(texts: &[Vec<String>]) -> Self {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for text in texts {
            let mut distinct: Vec<&str> = text.iter().map(String::as_str).collect();
            distinct.sort_unstable();
            distinct.dedup();
            distinct.into_iter().filter(|word| is_term(word)).for_each(|word| {
                *counts.entry(word).or_default() += 1;
            });
        }
        let most = (COMMON * texts.len() as f64).max(2.0);
        let mut terms: Vec<(&str, usize)> =
            counts.into_iter().filter(|(_, texts)| *texts >= 2 && *texts as f64 <= most).collect();
        terms.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        terms.truncate(TERMS);
        let idf = |with: usize| (texts.len() as f32 / with as f32).ln();
        let place =
            |(at, (word, with)): (usize, &(&str, usize))| (word.to_string(), (at, idf(*with)));
        let places = terms.iter().enumerate().map(place).collect();
        Self { terms: terms.into_iter().map(|(word, _)| word.to_string()).collect(), places }
    }

    /// The vector of each text; of one without any of the terms, zeros.
    pub fn vectors(&self, texts: &[Vec<String>]) -> Vectors {
        let mut vectors = Vectors::new(self.terms.len());
        for text in texts {
            let mut weights: BTreeMap<usize, (f32, f32)> = BTreeMap::new();
            for (at, idf) in text.iter().filter_map(|word| self.places.get(word)) {
                weights.entry(*at).or_insert((0.0, *idf)).0 += 1.0;
            }
            let mut vector = vec![0f32; self.terms.len()];
            for (at, (times, idf)) in weights {
                vector[at] = (1.0 + times.ln()) * idf;
            }
            vectors.push(&vector);
        }
        vectors
    }

    /// The `most` words that stand out in each of `clusters` clusters of vectors: those by which the
    /// cluster's mean leads the mean of all most.
    pub fn names(
        &self,
        vectors: &Vectors,
        of: &[usize],
        clusters: usize,
        most: usize,
    ) -> Vec<Vec<String>> {
        let dimensions = self.terms.len();
        let mut sums = vec![vec![0f32; dimensions]; clusters];
        let mut sizes = vec![0usize; clusters];
        let mut mean = vec![0f32; dimensions];
        for (at, &cluster) in of.iter().enumerate().filter(|(_, cluster)| **cluster < clusters) {
            sizes[cluster] += 1;
            let vector = vectors.get(at);
            sums[cluster].iter_mut().zip(vector).for_each(|(sum, value)| *sum += value);
            mean.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value);
        }
        mean.iter_mut().for_each(|sum| *sum /= vectors.len().max(1) as f32);
        let name = |(sums, size): (Vec<f32>, usize)| {
            let lead = |at: usize| sums[at] / size.max(1) as f32 - mean[at];
            let mut order: Vec<usize> = (0..dimensions).filter(|&at| lead(at) > 0.0).collect();
            order.sort_by(|&a, &b| lead(b).total_cmp(&lead(a)).then(a.cmp(&b)));
            order.into_iter().take(most).map(|at| self.terms[at].clone()).collect()
        };
        sums.into_iter().zip(sizes).map(name).collect()
    }
}

/// Short words and numbers are no topics; ideographs are.
fn is_term(word: &str) -> bool {
    let long = word.len() >= 3 && !word.chars().next().is_some_and(char::is_numeric);
    long && !STOP_WORDS.contains(&word)
}

/// English function words of three letters and more.
const STOP_WORDS: [&str; 64] = [
    "the", "and", "for", "are", "was", "were", "that", "this", "with", "from", "have", "has",
    "had", "not", "but", "you", "your", "they", "their", "them", "she", "her", "his", "him", "its",
    "our", "who", "what", "which", "when", "where", "how", "why", "can", "could", "will", "would",
    "should", "may", "might", "must", "does", "did", "been", "being", "than", "then", "there",
    "these", "those", "into", "about", "also", "any", "all", "each", "more", "most", "some",
    "such", "one", "two", "it's", "here",
];

/// The names of clusters of texts, the words joined, and equal names told apart by a number.
pub fn joined(names: &[Vec<String>]) -> Vec<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let name = |words: &Vec<String>| {
        let name = if words.is_empty() { "other".to_string() } else { words.join(", ") };
        let times = seen.entry(name.clone()).or_default();
        *times += 1;
        if *times == 1 { name } else { format!("{name} {times}") }
    };
    names.iter().map(name).collect()
}

/// The words of each text.
pub fn split(texts: &[String]) -> Vec<Vec<String>> {
    texts.iter().map(|text| words(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::clusters::cluster;

    #[test]
    fn topics_are_told_apart_and_named_by_their_words() {
        let mut texts = Vec::new();
        for at in 0..12 {
            texts.push(format!("The cat {at} chased another cat and the mouse hid from the cat"));
            texts.push(format!("Solve the equation {at} for the unknown, an algebra equation"));
            texts.push(format!("Bake the bread {at} in an oven with flour and yeast, bread rises"));
        }
        let texts = split(&texts);
        let tfidf = TfIdf::learn(&texts);
        let vectors = tfidf.vectors(&texts);
        let clusters = cluster(&vectors, 3, 1, || Ok(())).unwrap();
        let names = joined(&tfidf.names(&vectors, &clusters.of, 3, 2));
        for (at, word) in [(0, "cat"), (1, "equation"), (2, "bread")] {
            assert!(names[clusters.of[at]].contains(word), "{names:?}");
            assert!((0..12).all(|row| clusters.of[3 * row + at] == clusters.of[at]));
        }
    }

    #[test]
    fn weights_follow_the_formula() {
        let texts = ["apple apple pear", "apple plum", "pear plum", "kiwi kiwi", "kiwi fig"];
        let texts: Vec<String> = texts.map(str::to_string).to_vec();
        let texts = split(&texts);
        let tfidf = TfIdf::learn(&texts);
        let vectors = tfidf.vectors(&texts);
        // `fig` is in one text alone; all others in two of five.
        assert_eq!(tfidf.terms, ["apple", "kiwi", "pear", "plum"]);
        let (apple, pear) = (1.0 + 2f32.ln(), 1f32);
        let length = (apple * apple + pear * pear).sqrt();
        assert!((vectors.get(0)[0] - apple / length).abs() < 1e-6);
        assert!((vectors.get(0)[2] - pear / length).abs() < 1e-6);
    }

    #[test]
    fn texts_without_words_are_no_trouble() {
        let texts = split(&["".to_string(), "!".to_string()]);
        assert_eq!(TfIdf::learn(&texts).vectors(&texts).dimensions(), 0);
        assert_eq!(joined(&[vec![], vec![]]), ["other", "other 2"]);
    }
}
