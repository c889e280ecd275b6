//! The n-grams of evaluation sets, and how much of an evaluation row another text holds.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use halter_core::data::reader::DataFile;
use halter_core::{Error, Result, bundled};
use serde_json::{Map, Value};

use crate::curate::dialogue::{Dialogue, Part};
use crate::curate::words::{ngrams, words};
use crate::row::Row;

/// Columns that usually hold what is asked.
const ASKED: [&str; 10] = [
    "question",
    "problem",
    "prompt",
    "instruction",
    "query",
    "input",
    "text",
    "content",
    "sentence",
    "goal",
];

/// N-grams of the rows of evaluation files.
#[derive(Debug)]
pub struct Index {
    files: Vec<DataFile>,
    /// File and row in it, by number of the evaluation row.
    rows: Vec<(usize, usize)>,
    /// Number of words, by number of the evaluation row.
    lengths: Vec<usize>,
    /// Evaluation rows and places in them, by n-gram.
    ngrams: HashMap<u64, Vec<(u32, u32)>>,
    ngram: usize,
    /// Lengths of the rows that are shorter than an n-gram.
    short: BTreeSet<usize>,
    too_short: usize,
}

/// An evaluation row that a text holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// Its number.
    pub row: u32,
    /// The share of its words that are part of shared n-grams.
    pub share: f64,
}

impl Index {
    /// Reads evaluation files. Rows with fewer words than `ngram` are indexed as a whole; those with
    /// fewer than `min_words` are left out.
    ///
    /// # Errors
    /// A file or row that cannot be read, with its place, or a row without a text.
    pub fn open(
        paths: &[PathBuf],
        columns: &[String],
        ngram: usize,
        min_words: usize,
    ) -> Result<Self> {
        let mut index = Self {
            files: Vec::new(),
            rows: Vec::new(),
            lengths: Vec::new(),
            ngrams: HashMap::new(),
            ngram,
            short: BTreeSet::new(),
            too_short: 0,
        };
        for path in paths {
            let path = bundled::path(&path.to_string_lossy())?.unwrap_or_else(|| path.clone());
            let file = DataFile::open(&path)?;
            if file.is_empty() {
                return Err(Error::data("the evaluation set holds no rows").in_file(&path));
            }
            for row in 0..file.len() {
                let origin = file.origin(row);
                let text = asked(file.row(row)?, columns)
                    .map_err(|error| error.at(&*origin.path, origin.line))?;
                index.add(&words(&text), row, min_words);
            }
            index.files.push(file);
        }
        Ok(index)
    }

    fn add(&mut self, words: &[String], row: usize, min_words: usize) {
        if words.len() < self.ngram.min(min_words.max(1)) {
            self.too_short += 1;
        } else {
            let number = self.rows.len() as u32;
            for (at, ngram) in ngrams(words, self.ngram).into_iter().enumerate() {
                self.ngrams.entry(ngram).or_default().push((number, at as u32));
            }
            if words.len() < self.ngram {
                self.short.insert(words.len());
            }
        }
        self.rows.push((self.files.len(), row));
        self.lengths.push(words.len());
    }

    /// The evaluation rows of which a text holds at least the share `bar`, and at least one n-gram;
    /// the largest share first.
    pub fn hits(&self, words: &[String], bar: f64) -> Vec<Hit> {
        let mut found: HashMap<u32, BTreeSet<u32>> = HashMap::new();
        let lengths = self.short.iter().copied().filter(|length| *length < words.len());
        let lengths = lengths.chain([self.ngram]);
        let mut grams: Vec<u64> = lengths.flat_map(|length| ngrams(words, length)).collect();
        grams.sort_unstable();
        grams.dedup();
        for (row, at) in grams.iter().filter_map(|gram| self.ngrams.get(gram)).flatten() {
            found.entry(*row).or_default().insert(*at);
        }
        let mut hits: Vec<Hit> = found
            .into_iter()
            .map(|(row, starts)| Hit { row, share: self.covered(row, &starts) })
            .filter(|hit| hit.share + 1e-9 >= bar)
            .collect();
        hits.sort_by(|a, b| b.share.total_cmp(&a.share).then(a.row.cmp(&b.row)));
        hits
    }

    /// The share of a row's words that lie in an n-gram from one of these places on.
    fn covered(&self, row: u32, starts: &BTreeSet<u32>) -> f64 {
        let length = self.lengths[row as usize];
        let (mut covered, mut end) = (0usize, 0usize);
        for &start in starts {
            let start = start as usize;
            let stop = (start + self.ngram).min(length);
            covered += stop - start.max(end).min(stop);
            end = stop;
        }
        covered as f64 / length.max(1) as f64
    }

    /// `path:line` of an evaluation row.
    pub fn place(&self, row: u32) -> String {
        let (file, row) = self.rows[row as usize];
        let origin = self.files[file].origin(row);
        format!("{}:{}", origin.path.display(), origin.line)
    }

    /// The number of the file that an evaluation row is in.
    pub fn file_of(&self, row: u32) -> usize {
        self.rows[row as usize].0
    }

    /// Names of the files, and how many rows each has.
    pub fn files(&self) -> impl Iterator<Item = (String, usize)> {
        self.files.iter().map(|file| (Path::display(file.path()).to_string(), file.len()))
    }

    /// How many evaluation rows are too short to be looked for.
    pub fn too_short(&self) -> usize {
        self.too_short
    }
}

/// What an evaluation row asks.
fn asked(row: Map<String, Value>, columns: &[String]) -> Result<String> {
    if !columns.is_empty() {
        let text = |column: &String| {
            row.get(column)
                .and_then(Value::as_str)
                .ok_or_else(|| Error::data(format!("expected a text in the column `{column}`")))
        };
        return Ok(columns.iter().map(text).collect::<Result<Vec<_>>>()?.join("\n"));
    }
    let usual = ASKED.iter().find_map(|column| row.get(*column)?.as_str());
    if let Some(text) = usual {
        return Ok(text.to_string());
    }
    let dialogue = Dialogue::of(&Row(row)).map_err(|error| {
        error.hint("`columns` states which columns of the evaluation rows hold what is asked")
    })?;
    let prompt = dialogue.text(Part::Prompt);
    Ok(if prompt.is_empty() { dialogue.text(Part::All) } else { prompt })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(ngram: usize, rows: &[&str]) -> Index {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.jsonl");
        let lines: Vec<String> =
            rows.iter().map(|row| serde_json::json!({"question": row}).to_string()).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        Index::open(&[path], &[], ngram, 1).unwrap()
    }

    #[test]
    fn covered_words_are_counted_once() {
        let index = index(3, &["a b c d e f g h i j"]);
        let share = |text: &str| index.hits(&words(text), 0.0).first().map(|hit| hit.share);
        assert_eq!(share("a b c"), Some(0.3));
        assert_eq!(share("x a b c d y"), Some(0.4));
        assert_eq!(share("a b c x e f g"), Some(0.6));
        assert_eq!(share("a b x c d"), None);
        assert_eq!(share("a b c d e f g h i j a b c"), Some(1.0));
    }

    #[test]
    fn rows_shorter_than_an_ngram_are_found_as_a_whole() {
        let index = index(8, &["one two three four"]);
        assert_eq!(index.hits(&words("zero one two three four five"), 1.0).len(), 1);
        assert_eq!(index.hits(&words("one two three four"), 1.0).len(), 1);
        assert!(index.hits(&words("one two three five"), 0.0).is_empty());
    }
}
