//! Scratch tensors that go back to a free list instead of to the operating system.
//!
//! Fresh memory is the hidden cost of a training step on a CPU: the kernel hands out zeroed pages
//! one fault at a time, which costs several times the arithmetic that fills them. Every
//! intermediate of the engine therefore lives in a [`Buffer`] from a [`Pool`].

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};

use super::pages;
use crate::Result;

/// Smallest buffer in elements; below it, sizes would fragment for nothing.
const SMALLEST: usize = 1024;

/// Free buffers by capacity. Cloning shares the pool.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    by_capacity: BTreeMap<usize, Vec<Idle>>,
    /// Elements allocated and not yet released.
    allocated: usize,
    /// Those of them that are in use, and the most that ever were.
    in_use: usize,
    most_in_use: usize,
    /// Buffers that were given back so far.
    clock: u64,
}

/// A buffer that waits to be used again.
#[derive(Debug)]
struct Idle {
    whole: Tensor,
    /// When it was given back.
    since: u64,
}

impl Free {
    fn take(&mut self, capacity: usize) -> Option<Tensor> {
        // At most a quarter larger than asked for: a huge buffer must not be pinned by a small need.
        let mut fitting = self.by_capacity.range_mut(capacity..=capacity + capacity / 4);
        let found = fitting.find_map(|(_, buffers)| buffers.pop()).map(|idle| idle.whole);
        let taken = found.as_ref().map_or(capacity, Tensor::elem_count);
        self.in_use += taken;
        self.most_in_use = self.most_in_use.max(self.in_use);
        if found.is_none() {
            self.allocated += capacity;
            self.let_go();
        }
        found
    }

    fn give_back(&mut self, whole: Tensor) {
        self.in_use -= whole.elem_count();
        self.clock += 1;
        let idle = Idle { since: self.clock, whole };
        self.by_capacity.entry(idle.whole.elem_count()).or_default().push(idle);
    }

    /// Lets go of what has waited longest while much more is held than was ever in use: passes of
    /// other sizes left it.
    fn let_go(&mut self) {
        while self.allocated > self.most_in_use + self.most_in_use / 4 {
            let oldest = self
                .by_capacity
                .iter()
                .filter_map(|(&capacity, idle)| Some((idle.first()?.since, capacity)))
                .min();
            let Some((_, capacity)) = oldest else { return };
            if let Some(idle) = self.by_capacity.get_mut(&capacity) {
                idle.remove(0);
                self.allocated -= capacity;
            }
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}

impl Pool {
    /// An empty pool of f32 buffers on the CPU.
    pub fn new() -> Self {
        Self { inner: Arc::new(Inner { free: Mutex::default() }) }
    }

    /// A buffer of `shape` whose content is unspecified.
    ///
    /// # Errors
    /// When candle cannot allocate.
    pub fn take(&self, shape: impl Into<Shape>) -> Result<Buffer> {
        let shape = shape.into();
        let capacity = size_class(shape.elem_count());
        let reused = self.lock().take(capacity);
        let whole = match reused {
            Some(whole) => whole,
            None => Tensor::from_vec(pages::zeroed::<f32>(capacity), capacity, &Device::Cpu)?,
        };
        let view = whole.narrow(0, 0, shape.elem_count())?.reshape(shape)?;
        Ok(Buffer { view, home: Some((whole, self.inner.clone())) })
    }

    /// Bytes held by the pool, in use or free.
    pub fn allocated_bytes(&self) -> usize {
        self.lock().allocated * DType::F32.size_in_bytes()
    }

    /// Gives the free buffers back to the operating system.
    pub fn release(&self) {
        let mut free = self.lock();
        let elements: usize = free.by_capacity.iter().map(|(size, all)| size * all.len()).sum();
        free.by_capacity.clear();
        free.allocated -= elements;
        free.most_in_use = free.in_use;
        drop(free);
        // SAFETY: it takes no memory that is in use. Without it the allocator keeps what it has.
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        unsafe {
            libc::malloc_trim(0);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Free> {
        self.inner.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rounds up to a multiple of an eighth of the power of two below, so that microbatches of nearly
/// the same length share buffers.
fn size_class(elements: usize) -> usize {
    let elements = elements.max(SMALLEST);
    let step = (elements.next_power_of_two() / 16).max(1);
    elements.div_ceil(step) * step
}

/// A tensor that returns to its pool when it is dropped. Never keep a clone of the tensor inside
/// beyond the buffer's life: its content would change under it.
#[derive(Debug)]
pub struct Buffer {
    view: Tensor,
    home: Option<(Tensor, Arc<Inner>)>,
}

impl Buffer {
    /// The same content under another shape of as many elements.
    ///
    /// # Errors
    /// When the element counts differ.
    pub fn reshaped(mut self, shape: impl Into<Shape>) -> Result<Self> {
        self.view = self.view.reshape(shape.into())?;
        Ok(self)
    }
}

impl From<Tensor> for Buffer {
    /// A tensor of its own, not from any pool.
    fn from(view: Tensor) -> Self {
        Self { view, home: None }
    }
}

impl Deref for Buffer {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.view
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some((whole, pool)) = self.home.take() {
            pool.free.lock().unwrap_or_else(PoisonError::into_inner).give_back(whole);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_used_again() {
        let pool = Pool::new();
        drop(pool.take((100, 100)).unwrap());
        let bytes = pool.allocated_bytes();
        for rows in [100, 99, 98] {
            let buffer = pool.take((rows, 100)).unwrap();
            assert_eq!(buffer.dims(), [rows, 100]);
        }
        assert_eq!(pool.allocated_bytes(), bytes);
        pool.release();
        assert_eq!(pool.allocated_bytes(), 0);
    }

    #[test]
    fn what_other_sizes_left_is_let_go() {
        let pool = Pool::new();
        for size in 1..=30 {
            let pass: Vec<Buffer> = (0..4).map(|_| pool.take(size * 10_000).unwrap()).collect();
            drop(pass);
            let most = 4 * size_class(size * 10_000) * DType::F32.size_in_bytes();
            assert!(pool.allocated_bytes() <= most + most / 4 + 4, "size {size}");
        }
        // A short pass leaves what a long one needs again.
        let bytes = pool.allocated_bytes();
        drop(pool.take(20_000).unwrap());
        let long: Vec<Buffer> = (0..4).map(|_| pool.take(300_000).unwrap()).collect();
        assert!(pool.allocated_bytes() <= bytes + bytes / 4);
        drop(long);
    }

    #[test]
    fn buffers_in_use_do_not_overlap() {
        let pool = Pool::new();
        let first = pool.take(4).unwrap();
        let second = pool.take(4).unwrap();
        let ones = Tensor::ones(4, DType::F32, &Device::Cpu).unwrap();
        first.slice_set(&ones, 0, 0).unwrap();
        second.slice_set(&ones.affine(2.0, 0.0).unwrap(), 0, 0).unwrap();
        assert_eq!(first.to_vec1::<f32>().unwrap(), [1.0; 4]);
    }

    #[test]
    fn size_classes_waste_less_than_an_eighth() {
        for elements in (SMALLEST..1_000_000).step_by(997) {
            let class = size_class(elements);
            assert!(class >= elements && class <= elements + elements / 8, "{elements} {class}");
        }
    }
}
