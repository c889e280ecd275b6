//! Supervised fine-tuning as a method of training.

use std::sync::Arc;

use halter_core::Result;
use halter_core::data::record::Row;
use halter_core::data::view;
use halter_core::model::Decoder;
use halter_core::model::param::Grads;
use halter_core::text::encode::EncodeOptions;
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
            mask: config.method.mask,
            train_on_trailing: config.method.train_on_trailing,
            completion_only_loss: config.method.completion_only_loss,
            ..config.train.encode_options()
        };
        let encoder = view::Encoder::new(source, options);
        Arc::new(move |origin, record| encoder.rows(origin, record))
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
