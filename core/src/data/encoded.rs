//! What became of a record when it was turned into tokens.

use super::record::Row;

/// The outcome of encoding one record; `T` is whatever the method trains on: a [`Row`], several
/// of them, a pair.
#[derive(Debug, Clone, PartialEq)]
pub enum Encoded<T> {
    /// Used whole.
    Kept(T),
    /// Used in part.
    Cut {
        /// What is left.
        kept: T,
        /// Why, in a few words without figures (`longer than max_seq_len`): the ledger counts by
        /// it.
        reason: String,
        /// Tokens before the cut.
        tokens: usize,
    },
    /// Not used.
    Dropped {
        /// Why, in a few words without figures.
        reason: String,
        /// Tokens it had.
        tokens: usize,
    },
}

impl<T> Encoded<T> {
    /// With `of` its content in the place of it.
    pub fn map<U>(self, of: impl FnOnce(T) -> U) -> Encoded<U> {
        match self {
            Self::Kept(kept) => Encoded::Kept(of(kept)),
            Self::Cut { kept, reason, tokens } => Encoded::Cut { kept: of(kept), reason, tokens },
            Self::Dropped { reason, tokens } => Encoded::Dropped { reason, tokens },
        }
    }

    /// What is to be trained on, if anything is.
    pub fn kept(&self) -> Option<&T> {
        match self {
            Self::Kept(kept) | Self::Cut { kept, .. } => Some(kept),
            Self::Dropped { .. } => None,
        }
    }

    /// What is to be trained on, taken out.
    pub fn into_kept(self) -> Option<T> {
        match self {
            Self::Kept(kept) | Self::Cut { kept, .. } => Some(kept),
            Self::Dropped { .. } => None,
        }
    }
}

/// Anything whose tokens can be counted.
pub trait TokenCount {
    /// All tokens.
    fn tokens(&self) -> usize;
    /// Tokens that are trained.
    fn trained_tokens(&self) -> usize;
    /// Whether the tokens before every trained part are those that generation would be given.
    fn prompt_is_prefix(&self) -> bool;
}

impl TokenCount for Row {
    fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Without the first token, which nothing predicts.
    fn trained_tokens(&self) -> usize {
        self.completion_mask.iter().skip(1).filter(|&&trained| trained).count()
    }

    fn prompt_is_prefix(&self) -> bool {
        self.prompt_is_prefix
    }
}

impl<T: TokenCount> TokenCount for [T] {
    fn tokens(&self) -> usize {
        self.iter().map(T::tokens).sum()
    }

    fn trained_tokens(&self) -> usize {
        self.iter().map(T::trained_tokens).sum()
    }

    fn prompt_is_prefix(&self) -> bool {
        self.iter().all(T::prompt_is_prefix)
    }
}

impl<T: TokenCount> TokenCount for Vec<T> {
    fn tokens(&self) -> usize {
        self.as_slice().tokens()
    }

    fn trained_tokens(&self) -> usize {
        self.as_slice().trained_tokens()
    }

    fn prompt_is_prefix(&self) -> bool {
        self.as_slice().prompt_is_prefix()
    }
}
