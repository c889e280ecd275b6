//! Distillation: a student learns the distribution of a teacher's next tokens ("Distilling the
//! Knowledge in a Neural Network", Hinton et al. 2015; GKD, Agarwal et al. 2024). The whole run is
//! [`halter_core::train::run`].

pub mod capture;
pub mod config;
pub mod cross;
pub mod init;
pub mod inside;
pub mod lesson;
pub mod method;
pub mod narrow;
pub mod row;
pub mod step;
pub mod store;
pub mod teacher;

pub use method::Distill;
