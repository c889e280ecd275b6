//! Which tokens of a completion are formatting: headers and ends of turns.
//!
//! "The Llama 3 Herd of Models", section 4.1.4, leaves them out of the DPO loss on both sides. They
//! stand in the chosen and the rejected completion alike, so the loss pulls them both ways, and the
//! model then repeats itself or stops at any place.

use std::cmp::Reverse;

use halter_core::text::tokenizer::Tokenizer;
use halter_core::{Error, Result};

/// The pieces of a chat template that are formatting, as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormattingTokens {
    /// Longest first.
    pieces: Vec<Vec<u32>>,
}

impl FormattingTokens {
    /// From sequences of tokens, of which an end of turn is one of length one.
    pub fn new(mut pieces: Vec<Vec<u32>>) -> Self {
        pieces.retain(|piece| !piece.is_empty());
        pieces.sort_by_key(|piece| Reverse(piece.len()));
        Self { pieces }
    }

    /// The tokenizer's BOS, padding and end-of-turn tokens, and the `headers` that the chat
    /// template puts before turns, as `<|start_header_id|>assistant<|end_header_id|>\n\n`.
    ///
    /// Other special tokens are left in the loss: `<|python_tag|>` is a choice of the model's.
    ///
    /// # Errors
    /// A header without a special token, which could be a part of any answer.
    pub fn of_template(tokenizer: &Tokenizer, headers: &[&str]) -> Result<Self> {
        let ends = tokenizer.end_of_turn_tokens().into_iter().map(|(_, id)| id);
        let single = ends.chain(tokenizer.bos_id()).chain(tokenizer.pad_id());
        let mut pieces: Vec<Vec<u32>> = single.map(|id| vec![id]).collect();
        for header in headers {
            let ids = tokenizer.encode(header, false)?.ids;
            if !ids.iter().any(|&id| tokenizer.is_special(id)) {
                let message =
                    format!("header `{header}`: expected a special token in it, got none");
                return Err(Error::text(message));
            }
            pieces.push(ids);
        }
        Ok(Self::new(pieces))
    }

    /// `true` where the token is formatting.
    pub fn mask(&self, ids: &[u32]) -> Vec<bool> {
        let mut mask = vec![false; ids.len()];
        let mut at = 0;
        while at < ids.len() {
            let found = self.pieces.iter().find(|piece| ids[at..].starts_with(piece));
            let len = found.map_or(0, Vec::len);
            mask[at..at + len].fill(true);
            at += len.max(1);
        }
        mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "<|start_header_id|>assistant<|end_header_id|>\n\n";

    fn llama3() -> Tokenizer {
        let folder = halter_testkit::root().join("core/tests/fixtures/tiny_llama3");
        Tokenizer::from_file(folder.join("tokenizer.json"), &[]).unwrap()
    }

    #[test]
    fn pieces_are_found_whole_and_the_longest_first() {
        let formatting = FormattingTokens::new(vec![vec![9], vec![7, 1, 8], vec![7, 1], vec![]]);
        let mask = formatting.mask(&[7, 1, 8, 1, 5, 9, 7, 1, 5, 7]);
        let expected = [1, 1, 1, 0, 0, 1, 1, 1, 0, 0].map(|x| x == 1);
        assert_eq!(mask, expected);
        assert_eq!(formatting.mask(&[]), Vec::<bool>::new());
    }

    #[test]
    fn headers_and_ends_of_turns_are_formatting_and_what_is_said_is_not() {
        let tokenizer = llama3();
        let formatting = FormattingTokens::of_template(&tokenizer, &[HEADER]).unwrap();
        let said = "<|python_tag|>assistant\n\nParis.";
        let text = format!("{HEADER}{said}<|eot_id|>");
        let ids = tokenizer.encode(&text, false).unwrap().ids;
        let mask = formatting.mask(&ids);
        let kept: Vec<u32> = ids
            .iter()
            .zip(&mask)
            .filter(|(_, formatting)| !**formatting)
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(tokenizer.decode(&kept, false).unwrap(), said);
        assert_eq!(mask.last(), Some(&true));
    }

    #[test]
    fn a_header_of_plain_words_is_refused() {
        let error = FormattingTokens::of_template(&llama3(), &["assistant:"]).unwrap_err();
        assert_eq!(
            error.message(),
            "header `assistant:`: expected a special token in it, got none"
        );
    }
}
