//! `halter drift`, a stage of `halter align`: how far a model has come from where it began.

use std::path::{Path, PathBuf};

use halter_align::report::has_completions;
use halter_core::data::record::Turn;
use halter_core::generate::Generator;
use halter_core::generate::output::ResultFile;
use halter_core::generate::score;
use halter_core::train::files::atomic_write;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::{Progress, Unit, counted};
use halter_core::train::source::SourceSpec;
use halter_core::{Error, device};
use halter_rejection_sampling::sample::{Line, read_lines};
use halter_rejection_sampling::statistics::{Estimate, clustered_mean};
use serde_json::{Value, json};

use crate::align::predict::Reading;
use crate::answering::BYTES_OF_A_TOKEN;
use crate::{Context, interrupt, progress};

/// Tokens of a prompt with a completion, for the plan.
const TOGETHER: usize = 1024;

/// Compare log-probs of a model's completions under it and under the model that it began as
///
/// The mean difference over completions that the model drew is an estimate of the divergence
/// KL(model ‖ base); over greedy completions it tells how much likelier they have become. The token
/// that ended a completion is not counted.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model that it began as
    #[arg(long)]
    model: String,
    /// The model whose completions these are
    #[arg(long)]
    trained: String,
    /// Directory of halter eval with its completions
    #[arg(long, value_name = "DIR")]
    samples: PathBuf,
    /// Only so many completions, spread over the tasks
    #[arg(long, value_name = "N", default_value_t = 200)]
    limit: usize,
    /// Branch, tag or commit of the first on the hub
    #[arg(long)]
    revision: Option<String>,
    /// Tokenizer of halter eval, where it was given one
    #[arg(long, value_name = "DIR|FILE")]
    tokenizer: Option<PathBuf>,
    /// Chat template of halter eval, where it was given one
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// As in halter eval
    #[arg(long)]
    allow_special_text: bool,
    /// Directory of the result
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
}

/// A prompt and what was said to it.
struct Asked {
    prompt: Value,
    texts: Vec<String>,
}

/// What was asked, and when.
struct Samples {
    asked: Vec<Asked>,
    /// The time that templates were told, in seconds since 1970.
    began_at: Option<i64>,
}

/// A prompt with a completion, as tokens.
struct Said {
    tokens: Vec<u32>,
    /// Where the completion begins.
    begin: usize,
    /// The number of the prompt.
    prompt: usize,
}

/// Runs the subcommand.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let mut progress = progress::to_stderr();
    let interrupt = interrupt::on_ctrl_c()?;
    let samples = Samples::read(&args.samples, args.limit)?;
    let trained = args.generator(&args.trained, samples.began_at)?;
    let said = said(&trained, &samples.asked)?;
    progress.note(&format!("completions: {}", said.len()));
    let after = sums(&trained, &said, progress.as_mut(), &interrupt)?;
    let tokens = trained.tokenizer.fingerprint();
    drop(trained);
    let base = args.generator(&args.model, samples.began_at)?;
    // Both read the same tokens: the base may have no template, or another one.
    let differences = match base.tokenizer.fingerprint() == tokens {
        true => {
            let before = sums(&base, &said, progress.as_mut(), &interrupt)?;
            after.iter().zip(&before).map(|(after, before)| after - before).collect()
        }
        false => {
            progress.note("the models read other tokens: how far they are apart is not measured");
            Vec::new()
        }
    };
    finish(args, &said, &differences, progress.as_mut(), context)
}

/// Writes what came of it.
fn finish(
    args: &Args,
    said: &[Said],
    differences: &[f64],
    progress: &mut dyn Progress,
    context: &Context,
) -> anyhow::Result<()> {
    let tokens: usize = said.iter().map(|said| said.tokens.len() - said.begin).sum();
    let of_all = differences.iter().sum::<f64>();
    let paired: Vec<(usize, f64)> =
        said.iter().map(|said| said.prompt).zip(differences.iter().copied()).collect();
    let by_prompt: Vec<Vec<f64>> = paired
        .chunk_by(|a, b| a.0 == b.0)
        .map(|group| group.iter().map(|(_, difference)| *difference).collect())
        .collect();
    let mean = clustered_mean(by_prompt.iter().map(Vec::as_slice));
    let summary = json!({
        "output": args.output,
        "completions": said.len(),
        "prompts": by_prompt.len(),
        "tokens": tokens,
        "per_completion": mean.map(|mean| mean.mean),
        "per_completion_stderr": mean.map(|mean| mean.standard_error),
        "per_token": mean.filter(|_| tokens > 0).map(|_| of_all / tokens as f64),
    });
    std::fs::create_dir_all(&args.output).map_err(|e| Error::io("create", &args.output, e))?;
    atomic_write(args.output.join("drift.json"), format!("{summary:#}\n").as_bytes())?;
    if let Some(Estimate { mean, standard_error, .. }) = mean {
        let many = counted(said.len(), "completion");
        progress
            .note(&format!("log-prob difference: {mean:.2} ± {standard_error:.2} nats, {many}"));
    }
    context.print_json(&summary)
}

impl Args {
    /// What both models will read.
    pub fn reading(&self) -> anyhow::Result<Reading> {
        let samples = Samples::read(&self.samples, self.limit)?;
        let bytes = |asked: &Asked| {
            let said: usize = asked.texts.iter().map(String::len).sum();
            said + asked.texts.len() * asked.prompt.to_string().len()
        };
        Ok(Reading {
            models: vec![self.trained.clone(), self.model.clone()],
            tokens: samples.asked.iter().map(bytes).sum::<usize>() / BYTES_OF_A_TOKEN,
            together: TOGETHER,
            ceiling: None,
            kept: 0,
        })
    }

    fn generator(&self, model: &str, now: Option<i64>) -> anyhow::Result<Generator> {
        let spec = SourceSpec {
            model: Some(model.to_string()),
            revision: self.revision.clone(),
            tokenizer: self.tokenizer.clone(),
            chat_template: self.chat_template.clone(),
            now,
            ..SourceSpec::default()
        };
        let mut generator = Generator::open(&spec, &device::open(&self.device)?)?;
        generator.allow_special_text = self.allow_special_text;
        Ok(generator)
    }
}

/// Prompts and completions as the model reads them.
fn said(generator: &Generator, asked: &[Asked]) -> anyhow::Result<Vec<Said>> {
    let mut said = Vec::new();
    for (prompt, Asked { prompt: asked, texts }) in asked.iter().enumerate() {
        let before = match Turn::from_json(asked) {
            Turn::Messages(messages) => generator.chat_prompt(&messages, None)?,
            Turn::Text(text) => generator.text_prompt(&text)?,
        };
        for text in texts {
            let mut tokens = before.clone();
            tokens.extend(generator.tokenizer.encode(text, false)?.ids);
            said.push(Said { tokens, begin: before.len(), prompt });
        }
    }
    Ok(said)
}

/// Sums of the log-probs of the completions' tokens.
fn sums(
    generator: &Generator,
    said: &[Said],
    progress: &mut dyn Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<f64>> {
    progress.begin("scoring", said.len() as u64, Unit::Rows);
    let mut sums = Vec::new();
    for (at, said) in said.iter().enumerate() {
        interrupt.check()?;
        let scores = score::score(&generator.model, &said.tokens, 0)?;
        // The score of a token stands one place before it.
        let own = scores.iter().skip(said.begin.saturating_sub(1));
        sums.push(own.map(|score| f64::from(score.logprob)).sum());
        progress.advance(at as u64 + 1, "");
    }
    progress.finish();
    Ok(sums)
}

impl Samples {
    /// At most `limit` completions in a directory of `halter eval`, of its tasks in turn; tasks of
    /// choices have none.
    fn read(directory: &Path, limit: usize) -> anyhow::Result<Self> {
        let entries = std::fs::read_dir(directory).map_err(|e| Error::io("read", directory, e))?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        let (mut tasks, mut began_at) = (Vec::new(), None);
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !name.starts_with("samples-") || !name.ends_with(".jsonl") || !has_completions(&path)
            {
                continue;
            }
            began_at = began_at.or(ResultFile::settings(&path)?["began_at"].as_i64());
            let mut task = Vec::new();
            read_lines(&path, |line: Line| {
                let texts = line.completions.into_iter().map(|said| said.text);
                let texts: Vec<String> = texts.filter(|text| !text.is_empty()).collect();
                task.push(Asked { prompt: line.prompt, texts });
                Ok(())
            })?;
            tasks.push(task.into_iter());
        }
        let (mut asked, mut room) = (Vec::new(), limit);
        loop {
            let in_turn: Vec<Asked> = tasks.iter_mut().filter_map(Iterator::next).collect();
            if in_turn.is_empty() || room == 0 {
                return Ok(Self { asked, began_at });
            }
            for mut one in in_turn {
                one.texts.truncate(room);
                room -= one.texts.len();
                asked.push(one);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use super::*;

    #[test]
    fn completions_are_of_all_tasks_and_stand_by_their_prompts() {
        let dir = tempfile::tempdir().unwrap();
        let said = |text: &str| {
            json!({ "text": text, "finish_reason": "stop", "num_tokens": 1, "logps": 0.0,
                    "temperature": 1.0 })
        };
        for task in ["a", "b"] {
            let path = dir.path().join(format!("samples-{task}.jsonl"));
            let line = |row: usize| {
                let completions = [said(&format!("{task}{row}")), said(&format!("{task}{row}'"))];
                json!({ "row": row, "prompt": task, "completions": completions }).to_string() + "\n"
            };
            std::fs::write(&path, (0..9).map(line).collect::<String>()).unwrap();
            let settings = ResultFile::settings_path(&path);
            std::fs::write(settings, "{\"began_at\": 7}").unwrap();
        }
        std::fs::write(dir.path().join("samples-0.jsonl"), "{\"choices\": []}\n").unwrap();
        let samples = Samples::read(dir.path(), 7).unwrap();
        let texts: Vec<Vec<String>> = samples.asked.into_iter().map(|asked| asked.texts).collect();
        assert_eq!(texts, [vec!["a0", "a0'"], vec!["b0", "b0'"], vec!["a1", "a1'"], vec!["b1"]]);
        assert_eq!(samples.began_at, Some(7));
    }
}
