//! The distances by candle's operations and its autograd.

use candle_core::{D, DType, Tensor, Var};

use super::{Charge, Comparison, Distance, Divergence, LEAST, Rows, TeacherRows};
use crate::Result;

impl Rows<'_> {
    /// The distances and the gradient, by candle's operations and its autograd.
    pub(super) fn composed(&self, logits: &Tensor) -> Result<(Vec<Distance>, Tensor)> {
        let wide = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let leaf = Var::from_tensor(&logits.to_dtype(wide)?)?;
        let Comparison { divergence, temperature } = self.comparison;
        let divergences = match self.teacher {
            TeacherRows::Logits(teacher) => {
                let shared = teacher.dim(1)?.min(logits.dim(1)?);
                let part = |x: &Tensor| -> Result<Tensor> {
                    Ok((x.narrow(1, 0, shared)?.to_dtype(wide)? / temperature)?)
                };
                divergence.between(&log_softmax(&part(teacher)?)?, &log_softmax(&part(&leaf)?)?)?
            }
            TeacherRows::Top(top) => {
                let rows = self.chunk.rows;
                let ids = Tensor::from_slice(&top.ids, (rows, top.k), logits.device())?;
                let of_top = Tensor::from_slice(&top.logps, (rows, top.k), logits.device())?;
                let rest = Tensor::from_slice(&top.rest, (rows, 1), logits.device())?;
                let (of_top, rest) = (of_top.to_dtype(wide)?, rest.to_dtype(wide)?);
                let scaled = (leaf.as_tensor() / temperature)?;
                let logq = log_softmax(&scaled)?.gather(&ids, 1)?;
                if top.k == logits.dim(1)? {
                    divergence.between(&of_top, &logq)?
                } else {
                    let nowhere = Tensor::full(-1e30, (rows, top.k), logits.device())?;
                    let others =
                        scaled.zeros_like()?.scatter_add(&ids, &nowhere.to_dtype(wide)?, 1)?;
                    let (max, total) = log_total(&(&scaled + others)?)?;
                    let (max_of_all, total_of_all) = log_total(&scaled)?;
                    let q_rest = ((max - max_of_all)? + (total - total_of_all)?)?;
                    let student = Tensor::cat(&[logq, q_rest], 1)?;
                    divergence.between(&Tensor::cat(&[of_top, rest], 1)?, &student)?
                }
            }
        };
        let logps = log_softmax(&leaf)?;
        let index: Vec<u32> =
            self.chunk.entries.iter().map(|e| e.row - self.chunk.start as u32).collect();
        let tokens: Vec<u32> = self.chunk.entries.iter().map(|e| e.token).collect();
        let n = index.len();
        let index = Tensor::from_vec(index, n, logits.device())?;
        let tokens = Tensor::from_vec(tokens, (n, 1), logits.device())?;
        let best = logps.max_keepdim(1)?.index_select(&index, 0)?;
        let logps = logps.index_select(&index, 0)?.gather(&tokens, 1)?;
        let divergences = divergences.index_select(&index, 0)?;
        let weights = |of: fn(&Charge) -> f64| -> Result<Tensor> {
            let weights: Vec<f64> = self.charges.iter().map(of).collect();
            Ok(Tensor::from_vec(weights, n, logits.device())?.to_dtype(wide)?)
        };
        let loss = ((&divergences * weights(|charge| charge.divergence)?)?
            - (logps.flatten_all()? * weights(|charge| charge.cross_entropy)?)?)?
        .sum_all()?;
        let gradient = match loss.backward()?.get(&leaf) {
            Some(gradient) => gradient.to_dtype(logits.dtype())?,
            None => logits.zeros_like()?,
        };
        let host = |x: &Tensor| -> Result<Vec<f64>> {
            Ok(x.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
        };
        let each = host(&divergences)?.into_iter().zip(host(&logps)?).zip(host(&best)?);
        let distance =
            |((divergence, logp), best)| Distance { divergence, logp, is_best: logp >= best };
        Ok((each.map(distance).collect(), gradient))
    }
}

/// Maximum along the last dimension, which stays, and `log Σ e^(x − maximum)`, with a graph.
fn log_total(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let max = x.max_keepdim(D::Minus1)?.detach();
    let total = x.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok((max, total))
}

fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let (max, total) = log_total(x)?;
    Ok(x.broadcast_sub(&max)?.broadcast_sub(&total)?)
}

impl Divergence {
    /// The divergence of each row, `(rows,)`, from log-probs `(rows, classes)`, as a candle graph.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn between(self, teacher: &Tensor, student: &Tensor) -> Result<Tensor> {
        let kl = |from: &Tensor, to: &Tensor| -> Result<Tensor> {
            let from = from.maximum(LEAST)?;
            Ok((from.exp()? * (&from - to)?)?.sum(D::Minus1)?)
        };
        match self {
            Self::ForwardKl => kl(teacher, student),
            Self::ReverseKl => kl(student, &teacher.maximum(LEAST)?),
            Self::Jsd(beta) => {
                let beta = f64::from(beta);
                let m = ((teacher.exp()? * beta)? + (student.exp()? * (1.0 - beta))?)?;
                let m = m.maximum(f64::from(f32::MIN_POSITIVE))?.log()?;
                Ok(((kl(teacher, &m)? * beta)? + (kl(student, &m)? * (1.0 - beta))?)?)
            }
            Self::TotalVariation => {
                Ok(((teacher.exp()? - student.exp()?)?.abs()?.sum(D::Minus1)? / 2.0)?)
            }
        }
    }
}
