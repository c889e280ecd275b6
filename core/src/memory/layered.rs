//! How much a model that is read block by block can be given at once.

use super::plan::{PROCESS_BYTES, Width, gigabytes};
use super::system::resident_memory;
use crate::model::Decoder;
use crate::model::param::Param;
use crate::{Error, ErrorKind, Result};

/// What the estimate may be wrong by.
const ROOM: f64 = 0.95;

/// Tokens that fit under a ceiling of so many bytes for the whole process, as it is now with `model`
/// in its file, in microbatches of `microbatch_tokens` and with `logit_rows` of logits at a time.
///
/// # Errors
/// A ceiling under which not even one microbatch fits; says how much is needed.
pub fn layered_tokens(
    model: &Decoder,
    ceiling: usize,
    microbatch_tokens: usize,
    logit_rows: usize,
) -> Result<usize> {
    let config = &model.config;
    let held = |params: Vec<&Param>| params.into_iter().map(Param::passing_bytes).sum::<usize>();
    let block = model.blocks.iter().map(|block| held(block.params())).max().unwrap_or(0);
    let blocks = block + 4 * microbatch_tokens * Width::of(config).forward;
    let head = 4 * (model.head().elem_count() + logit_rows * config.vocab_size);
    let fixed = resident_memory().unwrap_or(PROCESS_BYTES) + blocks.max(head);
    // The stream, and a block's output or what is left of it behind the norm.
    let per_token = 2 * 4 * config.hidden_size;
    let room = ((ceiling as f64 * ROOM) as usize).saturating_sub(fixed);
    match room / per_token {
        tokens if tokens >= microbatch_tokens => Ok(tokens),
        _ => {
            let needed = (fixed + microbatch_tokens * per_token) as f64 / ROOM;
            Err(Error::new(
                ErrorKind::Memory,
                format!(
                    "the ceiling is {}, and a microbatch needs {}",
                    gigabytes(ceiling),
                    gigabytes(needed as usize)
                ),
            )
            .hint("raise `--memory-ceiling`, or lower `--microbatch-tokens`"))
        }
    }
}
