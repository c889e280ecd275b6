//! Distillation as a method of training.

use std::sync::Arc;

use candle_core::Tensor;
use halter_core::data::view::Encoder;
use halter_core::memory::generation::writing_passes;
use halter_core::memory::plan::Needs;
use halter_core::model::Decoder;
use halter_core::model::param::Grads;
use halter_core::text::encode::EncodeOptions;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::method::{Backward, Description, Figures, Method, RowEncoder, StepOptions};
use halter_core::train::pass::Tap;
use halter_core::train::progress::Progress;
use halter_core::train::run::Beginning;
use halter_core::train::source::Source;
use halter_core::{Error, Result};
use serde_json::{Value, json};

use crate::config::{DistillConfig, DistillOptions};
use crate::cross::{self, Cross};
use crate::inside::{Inside, LayerMap, Widths};
use crate::lesson::{Lesson, Writing};
use crate::row::TaughtRow;
use crate::step::{self, Objective};
use crate::teacher::{self, Teacher};

/// A student that learns from a teacher.
#[derive(Debug)]
pub struct Distill {
    options: DistillOptions,
    teacher: Teacher,
    /// See [`Teacher::fingerprint`]; known once the run begins.
    teacher_is: String,
    /// Where completions are written.
    writing: Option<Writing>,
    /// Where values inside are compared.
    inside: Option<Inside>,
    widths: Widths,
    microbatch_tokens: usize,
    /// The teacher's forward passes, in the student's.
    passes: f64,
    /// How the student reads rows.
    own: Encoder,
    /// Rows of a step.
    batch_size: usize,
    /// Bytes for what is written in a step: keys and values, logits.
    writing_bytes: usize,
}

impl Method for Distill {
    type Options = DistillOptions;
    type Row = TaughtRow;
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
            max_new_tokens: options.max_completion_tokens,
            max_seq_len: config.train.max_seq_len,
            stop_tokens: stop_tokens.into_iter().map(|(_, id)| id).collect(),
        });
        let widths = Widths {
            student: model.config.hidden_size,
            teacher: teacher.model().map_or(0, |teacher| teacher.config.hidden_size),
        };
        let inside = match teacher.model().filter(|_| options.looks_inside()) {
            Some(teacher) => {
                let even = || LayerMap::even(model.blocks.len(), teacher.blocks.len());
                let map = options.layer_map.clone().unwrap_or_else(even);
                let weights = (options.hidden_weight, options.attention_weight);
                let (seed, device) = (config.train.seed, model.device());
                let inside =
                    Inside::new(&map, weights, options.hidden_distance, widths, seed, device)?;
                check_blocks(&inside.student_taps(), model, "student")?;
                check_blocks(&inside.teacher_taps(), teacher, "teacher")?;
                Some(inside)
            }
            None => None,
        };
        let microbatch_tokens = config.train.microbatch_tokens.max(config.train.max_seq_len);
        let own = Encoder::new(source, encode_options(config));
        let batch_size = config.train.batch_size;
        let writing_bytes = writing.as_ref().map_or(0, |writing| {
            let teacher = teacher.model().filter(|_| writing.teacher_completions);
            let writers = [Some(&*model), teacher].into_iter().flatten();
            writers.map(|model| writing.bytes(model, batch_size)).max().unwrap_or(0)
        });
        Ok(Self {
            batch_size,
            writing_bytes,
            options,
            teacher,
            teacher_is: String::new(),
            writing,
            inside,
            widths,
            microbatch_tokens,
            passes,
            own,
        })
    }

    fn encoder(config: &DistillConfig, source: &Source) -> RowEncoder<TaughtRow> {
        let encoder = Encoder::new(source, encode_options(config));
        // A teacher that cannot be opened is told of when it is to teach.
        let theirs = match config.method.cross_tokenizer {
            Some(_) => teacher::encoder(config).ok(),
            None => None,
        };
        Arc::new(move |origin, record| {
            if let Some(theirs) = &theirs {
                return cross::read(&encoder, theirs, origin, record);
            }
            let taught = |row| TaughtRow { row, theirs: None };
            let rows = encoder.rows(origin, record)?;
            Ok(rows.map(|rows| rows.into_iter().map(taught).collect()))
        })
    }

    fn needs(&self) -> Needs {
        let mut memory = vec![("teacher", self.teacher.bytes())];
        if let Some(inside) = &self.inside {
            memory.push(("values inside", inside.bytes(self.widths, self.microbatch_tokens)));
        }
        let mut forward_passes = self.passes;
        if let Some(writing) = &self.writing {
            let share = writing.on_policy_fraction;
            let of_student = share * writing_passes(share * self.batch_size as f64);
            let of_teacher = match writing.teacher_completions {
                true => (1.0 - share) * writing_passes((1.0 - share) * self.batch_size as f64),
                false => 0.0,
            };
            forward_passes += of_student + of_teacher * self.passes;
            memory.push(("completions written", self.writing_bytes));
        }
        Needs { memory, forward_passes, ..Needs::default() }
    }

    fn each_pass(
        &mut self,
        model: &Decoder,
        rows: &[TaughtRow],
        options: StepOptions,
        grads: &Grads,
        backward: Backward,
    ) -> Result<Figures> {
        if let Some(cross) = self.cross() {
            return cross.each_pass(model, rows, options, grads, backward);
        }
        let rows = &TaughtRow::rows(rows);
        let lesson = match &self.writing {
            Some(writing) => {
                Lesson::written(rows, writing, model, self.teacher.model(), options.seed)?
            }
            None => Lesson::given(rows),
        };
        let mut figures =
            step::each_pass(model, self.objective(), &lesson, options, grads, backward)?;
        if let Some(inside) = &mut self.inside {
            inside.update(options.learning_rate)?;
        }
        if self.writing.is_some() {
            figures.note("on_policy", &[lesson.on_policy()]);
        }
        Ok(figures)
    }

    fn evaluate(
        &self,
        model: &Decoder,
        rows: &[TaughtRow],
        microbatch_tokens: usize,
        interrupt: &Interrupt,
    ) -> Result<Figures> {
        if let Some(cross) = self.cross() {
            return cross.evaluate(model, rows, microbatch_tokens, interrupt);
        }
        let rows = &TaughtRow::rows(rows);
        step::evaluate(model, self.objective(), rows, microbatch_tokens, interrupt)
    }

    fn tensors(&self) -> Vec<(String, &Tensor)> {
        self.inside.iter().flat_map(Inside::tensors).collect()
    }

    fn begin(
        &mut self,
        _: &Decoder,
        _: &Beginning<'_, TaughtRow>,
        _: &mut dyn Progress,
    ) -> Result<()> {
        self.teacher_is = self.teacher.fingerprint()?;
        Ok(())
    }

    fn state(&self) -> Value {
        let updates = self.inside.as_ref().map(Inside::steps);
        json!({ "teacher": self.teacher_is, "projection_updates": updates })
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        // Checkpoints of older versions do not name their teacher.
        let before = state.get("teacher").and_then(Value::as_str);
        if before.is_some_and(|before| before != self.teacher_is) {
            return Err(Error::model(
                "the teacher is not the one that the checkpoint was made with",
            )
            .hint("put it back as it was, or begin anew in another `--output`"));
        }
        if let (Some(inside), Some(steps)) =
            (&mut self.inside, state.get("projection_updates").and_then(Value::as_u64))
        {
            inside.set_steps(steps);
        }
        Ok(())
    }
}

impl Distill {
    /// Where student and teacher read different tokens.
    fn cross(&self) -> Option<Cross<'_>> {
        let (Teacher::Model(teacher), Some(kind)) = (&self.teacher, self.options.cross_tokenizer)
        else {
            return None;
        };
        Some(Cross {
            teacher,
            theirs: teacher.encoder()?,
            own: &self.own,
            kind,
            options: &self.options,
        })
    }

    fn objective(&self) -> Objective<'_> {
        let Self { teacher, options, inside, .. } = self;
        Objective { teacher, options, inside: inside.as_ref() }
    }
}

/// How records become rows.
pub(crate) fn encode_options(config: &DistillConfig) -> EncodeOptions {
    EncodeOptions {
        mask: config.method.mask,
        train_on_trailing: config.method.train_on_trailing,
        completion_only_loss: config.method.completion_only_loss,
        ..config.train.encode_options()
    }
}

fn check_blocks(taps: &[Tap], model: &Decoder, whose: &str) -> Result<()> {
    let blocks = model.blocks.len();
    match taps.iter().map(|tap| tap.block()).find(|&at| at >= blocks) {
        Some(at) => Err(Error::config(format!("`layer-map` names block `{at}` of the {whose}"))
            .hint(format!("it has blocks 0 to {}", blocks.saturating_sub(1)))),
        None => Ok(()),
    }
}
