//! What a method may look at before the first step.

use std::path::Path;

use super::data::Data;
use crate::Result;
use crate::data::mixture::Cursor;
use crate::train::interrupt::Interrupt;
use crate::train::method::RowEncoder;

/// A run before its first step.
pub struct Beginning<'a, R> {
    /// Run directory.
    pub dir: &'a Path,
    /// Held-out rows.
    pub held_out: &'a [R],
    /// Steps in all; fewer where rows are dropped.
    pub steps: u64,
    /// Rows of a step.
    pub batch_size: usize,
    /// Most tokens that go through the model at once.
    pub microbatch_tokens: usize,
    /// Whether the user wants the run to stop.
    pub interrupt: &'a Interrupt,
    pub(super) data: &'a Data,
    pub(super) encoder: &'a RowEncoder<R>,
    /// Epochs after which the data ends.
    pub(super) epochs: Option<u64>,
}

impl<R: Send + 'static> Beginning<'_, R> {
    /// Hands out the rows of every step of the run, in their order.
    ///
    /// # Errors
    /// A record that would train wrongly, an interruption, or what `each` fails with.
    pub fn each_step(&self, mut each: impl FnMut(&[R]) -> Result<()>) -> Result<()> {
        let mut rows = Vec::new();
        let (mut steps, mut fruitful) = (0, 0);
        for streamed in self.data.stream(Cursor::default(), self.epochs, self.encoder)? {
            self.interrupt.check()?;
            let streamed = streamed?;
            let kept = streamed.value.into_kept().unwrap_or_default();
            if !kept.is_empty() {
                fruitful = streamed.next.epoch;
            } else if streamed.next.epoch > fruitful + 1 {
                break;
            }
            rows.extend(kept);
            while rows.len() >= self.batch_size {
                if steps == self.steps {
                    return Ok(());
                }
                each(&rows[..self.batch_size])?;
                rows.drain(..self.batch_size);
                steps += 1;
            }
        }
        match rows.is_empty() || steps == self.steps {
            true => Ok(()),
            false => each(&rows),
        }
    }
}
