//! How much goes through the parts of a model, as a measure of what it can do without ("Compact
//! Language Models via Pruning and Knowledge Distillation", Muralidharan et al. 2024, section 2.2).

use candle_core::{D, DType, Tensor};

use super::Decoder;
use super::block::Block;
use crate::Result;
use crate::data::batch::PackedBatch;
use crate::ops::{on_a_worker, rms_norm, swiglu};

/// Sums over tokens of the magnitude of what goes through.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Importance {
    /// Of each channel of the stream behind the blocks' norms, `(hidden,)`.
    pub hidden: Vec<f64>,
    /// Of each block's neurons in the feed-forward layer, `(intermediate,)`.
    pub neurons: Vec<Vec<f64>>,
    /// Of each block's query heads: the length of their output, `(heads,)`.
    pub heads: Vec<Vec<f64>>,
}

impl Decoder {
    /// What goes through on the tokens of `batches`.
    ///
    /// # Errors
    /// A token outside the vocabulary, or what `done`, which is told of every batch, says.
    pub fn importance(
        &self,
        batches: &[PackedBatch],
        mut done: impl FnMut(usize) -> Result<()>,
    ) -> Result<Importance> {
        let mut all = Importance {
            hidden: vec![0.0; self.config.hidden_size],
            neurons: vec![vec![0.0; self.config.intermediate_size]; self.blocks.len()],
            heads: vec![vec![0.0; self.config.num_attention_heads]; self.blocks.len()],
        };
        for (index, batch) in batches.iter().enumerate() {
            on_a_worker(|| self.weigh(batch, &mut all))?;
            done(index + 1)?;
        }
        Ok(all)
    }

    fn weigh(&self, batch: &PackedBatch, all: &mut Importance) -> Result<()> {
        let angles = self.angles(&batch.positions)?;
        let at = self.evaluated(batch, &angles);
        let mut x = self.embed.rows(&self.ctx, &batch.tokens)?;
        for (index, block) in self.blocks.iter().enumerate() {
            let (y, kept) = block.forward(at, &x)?;
            for (stream, rstd, norm) in [
                (&*x, &*kept.rstd, &block.attention_norm),
                (&*kept.middle, &*kept.middle_rstd, &block.ffn_norm),
            ] {
                let norm = norm.widened(&self.ctx)?;
                let normed = rms_norm::apply(&self.ctx, stream, rstd, &norm)?;
                add(&mut all.hidden, &normed.abs()?.sum(0)?)?;
            }
            let neurons = swiglu::forward(&self.ctx, &kept.gate, &kept.up)?;
            add(&mut all.neurons[index], &neurons.abs()?.sum(0)?)?;
            add(&mut all.heads[index], &lengths(block, &kept.attended)?)?;
            x = y;
        }
        Ok(())
    }
}

/// Sums of the lengths of each head's output, from all of them `(tokens, heads · head_dim)`.
fn lengths(block: &Block, attended: &Tensor) -> Result<Tensor> {
    let (heads, head_dim) = (block.shape.heads, block.shape.head_dim);
    let each = attended.reshape(((), heads, head_dim))?;
    Ok(each.sqr()?.sum(D::Minus1)?.sqrt()?.sum(0)?)
}

fn add(sums: &mut [f64], more: &Tensor) -> Result<()> {
    let more = more.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    Ok(())
}
