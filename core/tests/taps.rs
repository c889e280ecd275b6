//! Losses on values inside a model, against transformers (`oracle/tiny_taps.py`), and losses on its
//! logits, against those on its log-probs.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use candle_core::{D, Device, IndexOp, Tensor};
use halter_core::data::batch::PackedBatch;
use halter_core::model::config::ModelConfig;
use halter_core::model::linear::PassMode;
use halter_core::model::weights::WeightFiles;
use halter_core::model::{Base, Decoder};
use halter_core::ops::Context;
use halter_core::train::pass::{Logits, PassOptions, Tap};
use halter_testkit::{assert_close, assert_relative, golden, max_abs_diff, tensors, values};

const WEIGHTS: [(Tap, &str, f64); 4] = [
    (Tap::Hidden(0), "hidden.0", 0.3),
    (Tap::Attention(0), "attention.0", 0.7),
    (Tap::Hidden(1), "hidden.1", 0.2),
    (Tap::Attention(1), "attention.1", 0.5),
];
const TAPS: [Tap; 4] = [WEIGHTS[0].0, WEIGHTS[1].0, WEIGHTS[2].0, WEIGHTS[3].0];

fn load(case: &str, ctx: Context) -> Decoder {
    let dir = golden("tiny").join(case);
    let config = ModelConfig::from_file(dir.join("config.json")).unwrap();
    let weights = WeightFiles::open(&dir).unwrap();
    let mut model = Decoder::load(config, &weights, Base::Trainable, ctx).unwrap();
    model.train_where(|_| true).unwrap();
    model
}

fn batch(expected: &HashMap<String, Tensor>) -> PackedBatch {
    let mut builder = PackedBatch::builder();
    for n in 0..2 {
        let ids = expected[&format!("input_ids.{n}")].to_vec1::<i64>().unwrap();
        let mask = expected[&format!("completion_mask.{n}")].to_vec1::<u8>().unwrap();
        let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
        builder.masked_row(&ids, &mask.into_iter().map(|m| m == 1).collect::<Vec<_>>());
    }
    builder.build().unwrap()
}

#[test]
fn values_inside_and_their_gradients_are_those_of_transformers() {
    let mut gradients = 0;
    for case in ["llama-tied", "qwen3"] {
        let batch = batch(&tensors(golden("tiny").join(case).join("golden.safetensors")));
        let expected = tensors(golden("distill").join(format!("taps-{case}.safetensors")));
        for (ctx, keep_blocks) in [
            (Context::new(&Device::Cpu), 0),
            (Context::new(&Device::Cpu), 2),
            (Context::composed(&Device::Cpu), 1),
        ] {
            let model = load(case, ctx);
            let options = PassOptions { keep_blocks, taps: &TAPS, ..PassOptions::default() };
            let pass = model.forward(&batch, options).unwrap();
            let tokens = batch.targets.len() as f64;
            let mut loss =
                (pass.per_token_logps().sum_all().unwrap().neg().unwrap() / tokens).unwrap();
            for (tap, name, weight) in WEIGHTS {
                let value = pass.tapped(tap).unwrap();
                assert_close(&format!("{case}: {name}"), value, &expected[name], 1e-5);
                let term = (value.sqr().unwrap().mean_all().unwrap() * weight).unwrap();
                loss = (loss + term).unwrap();
            }
            assert_close(&format!("{case}: loss"), &loss, &expected["loss"], 1e-5);
            let grads = model.grads().unwrap();
            pass.backward(&loss, &grads).unwrap();
            for (param, grad) in model.trained().iter().zip(grads.buffers()) {
                let name = format!("grad.{}", param.name());
                assert_relative(&format!("{case}: {name}"), grad, &expected[&name], 1e-4);
                gradients += 1;
            }
            let (_, values) =
                model.evaluate_tapped(&batch, &[0], PassMode::EVALUATE, &TAPS).unwrap();
            assert_eq!(values.len(), 4);
            for (tap, value) in values {
                let (_, name, _) = WEIGHTS.iter().find(|(other, ..)| *other == tap).unwrap();
                assert_close(&format!("{case}: {name}"), &value, &expected[*name], 1e-5);
            }
        }
    }
    assert!(gradients > 100, "{gradients}");
}

#[test]
fn a_block_that_is_not_there_cannot_be_tapped() {
    let expected = tensors(golden("tiny/llama-tied/golden.safetensors"));
    let (model, batch) = (load("llama-tied", Context::new(&Device::Cpu)), batch(&expected));
    let options = PassOptions { taps: &[Tap::Hidden(2)], ..PassOptions::default() };
    let error = model.forward(&batch, options).unwrap_err();
    assert_eq!(error.message(), "there is no block `2`: the model has `2`");
    let pass = model.forward(&batch, PassOptions::default()).unwrap();
    assert!(pass.tapped(Tap::Hidden(0)).is_err());
}

#[test]
fn a_loss_on_logits_is_the_same_loss_on_log_probs() {
    let expected = tensors(golden("tiny/qwen3/golden.safetensors"));
    let (model, batch) = (load("qwen3", Context::new(&Device::Cpu)), batch(&expected));
    let tokens = batch.targets.len() as f64;

    let plain = model.grads().unwrap();
    let pass = model.forward(&batch, PassOptions::default()).unwrap();
    let loss = (pass.per_token_logps().sum_all().unwrap().neg().unwrap() / tokens).unwrap();
    pass.backward(&loss, &plain).unwrap();

    let on_logits = model.grads().unwrap();
    let cross_entropy = |chunk: Logits| {
        let (max, mut sum) = (chunk.logits.max_keepdim(D::Minus1)?, Vec::new());
        let shifted = chunk.logits.broadcast_sub(&max)?;
        let lse = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
        let logps = shifted.broadcast_sub(&lse)?;
        assert_eq!(chunk.rows.len(), chunk.logits.dim(0)?);
        for target in &chunk.targets {
            sum.push(logps.i((target.row as usize, target.token as usize))?);
        }
        Ok((Tensor::stack(&sum, 0)?.sum_all()? / -tokens)?)
    };
    let pass =
        model.forward_on_logits(&batch, PassOptions::default(), cross_entropy, &on_logits).unwrap();
    let total = pass.charged().sum_all().unwrap();
    assert!((values(&total)[0] - values(&loss)[0]).abs() < 1e-6);
    pass.backward(&total, &on_logits).unwrap();
    for ((param, plain), on_logits) in
        model.trained().iter().zip(plain.buffers()).zip(on_logits.buffers())
    {
        let scale = max_abs_diff(plain, &plain.zeros_like().unwrap());
        assert!(max_abs_diff(plain, on_logits) < 1e-5 * scale, "{}", param.name());
    }
}
