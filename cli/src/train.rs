//! What the commands that train have in common: their options, a run, and its plan.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::ValueEnum;
use halter_core::text::encode::Overlong;
use halter_core::train::config::{Config, MethodOptions, TrainConfig};
use halter_core::train::method::Method;
use halter_core::train::optimizer::Optim;
use halter_core::train::run::{self, Prepared};
use halter_core::train::run_dir::{RunDir, RunFiles, Start};
use halter_core::train::schedule::Decay;
use serde_json::json;

use crate::{Context, interrupt, progress};

/// A method's own flags.
pub trait MethodArgs: clap::Args + Clone + Default {
    /// What they set.
    type Options: MethodOptions;

    /// Sets what was given.
    fn apply(self, options: &mut Self::Options);
}

/// Arguments of a command that trains.
#[derive(Debug, clap::Args)]
pub struct Args<A: MethodArgs> {
    /// Go on after the newest checkpoint of --output
    #[arg(long, alias = "resume_from_checkpoint")]
    resume: bool,
    /// Plan, check model, options, held-out rows and about 32 training rows; train nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    options: Options<A>,
}

/// What decides a run.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options<A: MethodArgs> {
    #[command(flatten)]
    shared: Shared,
    #[command(flatten)]
    method: A,
}

/// What all methods share.
#[derive(Debug, Clone, Default, clap::Args)]
struct Shared {
    /// Recipe file (TOML); flags override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Model: a directory in Hugging Face's layout, a .gguf file, or a hub id
    #[arg(long, alias = "model_name_or_path", help_heading = "Model and data")]
    model: Option<String>,
    /// Branch, tag or commit on the hub
    #[arg(long, help_heading = "Model and data")]
    revision: Option<String>,
    /// Fresh weights from this config.json instead of a model
    #[arg(long, value_name = "FILE", help_heading = "Model and data")]
    init_from: Option<PathBuf>,
    /// Tokenizer and chat template from this directory, or tokenizer.json, instead of the model's
    /// own; needed with --init-from
    #[arg(long, value_name = "DIR|FILE", help_heading = "Model and data")]
    tokenizer: Option<PathBuf>,
    /// Chat template (Jinja) instead of the model's own
    #[arg(long, value_name = "FILE", help_heading = "Model and data")]
    chat_template: Option<PathBuf>,
    /// PEFT adapter to go on from
    #[arg(long, value_name = "DIR", help_heading = "Model and data")]
    adapter: Option<PathBuf>,
    /// Data set: file, directory or hub id, with an optional :weight; repeatable
    #[arg(
        long,
        alias = "dataset_name",
        value_name = "DATA[:WEIGHT]",
        help_heading = "Model and data"
    )]
    data: Vec<String>,
    /// Format of the rows, where it is not to be detected
    #[arg(long, help_heading = "Model and data")]
    format: Option<String>,
    /// Column under another name, as prompt=question; repeatable
    #[arg(long, value_name = "WANTED=OWN", help_heading = "Model and data")]
    column: Vec<String>,
    /// Held-out data; repeatable
    #[arg(long, value_name = "DATA", help_heading = "Evaluation")]
    eval_data: Vec<String>,
    /// Evaluate every N steps (0: before and after training)
    #[arg(long, alias = "eval_steps", value_name = "N", help_heading = "Evaluation")]
    eval_every: Option<u64>,
    /// Answer this many held-out prompts before and after training, and verify the answers
    #[arg(long, value_name = "ROWS", help_heading = "Evaluation")]
    eval_generate: Option<usize>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", help_heading = "Evaluation")]
    max_new_tokens: Option<usize>,
    /// Run directory
    #[arg(long, alias = "output_dir", value_name = "DIR")]
    output: Option<PathBuf>,
    /// cpu, cuda or cuda:N
    #[arg(long)]
    device: Option<String>,
    /// Seed of data order, fresh weights and dropout
    #[arg(long)]
    seed: Option<u64>,

    /// Steps in all, instead of --epochs
    #[arg(long, alias = "max_steps", value_name = "N", help_heading = "Training")]
    max_steps: Option<u64>,
    /// Passes over the data
    #[arg(
        long,
        alias = "num_train_epochs",
        value_name = "N",
        conflicts_with = "max_steps",
        help_heading = "Training"
    )]
    epochs: Option<f64>,
    /// Rows of one step
    #[arg(
        long,
        alias = "per_device_train_batch_size",
        value_name = "ROWS",
        help_heading = "Training"
    )]
    batch_size: Option<usize>,
    /// Most tokens that go through the model at once (0: chosen)
    #[arg(long, value_name = "TOKENS", help_heading = "Training")]
    microbatch_tokens: Option<usize>,
    /// Most tokens of a row
    #[arg(long, alias = "max_length", value_name = "TOKENS", help_heading = "Training")]
    max_seq_len: Option<usize>,
    /// What becomes of longer rows
    #[arg(long, value_enum, help_heading = "Training")]
    overlong: Option<OverlongArg>,
    /// Let special tokens written in the data become special tokens
    #[arg(long, help_heading = "Training")]
    allow_special_text: bool,
    /// Keep the rows in their order
    #[arg(long, help_heading = "Training")]
    no_shuffle: bool,
    /// Learning rate at its peak
    #[arg(long, alias = "learning_rate", value_name = "RATE", help_heading = "Training")]
    learning_rate: Option<f64>,
    /// Decay of the learning rate
    #[arg(long, alias = "lr_scheduler_type", value_enum, help_heading = "Training")]
    schedule: Option<DecayArg>,
    /// Share of the steps that warm up
    #[arg(long, alias = "warmup_ratio", value_name = "SHARE", help_heading = "Training")]
    warmup_ratio: Option<f64>,
    /// AdamW's first beta
    #[arg(long, alias = "adam_beta1", value_name = "BETA", help_heading = "Training")]
    adam_beta1: Option<f64>,
    /// AdamW's second beta
    #[arg(long, alias = "adam_beta2", value_name = "BETA", help_heading = "Training")]
    adam_beta2: Option<f64>,
    /// AdamW's epsilon
    #[arg(long, alias = "adam_epsilon", value_name = "EPS", help_heading = "Training")]
    adam_epsilon: Option<f64>,
    /// Decay of the matrices
    #[arg(long, alias = "weight_decay", value_name = "DECAY", help_heading = "Training")]
    weight_decay: Option<f64>,
    /// Gradients are scaled down to this norm (0: never)
    #[arg(long, alias = "max_grad_norm", value_name = "NORM", help_heading = "Training")]
    max_grad_norm: Option<f64>,
    /// How AdamW keeps its moments: in f32, or in 8 bits
    #[arg(long, value_enum, help_heading = "Training")]
    optim: Option<OptimArg>,
    /// Update parameters inside backward, without a buffer for all gradients; needs
    /// --max-grad-norm 0
    #[arg(long, help_heading = "Training")]
    optimizer_in_backward: bool,
    /// Blocks that keep their activations (default: as memory allows)
    #[arg(long, value_name = "N", help_heading = "Training")]
    keep_blocks: Option<usize>,

    /// Train a LoRA adapter of this rank instead of the weights
    #[arg(long, alias = "lora_r", value_name = "RANK", help_heading = "LoRA")]
    lora_rank: Option<usize>,
    /// LoRA's alpha
    #[arg(long, alias = "lora_alpha", value_name = "ALPHA", help_heading = "LoRA")]
    lora_alpha: Option<f64>,
    /// Matrices that get an adapter (default: all linear layers)
    #[arg(
        long,
        alias = "lora_target_modules",
        value_delimiter = ',',
        value_name = "NAMES",
        help_heading = "LoRA"
    )]
    lora_target: Vec<String>,
    /// Dropout of the adapter's input
    #[arg(long, alias = "lora_dropout", value_name = "P", help_heading = "LoRA")]
    lora_dropout: Option<f64>,
    /// Scale by the root of the rank
    #[arg(long, alias = "use_rslora", help_heading = "LoRA")]
    use_rslora: bool,

    /// Save a checkpoint every N steps (0: at the end and when interrupted)
    #[arg(long, alias = "save_steps", value_name = "N", help_heading = "Run")]
    save_every: Option<u64>,
    /// Newest checkpoints that are kept (0: all)
    #[arg(long, alias = "save_total_limit", value_name = "N", help_heading = "Run")]
    keep_checkpoints: Option<usize>,
    /// Type of the exported weights: f32, bf16 or f16
    #[arg(long, value_name = "TYPE", help_heading = "Run")]
    export_dtype: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OverlongArg {
    Refuse,
    Drop,
    Truncate,
    Split,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DecayArg {
    Linear,
    Cosine,
    Constant,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OptimArg {
    Adamw,
    #[value(name = "adamw_8bit", alias = "adamw-8bit", alias = "adamw_bnb_8bit")]
    Adamw8bit,
}

impl<A: MethodArgs> Options<A> {
    /// The configuration: defaults, then the recipe file, then flags.
    pub fn resolve(self) -> anyhow::Result<Config<A::Options>> {
        let Self { method, shared } = self;
        let mut config: Config<A::Options> = match &shared.config {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    let message = format!("cannot read the recipe: {error}");
                    halter_core::Error::config(message).in_file(path)
                })?;
                Config::from_toml(&text, path)?
            }
            None if shared.names_nothing() => Config::bundled()?,
            None => Config::default(),
        };
        shared.apply(&mut config.train);
        method.apply(&mut config.method);
        Ok(config)
    }
}

impl Shared {
    /// Whether neither a model nor data is given.
    fn names_nothing(&self) -> bool {
        self.model.is_none() && self.init_from.is_none() && self.data.is_empty()
    }

    /// Sets what was given.
    fn apply(self, config: &mut TrainConfig) {
        self.clear_what_it_overrules(config);
        macro_rules! set {
            ($($field:ident),*) => { $( if let Some(value) = self.$field { config.$field = value; } )* };
        }
        macro_rules! set_some {
            ($($field:ident),*) => { $( if self.$field.is_some() { config.$field = self.$field; } )* };
        }
        set!(eval_every, eval_generate, max_new_tokens, output, device, seed, epochs, batch_size);
        set!(microbatch_tokens, max_seq_len, learning_rate, warmup_ratio, adam_beta1, adam_beta2);
        set!(adam_epsilon, weight_decay, max_grad_norm, lora_rank, lora_alpha, lora_dropout);
        set!(save_every, keep_checkpoints, export_dtype);
        set_some!(model, revision, init_from, tokenizer, chat_template, adapter, format, max_steps);
        set_some!(keep_blocks);
        for (given, field) in [
            (self.data, &mut config.data),
            (self.eval_data, &mut config.eval_data),
            (self.column, &mut config.column),
            (self.lora_target, &mut config.lora_target),
        ] {
            if !given.is_empty() {
                *field = given;
            }
        }
        if let Some(overlong) = self.overlong {
            config.overlong = match overlong {
                OverlongArg::Refuse => Overlong::Refuse,
                OverlongArg::Drop => Overlong::Drop,
                OverlongArg::Truncate => Overlong::Truncate,
                OverlongArg::Split => Overlong::Split,
            };
        }
        if let Some(schedule) = self.schedule {
            config.schedule = match schedule {
                DecayArg::Linear => Decay::Linear,
                DecayArg::Cosine => Decay::Cosine,
                DecayArg::Constant => Decay::Constant,
            };
        }
        if let Some(optim) = self.optim {
            config.optim = match optim {
                OptimArg::Adamw => Optim::AdamW,
                OptimArg::Adamw8bit => Optim::AdamW8bit,
            };
        }
        config.optimizer_in_backward |= self.optimizer_in_backward;
        config.allow_special_text |= self.allow_special_text;
        config.shuffle &= !self.no_shuffle;
        config.use_rslora |= self.use_rslora;
    }

    /// Takes out of a recipe what a flag leaves without effect: it would be refused, but nobody
    /// gave the two together.
    fn clear_what_it_overrules(&self, config: &mut TrainConfig) {
        let default = TrainConfig::default();
        if self.epochs.is_some() {
            config.max_steps = None;
        }
        if self.max_steps.is_some() {
            config.epochs = default.epochs;
        }
        if self.eval_generate == Some(0) {
            config.max_new_tokens = default.max_new_tokens;
        }
        if self.adapter.is_some() || self.lora_rank.is_some_and(|rank| rank > 0) {
            config.export_dtype = default.export_dtype;
        }
    }
}

/// What a command that trains was told to do.
pub struct Run<O> {
    /// The configuration.
    pub config: Config<O>,
    start: Start,
    dry_run: bool,
}

impl<A: MethodArgs> Args<A> {
    /// Whether neither a model nor data is given, nor a recipe.
    pub fn names_nothing(&self) -> bool {
        self.options.shared.config.is_none() && self.options.shared.names_nothing()
    }

    /// Whether an earlier run goes on.
    pub fn resumes(&self) -> bool {
        self.resume
    }

    /// The run that the arguments tell.
    pub fn resolve(self) -> anyhow::Result<Run<A::Options>> {
        let start = if self.resume { Start::Resume } else { Start::Fresh };
        let config = match start {
            Start::Fresh => self.options.resolve()?,
            Start::Resume => resumed_config(self.options)?,
        };
        Ok(Run { config, start, dry_run: self.dry_run })
    }
}

/// Runs a command that trains.
pub fn run<A: MethodArgs, M: Method<Options = A::Options>>(
    args: Args<A>,
    context: &Context,
) -> anyhow::Result<()> {
    start::<M>(args.resolve()?, context)
}

/// Runs what [`Args::resolve`] gave by a method.
pub fn start<M: Method>(run: Run<M::Options>, context: &Context) -> anyhow::Result<()> {
    let Run { config, start, dry_run } = run;
    let mut progress = progress::to_stderr();
    RunDir::check(&config.train.output, start)?;
    let interrupt = interrupt::on_ctrl_c()?;
    let prepared = Prepared::<M>::new(&config, start, progress.as_mut())?;
    prepared.introduce(progress.as_mut());
    if dry_run {
        prepared.plan.check()?;
        return context.print_json(&json!({
            "steps": prepared.total_steps,
            "predicted_memory": prepared.plan.peak_bytes(),
            "seconds_per_step": prepared.plan.seconds_per_step,
        }));
    }
    let outcome = run::run(prepared, progress.as_mut(), &interrupt)?;
    context.print_json(&outcome)
}

/// A resumed run has the configuration that it began with; only where it runs and what is kept of
/// it may change.
fn resumed_config<A: MethodArgs>(options: Options<A>) -> anyhow::Result<Config<A::Options>> {
    let given = options.clone().resolve()?;
    RunDir::check(&given.train.output, Start::Resume)?;
    let path = RunFiles::new(&given.train.output).config();
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read `{}`", path.display()))?;
    let began_with: Config<A::Options> = Config::from_toml(&text, &path)?;
    // A recipe that is given again must say what it said; without one, the flags alone.
    let mut wanted = match options.shared.config {
        Some(_) => given.clone(),
        None => {
            let shared = Shared { config: Some(path), ..options.shared };
            Options { shared, ..options }.resolve()?
        }
    };
    let mut config = began_with;
    config.train = TrainConfig {
        output: given.train.output,
        save_every: wanted.train.save_every,
        keep_checkpoints: wanted.train.keep_checkpoints,
        device: wanted.train.device.clone(),
        ..config.train
    };
    wanted.train.output = config.train.output.clone();
    let (before, after) = (table(&config)?, table(&wanted)?);
    for key in before.keys().chain(after.keys()) {
        let shown =
            |table: &toml::Table| table.get(key).map_or("nothing".into(), |v| v.to_string());
        if before.get(key) != after.get(key) {
            let (before, after) = (shown(&before), shown(&after));
            return Err(halter_core::Error::config(format!(
                "`{key}` is `{after}`, but the run began with `{before}`"
            ))
            .hint("with `--resume`, `--output` alone is enough: the rest is in its `config.toml`")
            .into());
        }
    }
    Ok(config)
}

fn table<O: MethodOptions>(config: &Config<O>) -> anyhow::Result<toml::Table> {
    Ok(config.to_toml()?.parse()?)
}
