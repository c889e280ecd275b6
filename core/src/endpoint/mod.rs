//! A model that answers: one in this process, or servers with OpenAI's API.

mod config;
mod question;

pub use config::{Budget, EndpointConfig, TeacherConfig};
pub use question::{Answer, Question, Usage};

use crate::Result;

/// A model that answers questions.
pub trait Teacher: Send + Sync {
    /// The model as the user named it; it becomes part of what is written about its answers.
    fn name(&self) -> &str;

    /// The answer to each question, or why there is none, in the questions' order. `done` is told how
    /// many are answered or refused; an error of its ends the work.
    ///
    /// # Errors
    /// What ends all the work: an interruption, a budget that is spent, a disk that is full. What was
    /// answered until then is not asked again where answers are kept.
    fn answer(
        &self,
        questions: &[Question],
        done: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Result<Answer>>>;
}
