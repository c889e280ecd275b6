//! Where two tokenizers have read the same text.

use std::ops::Range;

use halter_core::data::record::Row;
use halter_core::text::tokenizer::Tokenizer;
use halter_core::{Error, Result};

/// A stretch of text that both read in whole tokens, as short as it can be: where it begins, both
/// models have read the same, and predict what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its tokens, as targets of the student's row.
    pub own: Range<usize>,
    /// As targets of the teacher's.
    pub theirs: Range<usize>,
}

/// Where a token begins in the text of its part: special tokens before it, whose spelling is each
/// tokenizer's own, and bytes of other text.
type Place = (usize, usize);

/// Consecutive trained tokens.
#[derive(Debug, Default)]
struct Part {
    /// Which targets of the row they are, and where each begins; places rise.
    tokens: Vec<(usize, Place)>,
    /// Without special tokens.
    text: Vec<u8>,
}

impl Part {
    /// A row that a tokenizer has read, in parts.
    fn all_of(row: &Row, tokenizer: &Tokenizer) -> Vec<Self> {
        let mut parts: Vec<Self> = Vec::new();
        let (mut targets, mut specials, mut was_trained) = (0, 0, false);
        for (at, (&id, &trained)) in row.input_ids.iter().zip(&row.completion_mask).enumerate() {
            if trained && !was_trained {
                parts.push(Self::default());
                specials = 0;
            }
            was_trained = trained;
            let Some(part) = parts.last_mut().filter(|_| trained) else { continue };
            // Nothing predicts a row's first token.
            if at > 0 {
                part.tokens.push((targets, (specials, part.text.len())));
                targets += 1;
            }
            match tokenizer.is_special(id) {
                true => specials += 1,
                false => part.text.extend(tokenizer.token_bytes(id)),
            }
        }
        parts
    }

    /// Puts `lead`, with which the other's text begins, before the text. A space before all else is
    /// the tokenizer's; other text is in a token that the header begins, which is not trained.
    fn lead(&mut self, lead: &[u8]) {
        let is_space = lead.trim_ascii().is_empty();
        for (_, (_, bytes)) in &mut self.tokens {
            *bytes += if is_space && *bytes == 0 { 0 } else { lead.len() };
        }
        self.text.splice(0..0, lead.iter().copied());
    }

    /// The first target behind the part.
    fn end(&self) -> usize {
        self.tokens.last().map_or(0, |(target, _)| target + 1)
    }
}

/// The chunks of a row that student and teacher have both read, each with its tokenizer. What only
/// one of them has to its end, because the other's was cut, ends where the shorter one does.
///
/// # Errors
/// Completions of different text.
pub fn chunks(own: (&Row, &Tokenizer), theirs: (&Row, &Tokenizer)) -> Result<Vec<Chunk>> {
    let (mut mine, mut other) = (Part::all_of(own.0, own.1), Part::all_of(theirs.0, theirs.1));
    let mut chunks = Vec::new();
    for (mine, other) in mine.iter_mut().zip(&mut other) {
        if let Some(lead) = mine.text.strip_suffix(&*other.text) {
            other.lead(lead);
        } else if let Some(lead) = other.text.strip_suffix(&*mine.text) {
            mine.lead(lead);
        }
        let same = mine.text.iter().zip(&other.text).take_while(|(a, b)| a == b).count();
        if same < mine.text.len().min(other.text.len()) {
            return Err(differ(mine, other, same));
        }
        let mut starts = common(mine, other, same);
        // Both came to their end.
        if mine.text.len() == other.text.len() {
            starts.push((mine.end(), other.end()));
        }
        chunks.extend(
            starts
                .windows(2)
                .map(|pair| Chunk { own: pair[0].0..pair[1].0, theirs: pair[0].1..pair[1].1 }),
        );
    }
    Ok(chunks)
}

/// Targets of both that begin at one place, no farther than `same` bytes.
fn common(mine: &Part, other: &Part, same: usize) -> Vec<(usize, usize)> {
    let mut starts: Vec<(usize, usize)> = Vec::new();
    let mut rest = other.tokens.iter().peekable();
    let mut last = None;
    for &(target, place) in mine.tokens.iter().filter(|(_, (_, bytes))| *bytes <= same) {
        while rest.next_if(|(_, theirs)| *theirs < place).is_some() {}
        if let Some(&&(theirs, there)) = rest.peek()
            && there == place
            && last != Some(place)
        {
            starts.push((target, theirs));
            last = Some(place);
        }
    }
    starts
}

fn differ(mine: &Part, other: &Part, same: usize) -> Error {
    let shown = |part: &Part| {
        let from = same.saturating_sub(20);
        let to = part.text.len().min(same + 20);
        String::from_utf8_lossy(&part.text[from..to]).into_owned()
    };
    Error::data(format!(
        "the teacher reads `{}` where the student reads `{}`",
        shown(other),
        shown(mine)
    ))
    .hint("their chat templates, or tokenizers, change the text of completions differently")
}
