//! Distillation as a method of training.

use std::sync::Arc;

use halter_core::Result;
use halter_core::data::record::Row;
use halter_core::data::view;
use halter_core::memory::plan::Needs;
use halter_core::model::Decoder;
use halter_core::model::param::Grads;
use halter_core::text::encode::EncodeOptions;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::method::{Backward, Description, Figures, Method, RowEncoder, StepOptions};
use halter_core::train::source::Source;

use crate::config::{DistillConfig, DistillOptions};
use crate::lesson::{Lesson, Writing};
use crate::step;
use crate::teacher::Teacher;

/// A student that learns from a teacher.
#[derive(Debug)]
pub struct Distill {
    options: DistillOptions,
    teacher: Teacher,
    /// Where completions are written.
    writing: Option<Writing>,
    /// The teacher's forward passes, in the student's.
    passes: f64,
}

impl Method for Distill {
    type Options = DistillOptions;
    type Row = Row;
    const DESCRIPTION: Description = Description {
        command: "distill",
        title: "Distillation",
        sentence: "The distribution of a teacher's next tokens is learned on the completions.",
    };
    const TOLD: &'static [&'static str] = &["divergence"];

    fn new(config: &DistillConfig, source: &Source, model: &mut Decoder) -> Result<Self> {
        let teacher = Teacher::open(config, source, model.device())?;
        let passes = teacher.parameters() as f64 / model.parameters() as f64;
        let options = config.method.clone();
        let stop_tokens = source.tokenizer.end_of_turn_tokens();
        let writing = options.writes().then(|| Writing {
            on_policy_fraction: options.on_policy_fraction,
            teacher_completions: options.teacher_completions,
            temperature: options.sampling_temperature,
            max_new_tokens: options.max_new_tokens,
            max_seq_len: config.train.max_seq_len,
            stop_tokens: stop_tokens.into_iter().map(|(_, id)| id).collect(),
        });
        Ok(Self { options, teacher, writing, passes })
    }

    fn encoder(config: &DistillConfig, source: &Source) -> RowEncoder<Row> {
        let options = EncodeOptions {
            mask: config.method.mask,
            train_on_trailing: config.method.train_on_trailing,
            completion_only_loss: config.method.completion_only_loss,
            ..config.train.encode_options()
        };
        let encoder = view::Encoder::new(source, options);
        Arc::new(move |origin, record| encoder.rows(origin, record))
    }

    fn needs(&self) -> Needs {
        Needs {
            memory: vec![("teacher", self.teacher.bytes())],
            forward_passes: self.passes,
            ..Needs::default()
        }
    }

    fn each_pass(
        &mut self,
        model: &Decoder,
        rows: &[Row],
        options: StepOptions,
        grads: &Grads,
        backward: Backward,
    ) -> Result<Figures> {
        let lesson = match &self.writing {
            Some(writing) => {
                Lesson::written(rows, writing, model, self.teacher.model(), options.seed)?
            }
            None => Lesson::given(rows),
        };
        let (teacher, distill) = (&self.teacher, &self.options);
        let mut figures =
            step::each_pass(model, teacher, &lesson, distill, options, grads, backward)?;
        if self.writing.is_some() {
            figures.note("on_policy", &[lesson.on_policy()]);
        }
        Ok(figures)
    }

    fn evaluate(
        &self,
        model: &Decoder,
        rows: &[Row],
        microbatch_tokens: usize,
        interrupt: &Interrupt,
    ) -> Result<Figures> {
        step::evaluate(model, &self.teacher, rows, &self.options, microbatch_tokens, interrupt)
    }
}
