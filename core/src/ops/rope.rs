//! Rotary position embedding in Hugging Face's half-split layout (Su et al. 2021).

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::simd::vectorize;
use super::{Context, assign, slices};
use crate::Result;
use crate::model::config::{ModelConfig, RopeScaling};

/// Tokens per task.
const ROWS: usize = 32;

/// Cosines and sines for the positions of one batch, `(tokens, head_dim / 2)`.
#[derive(Debug, Clone)]
pub struct Angles {
    cos: Tensor,
    sin: Tensor,
}

/// One frequency per pair of dimensions, `head_dim / 2` of them, computed in f32 in the order of
/// operations that Hugging Face uses.
pub fn inverse_frequencies(config: &ModelConfig) -> Vec<f32> {
    let dim = config.head_dim;
    let plain = (0..dim / 2).map(|i| {
        let exponent = (2 * i) as f32 / dim as f32;
        1.0 / (config.rope_theta as f32).powf(exponent)
    });
    match config.rope_scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor as f32).collect(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let original = original_max_position_embeddings as f32;
            let (factor, low, high) =
                (factor as f32, low_freq_factor as f32, high_freq_factor as f32);
            plain
                .map(|frequency| {
                    let wavelength = 2.0 * std::f32::consts::PI / frequency;
                    if wavelength > original / low {
                        frequency / factor
                    } else if wavelength < original / high {
                        frequency
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * (frequency / factor) + smooth * frequency
                    }
                })
                .collect()
        }
    }
}

impl Angles {
    /// The angles of `positions`.
    pub fn new(
        frequencies: &[f32],
        positions: &[u32],
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let shape = (positions.len(), frequencies.len());
        let angle = |f: fn(f64) -> f64| -> Result<Tensor> {
            let values: Vec<f32> = positions
                .iter()
                .flat_map(|&p| frequencies.iter().map(move |&w| f(f64::from(w * p as f32)) as f32))
                .collect();
            Ok(Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?)
        };
        Ok(Self { cos: angle(f64::cos)?, sin: angle(f64::sin)? })
    }

    /// Rotates every head of `x (tokens, heads · head_dim)` in place: `(a, b) → (a·cos − b·sin,
    /// b·cos + a·sin)`.
    pub fn rotate(&self, ctx: &Context, x: &Tensor) -> Result<()> {
        self.turn(ctx, x, 1.0)
    }

    /// The inverse rotation, which is the gradient.
    pub fn rotate_back(&self, ctx: &Context, x: &Tensor) -> Result<()> {
        self.turn(ctx, x, -1.0)
    }

    fn turn(&self, ctx: &Context, x: &Tensor, direction: f32) -> Result<()> {
        let (tokens, width) = x.dims2()?;
        let half = self.cos.dim(1)?;
        if !ctx.is_fused(x) {
            let split = x.reshape((tokens, width / (2 * half), 2, half))?;
            let (a, b) = (split.narrow(2, 0, 1)?, split.narrow(2, 1, 1)?);
            let cos = self.cos.reshape((tokens, 1, 1, half))?;
            let sin = self.sin.reshape((tokens, 1, 1, half))?.affine(f64::from(direction), 0.0)?;
            let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
            return assign(x, &Tensor::cat(&[first, second], 2)?);
        }
        let (cos, sin) = (slices::read(&self.cos)?, slices::read(&self.sin)?);
        slices::write(x, |x| {
            x.par_chunks_mut(ROWS * width)
                .zip(cos.par_chunks(ROWS * half))
                .zip(sin.par_chunks(ROWS * half))
                .for_each(|((x, cos), sin)| {
                    vectorize!({
                        let rows = x
                            .chunks_exact_mut(width)
                            .zip(cos.chunks_exact(half))
                            .zip(sin.chunks_exact(half));
                        for ((row, cos), sin) in rows {
                            for head in row.chunks_exact_mut(2 * half) {
                                let (a, b) = head.split_at_mut(half);
                                for i in 0..half {
                                    let (p, q, s) = (a[i], b[i], direction * sin[i]);
                                    a[i] = p * cos[i] - q * s;
                                    b[i] = q * cos[i] + p * s;
                                }
                            }
                        }
                    });
                });
        })
    }
}
