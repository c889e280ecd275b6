//! Tokenizer, chat template and completion mask.

pub mod gguf_tokenizer;
