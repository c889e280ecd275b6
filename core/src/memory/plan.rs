//! How much memory and time a training step will need, from the model's shape.

use std::time::Instant;

use super::system::available_memory;
use crate::generate;
use crate::model::Decoder;
use crate::model::config::ModelConfig;
use crate::model::param::Param;
use crate::ops::logps;
use crate::ops::matmul::{Into, Mat, MatMut, parallel};
use crate::train::optimizer::Optim;
use crate::{Error, ErrorKind, Result};

/// Program, allocator, tokenizer and thread stacks.
pub(super) const PROCESS_BYTES: usize = 48 << 20;
/// With fewer tokens than this at once, products are slow.
const LEAST_TOKENS: usize = 512;
/// Activations of one microbatch should take about this much.
const ACTIVATION_TARGET: usize = 256 << 20;
/// A microbatch that is chosen has room for a step of this many times the mean.
const STEP_ROOM: f64 = 2.0;
/// By so many standard deviations the largest of a run's steps is above the mean.
const LARGE_STEP: f64 = 3.0;
/// Share of the measured product speed that a whole step reaches.
const STEP_EFFICIENCY: f64 = 0.9;
/// Time of an operation of attention, in those of a large product.
const ATTENTION_COST: f64 = 1.3;

/// What the planner is told about a run.
#[derive(Debug, Clone, Copy)]
pub struct PlanInput {
    /// Most tokens of a microbatch; 0 to choose.
    pub microbatch_tokens: usize,
    /// Rows of a step.
    pub rows_per_step: usize,
    /// Tokens of an average row.
    pub mean_row: f64,
    /// Standard deviation of a row's tokens.
    pub row_deviation: f64,
    /// Longest row that may come, in tokens.
    pub longest_row: usize,
    /// Share of the tokens that are trained.
    pub trained_share: f64,
    /// Blocks that keep their activations; `None` to choose.
    pub keep_blocks: Option<usize>,
    /// How the optimizer keeps its moments.
    pub optim: Optim,
    /// Whether parameters are updated inside backward: a step is one microbatch, and gradients of
    /// one block are held at a time.
    pub optimizer_in_backward: bool,
    /// What evaluations will do; `None` where there is none.
    pub evaluation: Option<EvaluationInput>,
}

impl PlanInput {
    /// Tokens of an average step.
    fn tokens_per_step(&self) -> f64 {
        self.mean_row * self.rows_per_step as f64
    }

    /// Tokens of the largest step that is likely.
    fn tokens_of_large_step(&self) -> f64 {
        let deviation = self.row_deviation * (self.rows_per_step as f64).sqrt();
        let most = (self.longest_row * self.rows_per_step) as f64;
        (self.tokens_per_step() + LARGE_STEP * deviation).min(most.max(self.tokens_per_step()))
    }
}

/// What a method needs beside the pass that it trains.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Needs {
    /// Bytes that it holds beside the model, by name.
    pub memory: Vec<(&'static str, usize)>,
    /// Forward passes over the rows of a step of which nothing is kept; that of a larger model is
    /// more than one.
    pub forward_passes: f64,
    /// Whether a step is one microbatch.
    pub whole_step: bool,
}

/// What the planner is told about evaluations.
#[derive(Debug, Clone, Copy)]
pub struct EvaluationInput {
    /// Tokens of all held-out rows.
    pub tokens: usize,
    /// Tokens of the longest of them.
    pub longest_row: usize,
    /// See [`generate::cached_tokens`].
    pub cached_tokens: usize,
}

/// The plan: choices made and what they will cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Most tokens of a microbatch.
    pub microbatch_tokens: usize,
    /// Most tokens of an evaluation's microbatch: about a step's, whose scratch it then uses again.
    pub evaluation_tokens: usize,
    /// Blocks that keep their activations.
    pub keep_blocks: usize,
    /// Parts of the peak, in bytes.
    pub parts: Vec<(&'static str, usize)>,
    /// Seconds of a step.
    pub seconds_per_step: f64,
    /// Memory that was free, in bytes; `None` where the system does not say, and on a device with
    /// memory of its own.
    pub available: Option<usize>,
}

impl Plan {
    /// Plans for `model`, with its trained parameters chosen, and a method with such `needs`.
    pub fn new(model: &Decoder, needs: &Needs, input: PlanInput) -> Self {
        let config = &model.config;
        let width = Width::of(config);
        let blocks = config.num_hidden_layers;
        let microbatch_tokens = match input.microbatch_tokens {
            0 => (ACTIVATION_TARGET / (4 * width.kept * blocks))
                .min((STEP_ROOM * input.tokens_per_step()) as usize)
                .clamp(LEAST_TOKENS, 8192),
            given => given,
        };
        // A row longer than the microbatch is a microbatch of its own.
        let step = (input.tokens_per_step().ceil() as usize).max(1);
        let large_step = (input.tokens_of_large_step().ceil() as usize).max(1);
        let tokens = match input.optimizer_in_backward || needs.whole_step {
            true => large_step,
            false => microbatch_tokens.max(input.longest_row).min(large_step),
        };
        let evaluation_tokens = step.max(LEAST_TOKENS).min(microbatch_tokens);
        let available = if model.device().is_cpu() { available_memory() } else { None };
        let boundaries = 4 * tokens * (config.hidden_size * (blocks + 1) + width.working);
        let head = head_bytes(config, input, tokens);
        let mut parts = fixed_parts(model, input);
        parts.extend(&needs.memory);
        parts.extend([("boundaries and scratch", boundaries), ("head", head)]);
        let without_kept: usize = parts.iter().map(|(_, bytes)| bytes).sum();
        let kept_block = 4 * tokens * width.kept;
        let keep_blocks = input.keep_blocks.map_or_else(
            || {
                let room = available.unwrap_or(usize::MAX) / 4 * 3;
                (room.saturating_sub(without_kept) / kept_block.max(1)).min(blocks)
            },
            |keep| keep.min(blocks),
        );
        let kept = kept_block * keep_blocks;
        parts.push(("activations kept", kept));
        if let Some(evaluation) = input.evaluation {
            // They use the same scratch, one after the other.
            let bytes = evaluation_bytes(model, input, evaluation, evaluation_tokens);
            let beyond = bytes.saturating_sub(boundaries + head + kept);
            parts.push(("evaluation beyond a step", beyond));
        }
        let operations = step_operations(model, input, needs, blocks - keep_blocks);
        let seconds_per_step = operations / (product_speed(config.hidden_size) * STEP_EFFICIENCY);
        Self {
            microbatch_tokens,
            evaluation_tokens,
            keep_blocks,
            parts,
            seconds_per_step,
            available,
        }
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
pub(super) struct Width {
    kept: usize,
    working: usize,
    /// In a pass that keeps nothing.
    pub(super) forward: usize,
}

impl Width {
    pub(super) fn of(config: &ModelConfig) -> Self {
        let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let raw = if config.qk_norm { q + kv } else { 0 };
        let kept = 2 * q + 2 * kv + raw + 2 * hidden + 2 * ffn + config.num_attention_heads;
        Self { kept, working: 2 * ffn + 3 * hidden + 4 * q + 2 * kv, forward: kept + hidden + ffn }
    }
}

/// What a run holds from its beginning to its end.
fn fixed_parts(model: &Decoder, input: PlanInput) -> Vec<(&'static str, usize)> {
    let count = |params: Vec<&Param>| -> usize {
        params.iter().filter(|param| param.is_trained()).map(|param| param.elem_count()).sum()
    };
    let trained = count(model.params());
    let gradients = if input.optimizer_in_backward {
        let blocks = model.blocks.iter().map(|block| count(block.params()));
        trained - blocks.clone().sum::<usize>() + blocks.max().unwrap_or(0)
    } else {
        trained
    };
    let dense: usize =
        model.params().iter().filter(|p| p.dense().is_some()).map(|p| p.elem_count()).sum();
    let stored: Vec<_> = model.params().into_iter().filter(|p| p.dense().is_none()).collect();
    // The head, or the embedding, and then a matrix of a block are widened at their use.
    let mut widened: Vec<usize> = stored.iter().map(|p| p.elem_count()).collect();
    widened.sort_unstable_by(|a, b| b.cmp(a));
    widened.dedup();
    let widened: usize = widened.iter().take(2).sum();
    let stored_bytes: usize = stored.iter().map(|p| p.stored_bytes()).sum();
    vec![
        ("weights", 4 * (dense + widened) + stored_bytes),
        ("gradients", 4 * gradients),
        ("optimizer", (input.optim.bytes_per_parameter() * trained as f64) as usize),
        ("process", PROCESS_BYTES),
    ]
}

/// The head of a pass of `tokens`: a chunk of logits, and the rows that it is computed from.
fn head_bytes(config: &ModelConfig, input: PlanInput, tokens: usize) -> usize {
    let rows = ((tokens as f64 * input.trained_share).ceil() as usize).max(1);
    let chunk = rows.min(logps::chunk_rows(config.vocab_size)) * config.vocab_size;
    4 * (chunk + 4 * rows * config.hidden_size)
}

/// The loss of held-out rows or answers to their prompts, whichever needs more.
fn evaluation_bytes(
    model: &Decoder,
    input: PlanInput,
    evaluation: EvaluationInput,
    evaluation_tokens: usize,
) -> usize {
    let config = &model.config;
    let pass = |tokens: usize| 4 * tokens * Width::of(config).forward;
    let tokens = evaluation_tokens.min(evaluation.tokens).max(evaluation.longest_row);
    let loss = pass(tokens) + head_bytes(config, input, tokens);
    let kv = config.num_key_value_heads * config.head_dim;
    let cache = 2 * kv * config.num_hidden_layers * evaluation.cached_tokens;
    let logits = generate::SEQUENCES.min(evaluation.cached_tokens) * config.vocab_size;
    let prompts = evaluation.cached_tokens.min(generate::PREFILL_TOKENS);
    loss.max(4 * (cache + logits) + pass(prompts))
}

/// Multiplications and additions of a step, those of attention at what they cost.
fn step_operations(model: &Decoder, input: PlanInput, needs: &Needs, recomputed: usize) -> f64 {
    let config = &model.config;
    let matrices = |params: Vec<&Param>| -> f64 {
        params.iter().filter(|p| p.dims().len() == 2).map(|p| p.elem_count() as f64).sum()
    };
    let block = model.blocks.first().map_or(0.0, |block| matrices(block.params()));
    let trained_block = model.blocks.first().map_or(0.0, |block| {
        matrices(block.params().into_iter().filter(|p| p.is_trained()).collect())
    });
    let blocks = config.num_hidden_layers as f64;
    let head = (config.vocab_size * config.hidden_size) as f64;
    let head_trained = if model.head().is_trained() { 1.0 } else { 0.0 };
    let width = (config.num_attention_heads * config.head_dim) as f64;
    let attention = ATTENTION_COST * input.mean_row * width;
    let passes = needs.forward_passes;
    // Forward, forward again where recomputed, input gradients, weight gradients.
    let per_token = blocks * (4.0 * block + 2.0 * trained_block + 7.0 * attention)
        + (recomputed as f64 + passes * blocks) * (2.0 * block + 2.0 * attention)
        + input.trained_share * head * (6.0 + 2.0 * head_trained + 2.0 * passes);
    per_token * input.tokens_per_step()
}

/// Floating-point operations a second of a product like the model's, measured for a moment.
pub(super) fn product_speed(hidden: usize) -> f64 {
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

/// `1.25 GB` (10⁹ bytes), or `12 MB` for small ones.
pub fn gigabytes(bytes: usize) -> String {
    match bytes as f64 / 1e9 {
        large if large >= 1.0 => format!("{large:.2} GB"),
        small => format!("{:.0} MB", small * 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Context;
    use candle_core::Device;

    fn model() -> Decoder {
        let json = serde_json::json!({
            "model_type": "llama", "vocab_size": 101, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": true, "hidden_act": "silu",
        });
        let config = ModelConfig::from_json(&json, "config.json").unwrap();
        let mut model = Decoder::fresh(config, 1, Context::new(&Device::Cpu)).unwrap();
        model.train_where(|_| true).unwrap();
        model
    }

    /// Steps of 1,100 tokens.
    const INPUT: PlanInput = PlanInput {
        microbatch_tokens: 0,
        rows_per_step: 11,
        mean_row: 100.0,
        row_deviation: 0.0,
        longest_row: 512,
        trained_share: 0.5,
        keep_blocks: Some(0),
        optim: Optim::AdamW,
        optimizer_in_backward: false,
        evaluation: None,
    };

    #[test]
    fn microbatches_are_near_what_a_step_has() {
        let model = model();
        let chosen = |mean_row, microbatch_tokens| {
            let plan = Plan::new(
                &model,
                &Needs::default(),
                PlanInput { mean_row, microbatch_tokens, ..INPUT },
            );
            (plan.microbatch_tokens, plan.evaluation_tokens)
        };
        assert_eq!(chosen(100.0, 0), (2200, 1100));
        assert_eq!(chosen(3.0, 0), (512, 512));
        assert_eq!(chosen(1e6, 0), (8192, 8192));
        assert_eq!(chosen(100.0, 7000), (7000, 1100), "the user's own");
        assert_eq!(chosen(100.0, 64), (64, 64));
    }

    #[test]
    fn rows_of_unequal_lengths_need_room_for_large_steps() {
        let model = model();
        let tokens = |row_deviation, longest_row| {
            let input = PlanInput { row_deviation, longest_row, ..INPUT };
            input.tokens_of_large_step() as usize
        };
        // 1100 + 3 × 50 × √11.
        assert_eq!((tokens(0.0, 512), tokens(50.0, 512)), (1100, 1597));
        assert_eq!(tokens(50.0, 120), 1320, "no more than rows can have");
        let peak = |row_deviation| {
            let input = PlanInput { row_deviation, ..INPUT };
            Plan::new(&model, &Needs::default(), input).peak_bytes()
        };
        assert!(peak(50.0) > peak(0.0));
        assert_eq!(peak(1000.0), peak(2000.0), "no more than a microbatch has");
    }

    #[test]
    fn the_peak_is_that_of_an_evaluation_where_it_needs_more_than_a_step() {
        let model = model();
        let peak = |evaluation| {
            Plan::new(&model, &Needs::default(), PlanInput { evaluation, ..INPUT }).peak_bytes()
        };
        let of = |longest_row, cached_tokens| {
            Some(EvaluationInput { tokens: 1_000_000, longest_row, cached_tokens })
        };
        let step = peak(None);
        assert_eq!(peak(of(90, 100)), step, "rows and answers of less than a step");
        assert!(peak(of(9000, 0)) > step, "a row longer than a step");
        // Keys and values: 2 layers of 16 numbers each.
        let caches = peak(of(90, 2_000_000)) - peak(of(90, 1_000_000));
        assert_eq!(caches, 4 * 2 * 2 * 16 * 1_000_000);
    }

    #[test]
    fn memory_modes_are_counted() {
        let model = model();
        let part = |input, name| {
            let plan = Plan::new(&model, &Needs::default(), input);
            plan.parts.iter().find(|(part, _)| *part == name).unwrap().1
        };
        let trained: usize = model.trained().iter().map(|param| param.elem_count()).sum();
        let eight_bit = PlanInput { optim: Optim::AdamW8bit, ..INPUT };
        assert_eq!(part(INPUT, "optimizer"), 8 * trained);
        assert_eq!(part(eight_bit, "optimizer"), 2 * trained + 8 * trained / 256);
        let inside = PlanInput { optimizer_in_backward: true, ..INPUT };
        let block: usize = model.blocks[0].params().iter().map(|param| param.elem_count()).sum();
        assert_eq!(part(INPUT, "gradients"), 4 * trained);
        assert_eq!(part(inside, "gradients"), 4 * (trained - block), "of two blocks");
        let scratch = |optimizer_in_backward| {
            let short = PlanInput { microbatch_tokens: 64, longest_row: 64, ..INPUT };
            part(PlanInput { optimizer_in_backward, ..short }, "boundaries and scratch")
        };
        assert!(scratch(true) > scratch(false), "a step at once");
    }

    #[test]
    fn attention_is_counted_for_rows_as_they_are() {
        let model = model();
        let operations = |input| step_operations(&model, input, &Needs::default(), 0);
        assert_eq!(operations(PlanInput { longest_row: 4096, ..INPUT }), operations(INPUT));
        let long = PlanInput { mean_row: 1100.0, rows_per_step: 1, ..INPUT };
        assert!(operations(long) > operations(INPUT));
    }

    #[test]
    fn a_forward_pass_beside_is_about_a_third_of_a_step_that_trains_everything() {
        let model = model();
        let operations = |forward_passes| {
            let needs = Needs { forward_passes, ..Needs::default() };
            step_operations(&model, INPUT, &needs, 0)
        };
        // 2 of 6 operations of a product, 2 of 7 of attention.
        let share = (operations(2.0) - operations(0.0)) / operations(0.0);
        assert!((4.0 / 7.0..2.0 / 3.0).contains(&share), "{share}");
    }

    #[test]
    fn a_step_that_is_one_microbatch_needs_room_for_all_its_rows() {
        let model = model();
        let peak = |whole_step| {
            let needs = Needs { whole_step, ..Needs::default() };
            let input = PlanInput { microbatch_tokens: 64, longest_row: 64, ..INPUT };
            Plan::new(&model, &needs, input).peak_bytes()
        };
        assert!(peak(true) > peak(false));
    }

    #[test]
    fn a_run_that_does_not_fit_is_refused_with_the_sum() {
        let mut plan = Plan::new(&model(), &Needs::default(), INPUT);
        plan.available = Some(plan.peak_bytes());
        plan.check().unwrap();
        plan.available = Some(plan.peak_bytes() - 1);
        let error = plan.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory);
        assert!(error.message().contains(" + gradients "), "{error}");
        plan.available = None;
        plan.check().unwrap();
    }
}
