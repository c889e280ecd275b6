//! `halter drift`, a stage of `halter align`: how far a model has come from where it began.

use std::path::{Path, PathBuf};

use halter_core::data::record::{Message, Turn};
use halter_core::generate::Generator;
use halter_core::train::files::atomic_write;
use halter_core::train::progress::{Unit, counted};
use halter_core::train::source::SourceSpec;
use halter_core::{Error, device};
use halter_rejection_sampling::sample::{Line, read_lines};
use halter_rejection_sampling::statistics::{Estimate, clustered_mean};
use serde_json::{Value, json};

use crate::{Context, interrupt, progress};

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
    /// Only so many completions
    #[arg(long, value_name = "N", default_value_t = 200)]
    limit: usize,
    /// Directory of the result
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
}

/// A prompt and what was said to it.
struct Said {
    prompt: Value,
    text: String,
}

/// Runs the subcommand.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let mut progress = progress::to_stderr();
    let interrupt = interrupt::on_ctrl_c()?;
    let said = said(&args.samples, args.limit)?;
    progress.note(&format!("completions: {}", said.len()));
    let mut sums = Vec::new();
    let mut tokens = 0;
    for model in [&args.trained, &args.model] {
        let spec = SourceSpec { model: Some(model.clone()), ..SourceSpec::default() };
        let mut generator = Generator::open(&spec, &device::open(&args.device)?)?;
        generator.allow_special_text = true;
        let mut of_model = Vec::new();
        tokens = 0;
        progress.begin("scoring", said.len() as u64, Unit::Rows);
        for (at, said) in said.iter().enumerate() {
            interrupt.check()?;
            let (sum, length) = score(&generator, said)?;
            of_model.push(sum);
            tokens += length;
            progress.advance(at as u64 + 1, "");
        }
        progress.finish();
        sums.push(of_model);
    }
    let differences: Vec<[f64; 1]> =
        sums[0].iter().zip(&sums[1]).map(|(trained, base)| [trained - base]).collect();
    let of_all = differences.iter().map(|[difference]| difference).sum::<f64>();
    let mean = clustered_mean(differences.iter().map(|each| &each[..]));
    let summary = json!({
        "output": args.output,
        "completions": said.len(),
        "tokens": tokens,
        "per_completion": mean.map(|mean| mean.mean),
        "per_completion_stderr": mean.map(|mean| mean.standard_error),
        "per_token": (tokens > 0).then(|| of_all / tokens as f64),
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

/// Sum of the log-probs of a completion's tokens, and how many there are.
fn score(generator: &Generator, said: &Said) -> anyhow::Result<(f64, usize)> {
    let prompt = match turn(&said.prompt) {
        Turn::Messages(messages) => generator.chat_prompt(&messages, None)?,
        Turn::Text(text) => generator.text_prompt(&text)?,
    };
    let mut tokens = prompt;
    let begin = tokens.len();
    tokens.extend(generator.tokenizer.encode(&said.text, false)?.ids);
    let scores = generator.score(&tokens, 0)?;
    // The score of a token stands one place before it.
    let own = scores.iter().skip(begin.saturating_sub(1));
    Ok((own.map(|score| f64::from(score.logprob)).sum(), tokens.len() - begin))
}

fn turn(prompt: &Value) -> Turn {
    match prompt {
        Value::Array(messages) => {
            let message = |message: &Value| message.as_object().cloned().map(Message);
            Turn::Messages(messages.iter().filter_map(message).collect())
        }
        other => Turn::Text(other.as_str().unwrap_or_default().to_string()),
    }
}

/// The completions in a directory of `halter eval`; tasks of choices have none.
fn said(samples: &Path, limit: usize) -> anyhow::Result<Vec<Said>> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(samples).map_err(|e| Error::io("read", samples, e))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with("samples-") || !name.ends_with(".jsonl") || is_of_choices(&path) {
            continue;
        }
        read_lines(&path, |line: Line| {
            let prompt = &line.prompt;
            let completions = line.completions.iter().filter(|said| !said.text.is_empty());
            found.extend(
                completions.map(|said| Said { prompt: prompt.clone(), text: said.text.clone() }),
            );
            Ok(())
        })?;
    }
    found.truncate(limit);
    Ok(found)
}

fn is_of_choices(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let first: Value =
        text.lines().next().and_then(|l| serde_json::from_str(l).ok()).unwrap_or_default();
    first.get("completions").is_none()
}
