//! Access to the elements of f32 CPU tensors, for the fused operations.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Storage, StorageRef, Tensor};

use crate::{Error, ErrorKind, Result};

/// The elements of a contiguous CPU tensor, read-locked.
pub(crate) struct Slice<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl Deref for Slice<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(all)) => &all[self.range.clone()],
            _ => &[],
        }
    }
}

/// The elements of `tensor`.
///
/// # Errors
/// When it is not on the CPU, not contiguous or not f32.
pub(crate) fn read(tensor: &Tensor) -> Result<Slice<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    let range = range(layout)?;
    match &*storage {
        Storage::Cpu(CpuStorage::F32(_)) => Ok(Slice { storage, range }),
        _ => Err(defect("a fused operation got a tensor that is not f32 on the cpu")),
    }
}

/// `tensor` where [`read`] finds its elements: itself, or a copy where it is on a device or of another
/// type.
pub(crate) fn on_host(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?)
}

/// Calls `f` with the elements of `tensor`, write-locked.
///
/// # Errors
/// As [`read`].
pub(crate) fn write<R>(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    write_as(tensor, f)
}

fn write_as<T: Element, R>(tensor: &Tensor, f: impl FnOnce(&mut [T]) -> R) -> Result<R> {
    let op = Write { f: Cell::new(Some(f)), result: Cell::new(None), elements: PhantomData };
    tensor.inplace_op1(&op)?;
    op.result.take().ok_or_else(|| defect("a fused operation got a tensor of another type"))
}

/// [`write()`] for two tensors.
pub(crate) fn write2<R>(
    a: &Tensor,
    b: &Tensor,
    f: impl FnOnce(&mut [f32], &mut [f32]) -> R,
) -> Result<R> {
    write(a, |a| write(b, |b| f(a, b)))?
}

/// [`write()`] for three tensors.
pub(crate) fn write3<R>(
    a: &Tensor,
    b: &Tensor,
    c: &Tensor,
    f: impl FnOnce(&mut [f32], &mut [f32], &mut [f32]) -> R,
) -> Result<R> {
    write(a, |a| write2(b, c, |b, c| f(a, b, c)))?
}

/// [`write()`] for any number of tensors.
pub(crate) fn write_all<R>(tensors: &[&Tensor], f: impl FnOnce(Vec<&mut [f32]>) -> R) -> Result<R> {
    fn open(
        tensors: &[&Tensor],
        open_ones: Vec<&mut [f32]>,
        f: &mut dyn FnMut(Vec<&mut [f32]>),
    ) -> Result<()> {
        let Some((first, rest)) = tensors.split_first() else {
            f(open_ones);
            return Ok(());
        };
        write(first, |first| {
            let mut open_ones = open_ones;
            open_ones.push(first);
            open(rest, open_ones, f)
        })?
    }
    let (mut f, mut result) = (Some(f), None);
    open(tensors, Vec::new(), &mut |all| result = f.take().map(|f| f(all)))?;
    result.ok_or_else(|| defect("a fused operation was not run"))
}

/// [`write2`] for two tensors of bytes.
pub(crate) fn write_bytes2<R>(
    a: &Tensor,
    b: &Tensor,
    f: impl FnOnce(&mut [u8], &mut [u8]) -> R,
) -> Result<R> {
    write_as(a, |a| write_as(b, |b| f(a, b)))?
}

/// What tensors that are written in place are made of.
trait Element: Sized {
    fn all(storage: &mut CpuStorage) -> Option<&mut Vec<Self>>;
}

impl Element for f32 {
    fn all(storage: &mut CpuStorage) -> Option<&mut Vec<Self>> {
        match storage {
            CpuStorage::F32(all) => Some(all),
            _ => None,
        }
    }
}

impl Element for u8 {
    fn all(storage: &mut CpuStorage) -> Option<&mut Vec<Self>> {
        match storage {
            CpuStorage::U8(all) => Some(all),
            _ => None,
        }
    }
}

struct Write<T, F, R> {
    f: Cell<Option<F>>,
    result: Cell<Option<R>>,
    elements: PhantomData<T>,
}

impl<T: Element, F: FnOnce(&mut [T]) -> R, R> InplaceOp1 for Write<T, F, R> {
    fn name(&self) -> &'static str {
        "halter-write"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let range = range(layout).map_err(candle_core::Error::wrap)?;
        if let (Some(all), Some(f)) = (T::all(storage), self.f.take()) {
            self.result.set(Some(f(&mut all[range])));
        }
        Ok(())
    }
}

fn range(layout: &Layout) -> Result<Range<usize>> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| defect("a fused operation got a tensor that is not contiguous"))?;
    Ok(start..end)
}

fn defect(message: &str) -> Error {
    Error::new(ErrorKind::Tensor, message)
}

/// Memory that several tasks write to, each its own part.
pub(crate) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: `part`'s caller promises that parts handed out at the same time do not overlap.
unsafe impl Sync for Shared<'_> {}
// SAFETY: as above.
unsafe impl Send for Shared<'_> {}

impl<'a> Shared<'a> {
    /// Borrows `all` for as long as the tasks run.
    pub(crate) fn new(all: &'a mut [f32]) -> Self {
        Self { start: all.as_mut_ptr(), len: all.len(), borrow: PhantomData }
    }

    /// Elements from `start` to the end, of which the caller touches only what is its own.
    ///
    /// # Safety
    /// No two tasks read or write the same element while one of them writes it.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn from(&self, start: usize) -> &'a mut [f32] {
        assert!(start <= self.len);
        // SAFETY: within the borrowed slice; the caller promises that accesses do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), self.len - start) }
    }
}
