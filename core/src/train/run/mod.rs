//! A run of any method, from configuration to verified export: see [`training`].

mod beginning;
pub mod data;
pub mod evaluation;
pub mod finish;
mod messages;
pub mod prepare;
mod rows;
pub mod state;
pub mod training;

pub use beginning::Beginning;
pub use finish::Outcome;
pub use prepare::Prepared;
pub use training::run;
