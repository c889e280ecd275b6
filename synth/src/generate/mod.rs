//! Steps that generate rows: each asks teachers, and reads strictly what they say. A reply that does
//! not fit is removed with its reason.

mod answer;
mod backtranslate;
mod code;
mod dialogue;
mod documents;
mod evol_instruct;
mod magpie;
mod maths;
mod personas;
mod preferences;
pub(crate) mod reply;
mod rouge;
mod rows;
mod self_instruct;
#[cfg(test)]
mod tests;
mod tools;

use halter_core::Result;

use crate::pipeline::Options;
use crate::step::{Made, Questions};
use crate::{asking, template};

/// What `kind` of a step may be.
pub const KINDS: [&str; 13] = [
    "answer",
    "backtranslate",
    "code",
    "dialogue",
    "documents",
    "evol-instruct",
    "magpie",
    "maths",
    "personas",
    "preferences",
    "rows",
    "self-instruct",
    "tools",
];

/// The step of a kind; `None` where there is no such kind. `teachers` are the names that there are.
pub fn step(kind: &str, options: &mut Options, teachers: &[&str]) -> Option<Result<Made>> {
    Some(match kind {
        "answer" => answer::Answer::made(options, teachers),
        "backtranslate" => backtranslate::Backtranslate::made(options, teachers),
        "code" => code::Code::made(options, teachers),
        "dialogue" => dialogue::Dialogue::made(options, teachers),
        "documents" => documents::Documents::made(options, teachers),
        "evol-instruct" => evol_instruct::EvolInstruct::made(options, teachers),
        "magpie" => magpie::Magpie::made(options, teachers),
        "maths" => maths::Maths::made(options, teachers),
        "personas" => personas::Personas::made(options, teachers),
        "preferences" => preferences::Preferences::made(options, teachers),
        "rows" => rows::Read::made(options),
        "self-instruct" => self_instruct::SelfInstruct::made(options, teachers),
        "tools" => tools::UseTools::made(options, teachers),
        _ => return None,
    })
}

/// A number that only `text` decides; it fits into 63 bits, which is what servers take as a seed.
pub(crate) fn number(text: &str) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..8]);
    u64::from_le_bytes(first) >> 1
}
