//! A teacher behind servers with OpenAI's API, which tell the log-probs of a prompt's tokens.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use halter_core::data::batch::PackedBatch;
use halter_core::data::dataset::Dataset;
use halter_core::data::record::{Origin, Row};
use halter_core::data::view::Encoder;
use halter_core::endpoint::{Answer, Api, Ask, Pool, PoolOptions, TeacherConfig};
use halter_core::text::tokenizer::Tokenizer;
use halter_core::train::files::atomic_write;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::Progress;
use halter_core::train::source::Source;
use halter_core::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

pub use super::reply::PromptAs;
use super::reply::{Heard, Reader};
use super::{Captured, Kept, Speaker, Watch, take_down};
use crate::store::{Header, Key, sequences};

/// Rows that are asked about at once.
const ROWS: usize = 512;
/// Rows that are asked about first, one of them before the others: where all fail, the rest would.
const FIRST_ROWS: usize = 17;

/// Who is asked, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointOptions {
    /// The servers; their budget is that of a call.
    pub teacher: TeacherConfig,
    /// How tokens are named to them.
    pub prompt_as: PromptAs,
    /// Likeliest tokens of a position.
    pub top_k: usize,
}

/// Takes down what servers say of `sets`, behind what the file at `path` has already. `source` is any
/// model with the teacher's tokens. Rows of which they say nothing are told in a file beside it, whose
/// name ends in `.failed.jsonl`, and are asked about again by the next call.
///
/// # Errors
/// A configuration or record that cannot be used, a file of another teacher, a budget that is spent, no
/// server, or none that says anything, an interruption; what was taken until then stays.
pub fn capture_endpoint(
    source: &Source,
    encoder: &Encoder,
    sets: &[Dataset],
    path: &Path,
    options: &EndpointOptions,
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> Result<Captured> {
    let EndpointOptions { teacher, prompt_as, top_k } = options;
    teacher.validate(LABEL)?;
    let Some(model) = teacher.model.clone() else {
        return Err(
            Error::config("a `local` teacher is no endpoint").hint("name it with `--model`")
        );
    };
    if *top_k == 0 {
        return Err(Error::config("`top-k` is `0`: expected 1 or more"));
    }
    let vocab_size = source.config.vocab_size;
    let header = Header {
        teacher: model.clone(),
        weights: format!("endpoint:{model}"),
        tokenizer: source.tokenizer.fingerprint(),
        vocab_size,
        k: (*top_k).min(vocab_size),
        temperature: 1.0,
    };
    let pool_options = PoolOptions { budget: teacher.budget, ..PoolOptions::default() };
    let mut endpoint = Endpoint {
        pool: Pool::new(&format!("teacher `{model}`"), &teacher.endpoints, pool_options)?,
        model,
        prompt_as: *prompt_as,
        tokenizer: &source.tokenizer,
        reader: Reader::new(&source.tokenizer, vocab_size, header.k),
        k: header.k,
        adds_bos: false,
        asked: 0,
        failed: Vec::new(),
        told: 0,
    };
    let outcome = take_down(&mut endpoint, header, encoder, sets, path, progress, interrupt);
    // A call that fails says nothing of the rows that an earlier one listed.
    if outcome.is_ok() || !endpoint.failed.is_empty() {
        write_failed(&failed_path(path), &endpoint.failed)?;
    }
    let mut found = outcome?;
    found.failed = endpoint.failed.len();
    found.told_per_position =
        (found.positions > 0).then(|| endpoint.told as f64 / found.positions as f64);
    Ok(found)
}

/// Names the teacher in what is wrong with its configuration.
const LABEL: &str = "endpoint";

/// Where rows are told of which a capture to `path` heard nothing.
pub fn failed_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".failed.jsonl");
    name.into()
}

struct Endpoint<'t> {
    pool: Pool,
    model: String,
    prompt_as: PromptAs,
    tokenizer: &'t Tokenizer,
    reader: Reader<'t>,
    k: usize,
    /// The servers put a beginning of a sequence before texts themselves.
    adds_bos: bool,
    /// Rows that were asked about.
    asked: usize,
    /// Rows of which nothing was heard, and why.
    failed: Vec<(Origin, String)>,
    /// Tokens that were told apart, over all positions.
    told: usize,
}

impl Speaker for Endpoint<'_> {
    fn is_full(&self, rows: usize, _: usize, _: usize) -> bool {
        rows >= if self.asked == 0 {
            1
        } else if self.asked == 1 {
            FIRST_ROWS - 1
        } else {
            ROWS
        }
    }

    fn say(&mut self, rows: &[Row], kept: &mut Kept, watch: &mut Watch<'_>) -> Result<()> {
        self.asked += rows.len();
        let all = rows.iter().map(Question::of).collect::<Result<Vec<_>>>()?;
        let knew = self.adds_bos;
        let again = self.ask(all, kept, watch)?;
        if !knew {
            self.ask(again, kept, watch)?;
        }
        match self.failed.last() {
            Some((_, reason)) if self.failed.len() >= FIRST_ROWS && kept.found.rows == 0 => {
                let message = format!(
                    "teacher `{}` says nothing of {} rows: {reason}",
                    self.model,
                    self.failed.len()
                );
                Err(Error::new(ErrorKind::Network, message).hint(self.prompt_as.hint()))
            }
            _ => Ok(()),
        }
    }
}

/// A row that is asked about.
struct Question<'r> {
    row: &'r Row,
    key: Key,
    /// Tokens behind which something is predicted.
    at: Vec<usize>,
}

impl<'r> Question<'r> {
    fn of(row: &'r Row) -> Result<Self> {
        let batch = PackedBatch::from_rows([row])?;
        let at = batch.targets.iter().map(|target| target.row as usize).collect();
        let (key, _) = sequences(&batch)[0];
        Ok(Self { row, key, at })
    }
}

/// Why an answer is not kept.
enum Misfit {
    /// It has one token more than was asked about: a beginning of a sequence.
    OneMore,
    Wrong(String),
}

impl Endpoint<'_> {
    /// Asks about all of `questions`; those that are to be asked again without the beginning of a
    /// sequence, which the server adds, come back.
    fn ask<'r>(
        &mut self,
        questions: Vec<Question<'r>>,
        kept: &mut Kept,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<Question<'r>>> {
        let asks = questions.iter().map(|one| self.request(one)).collect::<Result<Vec<_>>>()?;
        let mut outcomes: Vec<Option<Misfit>> = questions.iter().map(|_| None).collect();
        let (mut told, mut settled) = (0, 0);
        let records = watch.records.saturating_sub(questions.len() as u64);
        let Watch { progress, interrupt, .. } = watch;
        let ended = self.pool.ask_each(
            &asks,
            &mut |index, answer| {
                let question = &questions[index];
                settled += 1;
                progress.advance(records + settled, "");
                match answer
                    .map_err(|e| Misfit::Wrong(e.to_string()))
                    .and_then(|answer| self.read(question, &answer))
                {
                    Ok(heard) => {
                        told += heard.told;
                        kept.keep(question.key, &heard.logps, 0..question.at.len())
                    }
                    Err(misfit) => {
                        outcomes[index] = Some(misfit);
                        Ok(())
                    }
                }
            },
            &mut || interrupt.check(),
        );
        self.pool.take_notes().iter().for_each(|note| progress.note(note));
        self.told += told;
        let mut again = Vec::new();
        for (question, outcome) in questions.into_iter().zip(outcomes) {
            match outcome {
                None => {}
                Some(Misfit::Wrong(reason)) => {
                    self.failed.push((question.row.origin.clone(), reason));
                }
                Some(Misfit::OneMore) => again.push(question),
            }
        }
        self.adds_bos |= !again.is_empty();
        ended.map(|()| again)
    }

    fn request(&self, question: &Question<'_>) -> Result<Ask> {
        let ids = &question.row.input_ids;
        let prompt = match self.prompt_as {
            PromptAs::Tokens => json!(ids),
            PromptAs::Text => {
                let is_added = self.adds_bos && ids.first().copied() == self.tokenizer.bos_id();
                self.tokenizer.decode(&ids[usize::from(is_added)..], false)?.into()
            }
        };
        let mut body = Map::new();
        body.insert("model".into(), self.model.as_str().into());
        body.insert("prompt".into(), prompt);
        body.insert("echo".into(), true.into());
        body.insert("logprobs".into(), self.k.into());
        // None at all means without limit to some servers.
        body.insert("max_tokens".into(), 1.into());
        body.insert("temperature".into(), 0.into());
        body.insert("return_tokens_as_token_ids".into(), true.into());
        Ok(Ask { api: Api::Text, body, logprobs: true })
    }

    fn read(&self, question: &Question<'_>, answer: &Answer) -> Result<Heard, Misfit> {
        let ids = &question.row.input_ids;
        let (ours, theirs) = (ids.len() as u64, answer.usage.prompt_tokens);
        if self.prompt_as == PromptAs::Text && theirs != 0 && theirs != ours {
            let begins = ids.first().copied() == self.tokenizer.bos_id();
            if begins && !self.adds_bos && theirs == ours + 1 {
                return Err(Misfit::OneMore);
            }
            let reason = format!("the server reads {theirs} tokens, where this model has {ours}");
            return Err(Misfit::Wrong(reason));
        }
        let logprobs = answer.logprobs.as_ref().unwrap_or(&Value::Null);
        self.reader.read(ids, &question.at, self.prompt_as, logprobs).map_err(Misfit::Wrong)
    }
}

/// Lists the rows of which nothing was heard; the file is there only where there are some.
fn write_failed(path: &Path, failed: &[(Origin, String)]) -> Result<()> {
    if failed.is_empty() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", path, error))
            }
            _ => Ok(()),
        };
    }
    let line = |(origin, reason): &(Origin, String)| {
        let file = origin.path.display().to_string();
        json!({ "file": file, "line": origin.line, "reason": reason }).to_string() + "\n"
    };
    atomic_write(path, failed.iter().map(line).collect::<String>().as_bytes())
}
