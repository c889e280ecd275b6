//! Teachers that read other tokens.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use halter_core::data::encoded::Encoded;
use halter_core::data::record::{Message, Origin, Record};
use halter_core::data::view::Encoder;
use halter_core::model::Decoder;
use halter_core::model::config::ModelConfig;
use halter_core::model::param::Grads;
use halter_core::ops::Context;
use halter_core::text::encode::{EncodeOptions, Overlong};
use halter_core::text::template::ChatTemplate;
use halter_core::text::tokenizer::Tokenizer;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::method::{Figures, StepOptions};
use halter_distill::config::DistillOptions;
use halter_distill::cross::{Cross, CrossTokenizer, read};
use halter_distill::row::TaughtRow;
use halter_distill::teacher::ModelTeacher;
use halter_testkit::root;
use serde_json::{Value, json};

const KINDS: [CrossTokenizer; 2] = [CrossTokenizer::Uld, CrossTokenizer::Alm];
const VOCABULARY: usize = 768;

fn model(seed: u64, vocabulary: usize) -> Decoder {
    let json = json!({
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu",
        "initializer_range": 0.3,
    });
    let config = ModelConfig::from_json(&json, "config.json").unwrap();
    let mut model = Decoder::fresh(config, seed, Context::new(&Device::Cpu)).unwrap();
    model.train_where(|_| true).unwrap();
    model
}

/// The bundled tokenizer, which knows no more than so many merges.
fn encoder(merges: usize, template: &str) -> Encoder {
    normalized(merges, template, Value::Null)
}

fn normalized(merges: usize, template: &str, normalizer: Value) -> Encoder {
    let text = std::fs::read(root().join("examples/bundled/tokenizer.json")).unwrap();
    let mut json: Value = serde_json::from_slice(&text).unwrap();
    json["model"]["merges"].as_array_mut().unwrap().truncate(merges);
    json["normalizer"] = normalizer;
    let inner = serde_json::from_value(json).unwrap();
    let tokenizer = Tokenizer::new(inner, None, &[2]).unwrap();
    Encoder {
        template: Some(Arc::new(ChatTemplate::new(template).unwrap())),
        tokenizer: Arc::new(tokenizer),
        options: EncodeOptions::default(),
    }
}

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
     {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const PLAIN: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}\
     {% if add_generation_prompt %}assistant: {% endif %}";

fn rows(own: &Encoder, theirs: &Encoder) -> Vec<TaughtRow> {
    let row = |(at, answer): (usize, &str)| {
        let messages = vec![
            Message::new("user", "How many apples does each friend get?"),
            Message::new("assistant", answer),
        ];
        let record = Record::Chat { messages, tools: None };
        let origin = Origin { path: Arc::new(PathBuf::from("rows.jsonl")), line: at + 1 };
        read(own, theirs, &origin, &record).unwrap().into_kept().unwrap().remove(0)
    };
    ["Each gets 20 apples.", "Max has 7 äpples more."].into_iter().enumerate().map(row).collect()
}

fn options() -> DistillOptions {
    DistillOptions { ce_weight: 0.5, temperature: 1.5, ..DistillOptions::default() }
}

const STEP: StepOptions =
    StepOptions { microbatch_tokens: 40, keep_blocks: 0, seed: 0, learning_rate: 0.0 };

fn gradients(cross: Cross, student: &Decoder, rows: &[TaughtRow]) -> (Figures, Grads) {
    let grads = student.grads().unwrap();
    let figures =
        cross.each_pass(student, rows, STEP, &grads, &mut |pass, loss| pass.backward(loss, &grads));
    (figures.unwrap(), grads)
}

#[test]
fn a_teacher_of_the_same_tokens_and_weights_is_not_far() {
    let own = encoder(usize::MAX, CHATML);
    let teacher = ModelTeacher::new(model(1, VOCABULARY), None, 1.0);
    let (options, rows) = (options(), rows(&own, &own));
    let targets: usize =
        rows.iter().map(|taught| taught.row.completion_mask.iter().filter(|&&t| t).count()).sum();
    for kind in KINDS {
        let cross = Cross { teacher: &teacher, theirs: &own, own: &own, kind, options: &options };
        let (figures, _) = gradients(cross, &model(1, VOCABULARY), &rows);
        let divergence = figures.means["divergence"];
        assert_eq!(divergence.count, targets, "every token is a chunk");
        assert!(divergence.sum.abs() < 1e-6, "{kind:?} {}", divergence.sum);
    }
}

#[test]
fn gradients_are_slopes_of_the_evaluation() {
    let own = encoder(60, CHATML);
    let theirs = encoder(usize::MAX, PLAIN);
    let teacher = ModelTeacher::new(model(2, VOCABULARY + 7), None, 1.0);
    let (options, rows) = (options(), rows(&own, &theirs));
    for kind in KINDS {
        let cross =
            Cross { teacher: &teacher, theirs: &theirs, own: &own, kind, options: &options };
        let evaluated = |student: &Decoder| {
            cross.evaluate(student, &rows, 40, &Interrupt::new()).unwrap().loss()
        };
        let student = model(1, VOCABULARY);
        let (figures, grads) = gradients(cross, &student, &rows);
        assert!((figures.loss() - evaluated(&student)).abs() < 1e-6);
        let chunks = figures.means["divergence"].count;
        let tokens = figures.supervised_tokens;
        assert!(chunks > 10 && chunks < tokens, "{chunks} of {tokens}");

        let steep = grads.norm().unwrap();
        let moved = |by: f64| {
            let moved = model(1, VOCABULARY);
            for (param, grad) in moved.trained().iter().zip(grads.buffers()) {
                let weight: &Tensor = param.dense().unwrap();
                let sum = (weight + (grad * (by / steep)).unwrap()).unwrap();
                weight.slice_set(&sum.contiguous().unwrap(), 0, 0).unwrap();
            }
            evaluated(&moved)
        };
        let slope = (moved(0.004) - moved(-0.004)) / 0.008;
        assert!((slope / steep - 1.0).abs() < 1e-2, "{kind:?}: {slope} {steep}");
    }
}

#[test]
fn completions_that_read_differently_are_refused_with_their_place() {
    let own = encoder(usize::MAX, CHATML);
    let theirs = normalized(60, CHATML, json!({ "type": "Lowercase" }));
    let teacher = ModelTeacher::new(model(2, VOCABULARY), None, 1.0);
    let (options, rows) = (options(), rows(&own, &theirs));
    let kind = CrossTokenizer::Alm;
    let cross = Cross { teacher: &teacher, theirs: &theirs, own: &own, kind, options: &options };
    let error = cross.evaluate(&model(1, VOCABULARY), &rows, 64, &Interrupt::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "rows.jsonl:1: the teacher reads `each gets 20 apples.` where the student reads \
         `Each gets 20 apples.`"
    );
    let row = TaughtRow { theirs: None, ..rows[0].clone() };
    cross.evaluate(&model(1, VOCABULARY), &[row], 64, &Interrupt::new()).unwrap_err();
}

#[test]
fn a_row_that_is_too_long_for_the_teacher_alone_is_so_when_it_is_read() {
    let messages = vec![Message::new("user", "How many?"), Message::new("assistant", "20 apples.")];
    let record = Record::Chat { messages, tools: None };
    let origin = Origin { path: Arc::new(PathBuf::from("rows.jsonl")), line: 3 };
    // Without merges a text has many more tokens.
    let limited = |merges, max_seq_len, overlong| {
        let plain = encoder(merges, CHATML);
        let options = EncodeOptions { max_seq_len: Some(max_seq_len), overlong, ..plain.options };
        Encoder { options, ..plain }
    };
    let own = limited(usize::MAX, 30, Overlong::Drop);
    assert!(own.rows(&origin, &record).unwrap().kept().is_some());
    let dropped = read(&own, &limited(0, 30, Overlong::Drop), &origin, &record).unwrap();
    let Encoded::Dropped { reason, .. } = dropped else { panic!("{dropped:?}") };
    assert_eq!(reason, "for the teacher, longer than max_seq_len");
    let refused = read(&own, &limited(0, 30, Overlong::Refuse), &origin, &record).unwrap_err();
    assert_eq!(refused.to_string(), "rows.jsonl:3: the teacher cannot read the row");
    let cut = read(&own, &limited(0, 30, Overlong::Truncate), &origin, &record).unwrap();
    assert_eq!(cut.kept().unwrap()[0].theirs.as_ref().unwrap().input_ids.len(), 30);
}
