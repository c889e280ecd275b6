//! halter for research programs: fine-tune Llama-family models, or write a loss of your own.
//!
//! The crates under one name, with the types that most programs need at the top. `examples/` has
//! programs that run as they are.

pub use candle_core as candle;
pub use halter_core as core;
pub use halter_distill as distill;
pub use halter_dpo as dpo;
pub use halter_eval as eval;
pub use halter_rejection_sampling as rejection_sampling;
pub use halter_sft as sft;
pub use halter_synth as synth;

pub use halter_core::data::batch::PackedBatch;
pub use halter_core::model::{Base, Decoder};
pub use halter_core::train::optimizer::{AdamW, AdamWConfig};
pub use halter_core::train::pass::{Logits, Pass, PassOptions, Tap};
pub use halter_core::train::source::{Source, SourceSpec};
pub use halter_core::{Error, Result};
pub use halter_sft::config::SftConfig;
