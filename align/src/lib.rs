//! The whole recipe as one run: a file of stages, what each is made from over the rounds, and what
//! need not be made again.
//!
//! [`recipe`] is the file, [`graph`] its stages over the rounds, [`plan`] what there is to do,
//! [`run`] does it, and [`report`] tells what came of it. A stage is a command of `halter`; this
//! crate knows their names ([`kind`]), and whoever calls it knows their options ([`Commands`]).

pub mod cache;
pub mod graph;
pub mod inputs;
pub mod kind;
pub mod plan;
pub mod recipe;
pub mod report;
pub mod run;

use halter_core::Result;

use inputs::Checksums;
use kind::Kind;
use recipe::Stage;

/// What a stage will need.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Most memory, in bytes.
    pub peak_bytes: usize,
    /// Seconds that it takes.
    pub seconds: f64,
    /// Whether it may well be less: completions can end before their time.
    pub is_bound: bool,
    /// Bytes that it writes, at most; `None` where they are those of a model.
    pub writes: Option<u64>,
}

/// Who knows the commands that stages are.
pub trait Commands {
    /// What decides the outcome of a stage beside its options and inputs: which program it is.
    ///
    /// # Errors
    /// A program that cannot be read.
    fn version(&self, checksums: &mut Checksums) -> Result<String>;

    /// Checks a stage as the recipe has it: its keys and the types of their values.
    ///
    /// # Errors
    /// Names the line, and the key that was meant.
    fn check(&self, stage: &Stage, recipe: &recipe::Recipe) -> Result<()>;

    /// Checks a stage with its references followed, and predicts what it needs. `None` where
    /// nothing can be said of such a command beforehand; `is_there` says whether all its inputs are.
    ///
    /// # Errors
    /// Options that the command would refuse.
    fn predict(
        &self,
        kind: &Kind,
        options: &toml::Table,
        is_there: bool,
    ) -> Result<Option<Prediction>>;
}
