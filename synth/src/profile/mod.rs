//! What a data set holds, as figures and as a page: lengths, languages, duplicates, vocabulary, topics,
//! columns, secrets, contamination. `halter data profile` shows it.

mod collect;
mod compare;
mod facts;
mod page;
pub mod secrets;
mod series;
mod study;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use halter_core::Result;
use halter_core::data::dataset::Dataset;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::Progress;
use serde::{Serialize, Serializer};

use collect::{Collected, NAMES};
pub use compare::Comparison;
pub use facts::Lenses;
pub use page::render;
use secrets::Kind;
pub use series::{Histogram, Summary};
use series::{Series, bars};
use study::Studied;
pub use study::{Group, Topic};

/// How many of the most frequent things are told.
const TOLD: usize = 25;

/// The figures of one data set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Profile {
    /// What the data set is called.
    pub name: String,
    /// The format of its rows.
    pub format: &'static str,
    /// All rows.
    pub rows: usize,
    /// Rows that could not be read.
    pub refused: usize,
    /// The first errors.
    pub errors: Vec<String>,
    /// Characters, words, turns, tokens of rows, by what is counted.
    #[serde(serialize_with = "as_map")]
    pub lengths: Vec<(&'static str, Summary)>,
    /// Turns by role.
    pub roles: BTreeMap<String, usize>,
    /// Rows by language, most first.
    pub languages: Vec<(String, usize)>,
    /// Duplicates, exact and near.
    pub duplicates: Duplicates,
    /// Words.
    pub vocabulary: Vocabulary,
    /// What rows are about.
    pub topics: Vec<Topic>,
    /// Columns of numbers.
    #[serde(serialize_with = "as_map")]
    pub numbers: Vec<(String, Summary)>,
    /// Columns of few values, and the rows of each value, most first.
    #[serde(serialize_with = "as_map")]
    pub classes: Vec<(String, Vec<(String, usize)>)>,
    /// Rows at the ends: what of, and the rows with the smallest and the largest numbers.
    pub extremes: Vec<Extreme>,
    /// Secrets and personal data.
    pub findings: Vec<Finding>,
    /// What was found of evaluations, where they were given.
    pub contamination: Option<Contamination>,
    /// What was bounded or left out.
    pub notes: Vec<String>,
}

/// Rows that repeat others.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Duplicates {
    /// Rows with the same words as an earlier one, whatever their case and punctuation.
    pub exact: usize,
    /// Some of them, and the first row like each.
    pub examples: Vec<(String, String)>,
    /// Rows among which near-duplicates were looked for: exact duplicates left out.
    pub compared: usize,
    /// Rows in groups of near-duplicates.
    pub near: usize,
    /// Number of these groups.
    pub groups: usize,
    /// The largest of them.
    pub largest: Vec<Group>,
}

/// Words of all rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Vocabulary {
    /// All words.
    pub words: u64,
    /// Distinct ones.
    pub distinct: usize,
    /// Distinct ones for each word: the type-token ratio, which falls with the length of the data.
    pub type_token_ratio: f64,
    /// The same of the first 10,000 words, by which data sets of any size compare.
    pub early_type_token_ratio: f64,
    /// The most frequent words of four letters and more.
    pub frequent: Vec<(String, u64)>,
    /// The runs of four words that are in the most rows.
    pub runs: Vec<(String, u64)>,
    /// The first two words of prompts.
    pub prompt_starts: Vec<(String, u64)>,
    /// The first two words of answers.
    pub answer_starts: Vec<(String, u64)>,
}

/// A row at an end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Example {
    /// `path:line`.
    pub place: String,
    /// Its number.
    pub number: f64,
    /// Its beginning, secrets masked.
    pub text: String,
}

/// Rows with the smallest and the largest numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Extreme {
    /// What is smallest and largest.
    pub of: String,
    /// From the smallest on.
    pub low: Vec<Example>,
    /// From the largest on.
    pub high: Vec<Example>,
}

/// Secrets or personal data of a kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// The kind.
    pub kind: Kind,
    /// Its name for people.
    pub name: &'static str,
    /// Rows that hold some.
    pub rows: usize,
    /// How many there are.
    pub times: usize,
    /// Where, and what of it is shown.
    pub places: Vec<(String, String)>,
}

/// Rows that hold rows of evaluations.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contamination {
    /// The evaluation files, their rows, and how many of these were found.
    pub files: Vec<(String, usize, usize)>,
    /// Rows that hold one.
    pub rows: usize,
    /// The row, the evaluation row, and the share of its words that are there.
    pub examples: Vec<(String, String, f64)>,
}

/// Profiles of data sets, with shared bars so that they compare, and what sets two of them apart.
///
/// # Errors
/// An interruption.
pub fn profile(
    sets: &[Dataset],
    lenses: Lenses,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<(Vec<Profile>, Option<Comparison>)> {
    let mut collected = Vec::new();
    for set in sets {
        collected.push(Collected::of(set, lenses, progress, interrupt)?);
    }
    let comparison = match collected.as_slice() {
        [one, other] => Some(Comparison::of(one, other)),
        _ => None,
    };
    let mut lengths: Vec<Vec<Series>> = Vec::new();
    let mut numbers: Vec<BTreeMap<String, Series>> = Vec::new();
    let mut rest = Vec::new();
    for mut collected in collected {
        let taken = std::mem::take(&mut collected.lengths);
        lengths.push(taken.into_iter().map(Series::new).collect());
        let taken = std::mem::take(&mut collected.numbers);
        numbers.push(taken.into_iter().map(|(name, n)| (name, Series::new(n))).collect());
        rest.push(collected);
    }
    let mut profiles = Vec::new();
    for (at, (set, collected)) in sets.iter().zip(rest).enumerate() {
        let of_lengths = NAMES.iter().enumerate().filter(|(i, _)| !lengths[at][*i].is_empty());
        let summary = |i: usize| {
            let all: Vec<&Series> = lengths.iter().map(|lengths| &lengths[i]).collect();
            lengths[at][i].summary(&bars(&all))
        };
        let of_lengths = of_lengths.map(|(i, name)| (*name, summary(i))).collect();
        let of_numbers = numbers[at].iter().map(|(name, series)| {
            let all: Vec<&Series> =
                numbers.iter().filter_map(|numbers| numbers.get(name)).collect();
            (name.clone(), series.summary(&bars(&all)))
        });
        let studied = study::study(set, &collected, interrupt)?;
        profiles.push(told(set, collected, studied, of_lengths, of_numbers.collect(), lenses)?);
    }
    Ok((profiles, comparison))
}

fn told(
    set: &Dataset,
    collected: Collected,
    studied: Studied,
    lengths: Vec<(&'static str, Summary)>,
    numbers: Vec<(String, Summary)>,
    lenses: Lenses,
) -> Result<Profile> {
    let notes = notes(&collected);
    let extremes = study::extremes(set, &collected)?;
    let contamination = lenses.evaluation.map(|(index, _)| {
        let found = |file: usize| {
            collected.evaluation_rows.iter().filter(|row| index.file_of(**row) == file).count()
        };
        let files = index.files().enumerate().map(|(at, (name, rows))| (name, rows, found(at)));
        let place =
            |(place, row, share): &(String, u32, f64)| (place.clone(), index.place(*row), *share);
        Contamination {
            files: files.collect(),
            rows: collected.contaminated,
            examples: collected.hits.iter().map(place).collect(),
        }
    });
    let findings = collected.findings.into_iter().map(|(kind, found)| Finding {
        kind,
        name: kind.name(),
        rows: found.rows,
        times: found.times,
        places: found.places,
    });
    let ratio = |distinct: usize, words: u64| distinct as f64 / words.max(1) as f64;
    let frequent = collected.words.iter().filter(|(word, _)| word.chars().count() > 3);
    let vocabulary = Vocabulary {
        words: collected.num_words,
        distinct: collected.words.len(),
        type_token_ratio: ratio(collected.words.len(), collected.num_words),
        early_type_token_ratio: ratio(collected.early_words.len(), collected.num_early as u64),
        frequent: most(frequent.map(|(word, count)| (word.clone(), *count))),
        runs: studied.runs,
        prompt_starts: most(collected.prompt_starts),
        answer_starts: most(collected.answer_starts),
    };
    let classes = collected.classes.into_iter().map(|(column, counts)| (column, most_rows(counts)));
    Ok(Profile {
        name: collected.name,
        format: collected.format,
        rows: collected.rows,
        refused: collected.refused,
        errors: collected.errors,
        lengths,
        roles: collected.roles,
        languages: most_rows(collected.languages.into_iter().map(|(l, n)| (l.to_string(), n))),
        duplicates: Duplicates {
            exact: collected.duplicates,
            examples: collected.duplicate_places,
            ..studied.duplicates
        },
        vocabulary,
        topics: studied.topics,
        numbers,
        classes: classes.collect(),
        extremes,
        findings: findings.collect(),
        contamination,
        notes,
    })
}

/// Pairs as an object, in their order.
fn as_map<N: Serialize, V: Serialize, S: Serializer>(
    pairs: &[(N, V)],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, value)| (name, value)))
}

/// What was bounded.
fn notes(collected: &Collected) -> Vec<String> {
    let mut notes = Vec::new();
    if collected.rows > collect::COMPARED {
        let rows = collect::COMPARED;
        notes.push(format!("near-duplicates were looked for among {rows} rows drawn at random"));
    }
    if collected.rows > collect::STUDIED {
        let rows = collect::STUDIED;
        notes.push(format!("topics and runs of words are those of {rows} rows drawn at random"));
    }
    if collected.columns_left_out {
        notes.push("there are more columns of numbers than are shown".into());
    }
    if collected.words_forgotten {
        notes.push(
            "there are more distinct words than were counted: the rarest are left out".into(),
        );
    }
    notes
}

/// The most frequent, of equals the first by name.
fn most(counts: impl IntoIterator<Item = (String, u64)>) -> Vec<(String, u64)> {
    let mut counts: Vec<_> = counts.into_iter().filter(|(_, count)| *count > 1).collect();
    counts.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts.truncate(TOLD);
    counts
}

fn most_rows(counts: impl IntoIterator<Item = (String, usize)>) -> Vec<(String, usize)> {
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts.truncate(TOLD);
    counts
}
