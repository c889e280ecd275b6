//! The text of a completion as its tokens come: whole characters, up to a stop string.

use crate::Result;
use crate::text::tokenizer::Tokenizer;

/// What a decoder puts for bytes that are no character, or not yet one.
const UNFINISHED: char = '\u{fffd}';
/// Tokens before a text that a decoder looks at.
const BEFORE: usize = 16;

/// Turns tokens into text that may be shown at once. Special tokens have none.
#[derive(Debug, Clone, Default)]
pub struct TextStream {
    stop: Vec<String>,
    /// The newest tokens that made text, and those that have not yet: a decoder looks at what stands
    /// before.
    tokens: Vec<u32>,
    /// How many of `tokens` have made their text, and that text.
    done: usize,
    before: String,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl TextStream {
    /// A text that ends before the first of the strings `stop`.
    pub fn new(stop: Vec<String>) -> Self {
        Self { stop, ..Self::default() }
    }

    /// The same for a text that follows `prompt`, of which nothing is shown: decoders drop the space
    /// before a word where a text begins, and here it goes on.
    ///
    /// # Errors
    /// The decoder fails.
    pub fn after(prompt: &[u32], tokenizer: &Tokenizer, stop: Vec<String>) -> Result<Self> {
        let tokens = prompt[prompt.len().saturating_sub(BEFORE)..].to_vec();
        let before = tokenizer.decode(&tokens, true)?;
        Ok(match before.ends_with(UNFINISHED) {
            true => Self::new(stop),
            false => Self { stop, done: tokens.len(), tokens, before, ..Self::default() },
        })
    }

    /// Takes the next token and gives what may be shown now.
    ///
    /// # Errors
    /// The decoder fails.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String> {
        self.tokens.push(token);
        let text = tokenizer.decode(&self.tokens, true)?;
        if text.len() <= self.before.len() || text.ends_with(UNFINISHED) {
            return Ok(String::new());
        }
        self.held += text.get(self.before.len()..).unwrap_or_default();
        self.tokens.drain(..self.done);
        self.done = self.tokens.len();
        self.before = tokenizer.decode(&self.tokens, true)?;
        Ok(self.take(false))
    }

    /// What is left when the last token has come.
    ///
    /// # Errors
    /// The decoder fails.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let text = tokenizer.decode(&self.tokens, true)?;
        self.held += text.get(self.before.len()..).unwrap_or_default();
        self.tokens.clear();
        self.before.clear();
        Ok(self.take(true))
    }

    /// Whether a stop string has come; nothing is shown any more.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    fn take(&mut self, all: bool) -> String {
        if self.stopped {
            return String::new();
        }
        let found = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        let end = match found {
            Some(start) => {
                self.stopped = true;
                start
            }
            None if all => self.held.len(),
            None => self.held.len() - self.possible_beginning(),
        };
        let rest = self.held.split_off(end);
        std::mem::replace(&mut self.held, rest)
    }

    /// Bytes at the end that a stop string may begin with.
    fn possible_beginning(&self) -> usize {
        let begins = |stop: &String| -> usize {
            let ends = stop.char_indices().map(|(at, _)| at).rev();
            ends.into_iter().find(|&end| self.held.ends_with(&stop[..end])).unwrap_or(0)
        };
        self.stop.iter().map(begins).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use super::*;

    fn tokenizer() -> Tokenizer {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny_chatml/tokenizer.json");
        Tokenizer::from_file(path, &[]).unwrap()
    }

    /// The pieces of a text whose tokens come one by one, and whether a stop string ended it.
    fn pieces(tokens: &[u32], stop: &[&str]) -> (Vec<String>, bool) {
        let tokenizer = tokenizer();
        let mut stream = TextStream::new(stop.iter().map(ToString::to_string).collect());
        let mut pieces = Vec::new();
        for &token in tokens {
            pieces.push(stream.push(&tokenizer, token).unwrap());
            if stream.is_stopped() {
                return (pieces, true);
            }
        }
        pieces.push(stream.finish(&tokenizer).unwrap());
        (pieces, stream.is_stopped())
    }

    fn tokens(text: &str) -> Vec<u32> {
        tokenizer().encode(text, false).unwrap().ids
    }

    #[test]
    fn characters_of_several_tokens_come_whole() {
        let text = "héllo wörld 🦙🦙 日本語 — end";
        let tokens = tokens(text);
        assert!(tokens.len() > text.chars().count(), "characters have several tokens");
        let (pieces, stopped) = pieces(&tokens, &[]);
        assert_eq!(pieces.concat(), text);
        assert!(!stopped && pieces.iter().all(|piece| !piece.contains(UNFINISHED)), "{pieces:?}");
        assert!(pieces.iter().filter(|piece| !piece.is_empty()).count() > 10, "{pieces:?}");
    }

    #[test]
    fn a_character_that_is_cut_off_shows_at_the_end() {
        let mut cut = tokens("a🦙");
        cut.pop();
        let (pieces, _) = pieces(&cut, &[]);
        assert_eq!(pieces.concat(), tokenizer().decode(&cut, true).unwrap());
        assert!(pieces.last().unwrap().ends_with(UNFINISHED), "{pieces:?}");
    }

    #[test]
    fn special_tokens_have_no_text() {
        let tokens = tokens("one<|im_end|>two");
        assert_eq!(pieces(&tokens, &[]).0.concat(), "onetwo");
    }

    #[test]
    fn stop_strings_are_found_across_tokens_and_never_shown() {
        let text = "one two three four";
        for (stop, want) in [
            (&["three"][..], "one two "),
            (&["wo th"], "one t"),
            (&["four", "three"], "one two "),
            (&["o", "one"], ""),
            (&["fourth"], text),
            (&["r!"], text),
        ] {
            let (pieces, stopped) = pieces(&tokens(text), stop);
            assert_eq!(pieces.concat(), want, "{stop:?}");
            assert_eq!(stopped, want != text, "{stop:?}");
        }
        let (pieces, stopped) = pieces(&tokens("a 日本語 b"), &["本語"]);
        assert_eq!((pieces.concat().as_str(), stopped), ("a 日", true));
    }

    #[test]
    fn only_what_may_begin_a_stop_string_is_held() {
        let tokenizer = tokenizer();
        let mut stream = TextStream::new(vec!["\n\nEND".to_string()]);
        let mut shown = String::new();
        for token in tokens("x\n\nEx") {
            shown += &stream.push(&tokenizer, token).unwrap();
            assert!(!shown.ends_with('\n'), "{shown:?}");
        }
        assert_eq!(shown, "x\n\nEx");
    }
}
