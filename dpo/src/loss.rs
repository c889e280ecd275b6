//! Losses over the log-probs of preferred and dispreferred completions.
