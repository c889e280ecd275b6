//! The tokenizer: byte-level BPE, every digit a token of its own.

use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// Tokens in all.
pub const SIZE: usize = 768;
/// The special tokens; their ids are 0, 1 and 2.
pub const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// A sign of arithmetic with its spaces, a word with the space before it, one digit, other marks,
/// other spaces.
const PATTERN: &str = r" [-+*/=] | ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+";

/// ChatML, with the generation prompt.
pub const CHAT_TEMPLATE: &str = "\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
";

/// Learns the merges from `texts`.
pub fn tokenizer(texts: &[String]) -> Result<Tokenizer> {
    let split = Split::new(
        SplitPattern::Regex(PATTERN.to_string()),
        SplitDelimiterBehavior::Isolated,
        false,
    )
    .map_err(|error| anyhow!("{error}"))?;
    let bytes = ByteLevel::new(false, true, false);
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])));
    tokenizer.with_decoder(Some(ByteLevelDecoder::new(true, true, true)));
    let special = SPECIAL.iter().map(|token| AddedToken::from(*token, true)).collect();
    let trainer = BpeTrainer::builder()
        .vocab_size(SIZE)
        .min_frequency(2)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let mut trainer = tokenizers::models::TrainerWrapper::from(trainer);
    // the words of the chat template, often enough to become tokens
    let roles = std::iter::repeat_n("system\nuser\nassistant\n", texts.len() / 8);
    tokenizer
        .train(&mut trainer, texts.iter().map(String::as_str).chain(roles))
        .map_err(|error| anyhow!("{error}"))?;
    Ok(tokenizer)
}

/// `tokenizer_config.json`.
pub fn config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": null,
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "model_max_length": 512,
        "clean_up_tokenization_spaces": false,
    })
}
