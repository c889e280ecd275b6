//! `halter distill capture`: what a teacher says, kept for its students.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use halter_core::endpoint::{EndpointConfig, TeacherConfig};
use halter_core::memory::plan::gigabytes;
use halter_core::memory::system::peak_memory;
use halter_core::text::encode::Overlong;
use halter_core::train::progress::counted;
use halter_core::train::source::Source;
use halter_core::{Error, ErrorKind};
use halter_distill::capture::{
    CaptureOptions, EndpointOptions, PromptAs, capture, capture_endpoint, failed_path,
};

use crate::align::predict::{Reading, Work};
use crate::answering::tokens_of;
use crate::data::{Rows, word};
use crate::{Context, interrupt, progress};

/// Keep what a model says of the rows of data sets, for `--teacher-logps`
///
/// A file that is there already is continued. With --endpoint or --teacher-config a server is asked,
/// and --model is any model with the teacher's tokens and template, such as the student.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    rows: Rows,
    /// Most tokens of a row
    #[arg(long, alias = "max_length", value_name = "TOKENS", default_value_t = 1024)]
    max_seq_len: usize,
    /// What becomes of longer rows
    #[arg(long, value_parser = word::<Overlong>(&["refuse", "truncate", "split", "drop"]), default_value = "refuse")]
    overlong: Overlong,
    /// Likeliest tokens that are kept of each position
    #[arg(long, value_name = "K", default_value_t = 64)]
    top_k: usize,
    /// Logits are divided by it first
    #[arg(long, default_value_t = 1.0, conflicts_with = "server")]
    temperature: f64,
    /// Most tokens that go through the model at once
    #[arg(long, value_name = "TOKENS", default_value_t = 1024, conflicts_with = "server")]
    microbatch_tokens: usize,
    /// Leave the model in its file, and read it block by block for as many rows as fit under this
    /// much memory, as 300MB or 48GB
    #[arg(long, value_name = "SIZE", value_parser = bytes, conflicts_with = "server")]
    memory_ceiling: Option<usize>,
    #[command(flatten)]
    endpoint: EndpointArgs,
    /// File that is written
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// A teacher behind servers.
#[derive(Debug, clap::Args)]
struct EndpointArgs {
    /// Ask this server with OpenAI's API, as http://localhost:8000/v1
    #[arg(
        long,
        value_name = "URL",
        help_heading = "Endpoint",
        group = "server",
        requires = "endpoint_model"
    )]
    endpoint: Option<String>,
    /// The teacher's name at the server
    #[arg(long, value_name = "NAME", help_heading = "Endpoint", requires = "endpoint")]
    endpoint_model: Option<String>,
    /// Environment variable that holds the server's key
    #[arg(long, value_name = "VAR", help_heading = "Endpoint", requires = "endpoint")]
    api_key_env: Option<String>,
    /// Ask the servers of this TOML file, which has the keys of a pipeline's [teachers.NAME]
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Endpoint",
        group = "server",
        conflicts_with = "endpoint"
    )]
    teacher_config: Option<PathBuf>,
    /// How rows are named to the server
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        default_value = "tokens",
        requires = "server",
        help_heading = "Endpoint"
    )]
    prompt_as: PromptArg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PromptArg {
    /// By the numbers of their tokens
    Tokens,
    /// As text, for servers that take nothing else (llama-cpp-python)
    Text,
}

impl From<PromptArg> for PromptAs {
    fn from(prompt_as: PromptArg) -> Self {
        match prompt_as {
            PromptArg::Tokens => Self::Tokens,
            PromptArg::Text => Self::Text,
        }
    }
}

impl EndpointArgs {
    /// The servers, where any are named.
    fn teacher(&self) -> anyhow::Result<Option<TeacherConfig>> {
        if let Some(path) = &self.teacher_config {
            return Ok(Some(read_teacher(path)?));
        }
        let Some(url) = self.endpoint.clone() else { return Ok(None) };
        let endpoint = EndpointConfig {
            url,
            api_key_env: self.api_key_env.clone(),
            ..EndpointConfig::default()
        };
        let model = self.endpoint_model.clone();
        Ok(Some(TeacherConfig { model, endpoints: vec![endpoint], ..TeacherConfig::default() }))
    }
}

fn read_teacher(path: &Path) -> Result<TeacherConfig, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
    toml::from_str(&text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = 1 + text.bytes().take(start).filter(|&byte| byte == b'\n').count();
        Error::config(error.message().replace('\n', " ")).at(path, line)
    })
}

impl Args {
    /// What the model will read; `None` where a server does.
    pub fn work(&self) -> anyhow::Result<Option<Work>> {
        let source = self.rows.source();
        let (Some(model), None) = (source.model, self.endpoint.teacher()?) else {
            return Ok(None);
        };
        let mut tokens = 0;
        for (_, set) in self.rows.open()? {
            tokens += tokens_of(set.len(), |row| set.row(row))?;
        }
        Ok(Some(Work::Read(Reading {
            models: vec![model],
            tokens,
            together: self.microbatch_tokens,
            ceiling: self.memory_ceiling,
            kept: 4 * self.top_k + 4,
        })))
    }
}

/// A number of bytes: `300MB`, `1.5GB`, `2GiB`.
fn bytes(text: &str) -> Result<usize, String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "mb" => 1e6,
        "gb" => 1e9,
        "mib" => 1_048_576.0,
        "gib" => 1_073_741_824.0,
        _ => return Err("expected a number with MB, GB, MiB or GiB".into()),
    };
    match number.parse::<f64>() {
        Ok(number) => Ok((number * unit) as usize),
        Err(_) => Err("expected a number with MB, GB, MiB or GiB".into()),
    }
}

/// Runs the subcommand.
pub fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut progress = progress::to_stderr();
    let interrupt = interrupt::on_ctrl_c()?;
    let rows = args.rows.or_bundled(progress.as_mut());
    let sets: Vec<_> = rows.open()?.into_iter().map(|(_, set)| set).collect();
    let mut source = Source::open(&rows.source())?;
    let mut encoder = rows.encoder_of(&source);
    encoder.options.max_seq_len = Some(args.max_seq_len);
    encoder.options.overlong = args.overlong;
    let found = match args.endpoint.teacher()? {
        None => {
            let options = CaptureOptions {
                top_k: args.top_k,
                temperature: args.temperature,
                microbatch_tokens: args.microbatch_tokens,
                memory_ceiling: args.memory_ceiling,
            };
            capture(
                &mut source,
                &encoder,
                &sets,
                &args.output,
                options,
                progress.as_mut(),
                &interrupt,
            )?
        }
        Some(teacher) => {
            let prompt_as = args.endpoint.prompt_as.into();
            let options = EndpointOptions { teacher, prompt_as, top_k: args.top_k };
            capture_endpoint(
                &source,
                &encoder,
                &sets,
                &args.output,
                &options,
                progress.as_mut(),
                &interrupt,
            )?
        }
    };
    progress.note(&format!(
        "{}: {} rows, {} taken now with {} positions of {} bytes; {} records left out",
        args.output.display(),
        found.rows,
        found.taken,
        found.positions,
        found.bytes_per_position,
        found.left_out
    ));
    if found.positions > 0 {
        progress.note(&format!(
            "mean mass of the other tokens {:.4}; KL by rounding {:.1e}",
            found.rest_mass, found.rounding_kl
        ));
    }
    if let (Some(ceiling), Some(peak)) = (args.memory_ceiling, peak_memory()) {
        let (held, allowed) = (gigabytes(peak), gigabytes(ceiling));
        progress.note(&match peak <= ceiling {
            true => format!("memory: at most {held} under a ceiling of {allowed}"),
            false => format!("memory: {held}, above the ceiling of {allowed}"),
        });
    }
    if let Some(told) = found.told_per_position {
        progress.note(&format!("{told:.1} tokens told apart at a position"));
    }
    context.print_json(&found)?;
    if found.failed > 0 {
        let message = format!("{} of which nothing was said", counted(found.failed, "row"));
        let error = Error::new(ErrorKind::Network, message).in_file(failed_path(&args.output));
        let hint = match found.rows {
            0 => format!(
                "that file has the reasons; {}",
                PromptAs::from(args.endpoint.prompt_as).hint()
            ),
            _ => "that file has the reasons; run the command again to ask about these rows alone"
                .into(),
        };
        return Err(error.hint(hint).into());
    }
    Ok(())
}
