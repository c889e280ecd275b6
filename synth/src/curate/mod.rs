//! Curation: which rows are worth training on, after sections 4.2 and 4.3 of "The Llama 3 Herd of
//! Models" (arXiv 2407.21783).
//!
//! One file or folder a step. [`step`] makes one by its name.

mod asking;
pub mod balance;
pub mod bounds;
pub mod clean;
pub mod clusters;
pub mod decontaminate;
pub mod dialogue;
pub mod embed;
pub mod judge;
pub mod language;
pub mod minhash;
pub mod near_duplicates;
mod options;
pub mod quartile;
pub mod refusals;
pub mod sample;
pub mod semantic_duplicates;
pub mod split;
pub mod tag;
#[cfg(test)]
mod testing;
pub mod tfidf;
pub mod topics;
pub mod words;

use halter_core::Result;

use crate::step::Step;
use options::made;

/// The names that [`step`] knows.
pub const KINDS: [&str; 13] = [
    "clean",
    "bounds",
    "judge",
    "quartile",
    "tag",
    "near-duplicates",
    "semantic-duplicates",
    "decontaminate",
    "topics",
    "balance",
    "sample",
    "shuffle",
    "split",
];

/// Makes a step of curation from its name and its options; `None` where it is none of [`KINDS`].
///
/// # Errors
/// An option that there is not, or a value that cannot be used.
pub fn step(kind: &str, options: toml::Table) -> Option<Result<Box<dyn Step>>> {
    Some(match kind {
        "clean" => made::<clean::Clean>(kind, options),
        "bounds" => made::<bounds::Bounds>(kind, options),
        "judge" => made::<judge::Judge>(kind, options),
        "quartile" => made::<quartile::Quartile>(kind, options),
        "tag" => made::<tag::Tag>(kind, options),
        "near-duplicates" => made::<near_duplicates::NearDuplicates>(kind, options),
        "semantic-duplicates" => made::<semantic_duplicates::SemanticDuplicates>(kind, options),
        "decontaminate" => made::<decontaminate::Decontaminate>(kind, options),
        "topics" => made::<topics::Topics>(kind, options),
        "balance" => made::<balance::Balance>(kind, options),
        "sample" => made::<sample::Sample>(kind, options),
        "shuffle" => made::<sample::Shuffle>(kind, options),
        "split" => made::<split::Split>(kind, options),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_made_and_no_other() {
        let needed = |kind: &str| match kind {
            "quartile" | "balance" => "column = 'score'",
            "semantic-duplicates" => "model = 'minilm'",
            "decontaminate" => "against = ['eval.jsonl']",
            "sample" => "share = 0.5",
            _ => "",
        };
        for kind in KINDS {
            let options = toml::from_str(needed(kind)).unwrap();
            assert!(step(kind, options).unwrap().is_ok(), "{kind}");
            let unknown = toml::from_str("no_such_option = 1").unwrap();
            let error = step(kind, unknown).unwrap().err().unwrap().to_string();
            assert!(error.starts_with(&format!("{kind}: ")), "{error}");
        }
        assert!(step("clear", toml::Table::new()).is_none());
    }
}
