//! Ctrl-C, as a flag that a recipe looks at between steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, ErrorKind, Result};

/// A handle that says whether the user wants the run to stop. Clones share one flag.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// A flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the run to stop; `true` if it had been asked before. Safe to call from any thread.
    pub fn set(&self) -> bool {
        self.0.swap(true, Ordering::SeqCst)
    }

    /// Whether the run should stop after the step it is in.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// An error of kind `Interrupted` once the flag is set, for work that has nothing to save.
    ///
    /// # Errors
    /// When the flag is set.
    pub fn check(&self) -> Result<()> {
        if self.is_set() {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_flag_and_the_second_request_is_told_apart() {
        let interrupt = Interrupt::new();
        let handler = interrupt.clone();
        assert!(interrupt.check().is_ok());
        assert!(!handler.set(), "the first request");
        assert!(interrupt.is_set());
        assert!(handler.set(), "the second request");
        assert_eq!(interrupt.check().unwrap_err().kind(), ErrorKind::Interrupted);
    }
}
