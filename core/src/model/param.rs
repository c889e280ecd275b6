//! One parameter of the model, and the gradients of those that are trained.

use std::ops::Deref;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::weights::{StoredKind, StoredTensor};
use crate::memory::Buffer;
use crate::ops::{Context, clear, embedding, on_a_worker, slices, zeros};
use crate::{Error, ErrorKind, Result};

/// A named tensor of the model.
#[derive(Debug, Clone)]
pub struct Param {
    name: String,
    value: Value,
    slot: Option<usize>,
}

/// How a parameter is held.
#[derive(Debug, Clone)]
pub enum Value {
    /// In the type of the computation, ready for use; the only form that can be trained.
    Dense(Tensor),
    /// As it lies in its file: bf16, f16 or quantized, widened into scratch at every use in
    /// training, a few rows at a time in generation.
    Stored(StoredTensor),
}

/// Elements of a parameter that its fingerprint is made of.
const HASHED_ELEMENTS: usize = 64;
/// Bytes of a stored parameter that are hashed at a time.
const HASHED_BYTES: usize = 4 << 20;

impl Param {
    /// A frozen parameter under the name Hugging Face gives it.
    pub fn new(name: impl Into<String>, value: Value) -> Self {
        Self { name: name.into(), value, slot: None }
    }

    /// A parameter that no model has, trained with gradients and an optimizer of its own, where it has
    /// the place `slot`.
    pub fn trained(name: impl Into<String>, value: Tensor, slot: usize) -> Self {
        Self { name: name.into(), value: Value::Dense(value), slot: Some(slot) }
    }

    /// Name, e.g. `model.norm.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it is held.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// Row-major shape.
    pub fn dims(&self) -> &[usize] {
        match &self.value {
            Value::Dense(tensor) => tensor.dims(),
            Value::Stored(stored) => stored.shape(),
        }
    }

    /// Number of elements.
    pub fn elem_count(&self) -> usize {
        self.dims().iter().product()
    }

    /// Bytes it takes while it is held as it lies in its file.
    pub fn stored_bytes(&self) -> usize {
        match &self.value {
            Value::Dense(_) => 0,
            Value::Stored(stored) => stored.bytes().len(),
        }
    }

    /// Whether a gradient is computed for it.
    pub fn is_trained(&self) -> bool {
        self.slot.is_some()
    }

    /// Its place among the trained parameters, if it is one.
    pub(crate) fn slot(&self) -> Option<usize> {
        self.slot
    }

    /// The tensor of a dense parameter.
    pub fn dense(&self) -> Option<&Tensor> {
        match &self.value {
            Value::Dense(tensor) => Some(tensor),
            Value::Stored(_) => None,
        }
    }

    /// The parameter in the type of the computation: itself, or a widened copy in scratch.
    pub fn widened(&self, ctx: &Context) -> Result<Widened<'_>> {
        match &self.value {
            Value::Dense(tensor) => Ok(Widened::Itself(tensor)),
            Value::Stored(stored) if ctx.device().is_cpu() => {
                let copy = ctx.pool().take(stored.shape())?;
                slices::write(&copy, |out| stored.read_into(out))??;
                Ok(Widened::Copy(copy))
            }
            Value::Stored(stored) => Ok(Widened::Copy(stored.to_tensor(ctx.device())?.into())),
        }
    }

    /// Rows of a matrix, `(rows.len(), width)`; of a stored one the others are not widened.
    pub(crate) fn rows(&self, ctx: &Context, rows: &[u32]) -> Result<Buffer> {
        let stored = match &self.value {
            Value::Stored(stored) if ctx.device().is_cpu() => stored,
            _ => return embedding::forward(ctx, &*self.widened(ctx)?, rows),
        };
        let (count, width) = (stored.rows(), stored.row_len());
        let x = ctx.pool().take((rows.len(), width))?;
        slices::write(&x, |x| {
            rows.iter().zip(x.chunks_exact_mut(width)).try_for_each(|(&token, x)| {
                let row = token as usize;
                if row >= count {
                    let message = format!("token `{token}` is beyond the vocabulary of `{count}`");
                    return Err(Error::data(message));
                }
                stored.read_rows_into(row..row + 1, x)
            })
        })??;
        Ok(x)
    }

    /// Bytes that it takes while a pass block by block uses it: in the type of the computation, and
    /// what of its file stays in memory meanwhile.
    pub(crate) fn passing_bytes(&self) -> usize {
        let mapped = match &self.value {
            Value::Stored(stored) if stored.kind() != StoredKind::F32 => stored.bytes().len(),
            _ => 0,
        };
        4 * self.elem_count() + mapped
    }

    /// Itself in memory for a while, if its file has it in the type of the computation; nothing else
    /// of the file stays there.
    pub(crate) fn resident(&self, ctx: &Context) -> Result<Self> {
        let value = match &self.value {
            Value::Stored(stored) if stored.kind() == StoredKind::F32 => {
                let tensor = zeros(&stored.shape().into(), DType::F32, &Device::Cpu)?;
                slices::write(&tensor, |out| stored.read_passing(out))??;
                Value::Dense(tensor.to_device(ctx.device())?)
            }
            value => value.clone(),
        };
        Ok(Self { name: self.name.clone(), value, slot: None })
    }

    /// Lets go of what the system has read of its file.
    pub(crate) fn forget(&self) {
        if let Value::Stored(stored) = &self.value {
            stored.forget();
        }
    }

    /// The parameter in f32 on the CPU, for an export or a checkpoint.
    pub fn to_f32(&self) -> Result<Tensor> {
        match &self.value {
            Value::Dense(tensor) => {
                Ok(tensor.to_device(&candle_core::Device::Cpu)?.to_dtype(DType::F32)?)
            }
            Value::Stored(stored) => stored.to_tensor(&candle_core::Device::Cpu),
        }
    }

    /// Adds its name, shape, type and first elements to `hasher`.
    pub(super) fn hash_into(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        let count = self.elem_count().min(HASHED_ELEMENTS);
        let (kind, first) = match &self.value {
            Value::Dense(tensor) => {
                let first = tensor.flatten_all()?.narrow(0, 0, count)?.to_dtype(DType::F32)?;
                let bytes = first.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes);
                (format!("{:?}", tensor.dtype()), bytes.collect())
            }
            Value::Stored(stored) => {
                // Blocks of a quantized type are taken for as many bytes as plain elements.
                let bytes = stored.bytes().iter().take(4 * count).copied();
                (stored.kind().to_string(), bytes.collect::<Vec<u8>>())
            }
        };
        hasher.update(format!("{} {:?} {kind} ", self.name, self.dims()).as_bytes());
        hasher.update(&first);
        Ok(())
    }

    /// Adds its name, shape, type and every element to `hasher`.
    pub(super) fn hash_all_into(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        hasher.update(format!("{} {:?} ", self.name, self.dims()).as_bytes());
        match &self.value {
            Value::Dense(_) => hash_values(&slices::read(&self.to_f32()?)?, hasher),
            // As if it had been read into memory.
            Value::Stored(stored) if stored.kind() == StoredKind::F32 => {
                let row_len = stored.row_len();
                let step = (HASHED_BYTES / 4 / row_len.max(1)).max(1);
                let mut values = Vec::new();
                for rows in (0..stored.rows()).step_by(step) {
                    let rows = rows..(rows + step).min(stored.rows());
                    values.resize(rows.len() * row_len, 0.0);
                    stored.read_rows_into(rows, &mut values)?;
                    hash_values(&values, hasher);
                    stored.forget();
                }
            }
            Value::Stored(stored) => {
                hasher.update(stored.kind().to_string().as_bytes());
                for part in stored.bytes().chunks(HASHED_BYTES) {
                    hasher.update(part);
                    stored.forget();
                }
            }
        }
        Ok(())
    }

    /// Its gradient buffer, if it is trained.
    pub fn grad<'g>(&self, grads: &'g Grads) -> Option<&'g Tensor> {
        self.slot.and_then(|slot| grads.buffers.get(slot))
    }

    /// Marks it as trained, with the gradient buffer `slot`.
    ///
    /// # Errors
    /// If it is not dense.
    pub(crate) fn train(&mut self, slot: usize) -> Result<()> {
        if self.dense().is_none() {
            let message = format!("`{}` is held as it lies in its file", self.name);
            return Err(Error::model(message).hint("only LoRA can train on a frozen base"));
        }
        self.slot = Some(slot);
        Ok(())
    }

    pub(crate) fn freeze(&mut self) {
        self.slot = None;
    }

    /// Gives it memory of its own, apart from the parameter that it was cloned from.
    pub(crate) fn detach_and_freeze(&mut self) -> Result<()> {
        if let Value::Dense(tensor) = &mut self.value {
            let own = zeros(tensor.shape(), tensor.dtype(), tensor.device())?;
            own.slice_set(tensor, 0, 0)?;
            *tensor = own;
        }
        self.freeze();
        Ok(())
    }
}

fn hash_values(values: &[f32], hasher: &mut blake3::Hasher) {
    for part in values.chunks(CHUNK) {
        let bytes: Vec<u8> = part.iter().flat_map(|x| x.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
}

/// See [`Param::widened`].
pub enum Widened<'a> {
    /// It was dense already.
    Itself(&'a Tensor),
    /// A copy that goes back to the pool.
    Copy(Buffer),
}

impl Deref for Widened<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        match self {
            Self::Itself(tensor) => tensor,
            Self::Copy(buffer) => buffer,
        }
    }
}

/// Gradient buffers of the trained parameters, in the order of [`super::Decoder::trained`].
#[derive(Debug)]
pub struct Grads {
    buffers: Vec<Tensor>,
}

/// Elements whose squares are summed by one task.
const CHUNK: usize = 1 << 16;

impl Grads {
    /// Zeros for each of `params`; f32 at least.
    pub fn zeros<'a>(params: impl IntoIterator<Item = &'a Param>) -> Result<Self> {
        let buffers = params.into_iter().map(zeros_like).collect::<Result<_>>()?;
        Ok(Self { buffers })
    }

    /// Zeros for what is trained of `groups`, where parameters of equal shape at equal places of two
    /// `shared` groups have one buffer: it must be used and cleared before the next group.
    pub(super) fn shared<'a>(
        groups: impl IntoIterator<Item = (bool, Vec<&'a Param>)>,
    ) -> Result<Self> {
        let mut buffers = Vec::new();
        let mut common: Vec<Tensor> = Vec::new();
        for (shared, group) in groups {
            let trained = group.into_iter().filter(|param| param.is_trained());
            for (place, param) in trained.enumerate() {
                let fits =
                    common.get(place).filter(|buffer| shared && buffer.dims() == param.dims());
                let buffer = match fits {
                    Some(buffer) => buffer.clone(),
                    None => zeros_like(param)?,
                };
                if shared && place == common.len() {
                    common.push(buffer.clone());
                }
                buffers.push(buffer);
            }
        }
        Ok(Self { buffers })
    }

    /// The buffers, one per trained parameter.
    pub fn buffers(&self) -> &[Tensor] {
        &self.buffers
    }

    /// Sets all of them to zero.
    pub fn clear(&mut self) -> Result<()> {
        on_a_worker(|| self.buffers.iter().try_for_each(clear))
    }

    /// Sets those of `params` to zero.
    pub fn clear_of(&self, params: &[&Param]) -> Result<()> {
        on_a_worker(|| params.iter().filter_map(|param| param.grad(self)).try_for_each(clear))
    }

    /// Sum of squares of the gradient of `param`, in a fixed order; 0 where it has none.
    pub fn squared_norm_of(&self, param: &Param) -> Result<f64> {
        on_a_worker(|| param.grad(self).map_or(Ok(0.0), squared_norm))
    }

    /// Sum of squares of each buffer, in a fixed order.
    pub fn squared_norms(&self) -> Result<Vec<f64>> {
        on_a_worker(|| self.buffers.iter().map(squared_norm).collect())
    }

    /// The norm of all gradients together.
    pub fn norm(&self) -> Result<f64> {
        Ok(self.squared_norms()?.iter().sum::<f64>().sqrt())
    }
}

fn zeros_like(param: &Param) -> Result<Tensor> {
    let tensor = param.dense().ok_or_else(|| {
        Error::new(ErrorKind::Tensor, format!("`{}` cannot be trained", param.name))
    })?;
    let dtype = if tensor.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    zeros(tensor.shape(), dtype, tensor.device())
}

fn squared_norm(x: &Tensor) -> Result<f64> {
    if !(x.device().is_cpu() && x.dtype() == DType::F32) {
        return Ok(x.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?);
    }
    let x = slices::read(x)?;
    let partial: Vec<f64> = x
        .par_chunks(CHUNK)
        .map(|chunk| {
            crate::ops::simd::vectorize!({
                let mut lanes = [0f64; 8];
                let (blocks, rest) = chunk.as_chunks::<8>();
                for block in blocks {
                    for (total, &x) in lanes.iter_mut().zip(block) {
                        *total += f64::from(x) * f64::from(x);
                    }
                }
                let rest: f64 = rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
                lanes.iter().sum::<f64>() + rest
            })
        })
        .collect();
    Ok(partial.iter().sum())
}
