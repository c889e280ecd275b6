//! Text: the tokenizer, chat templates, the completion mask, and rows made of them.

mod jinja;
mod python;
mod strftime;
pub mod template;
