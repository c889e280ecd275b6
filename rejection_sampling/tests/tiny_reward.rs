//! Scores, loss and every gradient of a tiny reward model that transformers saved, against
//! transformers' own (`oracle/tiny_reward.py`); and what halter exports of it.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use halter_core::data::branched::{Branch, BranchedRow};
use halter_core::data::record::Origin;
use halter_core::model::config::{Head, ModelConfig};
use halter_core::model::linear::PassMode;
use halter_core::model::weights::WeightFiles;
use halter_core::model::weights::export::{ExportOptions, ParamData, write_model};
use halter_core::model::{Base, Decoder};
use halter_core::ops::Context;
use halter_core::train::pass::PassOptions;
use halter_rejection_sampling::reward::batch::{Batch, Scored, pack};
use halter_rejection_sampling::reward::rows::RankedRow;
use halter_testkit::{assert_close, assert_relative, golden, tensors};

fn load(dir: &std::path::Path, ctx: Context) -> Decoder {
    let config = ModelConfig::from_file(dir.join("config.json")).unwrap();
    assert_eq!(config.head, Head::Score);
    let mut model =
        Decoder::load(config, &WeightFiles::open(dir).unwrap(), Base::Trainable, ctx).unwrap();
    model.train_where(|_| true).unwrap();
    model
}

fn rows(expected: &HashMap<String, Tensor>) -> Vec<RankedRow> {
    let ids = |name: &str| -> Vec<u32> {
        let ids = expected[name].to_vec1::<i64>().unwrap();
        ids.into_iter().map(|id| id as u32).collect()
    };
    let row = |(n, completions): (usize, usize)| {
        let branch = |k| {
            let tokens = ids(&format!("completion.{n}.{k}"));
            Branch { mask: vec![true; tokens.len()], tokens }
        };
        let pairs = (0..completions).flat_map(|a| (a + 1..completions).map(move |b| (a, b)));
        RankedRow {
            row: BranchedRow {
                origin: Origin { path: Arc::new("golden".into()), line: n + 1 },
                prompt: ids(&format!("prompt.{n}")),
                branches: (0..completions).map(branch).collect(),
                prompt_is_prefix: true,
            },
            pairs: pairs.collect(),
            margin: 0.5,
        }
    };
    [(0, 3), (1, 2)].into_iter().map(row).collect()
}

#[test]
fn scores_loss_and_gradients_are_those_of_transformers() {
    let dir = golden("tiny/reward");
    let expected = tensors(dir.join("golden.safetensors"));
    let rows = rows(&expected);
    for (ctx, keep_blocks, tokens) in [
        (Context::new(&Device::Cpu), 0, usize::MAX),
        (Context::new(&Device::Cpu), 2, 1),
        (Context::composed(&Device::Cpu), 1, usize::MAX),
    ] {
        let model = load(&dir, ctx);
        let grads = model.grads().unwrap();
        let (mut scores, mut losses) = (Vec::new(), Vec::new());
        let norm = model.norm.dense().unwrap();
        for batch in pack(&rows, tokens, model.config.pad_token_id, norm).unwrap() {
            let options = PassOptions { keep_blocks, ..PassOptions::default() };
            let Scored { packed, rows: read } = &batch.scored;
            let pass = model.forward_hidden(packed, read, options).unwrap();
            let of_batch = pass.scores().unwrap();
            let alone = model.evaluate_hidden(packed, read, PassMode::EVALUATE).unwrap();
            assert_close("without a pass", &model.scores(&alone).unwrap(), &of_batch, 0.0);
            let loss = (batch.loss(&of_batch, 0.01).unwrap() / rows.len() as f64).unwrap();
            scores.push(of_batch);
            losses.push(loss.clone());
            pass.backward(&loss, &grads).unwrap();
        }
        assert_close("scores", &Tensor::cat(&scores, 0).unwrap(), &expected["scores"], 1e-5);
        let loss = Tensor::stack(&losses, 0).unwrap().sum_all().unwrap();
        assert_close("loss", &loss, &expected["loss"], 1e-5);
        let trained = model.trained();
        assert_eq!(trained.len(), expected.keys().filter(|name| name.starts_with("grad.")).count());
        for (param, grad) in trained.iter().zip(grads.buffers()) {
            let name = format!("grad.{}", param.name());
            assert_relative(&name, grad, &expected[&name], 1e-4);
        }
    }
}

#[test]
fn padding_at_the_end_is_not_what_is_read() {
    let expected = tensors(golden("tiny/reward/golden.safetensors"));
    let rows = rows(&expected);
    let read = |padding| {
        let norm = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
        Batch::new(&rows, padding, &norm).unwrap().scored.rows
    };
    let with = read(Some(0));
    let without = read(None);
    assert_eq!(with[..4], without[..4]);
    assert_eq!(with[4] + 2, without[4], "two padding tokens follow the last token that is read");
}

#[test]
fn an_export_is_the_same_reward_model() {
    let dir = golden("tiny/reward");
    let model = load(&dir, Context::new(&Device::Cpu));
    let folder = tempfile::tempdir().unwrap();
    let params: HashMap<_, _> =
        model.params().into_iter().map(|param| (param.name().to_string(), param)).collect();
    write_model(folder.path(), &model.config, &[], &ExportOptions::default(), |spec| {
        Ok(ParamData::Tensor(params[&spec.name].to_f32()?))
    })
    .unwrap();
    let again = load(folder.path(), Context::new(&Device::Cpu));
    assert_eq!(again.params().len(), model.params().len());
    for (a, b) in again.params().into_iter().zip(model.params()) {
        assert_eq!(a.name(), b.name());
        assert_close(a.name(), a.dense().unwrap(), b.dense().unwrap(), 0.0);
    }
    let saved = tensors(dir.join("model.safetensors"));
    let written = tensors(folder.path().join("model.safetensors"));
    let names = |tensors: &HashMap<String, Tensor>| {
        let mut names: Vec<String> = tensors.keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(names(&written), names(&saved), "the names that transformers gives them");
}

#[test]
fn a_language_model_becomes_a_reward_model_and_says_no_more_words() {
    let dir = golden("tiny/llama-untied-mha");
    let config = ModelConfig::from_file(dir.join("config.json")).unwrap();
    let weights = WeightFiles::open(&dir).unwrap();
    let ctx = Context::new(&Device::Cpu);
    let mut model = Decoder::load(config, &weights, Base::Trainable, ctx).unwrap();
    model.train_where(|_| true).unwrap();
    let before = model.trained().len();
    let score = Tensor::ones((1, model.config.hidden_size), DType::F32, &Device::Cpu).unwrap();
    model.set_score(score).unwrap();
    assert_eq!(model.trained().len(), before, "the head went, the value head came");
    let config = model.config.to_json(DType::F32).unwrap();
    assert_eq!(config["architectures"][0], "LlamaForSequenceClassification");
    assert_eq!(config["id2label"].as_object().unwrap().len(), 1);
    let again = ModelConfig::from_json(&config.into(), "config.json").unwrap();
    assert_eq!((again.head, again.params()), (Head::Score, model.config.params()));
    let mut builder = halter_core::data::batch::PackedBatch::builder();
    builder.masked_row(&[3, 4, 5], &[false, true, true]);
    let batch = builder.build().unwrap();
    let error = model.forward(&batch, PassOptions::default()).unwrap_err();
    assert_eq!(error.message(), "a reward model has no logits");
    let narrow = Tensor::ones((1, 3), DType::F32, &Device::Cpu).unwrap();
    let error = model.set_score(narrow).unwrap_err();
    assert!(error.message().starts_with("`score.weight` has the shape [1, 3]"), "{error}");
}
