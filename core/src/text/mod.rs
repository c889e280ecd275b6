//! Text: the tokenizer, chat templates, the completion mask, and rows made of them.

pub mod branches;
pub(crate) mod check;
pub mod encode;
pub mod gguf_tokenizer;
mod jinja;
pub mod mask;
mod python;
pub mod strftime;
pub mod template;
pub mod tokenizer;
