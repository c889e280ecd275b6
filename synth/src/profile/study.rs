//! What needs more than one look: near-duplicates, topics, runs of words, examples.

use std::collections::HashMap;

use halter_core::Result;
use halter_core::data::dataset::Dataset;
use halter_core::train::interrupt::Interrupt;
use serde::Serialize;

use super::collect::Collected;
use super::secrets::masked;
use super::{Duplicates, Example, Extreme};
use crate::curate::clusters::cluster;
use crate::curate::dialogue::Dialogue;
use crate::curate::minhash::Lsh;
use crate::curate::tfidf::{TfIdf, joined};
use crate::curate::words::{excerpt, ngrams};

/// Jaccard similarity from which on rows are near-duplicates.
const THRESHOLD: f64 = 0.7;
/// Most topics.
const TOPICS: usize = 12;
/// Words of a run.
const RUN: usize = 4;
/// Groups that are shown.
const GROUPS: usize = 5;
/// Columns of numbers whose ends are shown, besides lengths.
const COLUMNS: usize = 4;
/// What such columns are mostly called, the most telling first.
const KNOWN: [&str; 9] = [
    "score",
    "quality",
    "difficulty",
    "reward",
    "rating",
    "judge.points",
    "num_tags",
    "attempts",
    "similarity",
];
/// Characters of an example.
const EXCERPT: usize = 500;

/// Rows that share most of their words.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// How many.
    pub rows: usize,
    /// Where the first ones are.
    pub places: Vec<String>,
    /// The first one's beginning, secrets masked.
    pub text: String,
}

/// A cluster of rows by their words.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Topic {
    /// The words that stand out in it.
    pub name: String,
    /// The share of the rows.
    pub share: f64,
    /// Its most typical row.
    pub place: String,
    /// That row's beginning, secrets masked.
    pub text: String,
}

pub(super) struct Studied {
    pub(super) duplicates: Duplicates,
    pub(super) topics: Vec<Topic>,
    pub(super) runs: Vec<(String, u64)>,
}

pub(super) fn study(
    set: &Dataset,
    collected: &Collected,
    interrupt: &Interrupt,
) -> Result<Studied> {
    Ok(Studied {
        duplicates: near_duplicates(set, collected, interrupt)?,
        topics: topics(set, collected, interrupt)?,
        runs: runs(&collected.studied),
    })
}

fn near_duplicates(
    set: &Dataset,
    collected: &Collected,
    interrupt: &Interrupt,
) -> Result<Duplicates> {
    let (rows, sets): (Vec<usize>, Vec<Vec<u64>>) = collected.compared.iter().cloned().unzip();
    let lsh = Lsh { bands: 32, rows: 4 };
    let mut groups = lsh.groups(&sets, THRESHOLD, |_| interrupt.check())?;
    groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
    let shown = |group: &Vec<usize>| {
        let places = group.iter().take(5).map(|&at| place(set, rows[at])).collect();
        Ok(Group { rows: group.len(), places, text: text(set, rows[group[0]])? })
    };
    Ok(Duplicates {
        exact: 0,
        examples: Vec::new(),
        compared: rows.len(),
        near: groups.iter().map(Vec::len).sum(),
        groups: groups.len(),
        largest: groups.iter().take(GROUPS).map(shown).collect::<Result<_>>()?,
    })
}

fn topics(set: &Dataset, collected: &Collected, interrupt: &Interrupt) -> Result<Vec<Topic>> {
    let (rows, words): (Vec<usize>, Vec<Vec<String>>) = collected.studied.iter().cloned().unzip();
    let tfidf = TfIdf::learn(&words);
    if tfidf.terms.is_empty() {
        return Ok(Vec::new());
    }
    let vectors = tfidf.vectors(&words);
    let count = TOPICS.min((rows.len() as f64 / 2.0).sqrt().ceil() as usize);
    let clusters = cluster(&vectors, count, 0, || interrupt.check())?;
    let count = clusters.centres.len();
    let names = joined(&tfidf.names(&vectors, &clusters.of, count, 4));
    let mut topics = Vec::new();
    for (topic, name) in names.into_iter().enumerate() {
        let members: Vec<usize> = (0..rows.len()).filter(|&at| clusters.of[at] == topic).collect();
        let cosine = |at: usize| clusters.centres.cosine_with(topic, vectors.get(at));
        let typical = members
            .iter()
            .copied()
            .max_by(|&a, &b| cosine(a).total_cmp(&cosine(b)).then(b.cmp(&a)));
        let Some(typical) = typical else { continue };
        topics.push(Topic {
            name,
            share: members.len() as f64 / rows.len() as f64,
            place: place(set, rows[typical]),
            text: text(set, rows[typical])?,
        });
    }
    topics.sort_by(|a, b| b.share.total_cmp(&a.share).then_with(|| a.name.cmp(&b.name)));
    Ok(topics)
}

/// The runs of words that are in the most rows. Runs that only continue one another are told once.
fn runs(rows: &[(usize, Vec<String>)]) -> Vec<(String, u64)> {
    let mut counts: HashMap<u64, u64> = HashMap::new();
    for (_, words) in rows.iter().filter(|(_, words)| words.len() >= RUN) {
        let mut distinct = ngrams(words, RUN);
        distinct.sort_unstable();
        distinct.dedup();
        distinct.into_iter().for_each(|run| *counts.entry(run).or_default() += 1);
    }
    counts.retain(|_, rows| *rows > 1);
    let mut order: Vec<u64> = counts.values().copied().collect();
    order.sort_unstable_by(|a, b| b.cmp(a));
    let least = order.get(4 * super::TOLD).or(order.last()).copied().unwrap_or(u64::MAX);
    counts.retain(|_, rows| *rows >= least);
    let mut texts: HashMap<u64, String> = HashMap::new();
    for (_, words) in rows.iter().filter(|(_, words)| words.len() >= RUN) {
        for (at, run) in ngrams(words, RUN).into_iter().enumerate() {
            if counts.contains_key(&run) {
                texts.entry(run).or_insert_with(|| words[at..at + RUN].join(" "));
            }
        }
    }
    let named = counts.into_iter().filter_map(|(run, rows)| Some((texts.get(&run)?.clone(), rows)));
    let mut named: Vec<(String, u64)> = named.collect();
    named.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    named.truncate(super::TOLD);
    named
}

/// The rows at the ends of what they are ordered by.
pub(super) fn extremes(set: &Dataset, collected: &Collected) -> Result<Vec<Extreme>> {
    let example = |(number, row): &(f64, usize)| {
        let (place, text) = (place(set, *row), text(set, *row)?);
        Ok(Example { place, number: *number, text })
    };
    let extreme = |(of, ends): (&String, &super::collect::Extremes)| {
        let low = ends.low.iter().map(example).collect::<Result<_>>()?;
        let high = ends.high.iter().map(example).collect::<Result<_>>()?;
        Ok(Extreme { of: of.clone(), low, high })
    };
    // Lengths first, then columns that are known, then others by name.
    let (lengths, mut columns): (Vec<_>, Vec<_>) =
        collected.extremes.iter().partition(|(of, _)| *of == "words");
    columns
        .sort_by_key(|(of, _)| KNOWN.iter().position(|known| known == of).unwrap_or(KNOWN.len()));
    lengths.into_iter().chain(columns.into_iter().take(COLUMNS)).map(extreme).collect()
}

fn place(set: &Dataset, row: usize) -> String {
    let origin = set.origin(row);
    format!("{}:{}", origin.path.display(), origin.line)
}

/// The beginning of a row's text. What is secret is masked before it is cut.
fn text(set: &Dataset, row: usize) -> Result<String> {
    let dialogue = Dialogue::of_record(&set.record(row)?);
    Ok(excerpt(&masked(&dialogue.shown()), EXCERPT))
}
