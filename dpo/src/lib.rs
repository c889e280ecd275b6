//! Direct preference optimisation and its relatives (Rafailov et al. 2023).

pub mod formatting;
pub mod loss;
