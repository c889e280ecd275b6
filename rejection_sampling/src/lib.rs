//! Rejection sampling: completions are scored, and the best are kept ("The Llama 3 Herd of Models",
//! section 4.2.2).

pub mod code;
pub mod reward;
pub mod sample;
pub mod sandbox;
pub mod scorer;
pub mod selection;
pub mod statistics;
pub mod verifier;

pub use reward::{Reward, RewardModel};
