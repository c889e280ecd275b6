//! Weights in and out: safetensors, GGUF, a hub, adapters and the export.
//!
//! [`ModelFiles::open`] takes what a user calls a model. Its [`WeightFiles`] hand out
//! [`StoredTensor`]s: memory-mapped, in the type of the file, widened to f32 when read.

pub mod adapter;
mod bytes;
mod check;
mod dequantize;
pub mod export;
mod files;
pub mod gguf;
mod hub;
mod model_files;
mod safetensors_header;
mod stored;
pub mod text_files;
mod write_safetensors;

pub use files::WeightFiles;
pub use hub::HubOptions;
pub use model_files::ModelFiles;
pub use stored::{RowOrder, StoredKind, StoredTensor};
