//! Records to rows of tokens: what is trained, what is refused, and what becomes of rows that are
//! too long.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::check::{check_messages, check_special_text};
use super::mask::{MaskPolicy, mask_text, mask_tokens};
use super::template::{ChatTemplate, RenderOptions};
use super::tokenizer::Tokenizer;
use crate::data::record::{Message, Record, Turn};
use crate::{Error, Result};

/// What to do with a row of more than `max_seq_len` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlong {
    /// Stop with an error.
    #[default]
    Refuse,
    /// Leave the row out.
    Drop,
    /// Keep the first `max_seq_len` tokens (TRL's `keep_start`).
    Truncate,
    /// Cut `text` records into rows; leave out others.
    Split,
}

/// How records become rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Most tokens of a row.
    pub max_seq_len: Option<usize>,
    /// For longer rows.
    pub overlong: Overlong,
    /// Which assistant turns of a conversation are trained.
    pub mask: MaskPolicy,
    /// Train what the template puts after the end-of-turn token (a newline in ChatML).
    pub train_on_trailing: bool,
    /// In prompt/completion rows, train the completion only (TRL's default); otherwise all of it.
    pub completion_only_loss: bool,
    /// Let special tokens that stand as text in a conversation become special tokens, as
    /// transformers does. Refused by default: `<|im_end|>` in a question would end the turn. Plain
    /// prompts, completions and texts may hold them: they are often rendered beforehand.
    pub allow_special_text: bool,
    /// Rows of the model's embedding, which ids of tokenized rows must not exceed. Without it, the
    /// tokenizer's greatest id counts.
    pub vocab_size: Option<usize>,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self {
            max_seq_len: None,
            overlong: Overlong::Refuse,
            mask: MaskPolicy::All,
            train_on_trailing: false,
            completion_only_loss: true,
            allow_special_text: false,
            vocab_size: None,
        }
    }
}

/// A row of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Tokens.
    pub input_ids: Vec<u32>,
    /// Same length; `true` where the token is trained.
    pub completion_mask: Vec<bool>,
    /// Whether the tokens before every trained part are those that generation would be given.
    /// Where not, the row trains on a context that the model will not see: worth a warning.
    pub prompt_is_prefix: bool,
}

impl Encoded {
    /// The number of tokens that a loss can be taken of: trained, and not the first.
    pub fn num_trained(&self) -> usize {
        self.completion_mask.iter().skip(1).filter(|trained| **trained).count()
    }
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Used whole.
    Kept(Encoded),
    /// Cut to `max_seq_len` tokens: one row, or several where the policy is to split.
    Cut {
        /// The rows.
        rows: Vec<Encoded>,
        /// Tokens before.
        num_tokens: usize,
        /// Tokens that are in no row.
        num_lost: usize,
    },
    /// Left out.
    Dropped {
        /// Why, for the ledger.
        reason: String,
        /// Tokens it had.
        num_tokens: usize,
    },
}

/// A prompt to generate from, and the answer that the data gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The prompt's text, rendered.
    pub text: String,
    /// Its tokens.
    pub input_ids: Vec<u32>,
    /// The answer in the data, as text, where there is one.
    pub reference: Option<String>,
}

/// A token of a row, for people to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// The token.
    pub id: u32,
    /// What it adds to the text; empty where it only begins a character.
    pub text: String,
    /// Whether it is trained.
    pub trained: bool,
}

/// Encodes a record for supervised fine-tuning.
///
/// `Chat` and prompt/completion messages are rendered by the chat template; a plain prompt and
/// completion are joined, with EOS after the completion; a `Text` is trained whole, with EOS.
/// Both plain forms follow TRL's `SFTTrainer`.
///
/// # Errors
/// A record of another method, a template that refuses the conversation or cannot be masked, a row
/// without a trained token, two BOS tokens, special tokens in the data, an id beyond the
/// vocabulary, and over-long rows unless another policy was chosen.
pub fn encode_sft(
    record: &Record,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    options: &EncodeOptions,
) -> Result<Outcome> {
    let encoded = encode_sft_row(record, tokenizer, template, options)?;
    fit(encoded, matches!(record, Record::Text { .. }), options)
}

/// [`encode_sft`] whatever the row's length.
pub(super) fn encode_sft_row(
    record: &Record,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    options: &EncodeOptions,
) -> Result<Encoded> {
    let encoded = match record {
        Record::Chat { messages, tools } => {
            encode_chat(messages, 0, tools.as_deref(), tokenizer, template, options)?
        }
        Record::PromptCompletion { prompt, completion, tools } => match (prompt, completion) {
            (Turn::Text(prompt), Turn::Text(completion)) => {
                encode_completion(prompt, completion, tokenizer, options)?
            }
            (Turn::Messages(prompt), Turn::Messages(completion)) => {
                let all = [prompt.as_slice(), completion.as_slice()].concat();
                encode_chat(&all, prompt.len(), tools.as_deref(), tokenizer, template, options)?
            }
            _ => return Err(mixed()),
        },
        Record::Text { text } => encode_text(text, tokenizer)?,
        Record::Tokenized { input_ids, completion_mask } => {
            encode_tokenized(input_ids, completion_mask, tokenizer, options)?
        }
        other => {
            return Err(Error::data(format!(
                "a row of {} cannot be used for supervised fine-tuning",
                kind_of(other)
            ))
            .hint("`sft` wants `messages`, `prompt` and `completion`, `text`, or `input_ids`"));
        }
    };
    if encoded.num_trained() == 0 {
        return Err(Error::data(format!(
            "row of `{}` tokens has no trained token",
            encoded.input_ids.len()
        ))
        .hint("the completion or the text is empty"));
    }
    Ok(encoded)
}

/// The prompt of a record, for generation: everything before the last assistant turn, or the whole
/// conversation where somebody else speaks last. `None` where there is nothing before it, or the
/// record is a text or tokens.
///
/// # Errors
/// A record that its template refuses.
pub fn completion_prompt(
    record: &Record,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Result<Option<Prompt>> {
    let (prompt, completion, tools) = match record {
        Record::Chat { messages, tools } => {
            let last = messages.len().saturating_sub(1);
            let cut = match messages.last() {
                Some(message) if message.role() == "assistant" => last,
                _ => messages.len(),
            };
            let reference = messages.get(cut).and_then(Message::content).map(str::to_string);
            (Turn::Messages(messages[..cut].to_vec()), reference, tools.as_deref())
        }
        Record::Prompt { prompt, tools } => (prompt.clone(), None, tools.as_deref()),
        Record::PromptCompletion { prompt, completion, tools } => {
            let reference = match completion {
                Turn::Text(text) => Some(text.clone()),
                Turn::Messages(messages) => {
                    messages.last().and_then(Message::content).map(str::to_string)
                }
            };
            (prompt.clone(), reference, tools.as_deref())
        }
        _ => return Ok(None),
    };
    let (text, input_ids) = match prompt {
        Turn::Messages(messages) if messages.is_empty() => return Ok(None),
        Turn::Text(text) => {
            let ids = prompt_tokens(tokenizer, &text)?;
            (text, ids)
        }
        Turn::Messages(messages) => {
            let text = render_prompt(template.ok_or_else(no_template)?, &messages, tools)?;
            let ids = tokenizer.encode(&text, false)?.ids;
            (text, ids)
        }
    };
    let prompt = Prompt { text, input_ids, reference: completion };
    Ok(Some(prompt).filter(|prompt| !prompt.input_ids.is_empty()))
}

/// A conversation with the header of the turn that is to be generated.
pub(crate) fn render_prompt(
    template: &ChatTemplate,
    messages: &[Message],
    tools: Option<&[Value]>,
) -> Result<String> {
    let options = RenderOptions { tools, add_generation_prompt: true, ..RenderOptions::default() };
    template.render(messages, &options)
}

/// The tokens of a plain prompt: BOS where the tokenizer puts one, never EOS.
pub(crate) fn prompt_tokens(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode(text, true)?.ids;
    if tokenizer.adds_eos() {
        ids.pop();
    }
    Ok(ids)
}

/// The tokens of a row with their text, for `halter data explain`.
///
/// # Errors
/// The tokenizer cannot decode them.
pub fn segments(tokenizer: &Tokenizer, row: &Encoded) -> Result<Vec<Segment>> {
    let pieces = tokenizer.pieces(&row.input_ids)?;
    let tokens = row.input_ids.iter().zip(&row.completion_mask).zip(pieces);
    Ok(tokens.map(|((&id, &trained), text)| Segment { id, text, trained }).collect())
}

fn encode_chat(
    messages: &[Message],
    first: usize,
    tools: Option<&[Value]>,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    options: &EncodeOptions,
) -> Result<Encoded> {
    let template = template.ok_or_else(no_template)?;
    check_messages(messages)?;
    if !options.allow_special_text {
        check_special_text(messages, tools, tokenizer)?;
    }
    let masked = mask_text(template, tokenizer, messages, tools, options.mask, first)?;
    let tokens = mask_tokens(tokenizer, &masked, options.train_on_trailing)?;
    let mut encoded = Encoded {
        input_ids: tokens.input_ids,
        completion_mask: tokens.completion_mask,
        prompt_is_prefix: tokens.prompt_is_prefix,
    };
    if first > 0 && !options.completion_only_loss {
        if let Some(index) = messages.iter().position(|m| m.is_trained() == Some(false)) {
            return Err(Error::data(format!(
                "message `{}` is not to be trained, but `--train-on-prompt` trains all",
                index + 1
            )));
        }
        encoded.completion_mask.fill(true);
    }
    Ok(encoded)
}

fn encode_completion(
    prompt: &str,
    completion: &str,
    tokenizer: &Tokenizer,
    options: &EncodeOptions,
) -> Result<Encoded> {
    if completion.is_empty() {
        return Err(Error::data("completion is empty"));
    }
    let completion = with_eos(completion, tokenizer)?;
    let alone = prompt_tokens(tokenizer, prompt)?;
    let input_ids = tokenizer.encode(&format!("{prompt}{completion}"), true)?.ids;
    check_bos(&input_ids, tokenizer)?;
    let same = alone.iter().zip(&input_ids).take_while(|(a, b)| a == b).count();
    let completion_mask =
        (0..input_ids.len()).map(|index| index >= same || !options.completion_only_loss).collect();
    Ok(Encoded { input_ids, completion_mask, prompt_is_prefix: same == alone.len() })
}

fn encode_text(text: &str, tokenizer: &Tokenizer) -> Result<Encoded> {
    if text.is_empty() {
        return Err(Error::data("text is empty"));
    }
    let input_ids = tokenizer.encode(&with_eos(text, tokenizer)?, true)?.ids;
    check_bos(&input_ids, tokenizer)?;
    let completion_mask = vec![true; input_ids.len()];
    Ok(Encoded { input_ids, completion_mask, prompt_is_prefix: true })
}

/// The text with EOS after it, unless it is there or the tokenizer adds it.
fn with_eos(text: &str, tokenizer: &Tokenizer) -> Result<String> {
    let eos = tokenizer.special_token("eos_token").ok_or_else(|| {
        Error::text("tokenizer has no end-of-sequence token, so the end would not be trained")
            .hint("name it as `eos_token` in tokenizer_config.json")
    })?;
    Ok(match text.ends_with(eos) || tokenizer.adds_eos() {
        true => text.to_string(),
        false => format!("{text}{eos}"),
    })
}

fn check_bos(input_ids: &[u32], tokenizer: &Tokenizer) -> Result<()> {
    match tokenizer.bos_id() {
        Some(bos) if input_ids.starts_with(&[bos, bos]) => {
            Err(Error::data("row begins with two BOS tokens")
                .hint("the tokenizer puts one; take the one out that stands as text in the data"))
        }
        _ => Ok(()),
    }
}

fn encode_tokenized(
    input_ids: &[u32],
    completion_mask: &[bool],
    tokenizer: &Tokenizer,
    options: &EncodeOptions,
) -> Result<Encoded> {
    if input_ids.len() != completion_mask.len() {
        return Err(Error::data(format!(
            "`completion_mask` has `{}` entries for `{}` tokens",
            completion_mask.len(),
            input_ids.len()
        )));
    }
    check_ids("input_ids", input_ids, tokenizer, options)?;
    Ok(Encoded {
        input_ids: input_ids.to_vec(),
        completion_mask: completion_mask.to_vec(),
        prompt_is_prefix: true,
    })
}

/// Refuses ids of the column `name` beyond the vocabulary.
pub(super) fn check_ids(
    name: &str,
    ids: &[u32],
    tokenizer: &Tokenizer,
    options: &EncodeOptions,
) -> Result<()> {
    let limit = options.vocab_size.unwrap_or_else(|| tokenizer.id_limit());
    let Some(at) = ids.iter().position(|id| *id as usize >= limit) else { return Ok(()) };
    let message = format!("`{name}[{at}]` is `{}`, beyond the vocabulary of `{limit}`", ids[at]);
    Err(Error::data(message).hint("the row was made with another tokenizer"))
}

/// Holds a row to `max_seq_len`.
fn fit(mut encoded: Encoded, is_text: bool, options: &EncodeOptions) -> Result<Outcome> {
    let num_tokens = encoded.input_ids.len();
    let Some(limit) = options.max_seq_len.filter(|limit| num_tokens > *limit) else {
        return Ok(Outcome::Kept(encoded));
    };
    let dropped = |why: &str| Outcome::Dropped {
        // Without figures: the ledger counts by it.
        reason: format!("longer than max_seq_len{why}"),
        num_tokens,
    };
    match options.overlong {
        Overlong::Refuse => Err(Error::data(format!(
            "row has `{num_tokens}` tokens, more than `max_seq_len` of `{limit}`"
        ))
        .hint("raise `--max-seq-len`, or choose `--overlong drop`, `truncate` or `split`")),
        Overlong::Drop => Ok(dropped("")),
        Overlong::Split if !is_text => Ok(dropped(" (only text rows are split)")),
        Overlong::Truncate => {
            encoded.input_ids.truncate(limit);
            encoded.completion_mask.truncate(limit);
            if encoded.num_trained() == 0 {
                return Ok(dropped(", and no trained token before it"));
            }
            let num_lost = num_tokens - limit;
            Ok(Outcome::Cut { rows: vec![encoded], num_tokens, num_lost })
        }
        Overlong::Split => {
            let pieces = encoded
                .input_ids
                .chunks(limit.max(1))
                .zip(encoded.completion_mask.chunks(limit.max(1)));
            let rows: Vec<Encoded> = pieces
                .map(|(ids, mask)| Encoded {
                    input_ids: ids.to_vec(),
                    completion_mask: mask.to_vec(),
                    prompt_is_prefix: true,
                })
                .filter(|row| row.num_trained() > 0)
                .collect();
            if rows.is_empty() {
                return Ok(dropped(", and rows of one token train nothing"));
            }
            let kept: usize = rows.iter().map(|row| row.input_ids.len()).sum();
            Ok(Outcome::Cut { rows, num_tokens, num_lost: num_tokens - kept })
        }
    }
}

pub(crate) fn no_template() -> Error {
    Error::text("model has no chat template, and the row is a conversation")
        .hint("give one with `--chat-template FILE`, or use rows of `prompt` and `completion`")
}

fn mixed() -> Error {
    Error::data("one of `prompt` and `completion` is text and the other is messages")
}

fn kind_of(record: &Record) -> &'static str {
    match record {
        Record::Chat { .. } => "messages",
        Record::PromptCompletion { .. } => "prompt and completion",
        Record::Prompt { .. } => "a prompt alone",
        Record::Text { .. } => "text",
        Record::Preference { .. } => "chosen and rejected",
        Record::Ranked { .. } => "ranked completions",
        Record::Unpaired { .. } => "a completion with a label",
        Record::Tokenized { .. } => "tokens",
        Record::TokenizedPreference { .. } => "chosen and rejected tokens",
    }
}
