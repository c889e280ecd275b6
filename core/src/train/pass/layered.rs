//! Passes of a model that is larger than memory: block by block over many batches.

use candle_core::Tensor;

use super::hidden::Normed;
use crate::Result;
use crate::data::batch::PackedBatch;
use crate::memory::Buffer;
use crate::model::Decoder;
use crate::model::param::Param;
use crate::ops::on_a_worker;

impl Decoder {
    /// Hidden states behind the final norm of each batch's [`PackedBatch::target_rows`], the bits of
    /// [`Self::evaluate_hidden`]. Each block is read once for all batches, and let go of: of a model
    /// that stays in its file ([`crate::model::Base::Mapped`]) one block is in memory, and of the batches the
    /// stream, `(tokens, hidden)` each. After every block `done` is told how many there were; an error
    /// of its ends the work.
    ///
    /// # Errors
    /// A token outside the vocabulary, a batch without a target, or what `done` says.
    pub fn evaluate_layered(
        &self,
        batches: &[PackedBatch],
        mut done: impl FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Tensor>> {
        let embed = |batch: &PackedBatch| self.embed.rows(&self.ctx, &batch.tokens);
        // What the last call's head took.
        self.ctx.pool().release();
        let mut streams: Vec<Buffer> = batches.iter().map(embed).collect::<Result<_>>()?;
        self.embed.forget();
        for (index, block) in self.blocks.iter().enumerate() {
            on_a_worker(|| {
                let resident = block.resident(&self.ctx)?;
                for (batch, x) in batches.iter().zip(&mut streams) {
                    let angles = self.angles(&batch.positions)?;
                    let at = self.evaluated(batch, &angles);
                    *x = resident.forward(at, x)?.0;
                }
                block.params().into_iter().for_each(Param::forget);
                Ok::<_, crate::Error>(())
            })?;
            done(index + 1)?;
        }
        self.ctx.pool().release();
        let last = |(batch, x): (&PackedBatch, Buffer)| {
            let normed = Normed::new(self, &x, batch.target_rows()?)?.normed;
            Ok(normed.copy()?)
        };
        batches.iter().zip(streams).map(last).collect()
    }
}
