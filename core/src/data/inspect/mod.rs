//! What a data set holds: counts, lengths, duplicates, scripts, what is trained.

mod render;
mod script;

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::encoded::TokenCount;
use super::record::{Message, Origin, Record, Turn};
use crate::Error;

/// How many of the longest and shortest rows, duplicates and errors are named.
const NAMED: usize = 5;

/// A named row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamedRow {
    /// File.
    pub path: String,
    /// Line or row, from one.
    pub line: usize,
    /// Its length.
    pub length: usize,
}

/// A row that was given before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Duplicate {
    /// The row.
    pub row: String,
    /// The first one like it.
    pub first: String,
}

/// The rows of a range of lengths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bucket {
    /// The shortest.
    pub from: usize,
    /// One more than the longest.
    pub to: usize,
    /// How many rows.
    pub rows: usize,
}

/// What an [`Inspector`] saw.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The data set.
    pub name: String,
    /// What lengths are counted in: `tokens`, or `characters` where there was no tokenizer.
    pub unit: &'static str,
    /// All rows.
    pub rows: usize,
    /// Rows that could not be read or encoded.
    pub refused: usize,
    /// The first errors.
    pub errors: Vec<String>,
    /// Rows by kind of record.
    pub kinds: BTreeMap<&'static str, usize>,
    /// Sum of the lengths.
    pub total: u64,
    /// Tokens that would be trained, where tokens were counted.
    pub trained: Option<u64>,
    /// Their share of all tokens.
    pub mask_share: Option<f64>,
    /// Rows without a trained token, where tokens were counted.
    pub untrained_rows: Option<usize>,
    /// Rows with a trained part after a context that generation would not be given, where tokens
    /// were counted.
    pub unlike_generation: Option<usize>,
    /// Mean length.
    pub mean: f64,
    /// Shortest, quartiles, 95th and 99th percentile and longest (each a row's own length).
    pub percentiles: BTreeMap<&'static str, usize>,
    /// Rows by length.
    pub histogram: Vec<Bucket>,
    /// The limit that rows were compared with.
    pub max_seq_len: Option<usize>,
    /// Rows longer than that.
    pub over_long: usize,
    /// Tokens of these rows beyond it.
    pub over_long_excess: u64,
    /// Rows equal to an earlier one.
    pub duplicates: usize,
    /// Some of them.
    pub duplicate_rows: Vec<Duplicate>,
    /// Share of each script among the letters, largest first.
    pub scripts: Vec<(&'static str, f64)>,
    /// Messages by role.
    pub roles: BTreeMap<String, usize>,
    /// Conversations by number of messages.
    pub turns: BTreeMap<usize, usize>,
    /// Rows that declare tools.
    pub with_tools: usize,
    /// The longest rows.
    pub longest: Vec<NamedRow>,
    /// The shortest rows.
    pub shortest: Vec<NamedRow>,
}

/// Counts rows one at a time; memory is about 50 bytes a row.
#[derive(Debug)]
pub struct Inspector {
    name: String,
    max_seq_len: Option<usize>,
    lengths: Vec<(usize, Origin)>,
    seen: HashMap<[u8; 16], usize>,
    duplicates: usize,
    duplicate_rows: Vec<Duplicate>,
    refused: usize,
    errors: Vec<String>,
    kinds: BTreeMap<&'static str, usize>,
    counted_tokens: bool,
    trained: u64,
    untrained_rows: usize,
    unlike_generation: usize,
    scripts: Vec<u64>,
    roles: BTreeMap<String, usize>,
    turns: BTreeMap<usize, usize>,
    with_tools: usize,
}

impl Inspector {
    /// An inspector of the data set `name`; rows longer than `max_seq_len` are counted apart.
    pub fn new(name: impl Into<String>, max_seq_len: Option<usize>) -> Self {
        Self {
            name: name.into(),
            max_seq_len,
            lengths: Vec::new(),
            seen: HashMap::new(),
            duplicates: 0,
            duplicate_rows: Vec::new(),
            refused: 0,
            errors: Vec::new(),
            kinds: BTreeMap::new(),
            counted_tokens: false,
            trained: 0,
            untrained_rows: 0,
            unlike_generation: 0,
            scripts: vec![0; script::COUNT + 1],
            roles: BTreeMap::new(),
            turns: BTreeMap::new(),
            with_tools: 0,
        }
    }

    /// Counts a row that could not be read or encoded.
    pub fn refuse(&mut self, error: &Error) {
        self.refused += 1;
        if self.errors.len() < NAMED {
            self.errors.push(error.to_string());
        }
    }

    /// Counts a row; with its tokens where there is a tokenizer, of all rows or of none.
    pub fn add(&mut self, origin: &Origin, record: &Record, tokens: Option<&dyn TokenCount>) {
        let mut walk = Walk { hasher: blake3::Hasher::new(), characters: 0, inspector: self };
        walk.record(record);
        let (mut length, digest) = (walk.characters, walk.hasher.finalize());
        if let Some(tokens) = tokens {
            self.counted_tokens = true;
            length = tokens.tokens();
            self.trained += tokens.trained_tokens() as u64;
            self.untrained_rows += usize::from(tokens.trained_tokens() == 0);
            self.unlike_generation += usize::from(!tokens.prompt_is_prefix());
        }
        let mut key = [0; 16];
        key.copy_from_slice(&digest.as_bytes()[..16]);
        let this = self.lengths.len();
        let first = *self.seen.entry(key).or_insert(this);
        if first != this {
            self.duplicates += 1;
            if self.duplicate_rows.len() < NAMED {
                let place = |origin: &Origin| format!("{}:{}", origin.path.display(), origin.line);
                let (row, first) = (place(origin), place(&self.lengths[first].1));
                self.duplicate_rows.push(Duplicate { row, first });
            }
        }
        self.lengths.push((length, origin.clone()));
    }

    /// The figures.
    pub fn finish(self) -> Inspection {
        let mut sorted: Vec<usize> = self.lengths.iter().map(|(length, _)| *length).collect();
        sorted.sort_unstable();
        let total: u64 = sorted.iter().map(|&length| length as u64).sum();
        let percentiles = [
            ("min", 0),
            ("p25", 25),
            ("p50", 50),
            ("p75", 75),
            ("p95", 95),
            ("p99", 99),
            ("max", 100),
        ];
        let limit = self.max_seq_len.unwrap_or(usize::MAX);
        let over = &sorted[sorted.partition_point(|&length| length <= limit)..];
        let trained = self.counted_tokens.then_some(self.trained);
        let (longest, shortest) = extremes(&self.lengths);
        Inspection {
            unit: if self.counted_tokens { "tokens" } else { "characters" },
            rows: sorted.len() + self.refused,
            mean: if sorted.is_empty() { 0.0 } else { total as f64 / sorted.len() as f64 },
            percentiles: percentiles
                .into_iter()
                .map(|(name, p)| (name, rank(&sorted, p)))
                .collect(),
            histogram: histogram(&sorted),
            over_long: over.len(),
            over_long_excess: over.iter().map(|&length| (length - limit) as u64).sum(),
            mask_share: trained.filter(|_| total > 0).map(|trained| trained as f64 / total as f64),
            untrained_rows: self.counted_tokens.then_some(self.untrained_rows),
            unlike_generation: self.counted_tokens.then_some(self.unlike_generation),
            scripts: shares(&self.scripts),
            name: self.name,
            refused: self.refused,
            errors: self.errors,
            kinds: self.kinds,
            total,
            trained,
            max_seq_len: self.max_seq_len,
            duplicates: self.duplicates,
            duplicate_rows: self.duplicate_rows,
            roles: self.roles,
            turns: self.turns,
            with_tools: self.with_tools,
            longest,
            shortest,
        }
    }
}

/// Goes through the text of a record once, for its digest, its length and its scripts.
struct Walk<'a> {
    hasher: blake3::Hasher,
    characters: usize,
    inspector: &'a mut Inspector,
}

impl Walk<'_> {
    fn record(&mut self, record: &Record) {
        let kind = match record {
            Record::Chat { messages, tools } => {
                self.tools(tools.as_deref());
                self.conversation(messages);
                "conversation"
            }
            Record::PromptCompletion { prompt, completion, tools } => {
                self.tools(tools.as_deref());
                self.turn(prompt);
                self.turn(completion);
                "prompt and completion"
            }
            Record::Prompt { prompt, tools } => {
                self.tools(tools.as_deref());
                self.turn(prompt);
                "prompt"
            }
            Record::Text { text } => {
                self.text(text);
                "text"
            }
            Record::Preference { prompt, chosen, rejected } => {
                prompt.iter().for_each(|prompt| self.turn(prompt));
                self.turn(chosen);
                self.turn(rejected);
                "preference"
            }
            Record::Ranked { prompt, completions } => {
                self.turn(prompt);
                completions.iter().for_each(|completion| self.turn(completion));
                "ranked"
            }
            Record::Unpaired { prompt, completion, label } => {
                self.turn(prompt);
                self.turn(completion);
                self.hasher.update(&[u8::from(*label)]);
                "unpaired"
            }
            Record::Tokenized { input_ids, completion_mask } => {
                self.ids(input_ids);
                completion_mask.iter().for_each(|&on| {
                    self.hasher.update(&[u8::from(on)]);
                });
                "tokenized"
            }
            Record::TokenizedPreference { prompt_ids, chosen_ids, rejected_ids } => {
                [prompt_ids, chosen_ids, rejected_ids].into_iter().for_each(|ids| self.ids(ids));
                "tokenized preference"
            }
        };
        *self.inspector.kinds.entry(kind).or_insert(0) += 1;
    }

    fn turn(&mut self, turn: &Turn) {
        match turn {
            Turn::Text(text) => self.text(text),
            Turn::Messages(messages) => self.conversation(messages),
        }
    }

    fn conversation(&mut self, messages: &[Message]) {
        *self.inspector.turns.entry(messages.len()).or_insert(0) += 1;
        for message in messages {
            *self.inspector.roles.entry(message.role().to_string()).or_insert(0) += 1;
            self.part(message.role().as_bytes());
            self.text(message.content().unwrap_or_default());
            for (key, value) in &message.0 {
                if !matches!(key.as_str(), "role" | "content") {
                    self.part(key.as_bytes());
                    self.part(value.to_string().as_bytes());
                }
            }
        }
    }

    fn tools(&mut self, tools: Option<&[serde_json::Value]>) {
        self.inspector.with_tools += usize::from(tools.is_some());
        for tool in tools.unwrap_or_default() {
            self.part(tool.to_string().as_bytes());
        }
    }

    fn text(&mut self, text: &str) {
        self.part(text.as_bytes());
        for c in text.chars() {
            self.characters += 1;
            if let Some(script) = script::script_of(c) {
                self.inspector.scripts[script] += 1;
            }
        }
    }

    fn ids(&mut self, ids: &[u32]) {
        self.characters += ids.len();
        self.hasher.update(&(ids.len() as u64).to_le_bytes());
        ids.iter().for_each(|id| {
            self.hasher.update(&id.to_le_bytes());
        });
    }

    /// Hashes a piece with its length, so that pieces cannot run into one another.
    fn part(&mut self, bytes: &[u8]) {
        self.hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    }
}

/// Rows by length, in at most 12 buckets of one round width, and one more for rows far longer than
/// the others (Tukey's outer fence), which would make the width useless.
fn histogram(sorted: &[usize]) -> Vec<Bucket> {
    let (Some(&low), Some(&high)) = (sorted.first(), sorted.last()) else { return Vec::new() };
    let (quarter, three_quarters) = (rank(sorted, 25), rank(sorted, 75));
    let fence = three_quarters.saturating_add((three_quarters - quarter).saturating_mul(3));
    let usual = sorted[sorted.partition_point(|&length| length <= fence) - 1];
    let mut width = 1usize;
    // 1, 2, 5, 10, 20, 50, …
    for step in [2, 5, 2].into_iter().cycle() {
        if usual / width - low / width < 12 {
            break;
        }
        width = if step == 5 { width / 2 * 5 } else { width * 2 };
    }
    let mut buckets: Vec<Bucket> = (low / width..=usual / width)
        .map(|index| Bucket { from: index * width, to: (index + 1) * width, rows: 0 })
        .collect();
    let end = (usual / width + 1) * width;
    if high >= end {
        buckets.push(Bucket { from: end, to: high + 1, rows: 0 });
    }
    let last = buckets.len() - 1;
    for length in sorted {
        buckets[(length / width - low / width).min(last)].rows += 1;
    }
    buckets
}

/// Nearest rank: the smallest length that at least this share of the rows does not exceed.
fn rank(sorted: &[usize], percent: usize) -> usize {
    let index = (percent * sorted.len()).div_ceil(100).max(1) - 1;
    sorted.get(index).copied().unwrap_or(0)
}

fn shares(counts: &[u64]) -> Vec<(&'static str, f64)> {
    let letters: u64 = counts.iter().sum();
    let mut shares: Vec<_> = counts
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
        .map(|(index, &count)| (script::name(index), count as f64 / letters as f64))
        .collect();
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    shares
}

/// The longest and the shortest rows; of equal ones, the earlier.
fn extremes(lengths: &[(usize, Origin)]) -> (Vec<NamedRow>, Vec<NamedRow>) {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    let mut first = |key: fn(usize) -> usize| {
        order.sort_by_key(|&row| (key(lengths[row].0), row));
        let named = |&row: &usize| NamedRow {
            path: lengths[row].1.path.to_string_lossy().into_owned(),
            line: lengths[row].1.line,
            length: lengths[row].0,
        };
        order.iter().take(NAMED).map(named).collect::<Vec<_>>()
    };
    (first(|length| usize::MAX - length), first(|length| length))
}

#[cfg(test)]
mod tests;
