//! Tokenizer, chat template and completion mask.
