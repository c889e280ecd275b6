//! One pass over a data set, in bounded memory.

use std::collections::{BTreeMap, HashMap, HashSet};

use halter_core::data::dataset::Dataset;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::{Progress, Unit};
use halter_core::{Error, Result};
use rayon::prelude::*;

use super::facts::{Facts, Lenses};
use super::secrets::{Kind, masked};
use crate::curate::minhash::set;
use crate::curate::sample::drawn;
use crate::curate::words::ngrams;

/// Rows that are read before they are counted.
const CHUNK: usize = 1024;
/// Rows among which near-duplicates are looked for.
pub(super) const COMPARED: usize = 50_000;
/// Rows from which topics and runs of words are taken.
pub(super) const STUDIED: usize = 10_000;
/// Distinct words, or openings, that are counted.
const DISTINCT: usize = 1_000_000;
/// Distinct values of a column that are still classes.
const CLASSES: usize = 50;
/// Columns of numbers that are shown.
const COLUMNS: usize = 100;
/// Words of the n-grams that near-duplicates are told by.
const NGRAM: usize = 5;
/// Places kept of errors, findings, hits.
const NAMED: usize = 20;

/// What was counted.
#[derive(Default)]
pub struct Collected {
    pub(super) name: String,
    pub(super) format: &'static str,
    pub(super) rows: usize,
    pub(super) refused: usize,
    pub(super) errors: Vec<String>,
    pub(super) roles: BTreeMap<String, usize>,
    pub(super) languages: BTreeMap<&'static str, usize>,
    /// By [`NAMES`].
    pub(super) lengths: Vec<Vec<f64>>,
    pub(super) numbers: BTreeMap<String, Vec<f64>>,
    pub(super) classes: BTreeMap<String, HashMap<String, usize>>,
    not_classes: HashSet<String>,
    /// The first row of each digest.
    pub(super) seen: HashMap<[u8; 16], u32>,
    pub(super) duplicates: usize,
    pub(super) duplicate_places: Vec<(String, String)>,
    pub(super) words: HashMap<String, u64>,
    pub(super) num_words: u64,
    pub(super) words_forgotten: bool,
    pub(super) columns_left_out: bool,
    /// Distinct words among the first of all, up to a number of words.
    pub(super) early_words: HashSet<String>,
    pub(super) num_early: usize,
    pub(super) prompt_starts: HashMap<String, u64>,
    pub(super) answer_starts: HashMap<String, u64>,
    /// Rows and their n-grams, for near-duplicates.
    pub(super) compared: Vec<(usize, Vec<u64>)>,
    /// Rows and their words, for topics.
    pub(super) studied: Vec<(usize, Vec<String>)>,
    pub(super) findings: BTreeMap<Kind, Found>,
    pub(super) contaminated: usize,
    pub(super) evaluation_rows: HashSet<u32>,
    pub(super) hits: Vec<(String, u32, f64)>,
    /// Row and number, by what is longest, shortest, and so on.
    pub(super) extremes: BTreeMap<String, Extremes>,
}

/// Findings of one kind.
#[derive(Default)]
pub(super) struct Found {
    pub(super) rows: usize,
    pub(super) times: usize,
    pub(super) places: Vec<(String, String)>,
}

/// The rows with the smallest and the largest numbers.
#[derive(Default)]
pub(super) struct Extremes {
    pub(super) low: Vec<(f64, usize)>,
    pub(super) high: Vec<(f64, usize)>,
}

impl Extremes {
    const KEPT: usize = 3;

    fn add(&mut self, number: f64, row: usize) {
        if !number.is_finite() {
            return;
        }
        let place = self.low.partition_point(|(other, _)| *other <= number);
        self.low.insert(place, (number, row));
        self.low.truncate(Self::KEPT);
        let place = self.high.partition_point(|(other, _)| *other >= number);
        self.high.insert(place, (number, row));
        self.high.truncate(Self::KEPT);
    }
}

/// What lengths count, in the order of the page.
pub(super) const NAMES: [&str; 6] =
    ["characters", "words", "words of the prompt", "words of the answer", "turns", "tokens"];
/// Words among which distinct ones are counted, so that data sets of any size compare.
pub(super) const EARLY: usize = 10_000;

impl Collected {
    /// Reads a data set once. Rows that cannot be read are counted and named. Memory is about 100
    /// bytes a row, beside what is bounded: see the notes of the profile.
    ///
    /// # Errors
    /// An interruption.
    pub fn of(
        set: &Dataset,
        lenses: Lenses,
        progress: &mut dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let mut collected = Self {
            name: set.name().to_string(),
            format: set.format().name(),
            rows: set.len(),
            lengths: vec![Vec::new(); NAMES.len()],
            ..Self::default()
        };
        let all: Vec<usize> = (0..set.len()).collect();
        let compared: HashSet<usize> = drawn(&all, COMPARED, 0).into_iter().collect();
        let studied: HashSet<usize> = drawn(&all, STUDIED, 0).into_iter().collect();
        progress.begin("profiling", set.len() as u64, Unit::Rows);
        for chunk in all.chunks(CHUNK) {
            let read = |&row: &usize| {
                let facts = set.row(row).and_then(|columns| {
                    let origin = set.origin(row);
                    let facts = Facts::of(columns, set.format(), lenses);
                    facts.map_err(|error| error.at(&*origin.path, origin.line))
                });
                (row, facts)
            };
            let facts: Vec<_> = chunk.par_iter().map(read).collect();
            for (row, facts) in facts {
                match facts {
                    Ok(facts) => {
                        let draws = (compared.contains(&row), studied.contains(&row));
                        collected.add(set, row, facts, draws);
                    }
                    Err(error) => collected.refuse(&error),
                }
            }
            progress.advance(chunk.last().map_or(0, |row| *row as u64 + 1), "");
            interrupt.check()?;
        }
        progress.finish();
        Ok(collected)
    }

    fn refuse(&mut self, error: &Error) {
        self.refused += 1;
        if self.errors.len() < NAMED {
            // It may show what is wrong.
            self.errors.push(masked(&error.to_string()));
        }
    }

    fn add(&mut self, set: &Dataset, row: usize, facts: Facts, (compare, study): (bool, bool)) {
        let place = || {
            let origin = set.origin(row);
            format!("{}:{}", origin.path.display(), origin.line)
        };
        for role in &facts.roles {
            *self.roles.entry(role.clone()).or_default() += 1;
        }
        *self.languages.entry(facts.language).or_default() += 1;
        let lengths = [
            Some(facts.characters),
            Some(facts.words.len()),
            Some(facts.prompt_words),
            Some(facts.answer_words),
            Some(facts.turns),
            facts.tokens,
        ];
        for (numbers, length) in self.lengths.iter_mut().zip(lengths) {
            numbers.extend(length.map(|length| length as f64));
        }
        let words = facts.words.len() as f64;
        self.extremes.entry("words".into()).or_default().add(words, row);
        for (name, number) in facts.numbers {
            // Objects may have a name of their own in every row.
            if self.numbers.len() >= COLUMNS && !self.numbers.contains_key(&name) {
                self.columns_left_out = true;
                continue;
            }
            self.extremes.entry(name.clone()).or_default().add(number, row);
            self.numbers.entry(name).or_default().push(number);
        }
        self.add_classes(facts.classes);
        let first = *self.seen.entry(facts.digest).or_insert(row as u32);
        let is_new = first as usize == row;
        if !is_new {
            self.duplicates += 1;
            if self.duplicate_places.len() < NAMED {
                let origin = set.origin(first as usize);
                let first = format!("{}:{}", origin.path.display(), origin.line);
                self.duplicate_places.push((place(), first));
            }
        }
        self.add_findings(facts.findings, place);
        if let Some(worst) = facts.hits.first() {
            self.contaminated += 1;
            if self.hits.len() < NAMED {
                self.hits.push((place(), worst.row, worst.share));
            }
            self.evaluation_rows.extend(facts.hits.iter().map(|hit| hit.row));
        }
        for (start, counts) in [
            (facts.prompt_start, &mut self.prompt_starts),
            (facts.answer_start, &mut self.answer_starts),
        ] {
            if let Some(start) =
                start.filter(|start| counts.len() < DISTINCT || counts.contains_key(start))
            {
                *counts.entry(start).or_default() += 1;
            }
        }
        let shown = facts.shown.as_ref().unwrap_or(&facts.words);
        self.add_words(shown, facts.words.len());
        if compare && is_new {
            self.compared.push((row, self::set(ngrams(&facts.words, NGRAM))));
        }
        if study {
            self.studied.push((row, facts.shown.unwrap_or(facts.words)));
        }
    }

    /// Counts words that may be shown, of so many.
    fn add_words(&mut self, words: &[String], all: usize) {
        self.num_words += all as u64;
        for word in words {
            if self.num_early < EARLY {
                self.num_early += 1;
                self.early_words.insert(word.clone());
            }
            match self.words.get_mut(word) {
                Some(count) => *count += 1,
                None => _ = self.words.insert(word.clone(), 1),
            }
        }
        if self.words.len() > DISTINCT {
            self.words.retain(|_, count| *count > 1);
            self.words_forgotten = true;
            // Where nothing is rare the rarest half goes all the same.
            while self.words.len() > DISTINCT / 2 {
                let least = self.words.values().min().copied().unwrap_or(0);
                self.words.retain(|_, count| *count > least);
            }
        }
    }

    fn add_classes(&mut self, classes: Vec<(String, String)>) {
        for (column, class) in classes {
            if self.not_classes.contains(&column) {
                continue;
            }
            let counts = self.classes.entry(column.clone()).or_default();
            *counts.entry(class).or_default() += 1;
            if counts.len() > CLASSES {
                self.classes.remove(&column);
                self.not_classes.insert(column);
            }
        }
    }

    fn add_findings(&mut self, findings: Vec<(Kind, String)>, place: impl Fn() -> String) {
        let mut kinds = HashSet::new();
        for (kind, masked) in findings {
            let found = self.findings.entry(kind).or_default();
            found.times += 1;
            found.rows += usize::from(kinds.insert(kind));
            if found.places.len() < NAMED {
                found.places.push((place(), masked));
            }
        }
    }
}
