//! Supervised fine-tuning ("The Llama 3 Herd of Models", section 4.1.3): cross-entropy on the target
//! tokens, prompts masked. The whole run is [`halter_core::train::run`].

pub mod config;
pub mod loss;
pub mod method;
pub mod step;

pub use method::Sft;
