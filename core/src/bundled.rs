//! The tiny model and data that come with the program, so that every command runs without any.
//!
//! They were made by `scripts/make-bundled`; `examples/bundled/README.md` tells how. Loaders read
//! files, so the bundle is written once to the user's cache.

use std::path::{Path, PathBuf};

use crate::train::files::atomic_write;
use crate::{Error, Result};

/// The model's name on a command line.
pub const MODEL: &str = "bundled";
/// The training problems' name.
pub const TRAIN: &str = "bundled/train";
/// The held-out problems' name.
pub const EVAL: &str = "bundled/eval";
/// The name of pairs of a right and a wrong solution.
pub const PREFERENCES: &str = "bundled/preferences";
/// The held-out pairs' name.
pub const PREFERENCES_EVAL: &str = "bundled/preferences-eval";
/// The name of problems with their answers alone, to sample solutions to.
pub const PROBLEMS: &str = "bundled/problems";
/// The held-out ones' name.
pub const PROBLEMS_EVAL: &str = "bundled/problems-eval";

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!("../../examples/bundled/", $name)).as_slice())),*]
    };
}

const FILES: [(&str, &[u8]); 12] = files![
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "train.jsonl",
    "eval.jsonl",
    "preferences.jsonl",
    "preferences-eval.jsonl",
    "problems.jsonl",
    "problems-eval.jsonl",
];

/// The path of what `name` calls; `None` where it is not bundled. Something on disk of that name
/// goes first.
///
/// # Errors
/// A cache that cannot be written.
pub fn path(name: &str) -> Result<Option<PathBuf>> {
    let file = match name {
        MODEL => None,
        TRAIN => Some("train.jsonl"),
        EVAL => Some("eval.jsonl"),
        PREFERENCES => Some("preferences.jsonl"),
        PREFERENCES_EVAL => Some("preferences-eval.jsonl"),
        PROBLEMS => Some("problems.jsonl"),
        PROBLEMS_EVAL => Some("problems-eval.jsonl"),
        _ => return Ok(None),
    };
    if Path::new(name).exists() {
        return Ok(None);
    }
    let directory = unpacked()?;
    Ok(Some(match file {
        Some(file) => directory.join(file),
        None => directory,
    }))
}

/// The bundle's directory, written where it is missing or differs.
fn unpacked() -> Result<PathBuf> {
    let mut hasher = blake3::Hasher::new();
    for (name, bytes) in FILES {
        hasher.update(name.as_bytes()).update(bytes);
    }
    let directory = cache().join(format!("halter/bundled-{}", &hasher.finalize().to_hex()[..12]));
    std::fs::create_dir_all(&directory)
        .map_err(|error| Error::io("create", &directory, error).hint("set `XDG_CACHE_HOME`"))?;
    for (name, bytes) in FILES {
        let path = directory.join(name);
        if std::fs::read(&path).is_ok_and(|found| found == bytes) {
            continue;
        }
        atomic_write(&path, bytes)?;
    }
    Ok(directory)
}

fn cache() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
}
