//! The decoder's operations, one file each: forward and backward.
//!
//! Every operation has a fused form for f32 on the CPU, which works in place on reused buffers and
//! gives the same bits whatever the number of threads, and a composed form of candle operations
//! that runs on any device in any float type. [`Context`] chooses between them.

use candle_core::{DType, Device, Shape, Tensor};
use rayon::prelude::*;

use crate::Result;
use crate::memory::{Buffer, Pool, pages};

pub mod attention;
pub mod divergence;
pub mod dropout;
pub mod embedding;
pub mod linear;
pub mod logps;
pub mod matmul;
pub mod rms_norm;
pub mod rope;
pub(crate) mod simd;
pub(crate) mod slices;
pub mod swiglu;
pub(crate) mod top;
mod workers;

pub use simd::Isa;
pub(crate) use workers::on_a_worker;

/// What an operation needs besides its operands: where scratch comes from, and which form to use.
#[derive(Debug, Clone)]
pub struct Context {
    pool: Pool,
    device: Device,
    composed: bool,
}

impl Context {
    /// A context for `device`; fused operations where they exist.
    pub fn new(device: &Device) -> Self {
        Self { pool: Pool::new(), device: device.clone(), composed: false }
    }

    /// A context that never uses a fused operation: for comparing the two forms.
    pub fn composed(device: &Device) -> Self {
        Self { composed: true, ..Self::new(device) }
    }

    /// The device of all operands.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The pool that scratch comes from.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Whether operations on tensors like `x` take their fused form.
    pub fn is_fused(&self, x: &Tensor) -> bool {
        !self.composed && x.device().is_cpu() && x.dtype() == DType::F32
    }

    /// A buffer like `like` in type and device, of `shape`, with unspecified content.
    pub fn empty(&self, shape: impl Into<Shape>, like: &Tensor) -> Result<Buffer> {
        if like.device().is_cpu() && like.dtype() == DType::F32 {
            self.pool.take(shape)
        } else {
            Ok(Tensor::zeros(shape.into(), like.dtype(), like.device())?.into())
        }
    }

    /// A copy of `x` in a buffer of its own.
    pub fn copy(&self, x: &Tensor) -> Result<Buffer> {
        let copy = self.empty(x.shape(), x)?;
        copy.slice_set(x, 0, 0)?;
        Ok(copy)
    }
}

/// `dst = src`, in place.
pub(crate) fn assign(dst: &Tensor, src: &Tensor) -> Result<()> {
    Ok(dst.slice_set(&src.reshape(dst.shape())?.contiguous()?, 0, 0)?)
}

/// `dst += src`, in place.
pub(crate) fn accumulate(dst: &Tensor, src: &Tensor) -> Result<()> {
    let src = src.reshape(dst.shape())?.to_dtype(dst.dtype())?;
    assign(dst, &(dst + src)?)
}

/// `x *= factor`, in place.
pub(crate) fn scale(ctx: &Context, x: &Tensor, factor: f32) -> Result<()> {
    if !ctx.is_fused(x) {
        return assign(x, &x.affine(f64::from(factor), 0.0)?);
    }
    slices::write(x, |x| x.iter_mut().for_each(|x| *x *= factor))
}

/// `x = 0`, in place.
pub(crate) fn clear(x: &Tensor) -> Result<()> {
    const CHUNK: usize = 1 << 16;
    if !(x.device().is_cpu() && x.dtype() == DType::F32) {
        return Ok(x.zero_set()?);
    }
    slices::write(x, |x| x.par_chunks_mut(CHUNK).for_each(|chunk| chunk.fill(0.0)))
}

/// Zeros that were written. Memory that the system hands out and that is read before it is written
/// costs two page faults, and the second one interrupts the other threads.
pub(crate) fn zeros(shape: &Shape, dtype: DType, device: &Device) -> Result<Tensor> {
    let zeros = match dtype {
        DType::F32 => Tensor::from_vec(pages::zeroed::<f32>(shape.elem_count()), shape, device)?,
        DType::U8 => Tensor::from_vec(pages::zeroed::<u8>(shape.elem_count()), shape, device)?,
        _ => Tensor::zeros(shape, dtype, device)?,
    };
    on_a_worker(|| clear(&zeros))?;
    Ok(zeros)
}
