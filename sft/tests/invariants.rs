//! What must not change a step: how its rows are packed, what is recomputed; and the rules of the
//! configuration.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use halter_core::ErrorKind;
use halter_core::data::batch::PackedBatch;
use halter_core::data::record::{Origin, Row};
use halter_core::model::Decoder;
use halter_core::model::config::ModelConfig;
use halter_core::model::linear::PassMode;
use halter_core::model::weights::adapter::AdapterConfig;
use halter_core::ops::Context;
use halter_core::text::mask::MaskPolicy;
use halter_core::train::config::{MethodOptions, TrainConfig};
use halter_core::train::interrupt::Interrupt;
use halter_core::train::method::{Figures, StepOptions};
use halter_core::train::optimizer::{AdamW, AdamWConfig, Optim};
use halter_core::train::step::update_in_backward;
use halter_sft::config::{SftConfig, SftOptions};
use halter_sft::step::{self, accumulate, each_pass};
use halter_testkit::{assert_relative, values};

fn model() -> Decoder {
    let json = serde_json::json!({
        "model_type": "llama", "vocab_size": 101, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "hidden_act": "silu", "initializer_range": 0.2,
    });
    let config = ModelConfig::from_json(&json, "config.json").unwrap();
    let mut model = Decoder::fresh(config, 3, Context::new(&Device::Cpu)).unwrap();
    model.train_where(|_| true).unwrap();
    model
}

fn with_lora(dropout: f64) -> Decoder {
    let mut model = model();
    let config = AdapterConfig { rank: 4, dropout, ..AdapterConfig::default() };
    model.add_lora(&config, 5).unwrap();
    model
}

/// Eight rows of several lengths, of which the last two thirds are trained.
fn rows() -> Vec<Row> {
    let path = Arc::new(PathBuf::from("rows.jsonl"));
    let row = |(line, len): (usize, usize)| Row {
        origin: Origin { path: Arc::clone(&path), line: line + 1 },
        input_ids: (0..len).map(|i| ((i * i + 13 * line + 7) % 101) as u32).collect(),
        completion_mask: (0..len).map(|i| i >= len / 3).collect(),
        prompt_is_prefix: true,
    };
    [9, 30, 4, 17, 40, 2, 25, 12].into_iter().enumerate().map(row).collect()
}

fn options(microbatch_tokens: usize, keep_blocks: usize, seed: u64) -> StepOptions {
    StepOptions { microbatch_tokens, keep_blocks, seed, learning_rate: 0.0 }
}

fn evaluate(
    model: &Decoder,
    rows: &[Row],
    microbatch_tokens: usize,
) -> halter_core::Result<Figures> {
    step::evaluate(model, rows, microbatch_tokens, &Interrupt::new())
}

/// Full steps; dropout, where there is any, has another seed in each.
fn train(model: &Decoder, steps: u64, at: StepOptions) -> Vec<f64> {
    let mut optimizer = AdamW::new(AdamWConfig::default(), model.trained()).unwrap();
    let mut grads = model.grads().unwrap();
    let step = |step: u64| {
        grads.clear().unwrap();
        let seed = at.seed + (step << 16);
        let figures = accumulate(model, &rows(), StepOptions { seed, ..at }, &grads).unwrap();
        let clip = (1.0 / (grads.norm().unwrap() + 1e-6)).min(1.0);
        optimizer.update(&model.trained(), &grads, 1e-3, clip).unwrap();
        figures.loss()
    };
    (0..steps).map(step).collect()
}

fn weights(model: &Decoder) -> Vec<(String, Tensor)> {
    let copy = |param: &&halter_core::model::param::Param| {
        (param.name().to_string(), param.dense().unwrap().copy().unwrap())
    };
    model.trained().iter().map(copy).collect()
}

#[test]
fn one_microbatch_of_eight_rows_is_eight_of_one() {
    let model = model();
    let gradients = |microbatch_tokens| {
        let grads = model.grads().unwrap();
        let at = options(microbatch_tokens, 2, 0);
        let figures = accumulate(&model, &rows(), at, &grads).unwrap();
        (figures, grads)
    };
    let ((together, a), (apart, b)) = (gradients(4096), gradients(1));
    assert!((together.loss() - apart.loss()).abs() < 1e-5 * apart.loss());
    assert_eq!(together.supervised_tokens, apart.supervised_tokens);
    assert_eq!(together.tokens, apart.tokens);
    let names = model.trained();
    assert_eq!(names.len(), 20, "all parameters");
    for ((a, b), param) in a.buffers().iter().zip(b.buffers()).zip(names) {
        assert!(values(a).iter().any(|&x| x != 0.0), "{}", param.name());
        assert_relative(param.name(), a, b, 1e-5);
    }
}

#[test]
fn the_size_of_microbatches_does_not_change_where_training_goes() {
    let run = |microbatch_tokens| {
        let model = model();
        let losses = train(&model, 6, options(microbatch_tokens, 2, 0));
        (losses, weights(&model))
    };
    let ((losses, a), (others, b)) = (run(4096), run(20));
    assert!(losses[5] < losses[0] - 0.1, "nothing was learnt: {losses:?}");
    for (one, other) in losses.iter().zip(&others) {
        assert!((one - other).abs() < 1e-5 * other, "{losses:?} {others:?}");
    }
    for ((name, a), (_, b)) in a.iter().zip(&b) {
        assert_relative(name, a, b, 1e-4);
    }
}

#[test]
fn packed_rows_have_the_losses_of_rows_one_by_one() {
    let model = model();
    let packed = evaluate(&model, &rows(), 4096).unwrap();
    let alone: f64 = rows()
        .iter()
        .map(|row| evaluate(&model, std::slice::from_ref(row), 4096).unwrap().loss_sum)
        .sum();
    assert!((packed.loss_sum - alone).abs() < 1e-5 * alone, "{} {alone}", packed.loss_sum);
}

#[test]
fn prompt_tokens_do_not_affect_the_loss_but_as_context() {
    let model = model();
    for row in rows() {
        let masked = evaluate(&model, std::slice::from_ref(&row), 4096).unwrap();
        // Every token's log-prob, of which the loss may count the completion's alone.
        let len = row.input_ids.len();
        let mut builder = PackedBatch::builder();
        builder.masked_row(&row.input_ids, &vec![true; len]);
        let (all, _) = model.evaluate(&builder.build().unwrap(), PassMode::EVALUATE).unwrap();
        let all = values(&all);
        assert_eq!(all.len(), len - 1, "the first token is predicted by nothing");
        let trained: Vec<f64> =
            (1..len).filter(|&at| row.completion_mask[at]).map(|at| -all[at - 1]).collect();
        let expected: f64 = trained.iter().sum();
        assert_eq!(masked.supervised_tokens, trained.len());
        assert!((masked.loss_sum - expected).abs() < 1e-5 * expected, "row of {len}");
        if len > 8 {
            let prompt_as_well: f64 = -all.iter().sum::<f64>();
            assert!(prompt_as_well - masked.loss_sum > 1.0, "row of {len}");
        }
    }
}

#[test]
fn the_order_of_rows_within_a_step_does_not_change_its_loss() {
    let model = model();
    let mut reversed = rows();
    reversed.reverse();
    let (a, b) = (evaluate(&model, &rows(), 50).unwrap(), evaluate(&model, &reversed, 50).unwrap());
    assert!((a.loss_sum - b.loss_sum).abs() < 1e-5 * b.loss_sum);
    assert_eq!((a.supervised_tokens, a.correct), (b.supervised_tokens, b.correct));
}

#[test]
fn lora_with_dropout_has_the_same_bits_recomputed_and_kept() {
    let run = |keep_blocks, dropout: f64| {
        let model = with_lora(dropout);
        let losses = train(&model, 4, options(60, keep_blocks, 11));
        let bits: Vec<u32> = weights(&model)
            .iter()
            .flat_map(|(_, w)| w.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            .map(f32::to_bits)
            .collect();
        (losses, bits)
    };
    let kept = run(2, 0.3);
    for keep_blocks in [0, 1] {
        let again = run(keep_blocks, 0.3);
        assert_eq!(kept.0, again.0);
        assert!(kept.1 == again.1, "bits differ where {keep_blocks} blocks are kept");
    }
    // Or else dropout did nothing.
    assert_ne!(kept.0, run(2, 0.0).0);
}

#[test]
fn dropout_is_off_in_an_evaluation() {
    let (with, without) = (with_lora(0.5), with_lora(0.0));
    for model in [&with, &without] {
        for param in model.trained() {
            // B is zero in a fresh adapter, and would hide everything.
            let value = param.dense().unwrap();
            let ones = (value.ones_like().unwrap() * 0.05).unwrap();
            value.slice_set(&ones, 0, 0).unwrap();
        }
    }
    let loss = |model| evaluate(model, &rows(), 4096).unwrap();
    assert_eq!(loss(&with), loss(&without));
}

#[test]
fn an_evaluation_stops_when_it_is_asked_to() {
    let interrupt = Interrupt::new();
    interrupt.set();
    let error = step::evaluate(&model(), &rows(), 50, &interrupt).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
}

#[test]
fn a_step_or_an_evaluation_without_a_trained_token_is_refused() {
    let model = model();
    let mut rows = rows();
    rows.iter_mut().for_each(|row| row.completion_mask.fill(false));
    let grads = model.grads().unwrap();
    let step = accumulate(&model, &rows, options(64, 0, 0), &grads).unwrap_err();
    for error in [step, evaluate(&model, &rows, 64).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Data);
        assert_eq!(error.to_string(), "no trained token in any row of the step");
    }
}

fn recipe(text: &str) -> halter_core::Result<SftConfig> {
    SftConfig::from_toml(text, Path::new("recipe.toml"))
}

#[test]
fn a_configuration_written_and_read_again_is_the_same() {
    let train = TrainConfig {
        model: Some("org/model".into()),
        data: vec!["a.jsonl:0.5".into(), "b\"c\n.jsonl".into()],
        output: "runs/ü".into(),
        max_steps: Some(7),
        epochs: 1.0 / 3.0,
        learning_rate: 1e-300,
        adam_epsilon: 5e-324,
        lora_target: vec!["q_proj".into()],
        keep_blocks: Some(0),
        shuffle: false,
        ..TrainConfig::default()
    };
    let method = SftOptions { mask: MaskPolicy::Last, ..SftOptions::default() };
    for config in [SftConfig::default(), SftConfig { train, method }] {
        let text = config.to_toml().unwrap();
        assert_eq!(recipe(&text).unwrap(), config, "{text}");
    }
    assert_eq!(recipe("").unwrap(), SftConfig::default());
}

#[test]
fn a_methods_keys_are_those_that_it_writes() {
    let table = toml::Table::try_from(SftOptions::default()).unwrap();
    let mut keys = SftOptions::KEYS.to_vec();
    keys.sort_unstable();
    assert_eq!(table.keys().collect::<Vec<_>>(), keys);
}

#[test]
fn a_wrong_line_of_a_recipe_is_named_with_its_key() {
    for (text, message, hint) in [
        (
            "seed = 1\nlearning_rte = 1e-4\n",
            "recipe.toml:2: no key is called `learning_rte`",
            Some("did you mean `learning_rate`?"),
        ),
        (
            "\n\nfrobnicate = 2",
            "recipe.toml:3: no key is called `frobnicate`",
            Some("keys are the options that the command's `--help` lists, with `_` for `-`"),
        ),
        (
            "seed = 1\nbatch_size = \"8\"",
            "recipe.toml:2: `batch_size`: invalid type: string \"8\", expected a whole number, 0 or more",
            None,
        ),
        (
            "data = [\n  \"a\",\n]\nmsk = \"last\"",
            "recipe.toml:4: no key is called `msk`",
            Some("did you mean `mask`?"),
        ),
        (
            "seed = 1\ncompletion_only_loss = 3\n",
            "recipe.toml:2: `completion_only_loss`: invalid type: integer `3`, expected a boolean",
            None,
        ),
    ] {
        let error = recipe(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert_eq!((error.to_string().as_str(), error.remedy()), (message, hint));
    }
}

#[test]
fn every_value_that_cannot_be_used_is_refused() {
    let good = TrainConfig { data: vec!["d".into()], ..TrainConfig::default() };
    good.validate().unwrap();
    type Spoil = fn(&mut TrainConfig);
    let table: &[(Spoil, &str)] = &[
        (|c| c.batch_size = 0, "`batch-size` is `0`"),
        (|c| c.max_seq_len = 0, "`max-seq-len` is `0`"),
        (|c| c.max_new_tokens = 0, "`max-new-tokens` is `0`"),
        (|c| c.learning_rate = 0.0, "`learning-rate` is `0`"),
        (|c| c.learning_rate = f64::NAN, "`learning-rate` is `NaN`"),
        (|c| c.adam_epsilon = 0.0, "`adam-epsilon` is `0`"),
        (|c| c.epochs = 0.0, "`epochs` is `0`"),
        (|c| c.epochs = f64::INFINITY, "`epochs` is `inf`"),
        (|c| c.max_steps = Some(0), "`max-steps` is `0`"),
        (|c| c.adam_beta1 = 1.0, "`adam-beta1` is `1`"),
        (|c| c.adam_beta2 = -0.5, "`adam-beta2` is `-0.5`"),
        (|c| c.warmup_ratio = 1.1, "`warmup-ratio` is `1.1`"),
        (|c| c.weight_decay = -1.0, "`weight-decay` is `-1`"),
        (|c| c.max_grad_norm = f64::NAN, "`max-grad-norm` is `NaN`"),
        (|c| c.data.clear(), "no data"),
        (|c| c.export_dtype = "f64".into(), "unknown `export-dtype` `f64`"),
        (|c| (c.adapter, c.lora_rank) = (Some("a".into()), 8), "both `adapter` and `lora-rank`"),
        (|c| (c.lora_rank, c.lora_alpha) = (8, 0.0), "`lora-alpha` is `0`"),
        (|c| (c.lora_rank, c.lora_dropout) = (8, 1.0), "`lora-dropout` is `1`"),
        (|c| c.lora_dropout = 0.1, "`lora-dropout` is given without `lora-rank`"),
        (|c| c.use_rslora = true, "`use-rslora` is given without `lora-rank`"),
        (|c| c.lora_target = vec!["q_proj".into()], "`lora-target` is given without `lora-rank`"),
        (
            |c| (c.adapter, c.use_rslora) = (Some("a".into()), true),
            "`use-rslora` is given with `adapter`",
        ),
        (|c| (c.init_from, c.lora_rank) = (Some("c".into()), 8), "an adapter on fresh weights"),
        (|c| c.eval_every = 5, "`eval-every` is given without `eval-data`"),
        (|c| c.eval_generate = 5, "`eval-generate` is given without `eval-data`"),
        (|c| c.lora_alpha = 16.0, "`lora-alpha` is given without `lora-rank`"),
        (
            |c| (c.adapter, c.lora_alpha) = (Some("a".into()), 16.0),
            "`lora-alpha` is given with `adapter`",
        ),
        (
            |c| (c.lora_rank, c.export_dtype) = (8, "bf16".into()),
            "`export-dtype` is given for an adapter",
        ),
        (|c| c.max_new_tokens = 8, "`max-new-tokens` is given without `eval-generate`"),
        (|c| (c.max_steps, c.epochs) = (Some(3), 2.0), "`epochs` is given with `max-steps`"),
    ];
    for (spoil, message) in table {
        let mut config = good.clone();
        spoil(&mut config);
        let error = config.validate().expect_err(message);
        assert_eq!(error.kind(), ErrorKind::Config, "{message}");
        assert!(error.message().starts_with(message), "{error}: expected {message}");
    }
    println!("{} values refused", table.len());
}

/// Full steps with the update inside backward and moments kept as `optim` says.
fn train_in_backward(model: &Decoder, steps: u64, at: StepOptions, optim: Optim) -> Vec<f64> {
    let trained = model.trained();
    let mut optimizer = AdamW::with_moments(AdamWConfig::default(), optim, trained).unwrap();
    let grads = model.rolling_grads().unwrap();
    let mut norms = Vec::new();
    let step = |_| {
        let (figures, squared_norms) =
            update_in_backward(model, &grads, &mut optimizer, 1e-3, |backward| {
                each_pass(model, &rows(), at, &grads, backward)
            })
            .unwrap();
        norms = squared_norms;
        figures.loss()
    };
    let losses = (0..steps).map(step).collect();
    assert_eq!(norms.len(), model.trained().len());
    assert!(norms.iter().all(|&norm| norm > 0.0), "{norms:?}");
    losses
}

#[test]
fn an_update_inside_backward_is_the_update_after_it_bit_for_bit() {
    for keep_blocks in [0, 2] {
        for build in [model, || with_lora(0.0)] {
            let (after, inside) = (build(), build());
            let at = options(4096, keep_blocks, 0);
            let mut optimizer = AdamW::new(AdamWConfig::default(), after.trained()).unwrap();
            let mut grads = after.grads().unwrap();
            let step = |_| {
                grads.clear().unwrap();
                let figures = accumulate(&after, &rows(), at, &grads).unwrap();
                optimizer.update(&after.trained(), &grads, 1e-3, 1.0).unwrap();
                figures.loss()
            };
            let losses: Vec<f64> = (0..4).map(step).collect();
            assert_eq!(losses, train_in_backward(&inside, 4, at, Optim::AdamW));
            for ((name, a), (_, b)) in weights(&after).iter().zip(&weights(&inside)) {
                assert_eq!(values(a), values(b), "{name}");
            }
        }
    }
}

#[test]
fn eight_bit_moments_train_as_full_ones_do() {
    let at = options(4096, 2, 0);
    let run = |optim| train_in_backward(&model(), 60, at, optim);
    let (full, eight_bit) = (run(Optim::AdamW), run(Optim::AdamW8bit));
    assert!(full[59] < full[0] - 1.0, "little was learnt: {full:?}");
    for (full, eight_bit) in full.iter().zip(&eight_bit) {
        assert!((full - eight_bit).abs() < 0.02 * full, "{full} {eight_bit}");
    }
    assert_ne!(full, eight_bit);
}
