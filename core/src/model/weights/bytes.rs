//! A range of bytes in a mapped file or in memory, shared and cheap to clone.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::{Error, Result};

#[derive(Clone)]
enum Owner {
    Mapped(Arc<Mmap>),
    Memory(Arc<[u8]>),
}

impl Owner {
    fn all(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }
}

/// Bytes that somebody else owns. The range is checked when it is made, so reading cannot fail.
#[derive(Clone)]
pub(crate) struct SharedBytes {
    owner: Owner,
    range: Range<usize>,
}

impl SharedBytes {
    /// Maps a whole file.
    pub(crate) fn map(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let meta = file.metadata().map_err(|e| Error::io("read", path, e))?;
        if !meta.is_file() {
            return Err(Error::model("not a regular file").in_file(path));
        }
        // An empty file cannot be mapped everywhere.
        if meta.len() == 0 {
            return Ok(Self::from(Vec::new()));
        }
        // SAFETY: the mapping is read-only and private to this process. As with every reader of
        // mapped weights, the file must not be truncated while it is in use; exports of halter
        // replace files by renaming and never write into one that is there.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
        let range = 0..map.len();
        Ok(Self { owner: Owner::Mapped(Arc::new(map)), range })
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.owner.all().get(self.range.clone()).unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.range.len()
    }

    /// Lets go of what the system has read of a mapped file for these bytes; whoever reads them
    /// again has them read again.
    pub(crate) fn forget(&self) {
        #[cfg(unix)]
        if let Owner::Mapped(map) = &self.owner {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the mapping is read-only, so no content is lost. A system that does not take
            // the advice keeps the pages.
            let _ = unsafe { map.unchecked_advise_range(advice, self.range.start, self.len()) };
        }
    }

    /// A part of these bytes; `None` where it does not lie within.
    pub(crate) fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Self { owner: self.owner.clone(), range: start..start + range.len() })
    }
}

impl From<Vec<u8>> for SharedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Owner::Memory(bytes.into()), range }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use super::*;

    #[test]
    fn forgotten_bytes_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bytes");
        let content: Vec<u8> = (0..40_000u32).map(|i| (i * 31 % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let bytes = SharedBytes::map(&path).unwrap();
        // A part that begins and ends within a page.
        let part = bytes.slice(5_000..33_333).unwrap();
        assert_eq!(part.as_slice(), &content[5_000..33_333]);
        part.forget();
        assert_eq!(bytes.as_slice(), content);
        SharedBytes::from(content.clone()).forget();
    }
}
