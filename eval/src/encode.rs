//! A context and its choices as tokens, as lm-evaluation-harness has them.

use halter_core::generate::Generator;
use halter_core::{Error, Result};

use crate::question::Choice;

/// Choices as tokens, each with the context that it continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded<'q> {
    /// What is asked.
    pub question: &'q Choice,
    /// Context and continuation of each choice; neither is empty.
    pub pairs: Vec<(Vec<u32>, Vec<u32>)>,
    /// Whether a context was cut from the left to fit the model's.
    pub was_cut: bool,
}

impl<'q> Encoded<'q> {
    /// The tokens of the context with each of the choices after a space.
    ///
    /// # Errors
    /// A text that the tokenizer cannot encode, or a choice that is no token or too many.
    pub fn new(generator: &Generator, question: &'q Choice) -> Result<Self> {
        let mut encoded = Self { question, pairs: Vec::new(), was_cut: false };
        for choice in &question.choices {
            let (mut context, continuation) =
                pair(generator, &question.context, &format!(" {choice}"))?;
            let limit = generator.context_len();
            if continuation.is_empty() || continuation.len() > limit {
                let tokens = continuation.len();
                return Err(Error::data(format!(
                    "a choice has `{tokens}` tokens: expected from 1 to `{limit}`"
                )));
            }
            // The last token is predicted, not read.
            let over = (context.len() + continuation.len()).saturating_sub(limit + 1);
            encoded.was_cut |= over > 0;
            context.drain(..over);
            encoded.pairs.push((context, continuation));
        }
        Ok(encoded)
    }

    /// Tokens that go through the model: contexts that follow one another and are equal once.
    pub fn tokens(&self) -> usize {
        let groups = self.pairs.chunk_by(|a, b| a.0 == b.0);
        let continuations: usize =
            self.pairs.iter().map(|(_, continuation)| continuation.len()).sum();
        groups.map(|group| group[0].0.len()).sum::<usize>() + continuations
    }
}

/// Tokens of a context and of what follows it. Both are encoded together and the context alone: what
/// the whole has beyond the context's number of tokens is the continuation. White space at the
/// context's end goes to the continuation, where most tokenizers have it.
fn pair(generator: &Generator, context: &str, continuation: &str) -> Result<(Vec<u32>, Vec<u32>)> {
    let whole = generator.text_prompt(&format!("{context}{continuation}"))?;
    let before = generator.text_prompt(context.trim_end())?;
    if !before.is_empty() {
        let rest = whole.get(before.len()..).unwrap_or_default().to_vec();
        return Ok((before, rest));
    }
    // Something has to predict the first token.
    let tokenizer = &generator.tokenizer;
    let first = tokenizer.bos_id().or_else(|| tokenizer.eos_id()).ok_or_else(|| {
        Error::text("the context is empty, and the tokenizer has no token to begin with")
    })?;
    Ok((vec![first], whole))
}
