//! Large blocks of memory in large pages.

/// Below this many bytes large pages would waste more than they save.
const LARGE: usize = 8 << 20;

/// Zeros that have not been touched, in large pages where the system has them. A page costs a fault
/// when it is first written, whatever its size: with 2 MiB instead of 4 KiB there are 512 times
/// fewer.
pub(crate) fn zeroed<T: bytemuck::Zeroable + Clone>(elements: usize) -> Vec<T> {
    let zeros = vec![T::zeroed(); elements];
    prefer_large_pages(&zeros);
    zeros
}

#[cfg(target_os = "linux")]
fn prefer_large_pages<T>(memory: &[T]) {
    const PAGE: usize = 4096;
    let bytes = std::mem::size_of_val(memory);
    if bytes >= LARGE {
        let start = memory.as_ptr().addr().next_multiple_of(PAGE);
        let end = (memory.as_ptr().addr() + bytes) / PAGE * PAGE;
        // SAFETY: whole pages inside memory that is ours; the advice changes no content. A system
        // that does not take it goes on with small pages.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_large_pages<T>(_memory: &[T]) {}
