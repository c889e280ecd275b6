//! Data sets looked at before training: the figures of all rows, or the tokens of some, each as
//! `halter sft` would read them.

use std::fmt::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;

use super::dataset::Dataset;
use super::encoded::{Encoded as Fated, TokenCount};
use super::explain::{self, ExplainStyle, explain};
use super::format::Format;
use super::inspect::{Inspection, Inspector};
use super::ledger::Fate;
use super::mixture::{Cursor, Mixture};
use super::record::{Origin, Record, Row};
use super::stream::{RowStream, StreamOptions};
use crate::text::encode::{EncodeOptions, Encoded, Outcome, Segment, encode_sft, segments};
use crate::text::template::ChatTemplate;
use crate::text::tokenizer::Tokenizer;
use crate::train::progress::{Progress, Unit};
use crate::train::source::Source;
use crate::{Error, Result};

/// What turns records into tokens.
#[derive(Debug, Clone)]
pub struct Encoder {
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template, where it has one.
    pub template: Option<Arc<ChatTemplate>>,
    /// How records become rows.
    pub options: EncodeOptions,
}

impl Encoder {
    /// The encoder of a model, whose embedding bounds the ids.
    pub fn new(source: &Source, options: EncodeOptions) -> Self {
        Self {
            tokenizer: Arc::new(source.tokenizer.clone()),
            template: source.template.clone(),
            options: EncodeOptions { vocab_size: Some(source.config.vocab_size), ..options },
        }
    }

    /// What becomes of a record.
    ///
    /// # Errors
    /// A record that would train wrongly, with its place.
    pub fn encode(&self, origin: &Origin, record: &Record) -> Result<Outcome> {
        encode_sft(record, &self.tokenizer, self.template.as_deref(), &self.options)
            .map_err(|error| error.at(&*origin.path, origin.line))
    }

    /// The rows of a record.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn rows(&self, origin: &Origin, record: &Record) -> Result<Fated<Vec<Row>>> {
        let row = |encoded: Encoded| Row {
            origin: origin.clone(),
            input_ids: encoded.input_ids,
            completion_mask: encoded.completion_mask,
            prompt_is_prefix: encoded.prompt_is_prefix,
        };
        Ok(match self.encode(origin, record)? {
            Outcome::Kept(encoded) => Fated::Kept(vec![row(encoded)]),
            Outcome::Cut { rows, num_tokens, .. } => Fated::Cut {
                kept: rows.into_iter().map(row).collect(),
                reason: "longer than max_seq_len".into(),
                tokens: num_tokens,
            },
            Outcome::Dropped { reason, num_tokens } => {
                Fated::Dropped { reason, tokens: num_tokens }
            }
        })
    }
}

/// Whether supervised fine-tuning can use rows of this format.
pub fn is_for_sft(format: Format) -> bool {
    match format {
        Format::Messages
        | Format::ShareGpt
        | Format::Alpaca
        | Format::PromptCompletion
        | Format::Text
        | Format::Tokenized => true,
        Format::Prompt
        | Format::Preference
        | Format::Ranked
        | Format::Unpaired
        | Format::TokenizedPreference => false,
    }
}

/// Tokens of one record, without keeping them.
struct Counted {
    tokens: usize,
    trained: usize,
    prompt_is_prefix: bool,
}

impl Counted {
    fn of(encoded: &Encoded) -> Self {
        let (tokens, trained) = (encoded.input_ids.len(), encoded.num_trained());
        Self { tokens, trained, prompt_is_prefix: encoded.prompt_is_prefix }
    }

    /// What a record that is tokens already says without a tokenizer.
    fn without_tokenizer(record: &Record) -> Option<Self> {
        let (tokens, trained) = match record {
            Record::Tokenized { input_ids, completion_mask } => {
                let trained = completion_mask.iter().skip(1).filter(|&&trained| trained).count();
                (input_ids.len(), trained)
            }
            Record::TokenizedPreference { prompt_ids, chosen_ids, rejected_ids, .. } => {
                let trained = chosen_ids.len() + rejected_ids.len();
                (prompt_ids.len() + trained, trained)
            }
            _ => return None,
        };
        Some(Self { tokens, trained, prompt_is_prefix: true })
    }
}

impl TokenCount for Counted {
    fn tokens(&self) -> usize {
        self.tokens
    }

    fn trained_tokens(&self) -> usize {
        self.trained
    }

    fn prompt_is_prefix(&self) -> bool {
        self.prompt_is_prefix
    }
}

/// Reads every row of a data set once and gives the figures. Rows are counted in tokens where
/// there is an `encoder` and [`is_for_sft`], or where they are tokens already; else in characters.
/// Over-long rows are counted, not cut: the encoder's own limit is left aside.
///
/// A row that cannot be read or encoded is counted among the refused; the rest is counted all the
/// same.
///
/// # Errors
/// A data set that is too large to be ordered, or a system that gives no thread.
pub fn inspect(
    set: Dataset,
    name: &str,
    encoder: Option<Encoder>,
    max_seq_len: Option<usize>,
    progress: &mut dyn Progress,
) -> Result<Inspection> {
    let rows = set.len();
    let encoder = encoder.filter(|_| is_for_sft(set.format())).map(|mut encoder| {
        encoder.options.max_seq_len = None;
        encoder
    });
    let count = move |origin: &Origin, record: Record| {
        let counted = match &encoder {
            Some(encoder) => match encoder.encode(origin, &record)? {
                Outcome::Kept(encoded) => Some(Counted::of(&encoded)),
                // Without a limit there is nothing to cut or to drop.
                Outcome::Cut { num_tokens, .. } | Outcome::Dropped { num_tokens, .. } => {
                    Some(Counted { tokens: num_tokens, trained: 0, prompt_is_prefix: true })
                }
            },
            None => Counted::without_tokenizer(&record),
        };
        Ok((record, counted))
    };
    let order = Mixture::new(&[(rows, 1.0)], 0, false)?.rows_from(Cursor::default(), Some(1))?;
    let stream = RowStream::start(Arc::new(vec![set]), order, count, StreamOptions::default())?;
    let mut inspector = Inspector::new(name, max_seq_len);
    progress.begin("reading", rows as u64, Unit::Rows);
    for (row, item) in stream.enumerate() {
        match item {
            Ok(item) => {
                let (record, counted) = &item.value;
                let counted = counted.as_ref().map(|counted| counted as &dyn TokenCount);
                inspector.add(&item.origin, record, counted);
            }
            Err(error) => inspector.refuse(&error),
        }
        progress.advance(row as u64 + 1, "");
    }
    progress.finish();
    Ok(inspector.finish())
}

/// Where to begin among the rows of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The row of this number, from one.
    Row(usize),
    /// The row on this line of its file, from one.
    Line(usize),
}

/// `count` rows of a data set from a place on, or fewer at its end.
///
/// # Errors
/// A place that is not there.
pub fn rows_at(set: &Dataset, place: Place, count: usize) -> Result<Range<usize>> {
    let start = match place {
        Place::Row(row) if (1..=set.len()).contains(&row) => row - 1,
        Place::Row(row) => {
            return Err(Error::config(format!("no row `{row}` in a data set of {}", set.len())));
        }
        Place::Line(line) => match set.files() {
            [_] => (0..set.len()).find(|&row| set.origin(row).line == line).ok_or_else(|| {
                Error::config(format!("no row on line `{line}`")).in_file(&*set.origin(0).path)
            })?,
            files => {
                return Err(Error::config(format!(
                    "a line of which of the data set's {} files?",
                    files.len()
                ))
                .hint("give one file with `--data`, or count rows through all of them: `--row`"));
            }
        },
    };
    Ok(start..set.len().min(start.saturating_add(count)))
}

/// A row of tokens with their text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedRow {
    /// Its tokens.
    pub tokens: Vec<Segment>,
    /// Whether the tokens before every trained part are those that generation would be given.
    pub prompt_is_prefix: bool,
}

/// A record and what it is to training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// File.
    pub path: String,
    /// Line or row, from one.
    pub line: usize,
    /// What would become of it; `None` where it is used whole.
    pub fate: Option<Fate>,
    /// Why.
    pub reason: Option<String>,
    /// What can be done about it.
    pub hint: Option<String>,
    /// The rows that it gives: one, none, or several where it is split.
    pub rows: Vec<ExplainedRow>,
}

/// Encodes a row of a data set and takes it apart. A row that cannot be used is told as such.
///
/// # Errors
/// A tokenizer that cannot decode its own tokens.
pub fn explain_row(set: &Dataset, row: usize, encoder: &Encoder) -> Result<Explained> {
    let origin = set.origin(row);
    let outcome = set.record(row).and_then(|record| encoder.encode(&origin, &record));
    let mut explained = Explained {
        path: origin.path.to_string_lossy().into_owned(),
        line: origin.line,
        fate: None,
        reason: None,
        hint: None,
        rows: Vec::new(),
    };
    let rows = match outcome {
        Ok(Outcome::Kept(encoded)) => vec![encoded],
        Ok(Outcome::Cut { rows, num_tokens, num_lost }) => {
            explained.fate = Some(Fate::Cut);
            let limit = encoder.options.max_seq_len.unwrap_or(num_tokens);
            explained.reason = Some(format!(
                "{num_tokens} tokens, more than max_seq_len {limit}: {num_lost} are left out"
            ));
            rows
        }
        Ok(Outcome::Dropped { reason, .. }) => {
            explained.fate = Some(Fate::Dropped);
            explained.reason = Some(reason);
            Vec::new()
        }
        Err(error) => {
            explained.fate = Some(Fate::Refused);
            explained.reason = Some(error.message().to_string());
            explained.hint = error.remedy().map(str::to_string);
            Vec::new()
        }
    };
    explained.rows = rows
        .iter()
        .map(|encoded| {
            let mut tokens = segments(&encoder.tokenizer, encoded)?;
            if let Some(first) = tokens.first_mut() {
                // Nothing predicts it, whatever the mask says.
                first.trained = false;
            }
            Ok(ExplainedRow { tokens, prompt_is_prefix: encoded.prompt_is_prefix })
        })
        .collect::<Result<_>>()?;
    Ok(explained)
}

impl Explained {
    /// The row for a terminal or a file.
    pub fn show(&self, style: ExplainStyle) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out, style);
        out
    }

    fn write(&self, out: &mut String, style: ExplainStyle) -> fmt::Result {
        write!(out, "{}:{}", self.path, self.line)?;
        if let (Some(fate), Some(reason)) = (self.fate, &self.reason) {
            let fate = match fate {
                Fate::Cut => "cut",
                Fate::Dropped => "dropped",
                Fate::Refused => "refused",
            };
            write!(out, " {fate}: {reason}")?;
        }
        out.push('\n');
        if let Some(hint) = &self.hint {
            writeln!(out, "hint: {hint}")?;
        }
        for row in &self.rows {
            let tokens: Vec<explain::Segment> = row
                .tokens
                .iter()
                .map(|token| explain::Segment {
                    text: &token.text,
                    id: token.id,
                    trained: token.trained,
                })
                .collect();
            out.push_str(&explain(&tokens, style));
            if !row.prompt_is_prefix {
                writeln!(
                    out,
                    "note: a trained part follows a context that generation would not be given"
                )?;
            }
        }
        Ok(())
    }
}
