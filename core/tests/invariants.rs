//! What must not change a result: packing, shared prefixes, recomputation, threads.
#![allow(clippy::unwrap_used, clippy::panic)]

use candle_core::{DType, Device, Tensor};
use halter_core::data::batch::PackedBatch;
use halter_core::model::Decoder;
use halter_core::model::config::ModelConfig;
use halter_core::model::param::Grads;
use halter_core::ops::Context;
use halter_core::train::pass::PassOptions;
use halter_testkit::{assert_close, assert_relative};

/// A model large enough that attention has several tiles and products are split over threads.
fn model(window: Option<usize>) -> Decoder {
    let mut json = serde_json::json!({
        "model_type": if window.is_some() { "mistral" } else { "llama" },
        "vocab_size": 211, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "hidden_act": "silu", "initializer_range": 0.2,
    });
    if let Some(window) = window {
        json["sliding_window"] = window.into();
    }
    let config = ModelConfig::from_json(&json, "config.json").unwrap();
    let mut model = Decoder::fresh(config, 1, Context::new(&Device::Cpu)).unwrap();
    model.train_where(|_| true).unwrap();
    model
}

fn tokens(len: usize, seed: usize) -> Vec<u32> {
    (0..len).map(|i| (((i + 1) * (seed + 3) * 7919) % 211) as u32).collect()
}

/// Log-probs, and gradients of their weighted sum.
fn run(model: &Decoder, batch: &PackedBatch, weights: &[f64], keep: usize) -> (Tensor, Grads) {
    let pass =
        model.forward(batch, PassOptions { keep_blocks: keep, ..Default::default() }).unwrap();
    let logps = pass.per_token_logps().clone();
    let weights = Tensor::from_slice(weights, weights.len(), &Device::Cpu).unwrap();
    let weights = weights.to_dtype(DType::F32).unwrap();
    let loss = (&logps * weights).unwrap().sum_all().unwrap();
    let grads = model.grads().unwrap();
    pass.backward(&loss, &grads).unwrap();
    (logps.detach(), grads)
}

fn weights(n: usize) -> Vec<f64> {
    (0..n).map(|i| ((i * 37) % 11) as f64 / 11.0 - 0.4).collect()
}

fn assert_same(what: &str, a: &Grads, b: &Grads, tolerance: f64) {
    assert_eq!(a.buffers().len(), b.buffers().len());
    for (a, b) in a.buffers().iter().zip(b.buffers()) {
        assert_relative(what, a, b, tolerance);
    }
}

#[test]
fn the_fingerprint_of_what_is_frozen_follows_values_names_and_nothing_trained() {
    let fingerprint = |change: &str, train: &str| {
        let mut model = model(None);
        model.train_where(|param| param.name().contains(train)).unwrap();
        for param in model.params().into_iter().filter(|param| param.name().contains(change)) {
            let value = param.dense().unwrap();
            value.slice_set(&(value + 1.0).unwrap(), 0, 0).unwrap();
        }
        model.frozen_fingerprint().unwrap()
    };
    let before = fingerprint("nothing", "up_proj");
    assert_eq!(before, fingerprint("up_proj", "up_proj"));
    assert_ne!(before, fingerprint("layers.2.mlp.gate_proj", "up_proj"));
    assert_ne!(before, fingerprint("model.norm", "up_proj"));
    assert_ne!(before, fingerprint("nothing", "gate_proj"), "another set is frozen");
    assert_eq!(fingerprint("", ""), fingerprint("nothing", ""), "nothing is frozen");
}

#[test]
fn packed_sequences_are_as_if_alone() {
    for window in [None, Some(40)] {
        let model = model(window);
        let rows: Vec<Vec<u32>> = [150, 7, 64, 200].iter().map(|&n| tokens(n, n)).collect();
        let build = |rows: &[Vec<u32>]| {
            let mut builder = PackedBatch::builder();
            for row in rows {
                builder.masked_row(row, &vec![true; row.len()]);
            }
            builder.build().unwrap()
        };
        let all = build(&rows);
        let weights = weights(all.targets.len());
        let (packed, packed_grads) = run(&model, &all, &weights, 0);
        let mut alone = Vec::new();
        let mut at = 0;
        let total = model.grads().unwrap();
        for row in &rows {
            let batch = build(std::slice::from_ref(row));
            let n = batch.targets.len();
            let (logps, grads) = run(&model, &batch, &weights[at..at + n], 0);
            for (total, grad) in total.buffers().iter().zip(grads.buffers()) {
                total.slice_set(&(total + grad).unwrap(), 0, 0).unwrap();
            }
            alone.push(logps);
            at += n;
        }
        assert_close("log-probs", &packed, &Tensor::cat(&alone, 0).unwrap(), 1e-5);
        assert_same("packed and alone", &packed_grads, &total, 1e-5);
    }
}

/// A prompt with three completions, one of which is continued by two more, as a tree and as rows.
#[test]
fn a_shared_prefix_is_as_if_repeated_in_every_row() {
    for window in [None, Some(30)] {
        let model = model(window);
        let prompt = tokens(130, 1);
        let completions: Vec<Vec<u32>> = [70, 5, 33].iter().map(|&n| tokens(n, n)).collect();
        let leaves: Vec<Vec<u32>> = [12, 90].iter().map(|&n| tokens(n, n)).collect();

        let mut tree = PackedBatch::builder();
        // Another tree's span between a parent and its branch must change nothing.
        let root = tree.row(&prompt);
        let other = tree.row(&tokens(20, 9));
        let mut branches = Vec::new();
        for completion in &completions {
            branches.push(tree.masked_branch(root, completion, &vec![true; completion.len()]));
        }
        let inner = branches[2];
        for leaf in &leaves {
            branches.push(tree.masked_branch(inner, leaf, &vec![true; leaf.len()]));
        }
        branches.push(tree.masked_branch(other, &tokens(3, 4), &[true; 3]));
        let tree = tree.build().unwrap();

        let mut rows = PackedBatch::builder();
        let mut row = |parts: &[&[u32]]| {
            let trained = parts[parts.len() - 1].len();
            let ids = parts.concat();
            let mask: Vec<bool> = (0..ids.len()).map(|i| i + trained >= ids.len()).collect();
            rows.masked_row(&ids, &mask);
        };
        for completion in &completions {
            row(&[&prompt, completion]);
        }
        for leaf in &leaves {
            row(&[&prompt, &completions[2], leaf]);
        }
        row(&[&tokens(20, 9), &tokens(3, 4)]);
        let rows = rows.build().unwrap();
        assert_eq!(tree.targets.len(), rows.targets.len());
        assert!(tree.len() < rows.len() / 2);

        let weights = weights(rows.targets.len());
        let (tree_logps, tree_grads) = run(&model, &tree, &weights, 3);
        let (row_logps, row_grads) = run(&model, &rows, &weights, 3);
        assert_close("log-probs", &tree_logps, &row_logps, 1e-5);
        assert_same("tree and rows", &tree_grads, &row_grads, 1e-5);
    }
}

fn assert_bits(what: &str, a: (Tensor, Grads), b: (Tensor, Grads)) {
    let bits = |x: &Tensor| -> Vec<u32> {
        x.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
    };
    assert_eq!(bits(&a.0), bits(&b.0), "{what}");
    for (a, b) in a.1.buffers().iter().zip(b.1.buffers()) {
        assert_eq!(bits(a), bits(b), "{what}");
    }
}

fn long_batch() -> PackedBatch {
    let mut builder = PackedBatch::builder();
    for n in [300, 45, 128] {
        builder.masked_row(&tokens(n, n), &vec![true; n]);
    }
    builder.build().unwrap()
}

#[test]
fn recomputing_a_block_gives_the_bits_of_keeping_it() {
    let (model, batch) = (model(None), long_batch());
    let weights = weights(batch.targets.len());
    for keep in [1, 2, 3] {
        let (kept, again) = (run(&model, &batch, &weights, keep), run(&model, &batch, &weights, 0));
        assert_bits("keep and recompute", kept, again);
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let (model, batch) = (model(Some(77)), long_batch());
    let weights = weights(batch.targets.len());
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&model, &batch, &weights, 1))
    };
    for threads in [2, 3, 5] {
        assert_bits("threads", on(1), on(threads));
    }
}

#[test]
fn a_gradient_known_beforehand_gives_the_same_bits_and_another_loss_is_refused() {
    let model = model(None);
    let mut builder = PackedBatch::builder();
    builder.masked_row(&tokens(40, 3), &[true; 40]);
    let batch = builder.build().unwrap();
    let weights = weights(batch.targets.len());
    let told = |factor: f64| {
        let grads = model.grads().unwrap();
        let options = PassOptions { keep_blocks: 1, ..Default::default() };
        let pass = model.forward_with_dlogps(&batch, options, &weights, &grads).unwrap();
        let logps = pass.per_token_logps().clone();
        let weights = Tensor::from_slice(&weights, weights.len(), &Device::Cpu).unwrap();
        let weights = (weights * factor).unwrap().to_dtype(DType::F32).unwrap();
        let loss = (&logps * weights).unwrap().sum_all().unwrap();
        pass.backward(&loss, &grads).map(|_| (logps.detach(), grads))
    };
    assert_bits("known gradient", told(1.0).unwrap(), run(&model, &batch, &weights, 1));
    let error = told(1.01).unwrap_err();
    assert!(error.message().contains("the pass was told"), "{error}");
    let too_few = model.forward_with_dlogps(
        &batch,
        PassOptions::default(),
        &weights[1..],
        &model.grads().unwrap(),
    );
    assert!(too_few.unwrap_err().message().contains("expected the gradient of 39"));
}

/// The loss of a researcher may use any function of the log-probs.
#[test]
fn gradients_agree_with_finite_differences() {
    let model = model(None);
    let mut builder = PackedBatch::builder();
    builder.masked_row(&tokens(40, 3), &[true; 40]);
    let batch = builder.build().unwrap();
    let loss_of = |logps: &Tensor| logps.sqr().unwrap().sum_all().unwrap();
    let pass = model.forward(&batch, PassOptions::default()).unwrap();
    let loss = loss_of(pass.per_token_logps());
    let grads = model.grads().unwrap();
    pass.backward(&loss, &grads).unwrap();
    let value = || {
        let (logps, _) =
            model.evaluate(&batch, halter_core::model::linear::PassMode::EVALUATE).unwrap();
        loss_of(&logps.to_dtype(DType::F64).unwrap()).to_scalar::<f64>().unwrap()
    };
    let mut checked = 0;
    for (param, grad) in model.trained().iter().zip(grads.buffers()) {
        // Along the gradient, the loss changes by its squared norm per unit.
        let tensor = param.dense().unwrap();
        let before = tensor.copy().unwrap();
        let norm = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let direction = (grad / f64::from(norm)).unwrap();
        let step = 2e-3;
        let at = |distance: f64| {
            tensor.slice_set(&(&before + (&direction * distance).unwrap()).unwrap(), 0, 0).unwrap();
            value()
        };
        let slope = (at(step) - at(-step)) / (2.0 * step);
        tensor.slice_set(&before, 0, 0).unwrap();
        let error = (slope - f64::from(norm)).abs() / f64::from(norm);
        assert!(error < 2e-2, "{}: slope {slope}, norm {norm}", param.name());
        checked += 1;
    }
    assert!(checked > 20);
}
