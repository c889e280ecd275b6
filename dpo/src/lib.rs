//! Direct preference optimisation and its relatives (Rafailov et al. 2023; "The Llama 3 Herd of
//! Models", section 4.1.4). The whole run is [`halter_core::train::run`].

pub mod cache;
pub mod config;
pub mod formatting;
pub mod kto;
pub mod loss;
pub mod method;
pub mod reference;
pub mod step;

pub use kto::Kto;
pub use method::Dpo;
