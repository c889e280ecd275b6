//! Curation: which rows are worth training on, after sections 4.2 and 4.3 of "The Llama 3 Herd of
//! Models" (arXiv 2407.21783).
//!
//! One file or folder a step. [`step`] makes one by its name.

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
pub mod score;
pub mod semantic_duplicates;
pub mod split;
pub mod tag;
#[cfg(test)]
mod testing;
pub mod tfidf;
pub mod topics;
pub mod words;

use halter_core::Result;

use crate::pipeline::Options;
use crate::step::Made;
use options::made;

/// The names that [`step`] knows.
pub const KINDS: [&str; 14] = [
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
    "score",
    "shuffle",
    "split",
];

/// Makes a step of curation from its name and its options; `None` where it is none of [`KINDS`].
/// `teachers` are the names that there are.
///
/// # Errors
/// An option that there is not, or a value that cannot be used.
pub fn step(kind: &str, options: &mut Options, teachers: &[&str]) -> Option<Result<Made>> {
    Some(match kind {
        "clean" => made::<clean::Clean>(kind, options, teachers),
        "bounds" => made::<bounds::Bounds>(kind, options, teachers),
        "judge" => made::<judge::Judge>(kind, options, teachers),
        "quartile" => made::<quartile::Quartile>(kind, options, teachers),
        "tag" => made::<tag::Tag>(kind, options, teachers),
        "near-duplicates" => made::<near_duplicates::NearDuplicates>(kind, options, teachers),
        "semantic-duplicates" => {
            made::<semantic_duplicates::SemanticDuplicates>(kind, options, teachers)
        }
        "decontaminate" => made::<decontaminate::Decontaminate>(kind, options, teachers),
        "topics" => made::<topics::Topics>(kind, options, teachers),
        "balance" => made::<balance::Balance>(kind, options, teachers),
        "sample" => made::<sample::Sample>(kind, options, teachers),
        "score" => made::<score::Score>(kind, options, teachers),
        "shuffle" => made::<sample::Shuffle>(kind, options, teachers),
        "split" => made::<split::Split>(kind, options, teachers),
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
            "score" => "scorer = 'numeric'",
            _ => "",
        };
        let made = |kind, text| step(kind, &mut testing::options(text), &["one"]);
        for kind in KINDS {
            assert!(made(kind, needed(kind)).unwrap().is_ok(), "{kind}");
            let error = made(kind, "no_such_option = 1").unwrap().err().unwrap().to_string();
            assert!(error.starts_with(&format!("pipeline.toml:1: {kind}: ")), "{error}");
        }
        assert!(made("clear", "").is_none());
    }
}
