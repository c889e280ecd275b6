//! Writes the bundled data: problems, conversations, tokenizer and configuration.
//!
//! `scripts/make-bundled` calls it, and trains the bundled model on what it writes.
#![allow(missing_docs)]

mod bundle;
mod corpus;
mod problem;
mod random;
mod templates;
mod vocabulary;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(folder), Some(pretrain), None) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        bail!("expected two arguments: the bundle's folder and the file of pre-training text");
    };
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create `{}`", folder.display()))?;
    let bundle = bundle::make()?;
    for (name, text) in &bundle.files {
        write(&folder.join(name), text)?;
    }
    write(&pretrain, &bundle.pretrain)
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}
