//! The loss of a run: of pairs, or of single completions.

use std::fmt;
use std::str::FromStr;

use halter_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::unpaired::UnpairedLoss;
use super::{PairLoss, PairLosses};

/// What a run may be told to minimise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Losses {
    /// Losses of pairs.
    Pairs(PairLosses),
    /// A loss of single completions.
    Unpaired(UnpairedLoss),
}

impl Losses {
    /// Whether any of its losses of pairs `is` so.
    pub fn any(&self, is: impl Fn(PairLoss) -> bool) -> bool {
        match self {
            Self::Pairs(losses) => losses.terms().iter().any(|(loss, _)| is(*loss)),
            Self::Unpaired(_) => false,
        }
    }

    /// Whether it compares the policy with a reference.
    pub fn needs_reference(&self) -> bool {
        match self {
            Self::Pairs(losses) => losses.needs_reference(),
            Self::Unpaired(_) => true,
        }
    }
}

impl Default for Losses {
    fn default() -> Self {
        Self::Pairs(PairLosses::default())
    }
}

impl fmt::Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pairs(losses) => losses.fmt(f),
            Self::Unpaired(loss) => f.write_str(loss.name()),
        }
    }
}

impl FromStr for Losses {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match UnpairedLoss::ALL.into_iter().find(|loss| loss.name() == text.trim()) {
            Some(loss) => Ok(Self::Unpaired(loss)),
            None => Ok(Self::Pairs(text.parse()?)),
        }
    }
}

impl TryFrom<String> for Losses {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Losses> for String {
    fn from(losses: Losses) -> Self {
        losses.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_of_pairs_and_of_single_completions_are_told_apart_by_name() {
        for (text, shown) in [("kto", "kto"), (" apo_zero_unpaired", "apo_zero_unpaired")] {
            let losses: Losses = text.parse().unwrap();
            assert!(matches!(losses, Losses::Unpaired(_)) && losses.needs_reference());
            assert_eq!(String::from(losses), shown);
        }
        assert_eq!("sigmoid,sft:0.2".parse::<Losses>().unwrap().to_string(), "sigmoid,sft:0.2");
        // A sum is one of losses of pairs.
        let error = "sigmoid,kto".parse::<Losses>().unwrap_err();
        assert_eq!(error.message(), "expected a loss, got `kto`");
        let error = "kt".parse::<Losses>().unwrap_err();
        assert!(error.remedy().is_some_and(|hint| hint.contains("`kto`")), "{error}");
    }
}
