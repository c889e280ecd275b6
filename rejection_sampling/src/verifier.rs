//! Scorers that check an answer against what is known of it.
