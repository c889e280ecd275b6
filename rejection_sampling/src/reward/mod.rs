//! Reward models: a value head on a decoder, trained on ranked completions ("The Llama 3 Herd of
//! Models", section 4.1.1; Ouyang et al. 2022). The whole run is [`halter_core::train::run`].

pub mod batch;
pub mod calibration;
pub mod config;
pub mod loss;
pub mod method;
pub mod model;
pub mod rows;
pub mod scorer;
pub mod similarity;
pub mod strength;

pub use method::Reward;
pub use model::RewardModel;
