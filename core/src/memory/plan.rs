//! How much memory and time a training step will need, from the model's shape.

use std::time::Instant;

use crate::model::Decoder;
use crate::ops::logps;
use crate::ops::matmul::{Into, Mat, MatMut, parallel};
use crate::{Error, ErrorKind, Result};

/// Program, allocator, tokenizer and thread stacks.
const PROCESS_BYTES: usize = 48 << 20;
/// Activations of one microbatch should take about this much.
const ACTIVATION_TARGET: usize = 256 << 20;
/// Share of the measured product speed that a whole step reaches.
const STEP_EFFICIENCY: f64 = 0.8;

/// What the planner is told about a run.
#[derive(Debug, Clone, Copy)]
pub struct PlanInput {
    /// Most tokens of a microbatch; 0 to choose.
    pub microbatch_tokens: usize,
    /// Longest row that may come, in tokens.
    pub longest_row: usize,
    /// Tokens of an average step.
    pub tokens_per_step: f64,
    /// Share of the tokens that are trained.
    pub trained_share: f64,
    /// Blocks that keep their activations; `None` to choose.
    pub keep_blocks: Option<usize>,
}

/// The plan: choices made and what they will cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Most tokens of a microbatch.
    pub microbatch_tokens: usize,
    /// Blocks that keep their activations.
    pub keep_blocks: usize,
    /// Parts of the peak, in bytes.
    pub parts: Vec<(&'static str, usize)>,
    /// Seconds of a step.
    pub seconds_per_step: f64,
    /// Memory that was free, in bytes; `None` where the system does not say.
    pub available: Option<usize>,
}

impl Plan {
    /// Plans for `model`, with its trained parameters chosen.
    pub fn new(model: &Decoder, input: PlanInput) -> Self {
        let config = &model.config;
        let width = Width::of(model);
        let blocks = config.num_hidden_layers;
        let microbatch_tokens = match input.microbatch_tokens {
            0 => (ACTIVATION_TARGET / (4 * width.kept * blocks)).clamp(512, 8192),
            given => given,
        };
        // A row longer than the microbatch is a microbatch of its own.
        let tokens = (microbatch_tokens as f64).min(input.tokens_per_step.max(1.0)) as usize;
        let tokens = tokens.max(input.longest_row.min(input.tokens_per_step.ceil() as usize));
        let available = available_memory();
        let fixed = fixed_parts(model, input, tokens, width);
        let fixed_bytes: usize = fixed.iter().map(|(_, bytes)| bytes).sum();
        let kept_block = 4 * tokens * width.kept;
        let keep_blocks = input.keep_blocks.map_or_else(
            || {
                let room = available.unwrap_or(usize::MAX) / 4 * 3;
                (room.saturating_sub(fixed_bytes) / kept_block.max(1)).min(blocks)
            },
            |keep| keep.min(blocks),
        );
        let mut parts = fixed;
        parts.push(("activations kept", kept_block * keep_blocks));
        let seconds_per_step = step_seconds(model, input, blocks - keep_blocks);
        Self { microbatch_tokens, keep_blocks, parts, seconds_per_step, available }
    }

    /// Most memory the process will hold, in bytes.
    pub fn peak_bytes(&self) -> usize {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The arithmetic of the peak, e.g. `weights 0.54 GB + gradients 0.54 GB + …`.
    pub fn arithmetic(&self) -> String {
        let part = |(name, bytes): &(&str, usize)| format!("{name} {}", gigabytes(*bytes));
        self.parts.iter().map(part).collect::<Vec<_>>().join(" + ")
    }

    /// Refuses a run that will not fit.
    ///
    /// # Errors
    /// With the arithmetic.
    pub fn check(&self) -> Result<()> {
        match self.available {
            Some(available) if self.peak_bytes() > available => Err(Error::new(
                ErrorKind::Memory,
                format!(
                    "the run needs {} and {} are free: {}",
                    gigabytes(self.peak_bytes()),
                    gigabytes(available),
                    self.arithmetic()
                ),
            )
            .hint(
                "lower `--microbatch-tokens`, train an adapter with `--lora-rank`, or take a \
                 smaller model",
            )),
            _ => Ok(()),
        }
    }
}

/// f32 numbers per token and block.
#[derive(Clone, Copy)]
struct Width {
    kept: usize,
    working: usize,
}

impl Width {
    fn of(model: &Decoder) -> Self {
        let config = &model.config;
        let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let raw = if config.qk_norm { q + kv } else { 0 };
        Self {
            kept: 2 * q + 2 * kv + raw + 2 * hidden + 2 * ffn + config.num_attention_heads,
            working: 2 * ffn + 3 * hidden + 4 * q + 2 * kv,
        }
    }
}

fn fixed_parts(
    model: &Decoder,
    input: PlanInput,
    tokens: usize,
    width: Width,
) -> Vec<(&'static str, usize)> {
    let config = &model.config;
    let trained: usize = model.trained().iter().map(|param| param.elem_count()).sum();
    let dense: usize =
        model.params().iter().filter(|p| p.dense().is_some()).map(|p| p.elem_count()).sum();
    let stored: Vec<_> = model.params().into_iter().filter(|p| p.dense().is_none()).collect();
    let widest = stored.iter().map(|p| p.elem_count()).max().unwrap_or(0);
    let stored_bytes: usize = stored.iter().map(|p| p.stored_bytes()).sum();
    let rows = ((tokens as f64 * input.trained_share).ceil() as usize).max(1);
    let chunk = rows.min(logps::chunk_rows(config.vocab_size)) * config.vocab_size;
    vec![
        ("weights", 4 * (dense + 2 * widest) + stored_bytes),
        ("gradients", 4 * trained),
        ("optimizer", 8 * trained),
        (
            "boundaries and scratch",
            4 * tokens * (config.hidden_size * (config.num_hidden_layers + 1) + width.working),
        ),
        ("head", 4 * (chunk + 4 * rows * config.hidden_size)),
        ("process", PROCESS_BYTES),
    ]
}

/// Multiplications and additions of a step over the measured speed of a product.
fn step_seconds(model: &Decoder, input: PlanInput, recomputed: usize) -> f64 {
    let config = &model.config;
    let matrices = |params: Vec<&crate::model::param::Param>| -> f64 {
        params.iter().filter(|p| p.dims().len() == 2).map(|p| p.elem_count() as f64).sum()
    };
    let block = model.blocks.first().map_or(0.0, |block| matrices(block.params()));
    let trained_block = model.blocks.first().map_or(0.0, |block| {
        matrices(block.params().into_iter().filter(|p| p.is_trained()).collect())
    });
    let blocks = config.num_hidden_layers as f64;
    let head = (config.vocab_size * config.hidden_size) as f64;
    let head_trained = if model.head().is_trained() { 1.0 } else { 0.0 };
    let row = (input.longest_row as f64).min(input.tokens_per_step);
    let width = (config.num_attention_heads * config.head_dim) as f64;
    let attention = row * width;
    // Forward, forward again where recomputed, input gradients, weight gradients.
    let per_token = blocks * (4.0 * block + 2.0 * trained_block + 7.0 * attention)
        + recomputed as f64 * (2.0 * block + 2.0 * attention)
        + input.trained_share * head * (6.0 + 2.0 * head_trained);
    per_token * input.tokens_per_step / (product_speed(config.hidden_size) * STEP_EFFICIENCY)
}

/// Floating-point operations a second of a product like the model's, measured for a moment.
fn product_speed(hidden: usize) -> f64 {
    let (m, k) = (256, hidden.clamp(64, 2048));
    let n = 3 * k;
    let (x, w) = (vec![1f32; m * k], vec![1f32; n * k]);
    let mut y = vec![0f32; m * n];
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    for round in 0..50 {
        let started = Instant::now();
        parallel(Mat::new(&x, m, k), Mat::new(&w, n, k).t(), Into::Overwrite, {
            MatMut::new(&mut y, m, n)
        });
        best = best.min(started.elapsed().as_secs_f64());
        if round >= 3 && begin.elapsed().as_millis() > 60 {
            break;
        }
    }
    2.0 * (m * n * k) as f64 / best.max(1e-9)
}

/// Memory that a program can still take, in bytes.
pub fn available_memory() -> Option<usize> {
    proc_kilobytes("/proc/meminfo", "MemAvailable:").map(|kib| kib * 1024)
}

/// Most memory that this process has held, in bytes.
pub fn peak_memory() -> Option<usize> {
    proc_kilobytes("/proc/self/status", "VmHWM:").map(|kib| kib * 1024)
}

fn proc_kilobytes(path: &str, key: &str) -> Option<usize> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// `1.25 GB` (10⁹ bytes), or `12 MB` for small ones.
pub fn gigabytes(bytes: usize) -> String {
    match bytes as f64 / 1e9 {
        large if large >= 1.0 => format!("{large:.2} GB"),
        small => format!("{:.0} MB", small * 1e3),
    }
}
