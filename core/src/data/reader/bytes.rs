//! Bytes that rows are read from at any place, by several threads: a file or memory.
//!
//! Files are read with positional reads rather than mapped: a mapped file that another program
//! shortens ends the process, a short read is an error with a name.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use crate::{Error, Result};

/// The longest row that is read: longer ones are refused before memory is taken for them.
pub(super) const MAX_ROW_BYTES: usize = 256 << 20;

/// A file's fingerprint is made of this many of its blocks.
const BLOCKS: u64 = 64;
const BLOCK_BYTES: u64 = 4096;

/// A file or a piece of memory.
#[derive(Debug)]
pub(super) enum Bytes {
    /// An open file.
    File(File),
    /// Bytes of the program or of a test.
    Memory(Vec<u8>),
}

impl Bytes {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        let is_dir = file.metadata().map_err(|error| Error::io("open", path, error))?.is_dir();
        if is_dir {
            return Err(Error::data("expected a file, got a directory").in_file(path));
        }
        Ok(Self::File(file))
    }

    /// Reads from the start; for the one scan that finds the rows.
    pub(super) fn scanner(&mut self) -> io::Result<Scanner<Box<dyn Read + '_>>> {
        let source: Box<dyn Read + '_> = match self {
            Self::File(file) => {
                file.rewind()?;
                Box::new(file)
            }
            Self::Memory(bytes) => Box::new(bytes.as_slice()),
        };
        Ok(Scanner::new(source))
    }

    /// Hashes the length and evenly spaced blocks, the first and the last among them; everything
    /// where that is less.
    pub(super) fn hash_into(&self, hasher: &mut blake3::Hasher) -> io::Result<()> {
        let len = match self {
            Self::File(file) => file.metadata()?.len(),
            Self::Memory(bytes) => bytes.len() as u64,
        };
        hasher.update(&len.to_le_bytes());
        if len <= BLOCKS * BLOCK_BYTES {
            hasher.update(&self.read(0, len as usize)?);
            return Ok(());
        }
        for block in 0..BLOCKS {
            let start = (len - BLOCK_BYTES) * block / (BLOCKS - 1);
            hasher.update(&self.read(start, BLOCK_BYTES as usize)?);
        }
        Ok(())
    }

    /// The `len` bytes from `start`.
    pub(super) fn read(&self, start: u64, len: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::File(file) => {
                let mut bytes = vec![0; len];
                read_exact_at(file, &mut bytes, start)?;
                Ok(bytes)
            }
            Self::Memory(bytes) => usize::try_from(start)
                .ok()
                .and_then(|start| bytes.get(start..start.checked_add(len)?))
                .map(<[u8]>::to_vec)
                .ok_or_else(|| io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], start: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, start)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut start: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, start)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                bytes = &mut bytes[read..];
                start += read as u64;
            }
        }
    }
    Ok(())
}

/// Where a row lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Its first byte.
    pub(super) start: u64,
    /// Its bytes.
    pub(super) len: u32,
    /// Line or row, from one.
    pub(super) line: u32,
}

/// Reads byte by byte through a buffer, counting bytes and lines.
pub(super) struct Scanner<R> {
    source: R,
    buffer: Vec<u8>,
    next: usize,
    filled: usize,
    consumed: u64,
    line: usize,
}

impl<R: Read> Scanner<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, buffer: vec![0; 1 << 17], next: 0, filled: 0, consumed: 0, line: 1 }
    }

    /// Bytes before the next one.
    pub(super) fn offset(&self) -> u64 {
        self.consumed + self.next as u64
    }

    /// The line of the next byte, from one.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// What is buffered, filled up if it was used up; empty at the end.
    fn buffered(&mut self) -> io::Result<&[u8]> {
        if self.next == self.filled {
            self.consumed += self.filled as u64;
            (self.next, self.filled) = (0, 0);
            loop {
                match self.source.read(&mut self.buffer) {
                    Ok(read) => {
                        self.filled = read;
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(&self.buffer[self.next..self.filled])
    }

    /// The next byte, left where it is.
    pub(super) fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.buffered()?.first().copied())
    }

    /// The next byte, taken.
    pub(super) fn take(&mut self) -> io::Result<Option<u8>> {
        let byte = self.peek()?;
        if let Some(byte) = byte {
            self.next += 1;
            self.line += usize::from(byte == b'\n');
        }
        Ok(byte)
    }

    /// Takes everything up to and with the next newline, or up to the end, and says whether
    /// anything but white space was there; `None` at the end.
    pub(super) fn take_line(&mut self) -> io::Result<Option<bool>> {
        let (mut seen, mut any) = (false, false);
        loop {
            let bytes = self.buffered()?;
            if bytes.is_empty() {
                return Ok(any.then_some(seen));
            }
            any = true;
            // The standard library's own search, which looks at many bytes at a time.
            let mut rest = bytes;
            let taken = io::BufRead::skip_until(&mut rest, b'\n')?;
            let ended = bytes[taken - 1] == b'\n';
            seen = seen || !bytes[..taken].iter().all(u8::is_ascii_whitespace);
            self.next += taken;
            if ended {
                self.line += 1;
                return Ok(Some(seen));
            }
        }
    }

    /// Takes a byte order mark, if one is next.
    pub(super) fn skip_bom(&mut self) -> io::Result<()> {
        if self.buffered()?.starts_with(b"\xEF\xBB\xBF") {
            self.next += 3;
        }
        Ok(())
    }

    /// Takes white space and gives the byte after it.
    pub(super) fn skip_space(&mut self) -> io::Result<Option<u8>> {
        while let Some(byte) = self.peek()? {
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.take()?;
        }
        Ok(None)
    }
}
