//! What every halter method needs: the model and its training engine, text, data and runs.
//!
//! The crate prints nothing and knows no command line. See `ARCHITECTURE.md` at the root of the
//! repository for a map.

pub mod bundled;
pub mod data;
pub mod device;
pub mod endpoint;
pub mod error;
pub mod generate;
pub mod memory;
pub mod model;
pub mod ops;
pub mod text;
pub mod train;
pub mod verify;

pub use error::{Error, ErrorKind, Result};
