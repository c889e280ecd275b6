//! Which tokens of a completion are formatting: headers and ends of turns.
//!
//! "The Llama 3 Herd of Models", section 4.1.4, leaves them out of the DPO loss on both sides. They
//! stand in the chosen and the rejected completion alike, so the loss pulls them both ways, and the
//! model then repeats itself or stops at any place.

use halter_core::text::tokenizer::Tokenizer;

/// The tokens that are formatting wherever they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormattingTokens(Vec<u32>);

impl FormattingTokens {
    /// The tokenizer's BOS, padding and end-of-turn tokens. The headers between the turns of a
    /// completion need none: nothing is trained there anyway.
    ///
    /// Other special tokens are left in the loss: `<|python_tag|>` is a choice of the model's.
    pub fn of_tokenizer(tokenizer: &Tokenizer) -> Self {
        let ends = tokenizer.end_of_turn_tokens().into_iter().map(|(_, id)| id);
        Self(ends.chain(tokenizer.bos_id()).chain(tokenizer.pad_id()).collect())
    }

    /// `true` where the token is formatting.
    pub fn mask(&self, ids: &[u32]) -> Vec<bool> {
        ids.iter().map(|id| self.0.contains(id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_turns_are_formatting_and_what_is_said_is_not() {
        let folder = halter_testkit::root().join("core/tests/fixtures/tiny_llama3");
        let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json"), &[]).unwrap();
        let said = "<|python_tag|>assistant\n\nParis.";
        let text = format!("<|begin_of_text|>{said}<|eot_id|>");
        let ids = tokenizer.encode(&text, false).unwrap().ids;
        let mask = FormattingTokens::of_tokenizer(&tokenizer).mask(&ids);
        let said_ids = tokenizer.encode(said, false).unwrap().ids;
        let expected: Vec<bool> =
            (0..ids.len()).map(|at| at == 0 || at == said_ids.len() + 1).collect();
        assert_eq!(mask, expected);
    }
}
