//! Sentence embeddings: texts as directions, alike where they mean the same.

pub mod bert;

use halter_core::Result;

use super::clusters::Vectors;

/// What turns texts into vectors.
pub trait Embedder {
    /// The vector of each text, of length one. `done` is told how many there are; an error of its
    /// ends the work.
    ///
    /// # Errors
    /// A text that cannot be encoded, a tensor operation that failed, or what `done` says.
    fn embed(&self, texts: &[String], done: &mut dyn FnMut(usize) -> Result<()>)
    -> Result<Vectors>;
}
