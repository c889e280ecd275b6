//! One tensor as a file stores it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::bytes::SharedBytes;
use super::dequantize::widen;
use crate::memory::pages;
use crate::{Error, ErrorKind, Result};

/// Elements below which a read is not worth spreading over threads.
const PARALLEL_ELEMENTS: usize = 1 << 16;
/// Elements that are read of a mapped file before it is let go of.
const PASSING_ELEMENTS: usize = 1 << 21;
/// Elements that one task reads.
const TASK_ELEMENTS: usize = 1 << 14;

/// The type of the stored elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredKind {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// The upper half of a 32-bit float.
    BF16,
    /// A block-quantized type of GGUF.
    Ggml(GgmlDType),
}

impl StoredKind {
    /// Bytes and elements of one block; a block of the plain types is one element.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (4, 1),
            Self::F16 | Self::BF16 => (2, 1),
            Self::Ggml(dtype) => (dtype.type_size(), dtype.block_size()),
        }
    }

    /// Bytes of `elements`; `None` where they are not whole blocks or do not fit.
    pub fn size_of(self, elements: usize) -> Option<usize> {
        let (bytes, block) = self.block();
        elements.is_multiple_of(block).then(|| (elements / block).checked_mul(bytes))?
    }

    /// Whether reading it rounds nothing away from what was stored, because it is a plain float.
    pub fn is_quantized(self) -> bool {
        self.block().1 > 1
    }
}

impl fmt::Display for StoredKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ggml(dtype) => write!(f, "{dtype:?}"),
            plain => write!(f, "{plain:?}"),
        }
    }
}

/// Where the rows of a matrix lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// One after another.
    AsStored,
    /// Within each head, the two halves are interleaved: llama's Q and K in GGUF files, made for a
    /// rotation of neighbours. Reading gives the halves one after the other, as Hugging Face
    /// rotates them.
    InterleavedHeads {
        /// Rows of a head; even.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The row in the file that holds row `row`.
    pub fn stored_row(self, row: usize) -> usize {
        match self {
            Self::AsStored => row,
            Self::InterleavedHeads { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + 2 * pair + half
            }
        }
    }
}

/// One tensor as a file stores it: bytes of a mapped file (or of memory), widened to f32 when
/// read. Cheap to clone; reading needs no lock.
#[derive(Clone)]
pub struct StoredTensor {
    name: Arc<str>,
    shape: Arc<[usize]>,
    kind: StoredKind,
    bytes: SharedBytes,
    order: RowOrder,
}

impl fmt::Debug for StoredTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredTensor({} {:?} {} {:?})", self.name, self.shape, self.kind, self.order)
    }
}

impl StoredTensor {
    pub(super) fn new(
        name: &str,
        shape: &[usize],
        kind: StoredKind,
        bytes: SharedBytes,
        order: RowOrder,
    ) -> Result<Self> {
        let elements = shape.iter().try_fold(1usize, |all, &dim| all.checked_mul(dim));
        let expected = elements.and_then(|elements| kind.size_of(elements));
        if expected != Some(bytes.len()) {
            return Err(Error::model(format!(
                "`{name}` of shape {shape:?} and type {kind} holds {} bytes: expected {}",
                bytes.len(),
                expected.map_or("another shape".to_string(), |n| n.to_string())
            )));
        }
        let tensor = Self { name: name.into(), shape: shape.into(), kind, bytes, order };
        let (_, block) = kind.block();
        if !tensor.row_len().is_multiple_of(block) {
            return Err(Error::model(format!(
                "`{name}` has rows of {}: expected a multiple of {block} for type {kind}",
                tensor.row_len()
            )));
        }
        if let RowOrder::InterleavedHeads { head_dim } = order
            && (shape.len() < 2
                || head_dim == 0
                || !head_dim.is_multiple_of(2)
                || !tensor.rows().is_multiple_of(head_dim))
        {
            return Err(Error::model(format!(
                "`{name}` of shape {shape:?} is not made of heads of {head_dim} rows"
            )));
        }
        Ok(tensor)
    }

    /// A tensor in memory, little-endian, row after row.
    ///
    /// # Errors
    /// Bytes that are not exactly those of the shape and kind.
    pub fn from_bytes(
        name: &str,
        shape: &[usize],
        kind: StoredKind,
        bytes: Vec<u8>,
    ) -> Result<Self> {
        Self::new(name, shape, kind, bytes.into(), RowOrder::AsStored)
    }

    /// A tensor in memory.
    ///
    /// # Errors
    /// A number of values that is not the shape's.
    pub fn from_f32(name: &str, shape: &[usize], values: &[f32]) -> Result<Self> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::from_bytes(name, shape, StoredKind::F32, bytes)
    }

    /// Copies a tensor of f32, f16 or bf16 into memory.
    ///
    /// # Errors
    /// Another type, or a device that fails.
    pub fn from_tensor(name: &str, tensor: &Tensor) -> Result<Self> {
        let flat = tensor.flatten_all()?;
        let (kind, bytes) = match tensor.dtype() {
            DType::F32 => {
                let values = flat.to_vec1::<f32>()?;
                (StoredKind::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
            DType::F16 => {
                let values = flat.to_vec1::<half::f16>()?;
                (StoredKind::F16, values.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
            DType::BF16 => {
                let values = flat.to_vec1::<half::bf16>()?;
                (StoredKind::BF16, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
            }
            other => {
                return Err(Error::model(format!(
                    "`{name}` is of type `{}`: expected f32, f16 or bf16",
                    other.as_str()
                )));
            }
        };
        Self::from_bytes(name, tensor.dims(), kind, bytes)
    }

    /// The same tensor under another name.
    #[must_use]
    pub fn renamed(&self, name: &str) -> Self {
        Self { name: name.into(), ..self.clone() }
    }

    /// Its name, as Hugging Face names it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Row-major shape; matrices are `(out, in)`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The type of the stored elements.
    pub fn kind(&self) -> StoredKind {
        self.kind
    }

    /// Where the rows lie.
    pub fn row_order(&self) -> RowOrder {
        self.order
    }

    /// The bytes of the file, in the file's row order.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Rows: all dimensions but the last. A vector is one row.
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// Elements of a row.
    pub fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The bytes of a row.
    pub(crate) fn row_bytes(&self, row: usize) -> &[u8] {
        let (block_bytes, block) = self.kind.block();
        let len = self.row_len() / block * block_bytes;
        &self.bytes()[self.order.stored_row(row) * len..][..len]
    }

    /// Widens rows into `out`, which must hold exactly those rows. Uses several threads for large
    /// reads; the values do not depend on how many.
    ///
    /// # Errors
    /// Rows outside of the tensor, or an `out` of another length.
    pub fn read_rows_into(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let row_len = self.row_len();
        if rows.start > rows.end || rows.end > self.rows() || out.len() != rows.len() * row_len {
            return Err(Error::model(format!(
                "cannot read rows {rows:?} of `{}` of shape {:?} into {} values",
                self.name,
                self.shape,
                out.len()
            )));
        }
        if out.is_empty() {
            return Ok(());
        }
        let (block_bytes, block) = self.kind.block();
        let row_bytes = row_len / block * block_bytes;
        let bytes = self.bytes();
        match self.order {
            RowOrder::AsStored => {
                let bytes = &bytes[rows.start * row_bytes..rows.end * row_bytes];
                if out.len() < PARALLEL_ELEMENTS {
                    widen(self.kind, bytes, out);
                    return Ok(());
                }
                // Rows do not matter here, only whole blocks.
                let task = TASK_ELEMENTS.next_multiple_of(block);
                bytes
                    .par_chunks(task / block * block_bytes)
                    .zip(out.par_chunks_mut(task))
                    .for_each(|(bytes, out)| widen(self.kind, bytes, out));
            }
            RowOrder::InterleavedHeads { .. } => {
                let read = |(i, out): (usize, &mut [f32])| {
                    let start = self.order.stored_row(rows.start + i) * row_bytes;
                    widen(self.kind, &bytes[start..start + row_bytes], out);
                };
                if out.len() < PARALLEL_ELEMENTS {
                    out.chunks_mut(row_len).enumerate().for_each(read);
                } else {
                    let least = TASK_ELEMENTS.div_ceil(row_len);
                    out.par_chunks_mut(row_len).enumerate().with_min_len(least).for_each(read);
                }
            }
        }
        Ok(())
    }

    /// Widens the whole tensor.
    ///
    /// # Errors
    /// An `out` of another length.
    pub fn read_into(&self, out: &mut [f32]) -> Result<()> {
        self.read_rows_into(0..self.rows(), out)
    }

    /// The whole tensor as f32.
    ///
    /// # Errors
    /// None in practice; the length is right by construction.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        let mut values = pages::zeroed(self.num_elements());
        self.read_into(&mut values)?;
        Ok(values)
    }

    /// The whole tensor as f32 on `device`.
    ///
    /// # Errors
    /// A device that fails.
    pub fn to_tensor(&self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.to_vec()?, &*self.shape, device)?)
    }

    /// Lets go of what the system has read of a mapped file for it.
    pub fn forget(&self) {
        self.bytes.forget();
    }

    /// [`Self::read_into`] that never holds much of a mapped file beside `out`.
    ///
    /// # Errors
    /// An `out` of another length.
    pub fn read_passing(&self, out: &mut [f32]) -> Result<()> {
        let (rows, row_len) = (self.rows(), self.row_len().max(1));
        // Rows of one head lie together, in whatever order.
        let together = match self.order {
            RowOrder::AsStored => 1,
            RowOrder::InterleavedHeads { head_dim } => head_dim,
        };
        let step = PASSING_ELEMENTS.div_ceil(row_len).next_multiple_of(together);
        for (start, out) in (0..rows).step_by(step).zip(out.chunks_mut(step * row_len)) {
            self.read_rows_into(start..(start + step).min(rows), out)?;
            self.forget();
        }
        Ok(())
    }

    /// [`Self::to_tensor`] for good: what was read of a mapped file does not stay in memory
    /// beside its copy.
    ///
    /// # Errors
    /// An element that is not finite, or a device that fails.
    pub fn into_finite_tensor(self, device: &Device) -> Result<Tensor> {
        let values = self.to_vec()?;
        self.bytes.forget();
        self.refuse_not_finite(0, &values)?;
        Ok(Tensor::from_vec(values, &*self.shape, device)?)
    }

    /// Refuses NaN and infinity.
    ///
    /// # Errors
    /// Names the first element that is not finite.
    pub fn check_finite(&self) -> Result<()> {
        let (rows, row_len) = (self.rows(), self.row_len());
        if row_len == 0 {
            return Ok(());
        }
        let step = (1usize << 18).div_ceil(row_len).min(rows);
        let mut values = vec![0.0; step * row_len];
        for start in (0..rows).step_by(step.max(1)) {
            let end = (start + step).min(rows);
            let values = &mut values[..(end - start) * row_len];
            self.read_rows_into(start..end, values)?;
            self.refuse_not_finite(start, values)?;
        }
        Ok(())
    }

    /// Refuses the rows `values`, of which the first is row `start`, where one is not finite.
    fn refuse_not_finite(&self, start: usize, values: &[f32]) -> Result<()> {
        const CHUNK: usize = 1 << 16;
        let is_bad = |chunk: &[f32]| chunk.iter().fold(false, |bad, x| bad | !x.is_finite());
        let Some(chunk) = values.par_chunks(CHUNK).position_first(is_bad) else { return Ok(()) };
        let rest = values[chunk * CHUNK..].iter().position(|value| !value.is_finite());
        let at = chunk * CHUNK + rest.unwrap_or_default();
        let (row, column) = (start + at / self.row_len(), at % self.row_len());
        let message = format!("`{}` holds {} at row {row}, column {column}", self.name, values[at]);
        Err(Error::new(ErrorKind::Numeric, message)
            .hint("the checkpoint is damaged: fetch or export it again"))
    }
}
