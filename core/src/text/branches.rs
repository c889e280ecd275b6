//! Records of one prompt with several completions to tokens: the prompt once, and what follows.

use super::encode::{EncodeOptions, Encoded, Overlong, check_ids, encode_sft_row};
use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;
use crate::data::branched::{Branch, BranchedRow};
use crate::data::encoded::{Encoded as Fate, TokenCount};
use crate::data::record::{Message, Origin, Record, Turn};
use crate::{Error, Result};

/// Encodes a preference pair or a ranked list, best first.
///
/// Completions that are messages are rendered by the chat template behind their prompt; plain ones
/// are joined with it, with EOS after them. Where a pair has no prompt of its own, it is what both
/// completions begin with (TRL's implicit prompt). The prompt of the row is what the tokens of all
/// completions begin with, up to the first that is trained.
///
/// # Errors
/// A record of another kind, completions that are all the same, and what
/// [`encode_sft`](super::encode::encode_sft) refuses.
pub fn encode_branches(
    record: &Record,
    origin: &Origin,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    options: &EncodeOptions,
) -> Result<Fate<BranchedRow>> {
    let told = |error: Error| error.at(&*origin.path, origin.line);
    let row = branches_of(record, origin, tokenizer, template, options).map_err(told)?;
    if options.drop_identical && is_without_difference(&row) {
        let tokens = row.tokens();
        return Ok(Fate::Dropped { reason: "identical completions".into(), tokens });
    }
    checked(row).and_then(|row| fit(row, options)).map_err(told)
}

/// Encodes one or more completions of a prompt, whatever they are: to score them.
///
/// # Errors
/// What [`encode_sft`](super::encode::encode_sft) refuses.
pub fn encode_completions(
    prompt: &Turn,
    completions: &[Turn],
    origin: &Origin,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    options: &EncodeOptions,
) -> Result<BranchedRow> {
    if completions.is_empty() {
        return Err(Error::data("a prompt without a completion"));
    }
    let encoded = completions.iter().map(|completion| {
        let (prompt, completion) = (prompt.clone(), completion.clone());
        let record = Record::PromptCompletion { prompt, completion, tools: None };
        encode_sft_row(&record, tokenizer, template, options)
    });
    Ok(branch(encoded.collect::<Result<Vec<_>>>()?, origin))
}

/// Encodes a judged completion, as [`encode_branches`] encodes one of several.
///
/// # Errors
/// A record of another kind or without a prompt, and what
/// [`encode_sft`](super::encode::encode_sft) refuses.
pub fn encode_judged(
    record: &Record,
    origin: &Origin,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    options: &EncodeOptions,
) -> Result<Fate<BranchedRow>> {
    let row = || {
        let Record::Unpaired { prompt, completion, .. } = record else {
            return Err(Error::data("a row without a judged completion")
                .hint("rows need `prompt`, `completion` and a `label` of true or false"));
        };
        let row = encode_completions(
            prompt,
            std::slice::from_ref(completion),
            origin,
            tokenizer,
            template,
            options,
        )?;
        match row.prompt.is_empty() {
            true => Err(Error::data("a judged completion without a prompt")),
            false => checked(row),
        }
    };
    row().and_then(|row| fit(row, options)).map_err(|error| error.at(&*origin.path, origin.line))
}

fn branches_of(
    record: &Record,
    origin: &Origin,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    options: &EncodeOptions,
) -> Result<BranchedRow> {
    let encode = |prompt: &Turn, completions: &[Turn]| {
        encode_completions(prompt, completions, origin, tokenizer, template, options)
    };
    match record {
        Record::TokenizedPreference { prompt_ids, chosen_ids, rejected_ids, .. } => {
            let branch = |name: &str, ids: &[u32]| -> Result<Branch> {
                check_ids(name, ids, tokenizer, options)?;
                Ok(Branch { tokens: ids.to_vec(), mask: vec![true; ids.len()] })
            };
            check_ids("prompt_ids", prompt_ids, tokenizer, options)?;
            let branches =
                vec![branch("chosen_ids", chosen_ids)?, branch("rejected_ids", rejected_ids)?];
            let row = BranchedRow {
                origin: origin.clone(),
                prompt: prompt_ids.clone(),
                branches,
                prompt_is_prefix: true,
            };
            Ok(row)
        }
        Record::Preference { prompt: Some(prompt), chosen, rejected, .. } => {
            encode(prompt, &[chosen.clone(), rejected.clone()])
        }
        Record::Preference { prompt: None, chosen, rejected, .. } => {
            let (prompt, chosen, rejected) = without_common(chosen, rejected)?;
            encode(&prompt, &[chosen, rejected])
        }
        Record::Ranked { prompt, completions, .. } => encode(prompt, completions),
        _ => Err(Error::data("a row without two completions to compare")
            .hint("rows need `chosen` and `rejected`, or ranked `completions`")),
    }
}

/// Splits off what all rows begin with, up to the first token that one of them trains.
fn branch(encoded: Vec<Encoded>, origin: &Origin) -> BranchedRow {
    let first = &encoded[0].input_ids;
    let shared = encoded.iter().map(|row| {
        let same = row.input_ids.iter().zip(first).take_while(|(a, b)| a == b).count();
        let untrained = row.completion_mask.iter().take_while(|&&trained| !trained).count();
        same.min(untrained)
    });
    let shared = shared.min().unwrap_or(0);
    BranchedRow {
        origin: origin.clone(),
        prompt: first[..shared].to_vec(),
        prompt_is_prefix: encoded.iter().all(|row| row.prompt_is_prefix),
        branches: encoded
            .into_iter()
            .map(|mut row| Branch {
                tokens: row.input_ids.split_off(shared),
                mask: row.completion_mask.split_off(shared),
            })
            .collect(),
    }
}

fn checked(row: BranchedRow) -> Result<BranchedRow> {
    if let Some(empty) = row.counted().position(|count| count == 0) {
        return Err(Error::data(format!("completion `{}` has no token to count", empty + 1))
            .hint("the completion is empty"));
    }
    if is_without_difference(&row) {
        return Err(Error::data("all completions of the row are the same")
            .hint("a row without a difference teaches nothing: take it out"));
    }
    Ok(row)
}

fn is_without_difference(row: &BranchedRow) -> bool {
    row.branches.len() > 1 && row.branches.iter().all(|branch| *branch == row.branches[0])
}

/// The prompt that two completions share, and what follows in each: whole messages, or characters
/// of plain text without the space before a word.
fn without_common(chosen: &Turn, rejected: &Turn) -> Result<(Turn, Turn, Turn)> {
    match (chosen, rejected) {
        (Turn::Messages(chosen), Turn::Messages(rejected)) => {
            let same = chosen.iter().zip(rejected).take_while(|(a, b)| a == b).count();
            // An answer is never part of the prompt, though both may give the same.
            let is_answer = |message: &Message| message.role() == "assistant";
            let ends = same == chosen.len().min(rejected.len());
            let same = if ends { same.saturating_sub(1) } else { same };
            let split = |messages: &[Message]| Turn::Messages(messages[same..].to_vec());
            if !(chosen[same..].iter().any(is_answer) && rejected[same..].iter().any(is_answer)) {
                return Err(Error::data("one of the completions has no turn of the assistant"));
            }
            Ok((Turn::Messages(chosen[..same].to_vec()), split(chosen), split(rejected)))
        }
        (Turn::Text(chosen), Turn::Text(rejected)) => {
            let letters = chosen.char_indices().zip(rejected.chars());
            let same = letters.take_while(|((_, a), b)| a == b).last();
            let mut end = same.map_or(0, |((at, letter), _)| at + letter.len_utf8());
            if chosen[..end].ends_with(' ') {
                end -= 1;
            }
            let text = |text: &str| Turn::Text(text.to_string());
            Ok((text(&chosen[..end]), text(&chosen[end..]), text(&rejected[end..])))
        }
        _ => Err(Error::data("one of `chosen` and `rejected` is text and the other is messages")),
    }
}

/// Holds each completion with its prompt to `max_seq_len`.
fn fit(mut row: BranchedRow, options: &EncodeOptions) -> Result<Fate<BranchedRow>> {
    let length = |branch: &Branch| row.prompt.len() + branch.tokens.len();
    let longest = row.branches.iter().map(length).max().unwrap_or(0);
    let Some(limit) = options.max_seq_len.filter(|&limit| longest > limit) else {
        return Ok(Fate::Kept(row));
    };
    let dropped = |why: &str| Fate::Dropped {
        reason: format!("longer than max_seq_len{why}"),
        tokens: longest,
    };
    match options.overlong {
        Overlong::Refuse => Err(Error::data(format!(
            "prompt and completion have `{longest}` tokens, more than `max_seq_len` of `{limit}`"
        ))
        .hint("raise `--max-seq-len`, or choose `--overlong drop` or `truncate`")),
        Overlong::Drop => Ok(dropped("")),
        Overlong::Split => Ok(dropped(" (only text rows are split)")),
        Overlong::Truncate => {
            let room = limit.saturating_sub(row.prompt.len());
            for branch in &mut row.branches {
                branch.tokens.truncate(room);
                branch.mask.truncate(room);
            }
            if checked(row.clone()).is_err() {
                return Ok(dropped(", and no difference before it"));
            }
            let reason = "longer than max_seq_len".into();
            Ok(Fate::Cut { kept: row, reason, tokens: longest })
        }
    }
}
