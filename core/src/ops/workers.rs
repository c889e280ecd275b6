//! Where the operations of a pass are called from.

/// Runs `f` on a worker thread. Every operation inside splits its work from there: a thread that
/// is no worker would go to sleep and be woken at each of them.
pub(crate) fn on_a_worker<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}
