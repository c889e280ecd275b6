//! Where programs cannot be contained.

use halter_core::{Error, Result};

use super::{Outcome, Program, Settings};

/// There is none here.
#[derive(Debug)]
pub(super) enum Engine {}

impl Engine {
    pub(super) fn start(_settings: Settings) -> Result<Self> {
        Err(Error::config("untrusted programs can be contained on Linux (x86-64, aarch64) only")
            .hint("score code on a Linux machine, or in a Linux virtual machine"))
    }

    pub(super) fn run(&self, _program: &Program) -> Result<Outcome> {
        match *self {}
    }
}
