//! `halter generate`: completions of the prompts of a data set.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use halter_core::data::dataset::DataOptions;
use halter_core::data::format::{Columns, Format};
use halter_core::data::record::{Record, Turn};
use halter_core::data::rows::Rows;
use halter_core::generate::Generator;
use halter_core::generate::engine::{EngineOptions, Finish, Request};
use halter_core::generate::output::{ResultFile, line};
use halter_core::generate::sampling::Sampling;
use halter_core::generate::session::{Completion, Job, complete_rows};
use halter_core::text::strftime::Moment;
use halter_core::train::progress::{Progress, Unit, counted};
use halter_core::{Error, ErrorKind, bundled};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::answering::{Load, MAX_NEW_TOKENS, ModelArgs, SamplingArgs, job};
use crate::{Context, interrupt, progress};

/// Complete the prompts of a data set
///
/// A row's prompt is everything before its last assistant turn, its `prompt`, or its `text`. A line
/// of JSON is written for each row, in their order. With no --model and no --data, the bundled model
/// answers the bundled held-out problems.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Data set: file, directory or hub id; repeatable
    #[arg(long, alias = "dataset_name", value_name = "DATA")]
    data: Vec<String>,
    /// Format of the rows, where it is not to be detected
    #[arg(long)]
    format: Option<String>,
    /// Column under another name, as prompt=question; repeatable
    #[arg(long, value_name = "WANTED=OWN")]
    column: Vec<String>,
    /// File of the completions (JSONL); stdout where none is given
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Go on after the last row of --output
    #[arg(long)]
    resume: bool,
    /// Completions of each prompt
    #[arg(long, alias = "num_completions", value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    num_completions: u32,
    /// Write the tokens and their log-probs as well
    #[arg(long)]
    logprobs: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// What becomes of a row.
#[derive(Serialize)]
struct Line<'a> {
    row: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Value>,
    prompt: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    completions: Vec<Written<'a>>,
}

#[derive(Serialize)]
struct Written<'a> {
    text: &'a str,
    finish_reason: &'static str,
    num_tokens: usize,
    logps: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    per_token_logps: Option<&'a [f32]>,
}

/// Everything that the completions depend on.
#[derive(Serialize)]
struct Settings<'a> {
    model: &'a str,
    adapter: Option<&'a PathBuf>,
    model_fingerprint: String,
    data: Map<String, Value>,
    format: Option<&'a String>,
    column: &'a [String],
    num_completions: u32,
    logprobs: bool,
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    max_new_tokens: usize,
    stop: &'a [String],
    stop_tokens: &'a [u32],
    seed: u64,
    allow_special_text: bool,
    began_at: i64,
}

/// Where lines go.
enum Sink {
    File(ResultFile),
    Stdout,
}

impl Sink {
    fn append(&mut self, row: &Line) -> halter_core::Result<()> {
        match self {
            Sink::File(file) => file.append(row),
            Sink::Stdout => {
                let mut out = std::io::stdout().lock();
                let written = out.write_all(&line(row)?).and_then(|()| out.flush());
                written.map_err(|error| {
                    Error::new(ErrorKind::Io, "cannot write to stdout").because(error)
                })
            }
        }
    }
}

/// A row that is under way.
struct Asked {
    row: u64,
    id: Option<Value>,
    prompt: Value,
}

/// Runs the subcommand.
pub fn run(mut args: Args, context: &Context) -> anyhow::Result<()> {
    let mut progress = progress::to_stderr();
    if args.data.is_empty() && args.model.model.is_none() {
        progress.note("no --model and no --data: the bundled tiny model and held-out problems");
        args.data = vec![bundled::EVAL.into()];
    }
    let output = args.output.clone().filter(|path| path.as_os_str() != "-");
    check(&args, output.as_deref(), context)?;
    let sampling = args.sampling.sampling(1.0)?;
    let before = match &output {
        Some(path) if args.resume => Some(ResultFile::settings(path)?),
        _ => None,
    };
    let began_at = before.as_ref().and_then(|settings| settings.get("began_at")?.as_i64());
    let began_at = began_at.unwrap_or_else(|| Moment::now().0);
    let rows = open(&args)?;
    for set in rows.sets() {
        progress.note(&format!("data: {set}"));
    }
    let generator = args.model.open(Some(began_at))?;
    progress.note(&format!("model: {}", generator.name));
    refuse_all_without_template(&rows, &generator)?;
    let stop_tokens = args.sampling.stop_tokens(&generator)?;
    let options = args.model.engine(&generator, before.as_ref());
    let mut settings = settings(&args, &rows, &generator, &sampling, &stop_tokens, began_at)?;
    settings.insert("cache_tokens".into(), options.cache_tokens.into());
    let mut sink = match output {
        None => Sink::Stdout,
        Some(path) if args.resume => Sink::File(ResultFile::resume(&path, &settings)?),
        Some(path) => Sink::File(ResultFile::create(&path, &settings)?),
    };
    let first = match &sink {
        Sink::File(file) => file.rows(),
        Sink::Stdout => 0,
    };
    if first > 0 {
        progress.note(&format!(
            "resumed after {} of {}",
            first,
            counted(rows.len() as usize, "row")
        ));
    }
    let request = Request {
        id: 0,
        prompt: Vec::new(),
        completions: args.num_completions as usize,
        max_new_tokens: args.sampling.max_new_tokens.unwrap_or(MAX_NEW_TOKENS),
        stop_tokens,
        sampling,
        seed: args.sampling.seed,
        row: 0,
        top_logprobs: 0,
    };
    let work = Work { args: &args, rows: &rows, generator: &generator, options, request };
    let mut told = Told::default();
    if let Sink::File(file) = &sink {
        told.failed = file.failures().len();
        told.first_failure = file.failures().first().map(Error::data);
    }
    work.run(first, &mut sink, progress.as_mut(), &mut told)?;
    if let Sink::File(file) = sink {
        file.finish()?;
    }
    if told.completions > 0 {
        progress.note(&told.line());
    }
    context.print_json(&json!({
        "output": args.output,
        "rows": rows.len(),
        "resumed_after": first,
        "completions": told.completions,
        "tokens": told.tokens,
        "seconds": told.seconds,
        "failed_rows": told.failed,
    }))?;
    match told.first_failure {
        None => Ok(()),
        Some(error) => {
            let message = format!("{} could not be answered", counted(told.failed, "row"));
            Err(Error::data(message).because(error).into())
        }
    }
}

/// What can be refused before anything is opened.
fn check(args: &Args, output: Option<&Path>, context: &Context) -> anyhow::Result<()> {
    if args.data.is_empty() {
        return Err(Error::config("no data: expected at least one `--data`").into());
    }
    match output {
        None if args.resume => Err(Error::config("`resume` is given without `output`").into()),
        None if context.json => Err(Error::config("`json` is given, and completions go to stdout")
            .hint("name a file with `--output`")
            .into()),
        Some(path) if !args.resume => Ok(ResultFile::refuse_occupied(path)?),
        _ => Ok(()),
    }
}

impl Args {
    /// The model, and what it will have to do.
    pub fn load(&self) -> anyhow::Result<(&ModelArgs, Load)> {
        let most = self.sampling.max_new_tokens.unwrap_or(MAX_NEW_TOKENS);
        Ok((&self.model, Load::of_rows(&open(self)?, self.num_completions as usize, most)?))
    }
}

fn open(args: &Args) -> anyhow::Result<Rows> {
    let format = args.format.as_deref().map(Format::from_str).transpose()?;
    let options = DataOptions { format, columns: Columns::parse(&args.column)? };
    Ok(Rows::open(&args.data, &options)?)
}

/// A model without a template answers no conversation: better said at once than of every row.
fn refuse_all_without_template(rows: &Rows, generator: &Generator) -> anyhow::Result<()> {
    if let (None, Some((set, row))) = (&generator.template, rows.find(0))
        && let Ok(record @ Record::Chat { .. }) = set.record(row)
    {
        generator.record_prompt(&record)?;
    }
    Ok(())
}

fn settings(
    args: &Args,
    rows: &Rows,
    generator: &Generator,
    sampling: &Sampling,
    stop_tokens: &[u32],
    began_at: i64,
) -> anyhow::Result<Map<String, Value>> {
    let mut data = Map::new();
    for set in rows.sets() {
        data.insert(set.name().into(), set.fingerprint()?.into());
    }
    let settings = Settings {
        model: &generator.name,
        adapter: args.model.adapter(),
        model_fingerprint: generator.fingerprint()?,
        data,
        format: args.format.as_ref(),
        column: &args.column,
        num_completions: args.num_completions,
        logprobs: args.logprobs,
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        max_new_tokens: args.sampling.max_new_tokens.unwrap_or(MAX_NEW_TOKENS),
        stop: &args.sampling.stop,
        stop_tokens,
        seed: args.sampling.seed,
        allow_special_text: generator.allow_special_text,
        began_at,
    };
    // By way of the text, numbers are what they will be when the file is read.
    Ok(serde_json::from_str(&serde_json::to_string(&settings)?)?)
}

struct Work<'a> {
    args: &'a Args,
    rows: &'a Rows,
    generator: &'a Generator,
    options: EngineOptions,
    request: Request,
}

/// What came of it.
#[derive(Default)]
struct Told {
    completions: usize,
    tokens: usize,
    seconds: f64,
    failed: usize,
    first_failure: Option<Error>,
}

impl Told {
    fn line(&self) -> String {
        let rate = self.tokens as f64 / self.seconds.max(1e-9);
        let completions = counted(self.completions, "completion");
        format!(
            "{completions}, {} tokens in {:.1} s, {rate:.0} tokens/s",
            self.tokens, self.seconds
        )
    }
}

impl Work<'_> {
    /// Completes the rows from `first` on.
    fn run(
        &self,
        first: u64,
        sink: &mut Sink,
        progress: &mut dyn Progress,
        told: &mut Told,
    ) -> anyhow::Result<()> {
        let interrupt = interrupt::on_ctrl_c()?;
        let began = Instant::now();
        let total = self.rows.len();
        progress.begin("generating", total, Unit::Rows);
        let (mut tokens, mut rows_done) = (0, first);
        let reached = std::cell::Cell::new(first);
        let outcome = complete_rows(
            self.generator,
            self.options,
            (first..total).map(|row| self.ask(row)),
            |asked, outcome| {
                self.write(sink, asked, outcome, told)?;
                reached.set(reached.get() + 1);
                Ok(())
            },
            |more| {
                tokens += more;
                rows_done = reached.get();
                let rate = tokens as f64 / began.elapsed().as_secs_f64();
                progress.advance(rows_done, &format!("{rate:.0} tokens/s"));
                interrupt.check()
            },
        );
        if outcome.is_ok() {
            progress.advance(reached.get(), "");
        }
        progress.finish();
        outcome.map_err(|error| match error.kind() {
            ErrorKind::Interrupted => {
                let message = format!("interrupted after {} of {total} rows", reached.get());
                let error = Error::new(ErrorKind::Interrupted, message);
                match sink {
                    Sink::File(_) => error.hint("`--resume` goes on"),
                    Sink::Stdout => error,
                }
            }
            _ => error,
        })?;
        told.seconds = began.elapsed().as_secs_f64();
        Ok(())
    }

    fn ask(&self, row: u64) -> (Asked, halter_core::Result<Job>) {
        let mut asked = Asked { row, id: None, prompt: Value::Null };
        let job = self.job(&mut asked);
        (asked, job)
    }

    fn job(&self, asked: &mut Asked) -> halter_core::Result<Job> {
        let Some((set, row)) = self.rows.find(asked.row) else {
            return Err(Error::data(format!("no row `{}`", asked.row)));
        };
        let origin = set.origin(row);
        asked.id = set.row(row)?.get("id").cloned();
        let record = set.record(row)?;
        let (prompt, ids) = self
            .generator
            .record_prompt(&record)
            .map_err(|error| error.at(&*origin.path, origin.line))?;
        let is_text = matches!(prompt, Turn::Text(_));
        asked.prompt = prompt.to_json();
        let request = Request { row: asked.row, ..self.request.clone() };
        job(self.generator, &self.options, ids, is_text, &self.args.sampling, &request)
            .map_err(|error| error.at(&*origin.path, origin.line))
    }

    fn write(
        &self,
        sink: &mut Sink,
        asked: Asked,
        outcome: halter_core::Result<Vec<Completion>>,
        told: &mut Told,
    ) -> halter_core::Result<()> {
        let Asked { row, id, prompt } = asked;
        let mut line = Line { row, id, prompt, error: None, completions: Vec::new() };
        let completions = match outcome {
            Ok(completions) => completions,
            Err(error) => {
                line.error = Some(error.to_string());
                told.failed += 1;
                told.first_failure.get_or_insert(error);
                Vec::new()
            }
        };
        told.completions += completions.len();
        told.tokens += completions.iter().map(|completion| completion.tokens.len()).sum::<usize>();
        line.completions = completions.iter().map(|completion| self.written(completion)).collect();
        sink.append(&line)
    }

    fn written<'c>(&self, completion: &'c Completion) -> Written<'c> {
        Written {
            text: &completion.text,
            finish_reason: match completion.finish {
                Some(Finish::Stop) => "stop",
                Some(Finish::Length) | None => "length",
            },
            num_tokens: completion.tokens.len(),
            logps: completion.logps(),
            tokens: self.args.logprobs.then_some(&completion.tokens),
            per_token_logps: self.args.logprobs.then_some(&completion.logprobs),
        }
    }
}
