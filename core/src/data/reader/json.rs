//! JSON files: an array of objects, or an object with such an array in `data`.
//!
//! One scan finds where each row begins and ends; rows are parsed when they are asked for, so the
//! file is never held in memory as JSON values.

use std::io::{self, Read};
use std::path::Path;

use super::bytes::{Bytes, Extent, Scanner};
use super::jsonl;
use crate::{Error, Result};

/// What a `.json` file turned out to be.
pub(super) enum Layout {
    /// Rows of an array.
    Array(Vec<Extent>),
    /// Objects one after another: JSON Lines under another name.
    Lines,
}

/// Finds the rows of a `.json` file.
pub(super) fn index(bytes: &mut Bytes, path: &Path) -> Result<Layout> {
    let io = |error| Error::io("read", path, error);
    let mut scanner = bytes.scanner().map_err(io)?;
    scanner.skip_bom().map_err(io)?;
    match read_document(&mut scanner) {
        Ok(layout) => Ok(layout),
        Err(Fault::Io(error)) => Err(io(error)),
        Err(Fault::Row(error)) => {
            Err(if error.location().is_none() { error.at(path, scanner.line()) } else { error })
        }
    }
}

/// Why a scan ended early.
enum Fault {
    Io(io::Error),
    Row(Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Row(error)
    }
}

fn read_document<R: Read>(scanner: &mut Scanner<R>) -> Result<Layout, Fault> {
    match scanner.skip_space()? {
        Some(b'[') => {
            let rows = read_array(scanner)?;
            end_of_file(scanner)?;
            Ok(Layout::Array(rows))
        }
        Some(b'{') => {
            let first = scanner.line();
            let rows = find_data(scanner)?;
            let lines = scanner.line() - first + 1;
            match (scanner.skip_space()?, rows) {
                (Some(b'{'), _) => Ok(Layout::Lines),
                (None, Some(rows)) => Ok(Layout::Array(rows)),
                // One object alone on one line is JSON Lines; on several it is some document.
                (None, None) if lines == 1 => Ok(Layout::Lines),
                (None, None) => Err(Fault::Row(
                    Error::data(format!("expected rows, got one object of `{lines}` lines"))
                        .hint("rows are an array of objects, or an object with one in `data`"),
                )),
                (Some(byte), _) => Err(unexpected("the end of the file", Some(byte))),
            }
        }
        None => Ok(Layout::Array(Vec::new())),
        byte => Err(unexpected("an array of rows", byte)),
    }
}

/// Reads `[row, row, …]` from its bracket on.
fn read_array<R: Read>(scanner: &mut Scanner<R>) -> Result<Vec<Extent>, Fault> {
    scanner.take()?;
    let mut rows = Vec::new();
    if scanner.skip_space()? == Some(b']') {
        scanner.take()?;
        return Ok(rows);
    }
    loop {
        match scanner.skip_space()? {
            Some(b'{') => {}
            byte => {
                let what = format!("row {} to be an object", rows.len() + 1);
                return Err(unexpected(&what, byte));
            }
        }
        let start = scanner.offset();
        skip_value(scanner)?;
        rows.push(jsonl::extent(start, scanner.offset(), rows.len() + 1)?);
        match scanner.skip_space()? {
            Some(b',') => {
                scanner.take()?;
            }
            Some(b']') => {
                scanner.take()?;
                return Ok(rows);
            }
            byte => return Err(unexpected("`,` or `]` after a row", byte)),
        }
    }
}

/// Goes through `{…}` and gives the rows of its `data`, if that is an array of objects.
fn find_data<R: Read>(scanner: &mut Scanner<R>) -> Result<Option<Vec<Extent>>, Fault> {
    scanner.take()?;
    let mut found = None;
    if scanner.skip_space()? == Some(b'}') {
        scanner.take()?;
        return Ok(None);
    }
    loop {
        match scanner.skip_space()? {
            Some(b'"') => {}
            byte => return Err(unexpected("a key", byte)),
        }
        let key = skip_string(scanner)?;
        match scanner.skip_space()? {
            Some(b':') => scanner.take()?,
            byte => return Err(unexpected("`:` after a key", byte)),
        };
        let next = scanner.skip_space()?;
        if key == b"data" && next == Some(b'[') {
            found = Some(read_array(scanner)?);
        } else {
            skip_value(scanner)?;
        }
        match scanner.skip_space()? {
            Some(b',') => {
                scanner.take()?;
            }
            Some(b'}') => {
                scanner.take()?;
                return Ok(found);
            }
            byte => return Err(unexpected("`,` or `}` after a value", byte)),
        }
    }
}

/// Takes one value, by its brackets and strings alone; what is in it is checked when it is parsed.
fn skip_value<R: Read>(scanner: &mut Scanner<R>) -> Result<(), Fault> {
    let mut depth = 0usize;
    loop {
        match scanner.peek()? {
            Some(b'"') => {
                skip_string(scanner)?;
            }
            Some(b'{' | b'[') => {
                scanner.take()?;
                depth += 1;
            }
            Some(b'}' | b']') if depth > 0 => {
                scanner.take()?;
                depth -= 1;
            }
            // The bracket or comma after a bare value belongs to what is around it.
            Some(b'}' | b']' | b',') if depth == 0 => return Ok(()),
            Some(byte) if depth == 0 && byte.is_ascii_whitespace() => return Ok(()),
            Some(_) => {
                scanner.take()?;
                continue;
            }
            None => return Err(unexpected("the end of a row", None)),
        }
        if depth == 0 {
            return Ok(());
        }
    }
}

/// Takes a string from its quote on; gives its first bytes, for a key.
fn skip_string<R: Read>(scanner: &mut Scanner<R>) -> Result<Vec<u8>, Fault> {
    scanner.take()?;
    let mut start = Vec::new();
    loop {
        match scanner.take()? {
            Some(b'"') => return Ok(start),
            Some(b'\\') => {
                scanner.take()?;
            }
            Some(byte) => {
                if start.len() < 8 {
                    start.push(byte);
                }
            }
            None => return Err(unexpected("the end of a string", None)),
        }
    }
}

fn end_of_file<R: Read>(scanner: &mut Scanner<R>) -> Result<(), Fault> {
    match scanner.skip_space()? {
        None => Ok(()),
        byte => Err(unexpected("the end of the file after the rows", byte)),
    }
}

fn unexpected(wanted: &str, got: Option<u8>) -> Fault {
    let got = match got {
        Some(byte) if byte.is_ascii_graphic() => format!("`{}`", char::from(byte)),
        Some(byte) => format!("the byte 0x{byte:02x}"),
        None => "the end of the file".into(),
    };
    Fault::Row(Error::data(format!("expected {wanted}, got {got}")))
}
