//! How much better annotators found a completion: the four levels of "The Llama 3 Herd of Models",
//! section 4.1.1.

use std::fmt;
use std::str::FromStr;

use halter_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// A level, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strength {
    /// Hardly better, or no telling ("negligibly better, or unsure" in Llama 2).
    Marginally,
    /// A little better.
    Slightly,
    /// Better.
    Better,
    /// Much better.
    Significantly,
}

impl Strength {
    /// Every level.
    const ALL: [Self; 4] = [Self::Significantly, Self::Better, Self::Slightly, Self::Marginally];

    /// The level in words, as a row gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Marginally => "marginally better",
            Self::Slightly => "slightly better",
            Self::Better => "better",
            Self::Significantly => "significantly better",
        }
    }

    /// The margin of a level, as a share of the largest: Llama 2's 1, 2/3, 1/3 and 0 (Touvron et al.
    /// 2023, table 27).
    pub fn share_of_margin(self) -> f64 {
        match self {
            Self::Marginally => 0.0,
            Self::Slightly => 1.0 / 3.0,
            Self::Better => 2.0 / 3.0,
            Self::Significantly => 1.0,
        }
    }
}

impl fmt::Display for Strength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Strength {
    type Err = Error;

    /// Reads `significantly better`, in any case, with `_` or `-` for the space, with or without
    /// `better`.
    fn from_str(text: &str) -> Result<Self> {
        let wanted = text.trim().to_lowercase().replace(['_', '-'], " ");
        let matches = |level: &Self| {
            let name = level.name();
            wanted == name || name.strip_suffix(" better") == Some(&wanted)
        };
        if wanted.starts_with("negligibly better") {
            return Ok(Self::Marginally);
        }
        Self::ALL.into_iter().find(matches).ok_or_else(|| {
            let names = Self::ALL.map(|level| format!("`{level}`")).join(", ");
            Error::data(format!("unknown strength `{text}`: expected one of {names}"))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use super::*;

    #[test]
    fn levels_are_read_in_many_spellings_and_ordered() {
        for (text, level) in [
            ("significantly better", Strength::Significantly),
            ("Significantly_Better", Strength::Significantly),
            (" better ", Strength::Better),
            ("slightly-better", Strength::Slightly),
            ("marginally", Strength::Marginally),
            ("negligibly better / unsure", Strength::Marginally),
        ] {
            assert_eq!(text.parse::<Strength>().unwrap(), level, "{text}");
        }
        let error = "worse".parse::<Strength>().unwrap_err().to_string();
        assert!(error.starts_with("unknown strength `worse`: expected one of `signif"), "{error}");
        assert!(Strength::ALL.is_sorted_by(|a, b| a > b));
    }
}
