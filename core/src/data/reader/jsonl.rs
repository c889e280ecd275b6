//! JSON Lines: one object a line, found by one fast scan and read at random.

use std::path::Path;

use super::bytes::{Bytes, Extent, MAX_ROW_BYTES};
use crate::{Error, Result};

/// Finds the lines that hold something. A byte order mark, `\r`, blank lines and a last line
/// without a newline are all in order.
pub(super) fn index(bytes: &mut Bytes, path: &Path) -> Result<Vec<Extent>> {
    let io = |error| Error::io("read", path, error);
    let mut scanner = bytes.scanner().map_err(io)?;
    scanner.skip_bom().map_err(io)?;
    let mut rows = Vec::new();
    loop {
        let (start, line) = (scanner.offset(), scanner.line());
        let Some(seen) = scanner.take_line().map_err(io)? else { return Ok(rows) };
        if seen {
            rows.push(extent(start, scanner.offset(), line).map_err(|e| e.at(path, line))?);
        }
    }
}

/// The extent of a row, if it is not too long to be one.
pub(super) fn extent(start: u64, end: u64, line: usize) -> Result<Extent> {
    let len = end - start;
    match (u32::try_from(len), u32::try_from(line)) {
        (Ok(short), Ok(line)) if len <= MAX_ROW_BYTES as u64 => {
            Ok(Extent { start, len: short, line })
        }
        (_, Err(_)) => Err(Error::data("more than 2^32 rows in one file")
            .hint("split the file and give the directory")),
        _ => Err(Error::data(format!(
            "a row of `{}` MiB, expected at most `{}`",
            len >> 20,
            MAX_ROW_BYTES >> 20
        ))
        .hint("rows are one JSON object a line; is this file JSON Lines?")),
    }
}
