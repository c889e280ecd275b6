//! Supervised fine-tuning as a method of training.

use std::sync::Arc;

use halter_core::Result;
use halter_core::data::encoded::Encoded;
use halter_core::data::record::{Origin, Record, Row};
use halter_core::data::view;
use halter_core::model::Decoder;
use halter_core::model::param::Grads;
use halter_core::text::encode::{self, EncodeOptions, Outcome};
use halter_core::train::interrupt::Interrupt;
use halter_core::train::method::{Backward, Description, Figures, Method, RowEncoder, StepOptions};
use halter_core::train::source::Source;

use crate::config::{SftConfig, SftOptions};
use crate::step;

/// Cross-entropy on the target tokens.
#[derive(Debug, Clone, Copy)]
pub struct Sft;

impl Method for Sft {
    type Options = SftOptions;
    type Row = Row;
    const DESCRIPTION: Description = Description {
        command: "sft",
        title: "Supervised fine-tuning",
        sentence: "Cross-entropy on the completions; prompts are not trained.",
    };

    fn new(_config: &SftConfig, _source: &Source, _model: &mut Decoder) -> Result<Self> {
        Ok(Self)
    }

    fn encoder(config: &SftConfig, source: &Source) -> RowEncoder<Row> {
        let options = EncodeOptions {
            max_seq_len: Some(config.train.max_seq_len),
            overlong: config.train.overlong,
            mask: config.method.mask,
            train_on_trailing: config.method.train_on_trailing,
            completion_only_loss: config.method.completion_only_loss,
            allow_special_text: config.train.allow_special_text,
            ..EncodeOptions::default()
        };
        let encoder = view::Encoder::new(source, options);
        Arc::new(move |origin, record| rows(&encoder, origin, record))
    }

    fn each_pass(
        &mut self,
        model: &Decoder,
        rows: &[Row],
        options: StepOptions,
        grads: &Grads,
        backward: Backward,
    ) -> Result<Figures> {
        step::each_pass(model, rows, options, grads, backward)
    }

    fn evaluate(
        &self,
        model: &Decoder,
        rows: &[Row],
        microbatch_tokens: usize,
        interrupt: &Interrupt,
    ) -> Result<Figures> {
        step::evaluate(model, rows, microbatch_tokens, interrupt)
    }
}

fn rows(encoder: &view::Encoder, origin: &Origin, record: &Record) -> Result<Encoded<Vec<Row>>> {
    let row = |encoded: encode::Encoded| Row {
        origin: origin.clone(),
        input_ids: encoded.input_ids,
        completion_mask: encoded.completion_mask,
        prompt_is_prefix: encoded.prompt_is_prefix,
    };
    Ok(match encoder.encode(origin, record)? {
        Outcome::Kept(encoded) => Encoded::Kept(vec![row(encoded)]),
        Outcome::Cut { rows, num_tokens, .. } => Encoded::Cut {
            kept: rows.into_iter().map(row).collect(),
            reason: "longer than max_seq_len".into(),
            tokens: num_tokens,
        },
        Outcome::Dropped { reason, num_tokens } => Encoded::Dropped { reason, tokens: num_tokens },
    })
}
