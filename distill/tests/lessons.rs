//! Completions that are written in a step.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Device;
use halter_core::data::record::{Origin, Row};
use halter_core::generate::{Limits, greedy};
use halter_core::model::Decoder;
use halter_core::model::config::ModelConfig;
use halter_core::ops::Context;
use halter_core::train::method::StepOptions;
use halter_distill::config::{DistillOptions, DivergenceKind};
use halter_distill::lesson::{Lesson, Writing};
use halter_distill::step::{self, Objective};
use halter_distill::teacher::{ModelTeacher, Teacher};
use halter_testkit::max_abs_diff;

fn model(seed: u64) -> Decoder {
    let json = serde_json::json!({
        "model_type": "llama", "vocab_size": 53, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "hidden_act": "silu", "initializer_range": 0.2,
    });
    let config = ModelConfig::from_json(&json, "config.json").unwrap();
    let mut model = Decoder::fresh(config, seed, Context::new(&Device::Cpu)).unwrap();
    model.train_where(|_| true).unwrap();
    model
}

fn row(prompt: &[u32], completion: &[u32]) -> Row {
    let origin = Origin { path: Arc::new(PathBuf::from("rows.jsonl")), line: 1 };
    let mut completion_mask = vec![false; prompt.len()];
    completion_mask.resize(prompt.len() + completion.len(), true);
    let input_ids = [prompt, completion].concat();
    Row { origin, input_ids, completion_mask, prompt_is_prefix: true }
}

fn rows() -> Vec<Row> {
    (0..12u32).map(|at| row(&[at, at + 1, 7], &[at + 20, 3, 9])).collect()
}

const WRITING: Writing = Writing {
    on_policy_fraction: 1.0,
    teacher_completions: false,
    temperature: 1.0,
    max_new_tokens: 6,
    max_seq_len: 32,
    stop_tokens: Vec::new(),
};

#[test]
fn a_greedy_step_on_policy_is_that_on_the_greedy_completions() {
    let student = model(1);
    let prompts: Vec<Vec<u32>> = rows().iter().map(|row| row.input_ids[..3].to_vec()).collect();
    let limits = Limits { max_new_tokens: 6, stop_tokens: &[] };
    let completions = greedy(&student, &prompts, limits, |_| Ok(())).unwrap();
    let of_file: Vec<Row> =
        prompts.iter().zip(&completions).map(|(prompt, rest)| row(prompt, rest)).collect();
    let writing = Writing { temperature: 0.0, ..WRITING };
    let lesson = Lesson::written(&rows(), &writing, &student, None, 5).unwrap();
    assert_eq!(lesson.rows, of_file);

    let teacher = Teacher::Model(Box::new(ModelTeacher::new(model(2), None, 1.0)));
    let at = StepOptions { microbatch_tokens: 40, keep_blocks: 1, seed: 5, learning_rate: 0.0 };
    let gradients = |lesson: &Lesson| {
        let grads = student.grads().unwrap();
        let options = DistillOptions::default();
        let objective = Objective { teacher: &teacher, options: &options, inside: None };
        let backward: halter_core::train::method::Backward =
            &mut |pass, loss| pass.backward(loss, &grads);
        let figures = step::each_pass(&student, objective, lesson, at, &grads, backward).unwrap();
        (figures.loss(), grads)
    };
    let (loss, grads) = gradients(&lesson);
    let (want, wanted) = gradients(&Lesson::given(&of_file));
    assert_eq!(loss, want);
    for (got, want) in grads.buffers().iter().zip(wanted.buffers()) {
        assert_eq!(max_abs_diff(got, want), 0.0);
    }
}

#[test]
fn a_share_of_the_rows_is_the_students_and_the_teacher_may_write_the_others() {
    let (student, teacher) = (model(1), model(2));
    let half = Writing { on_policy_fraction: 0.5, ..WRITING };
    let write = |writing: &Writing, seed| {
        Lesson::written(&rows(), writing, &student, Some(&teacher), seed).unwrap()
    };
    let lesson = write(&half, 3);
    assert_eq!(lesson, write(&half, 3));
    assert_ne!(lesson, write(&half, 4));
    let own = lesson.written.iter().flatten().count();
    assert!((2..11).contains(&own), "{own} of 12");
    assert_eq!(lesson.on_policy(), own as f64 / 12.0);
    let targets: Vec<Option<f32>> = lesson.written_targets().collect();
    assert_eq!(targets.iter().flatten().count(), own * 6);
    assert_eq!(targets.len(), own * 6 + (12 - own) * 3);
    for ((row, written), given) in lesson.rows.iter().zip(&lesson.written).zip(rows()) {
        assert_eq!(written.is_none(), *row == given);
    }

    let with_teacher = write(&Writing { teacher_completions: true, ..half }, 3);
    assert_eq!(with_teacher.written, lesson.written);
    for (row, given) in with_teacher.rows.iter().zip(rows()) {
        assert_eq!(row.input_ids[..3], given.input_ids[..3]);
        assert_eq!(row.input_ids.len(), 9);
    }
}

#[test]
fn rows_without_a_prompt_or_room_stay_and_only_the_last_turn_is_written() {
    let student = model(1);
    let mut dialogue = row(&[1, 2, 3, 4, 5, 6], &[7, 8]);
    dialogue.completion_mask[2] = true;
    dialogue.completion_mask[3] = true;
    let given = [row(&[], &[4, 5, 6]), row(&[9; 33], &[1]), dialogue, row(&[1; 30], &[2; 9])];
    let lesson = Lesson::written(&given, &WRITING, &student, None, 0).unwrap();
    assert_eq!(lesson.rows[..2], given[..2]);
    assert_eq!(lesson.rows[2].input_ids[..6], [1, 2, 3, 4, 5, 6]);
    let mask: Vec<usize> = (0..12).filter(|&at| lesson.rows[2].completion_mask[at]).collect();
    assert_eq!(mask, [6, 7, 8, 9, 10, 11]);
    assert_eq!(lesson.rows[3].input_ids.len(), 32);
    let stop = lesson.rows[2].input_ids[6];
    let ended = Writing { stop_tokens: vec![stop], ..WRITING };
    let lesson = Lesson::written(&given, &ended, &student, None, 0).unwrap();
    assert_eq!(lesson.rows[2].input_ids, [1, 2, 3, 4, 5, 6, stop]);
}

#[test]
fn what_cannot_be_written_is_refused() {
    use halter_core::train::config::{MethodOptions, TrainConfig};
    type Change = fn(&mut DistillOptions);
    let cases: [(Change, &str); 6] = [
        (|o| o.on_policy_fraction = 1.5, "`on-policy-fraction` is `1.5`: expected 0 to 1"),
        (|o| o.max_completion_tokens = 0, "`max-completion-tokens` is `0`: expected 1 or more"),
        (|o| o.max_completion_tokens = 9, "`max-completion-tokens` has no effect"),
        (|o| o.sampling_temperature = 0.5, "`sampling-temperature` has no effect"),
        (
            |o| (o.teacher_logps, o.teacher_completions) = (Some("f".into()), true),
            "a file knows nothing of completions that are written now",
        ),
        (|o| o.divergence = DivergenceKind::Minillm, "`on-policy-fraction` is `0`: expected 1"),
    ];
    for (change, message) in cases {
        let mut options = DistillOptions::default();
        change(&mut options);
        assert_eq!(options.validate(&TrainConfig::default()).unwrap_err().message(), message);
    }
}
