//! A model that answers: one in this process, or servers with OpenAI's API.

mod budget;
mod cache;
#[cfg(feature = "endpoint")]
mod client;
mod config;
mod kept;
#[cfg(feature = "endpoint")]
mod key;
#[cfg(feature = "endpoint")]
mod limit;
mod local;
#[cfg(feature = "endpoint")]
mod pool;
mod question;
#[cfg(feature = "endpoint")]
mod remote;
#[cfg(feature = "endpoint")]
mod reply;
#[cfg(feature = "endpoint")]
mod round;
#[cfg(feature = "endpoint")]
mod server;

pub use budget::Spent;
pub use config::{Budget, EndpointConfig, TeacherConfig};
#[cfg(feature = "endpoint")]
pub use key::Key;
#[cfg(feature = "endpoint")]
pub use pool::{Ask, Pool, PoolOptions};
pub use question::{Answer, Question, Usage};
#[cfg(feature = "endpoint")]
pub use reply::Api;

use crate::{Error, Result};

/// A model that answers questions.
pub trait Teacher: Send + Sync {
    /// The model as the user named it; it becomes part of what is written about its answers.
    fn name(&self) -> &str;

    /// The answer to each question, or why there is none, in the questions' order. `done` is told how
    /// many are answered or refused; an error of its ends the work. Calls wait for one another: ask
    /// many questions together.
    ///
    /// # Errors
    /// What ends all the work: an interruption, a budget that is spent, a disk that is full, no
    /// server. What was answered until then is not asked again where answers are kept.
    fn answer(
        &self,
        questions: &[Question],
        done: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Result<Answer>>>;

    /// What its answers took, those kept from earlier runs included.
    fn spent(&self) -> Spent {
        Spent::default()
    }

    /// What is worth telling the user since the last call: a damaged cache, a server that rests.
    fn take_notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Where a teacher's answers come from when they are not kept.
trait Source: Send + Sync {
    fn name(&self) -> &str;

    /// The hash of all that the answer depends on; an error for a question that cannot be asked.
    fn key(&self, question: &Question) -> Result<cache::Key>;

    /// Tells `listener` the answer to each question, or why there is none.
    fn ask(
        &self,
        questions: &[&Question],
        meter: &budget::Meter,
        listener: &mut dyn Listener,
    ) -> Result<()>;

    fn take_notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// An answer with what it took.
struct Told {
    answer: Answer,
    /// As the server says; guessed where it does not.
    usage: Usage,
    /// In the unit of the prices.
    cost: f64,
}

/// Gets answers as they come. An error of its ends the work.
trait Listener {
    fn settled(&mut self, index: usize, outcome: Result<Told>) -> Result<()>;

    /// Time has passed.
    fn tick(&mut self) -> Result<()>;
}

/// The error once more, for another question that has it as well.
fn again(error: &Error) -> Error {
    let told = Error::new(error.kind(), error.to_string());
    match error.remedy() {
        Some(hint) => told.hint(hint),
        None => told,
    }
}
