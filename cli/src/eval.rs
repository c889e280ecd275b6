//! `halter eval`.

use std::path::PathBuf;
use std::time::Instant;

use halter_core::data::dataset::Dataset;
use halter_core::data::record::{Message, Turn};
use halter_core::data::rows::Rows;
use halter_core::generate::Generator;
use halter_core::generate::engine::EngineOptions;
use halter_core::generate::output::ResultFile;
use halter_core::generate::sampling::Sampling;
use halter_core::text::strftime::Moment;
use halter_core::train::files::{atomic_write, remove_temporaries};
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::{Progress, counted};
use halter_core::{Error, bundled};
use halter_eval::choice;
use halter_eval::encode::Encoded;
use halter_eval::format::Completed;
use halter_eval::open;
use halter_eval::question::Choice;
use halter_eval::results::TaskResult;
use halter_eval::task::{Questions, Task, TaskOptions, TaskSpec, open_rows};
use halter_rejection_sampling::sample::{Sampler, Variant};
use halter_rejection_sampling::scorer::{ScorerSpec, WeightedSum};
use serde_json::{Map, Value, json};

use crate::answering::{BYTES_OF_A_TOKEN, Load, ModelArgs, SamplingArgs, resumable};
use crate::{Context, interrupt, progress};

/// Measure a model on benchmarks: accuracy of choices and of completions
///
/// Writes every row with what the model made of it (samples-TASK.jsonl), and the figures
/// (results.json). With no --model and no --task, the bundled model answers the bundled held-out
/// problems.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Benchmark and its rows, as boolq=FILE, or a file of one's own; repeatable
    /// (docs/reference/eval.md)
    #[arg(long, value_name = "[FORMAT=]DATA")]
    task: Vec<String>,
    /// Only so many of the first rows of each task
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Examples before each row
    #[arg(long, alias = "num_fewshot", value_name = "N", default_value_t = 0)]
    num_fewshot: u16,
    /// Where a task's examples are from, its first rows (default: other rows of the task);
    /// repeatable
    #[arg(long, value_name = "TASK=DATA")]
    fewshot: Vec<String>,
    /// Directory of the results
    #[arg(long, value_name = "DIR", default_value = "runs/eval")]
    output: PathBuf,
    /// Go on after the last row in --output
    #[arg(long)]
    resume: bool,
    /// Completions of each prompt, for pass@k
    #[arg(long, alias = "num_completions", value_name = "K", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..))]
    num_completions: u16,
    /// What judges prompts of one's own, as in halter sample; repeatable (default: exact)
    #[arg(long, value_name = "SCORER")]
    scorer: Vec<String>,
    /// Complete the text of a prompt, instead of asking it in a conversation
    #[arg(long)]
    no_chat_template: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// A task with all that does not depend on the model.
struct Opened {
    task: Task,
    fewshot: Option<Dataset>,
    /// What judges completions, as text; empty for choices.
    scorers: Vec<String>,
    scorer: WeightedSum,
    path: PathBuf,
}

/// What is done with a model.
enum Work<'a> {
    Choice(Vec<Encoded<'a>>),
    Open(Rows, &'static Completed),
}

/// What all tasks are run with.
struct Runner<'a> {
    args: &'a Args,
    generator: Generator,
    fingerprint: String,
    engine: EngineOptions,
    sampling: Sampling,
    stop_tokens: Vec<u32>,
    chat: bool,
    began_at: i64,
    interrupt: Interrupt,
}

/// Runs the subcommand.
pub fn run(mut args: Args, context: &Context) -> anyhow::Result<()> {
    let mut progress = progress::to_stderr();
    if args.task.is_empty() && args.model.model.is_none() {
        progress.note("no --model and no --task: the bundled tiny model and held-out problems");
        args.task = vec![bundled::EVAL.into()];
        if args.scorer.is_empty() {
            args.scorer = vec!["numeric".into()];
        }
    }
    let sampling = args.sampling.sampling(if args.num_completions > 1 { 1.0 } else { 0.0 })?;
    let tasks = open_tasks(&args)?;
    check(&args, &tasks, &sampling)?;
    std::fs::create_dir_all(&args.output).map_err(|e| Error::io("create", &args.output, e))?;
    remove_temporaries(&args.output)?;
    let before = before(&args, &tasks)?;
    let began_at = before.as_ref().and_then(|settings| settings.get("began_at")?.as_i64());
    let began_at = began_at.unwrap_or_else(|| Moment::now().0);
    for Opened { task, .. } in &tasks {
        let rows = counted(task.set.len(), "row");
        progress.note(&format!("task {}: {}, {rows}", task.name, task.set.name()));
    }
    let generator = args.model.open(Some(began_at))?;
    progress.note(&format!("model: {}", generator.name));
    let runner = Runner {
        fingerprint: generator.fingerprint()?,
        engine: args.model.engine(&generator, before.as_ref()),
        stop_tokens: args.sampling.stop_tokens(&generator)?,
        chat: generator.template.is_some() && !args.no_chat_template,
        args: &args,
        generator,
        sampling,
        began_at,
        interrupt: interrupt::on_ctrl_c()?,
    };
    let work: Vec<Work> =
        tasks.iter().map(|opened| runner.prepare(&opened.task)).collect::<Result<_, _>>()?;
    let began = Instant::now();
    let mut results = Vec::new();
    for (opened, work) in tasks.iter().zip(&work) {
        runner.run(opened, work, progress.as_mut()).map_err(resumable)?;
        let result = TaskResult::read(&opened.task, &opened.path)?;
        progress.note(&result.told());
        results.push(result);
    }
    let mut summary = runner.summary(&results)?;
    let place = args.output.join("results.json");
    atomic_write(&place, format!("{summary:#}\n").as_bytes())?;
    progress.note(&format!("results: {}", place.display()));
    summary["output"] = json!(args.output);
    summary["seconds"] = json!(began.elapsed().as_secs_f64());
    context.print_json(&summary)?;
    match results.iter().filter_map(|result| result.unscored).sum::<usize>() {
        0 => Ok(()),
        unscored => {
            let message = format!("{} could not be judged", counted(unscored, "completion"));
            Err(Error::data(message)
                .hint("the samples have the reasons; they count as wrong")
                .into())
        }
    }
}

impl Args {
    /// The model, and what it will have to do.
    pub fn load(&self) -> anyhow::Result<(&ModelArgs, Load)> {
        let mut load = Load { prompts: 0, read: 0, completions: 0, max_new_tokens: 0 };
        let tokens = |text: &str| text.len() / BYTES_OF_A_TOKEN;
        for Opened { task, .. } in open_tasks(self)? {
            match task.questions {
                Questions::Choice(questions) => {
                    load.prompts += questions.len();
                    for choice in &questions {
                        let texts = choice.choices.iter().chain([&choice.context]);
                        load.read += texts.map(|text| tokens(text)).sum::<usize>();
                    }
                }
                Questions::Open(questions, completed) => {
                    let most = self.max_new_tokens(completed);
                    load.max_new_tokens = load.max_new_tokens.max(most);
                    load.prompts += questions.len();
                    load.completions += questions.len() * usize::from(self.num_completions);
                    for question in &questions {
                        load.read += match &question.prompt {
                            Turn::Text(text) => tokens(text),
                            Turn::Messages(messages) => {
                                messages.iter().filter_map(Message::content).map(tokens).sum()
                            }
                        };
                    }
                }
            }
        }
        Ok((&self.model, load))
    }

    fn max_new_tokens(&self, completed: &Completed) -> usize {
        self.sampling.max_new_tokens.unwrap_or(completed.max_new_tokens)
    }
}

/// The tasks as they are named in the results, each by a name of its own.
fn specs(args: &Args) -> anyhow::Result<Vec<TaskSpec>> {
    let mut specs: Vec<TaskSpec> = Vec::new();
    for text in &args.task {
        let mut spec: TaskSpec = text.parse()?;
        let plain = spec.name.clone();
        let mut number = 1;
        while specs.iter().any(|other| other.name == spec.name) {
            number += 1;
            spec.name = format!("{plain}-{number}");
        }
        specs.push(spec);
    }
    Ok(specs)
}

/// Reads the tasks, and opens what their examples and scorers are from.
fn open_tasks(args: &Args) -> anyhow::Result<Vec<Opened>> {
    let specs = specs(args)?;
    let mut sources: Vec<(&str, &str)> = Vec::new();
    for text in &args.fewshot {
        let source = text.split_once('=').ok_or_else(|| {
            Error::config(format!("`fewshot` is `{text}`: expected TASK=DATA"))
                .hint("for example `--fewshot gsm8k=train.jsonl`")
        })?;
        if !specs.iter().any(|spec| spec.name == source.0) {
            let names: Vec<_> = specs.iter().map(|spec| spec.name.as_str()).collect();
            return Err(Error::config(format!("`fewshot` names the task `{}`", source.0))
                .hint(format!("the tasks are {}", names.join(", ")))
                .into());
        }
        sources.push(source);
    }
    let open = |spec: &TaskSpec| {
        let source = sources.iter().find(|(name, _)| *name == spec.name);
        let fewshot = source.map(|(_, data)| open_rows(data)).transpose()?;
        let options = TaskOptions {
            limit: args.limit.and_then(|limit| limit.try_into().ok()),
            num_fewshot: args.num_fewshot.into(),
            fewshot: fewshot.as_ref(),
        };
        let task = Task::open(spec, options)?;
        let scorers = match task.questions {
            Questions::Choice(_) => Vec::new(),
            Questions::Open(..) if is_own(&task) && !args.scorer.is_empty() => args.scorer.clone(),
            Questions::Open(_, completed) => vec![completed.scorer.to_string()],
        };
        let specs: Vec<ScorerSpec> = scorers.iter().map(|s| s.parse()).collect::<Result<_, _>>()?;
        let scorer = WeightedSum::from_specs(&specs)?;
        let path = args.output.join(format!("samples-{}.jsonl", spec.name));
        Ok(Opened { task, fewshot, scorers, scorer, path })
    };
    specs.iter().map(open).collect()
}

/// Whether completions are asked for under no name of a benchmark.
fn is_own(task: &Task) -> bool {
    task.format.name == "open"
}

/// Refuses what cannot be done, and options without an effect.
fn check(args: &Args, tasks: &[Opened], sampling: &Sampling) -> anyhow::Result<()> {
    if tasks.is_empty() {
        return Err(Error::config("no task: expected at least one `--task`")
            .hint("for example `--task boolq=rows.jsonl`")
            .into());
    }
    let has_open = tasks.iter().any(|opened| !opened.scorers.is_empty());
    let has_own = tasks.iter().any(|opened| is_own(&opened.task));
    for (is_given, has_effect, what, why) in [
        (args.num_completions > 1, has_open, "num-completions", "no task has completions"),
        (args.no_chat_template, has_open, "no-chat-template", "no task has completions"),
        (!args.scorer.is_empty(), has_own, "scorer", "the tasks have their own"),
        (!args.fewshot.is_empty(), args.num_fewshot > 0, "fewshot", "`num-fewshot` is 0"),
    ] {
        if is_given && !has_effect {
            let message = format!("`{what}` is given, but has no effect: {why}");
            return Err(Error::config(message).into());
        }
    }
    if args.num_completions > 1 && sampling.temperature == 0.0 {
        return Err(Error::config("`num-completions` is above 1, and all would be the same")
            .hint("raise `--temperature`")
            .into());
    }
    Ok(())
}

/// What the results that are there were begun with.
fn before(args: &Args, tasks: &[Opened]) -> anyhow::Result<Option<Map<String, Value>>> {
    if !args.resume {
        for opened in tasks {
            ResultFile::refuse_occupied(&opened.path)?;
        }
        return Ok(None);
    }
    // Tasks run one after the other: the first one has been begun.
    Ok(tasks.first().map(|opened| ResultFile::settings(&opened.path)).transpose()?)
}

impl Runner<'_> {
    /// Every row is checked here, before the first is run.
    fn prepare<'t>(&self, task: &'t Task) -> halter_core::Result<Work<'t>> {
        match &task.questions {
            Questions::Choice(questions) => {
                let encode = |(at, question): (usize, &'t Choice)| {
                    Encoded::new(&self.generator, question).map_err(|error| {
                        let origin = task.set.origin(at);
                        error.at(&*origin.path, origin.line)
                    })
                };
                let rows = questions.iter().enumerate().map(encode);
                Ok(Work::Choice(rows.collect::<Result<_, _>>()?))
            }
            Questions::Open(questions, completed) => {
                let rows = open::rows(task, questions, self.chat, &self.generator, &self.engine)?;
                Ok(Work::Open(rows, completed))
            }
        }
    }

    fn run(
        &self,
        opened: &Opened,
        work: &Work,
        progress: &mut dyn Progress,
    ) -> halter_core::Result<()> {
        let Opened { task, path, scorer, .. } = opened;
        let settings = self.settings(opened, work)?;
        let mut file = match self.args.resume && ResultFile::settings_path(path).exists() {
            true => ResultFile::resume(path, &settings)?,
            false => ResultFile::create(path, &settings)?,
        };
        let first = file.rows();
        if first > 0 {
            progress.note(&format!(
                "{}: resumed after {}",
                task.name,
                counted(first as usize, "row")
            ));
        }
        match work {
            Work::Choice(rows) => {
                choice::run(&self.generator, rows, &mut file, progress, &self.interrupt)?;
            }
            Work::Open(rows, completed) => {
                let way = Variant {
                    sampling: self.sampling,
                    system: None,
                    completions: self.args.num_completions.into(),
                };
                let sampler = Sampler {
                    generator: &self.generator,
                    rows,
                    scorer,
                    variants: &[way],
                    max_new_tokens: self.args.max_new_tokens(completed),
                    stop_tokens: &self.stop_tokens,
                    stop: &self.stop(completed),
                    seed: self.args.sampling.seed,
                    engine: self.engine,
                };
                if first > 0 {
                    sampler.score_again(path, progress, &self.interrupt)?;
                    file = ResultFile::resume(path, &settings)?;
                }
                sampler.run(first, &mut file, progress, &self.interrupt)?;
            }
        }
        file.finish()
    }

    fn stop(&self, completed: &Completed) -> Vec<String> {
        let own: &[&str] = if self.chat { &[] } else { completed.stop };
        own.iter().map(|text| text.to_string()).chain(self.args.sampling.stop.clone()).collect()
    }

    /// Everything that the lines of a task depend on.
    fn settings(&self, opened: &Opened, work: &Work) -> halter_core::Result<Map<String, Value>> {
        let Opened { task, fewshot, scorers, .. } = opened;
        let mut settings = json!({
            "model": self.generator.name,
            "adapter": self.args.model.adapter(),
            "model_fingerprint": self.fingerprint,
            "task": task.name,
            "format": task.format.name,
            "data": task.set.name(),
            "data_fingerprint": task.set.fingerprint()?,
            "limit": self.args.limit,
            "num_fewshot": self.args.num_fewshot,
            "fewshot": fewshot.as_ref().map(Dataset::fingerprint).transpose()?,
            "allow_special_text": self.generator.allow_special_text,
            "cache_tokens": self.engine.cache_tokens,
            "began_at": self.began_at,
        });
        if let Work::Open(_, completed) = work {
            let sampling = self.sampling;
            let more = json!({
                "scorer": scorers,
                "chat_template": self.chat,
                "num_completions": self.args.num_completions,
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p,
                "repetition_penalty": sampling.repetition_penalty,
                "max_new_tokens": self.args.max_new_tokens(completed),
                "stop": self.stop(completed),
                "stop_tokens": self.stop_tokens,
                "seed": self.args.sampling.seed,
            });
            if let (Some(settings), Value::Object(more)) = (settings.as_object_mut(), more) {
                settings.extend(more);
            }
        }
        // By way of the text, numbers are what they will be when the file is read.
        serde_json::from_str(&settings.to_string())
            .map_err(|error| Error::config("settings that are not JSON").because(error))
    }

    /// What `results.json` holds.
    fn summary(&self, results: &[TaskResult]) -> anyhow::Result<Value> {
        Ok(json!({
            "model": self.generator.name,
            "model_fingerprint": self.fingerprint,
            "settings": {
                "limit": self.args.limit,
                "num_fewshot": self.args.num_fewshot,
                "chat_template": self.chat,
                "num_completions": self.args.num_completions,
                "temperature": self.sampling.temperature,
                "seed": self.args.sampling.seed,
            },
            "tasks": serde_json::to_value(results)?,
        }))
    }
}
