//! Files that anybody may have written.

use std::fs::{self, File};
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use halter_core::train::interrupt::Interrupt;
use halter_core::{Error, Result};

use super::{html, pdf};
use crate::pipeline::Options;

/// Directories within directories.
const DEPTH: usize = 32;
const FILES: usize = 100_000;

/// Why a document is not read: the reason of a removed row, and its detail.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fault(pub &'static str, pub String);

/// What a file holds, by its ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Html,
    Pdf,
}

impl Format {
    fn of(path: &Path) -> Option<Self> {
        Some(match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "txt" | "text" | "md" | "markdown" => Self::Text,
            "html" | "htm" | "xhtml" => Self::Html,
            "pdf" => Self::Pdf,
            _ => return None,
        })
    }
}

/// The files in the option `files`, and of directories the documents in them, each once.
pub(super) fn files(options: &mut Options) -> Result<Vec<PathBuf>> {
    let named: Vec<PathBuf> = options.or("files", Vec::new())?;
    let wrong = |options: &Options, path: &Path, why: &str| {
        options.wrong("files", &format!("`{}`: {why}", path.display()))
    };
    let mut found = Vec::new();
    for path in named {
        let about = fs::metadata(&path).map_err(|e| wrong(options, &path, &e.to_string()))?;
        if about.is_dir() {
            let before = found.len();
            walk(&path, 0, &mut found).map_err(|why| wrong(options, &path, &why))?;
            if found.len() == before {
                return Err(wrong(options, &path, "a directory without documents"));
            }
        } else if !about.is_file() || Format::of(&path).is_none() {
            let why = "expected a file of text (.txt, .md), HTML (.html) or PDF (.pdf)";
            return Err(wrong(options, &path, why));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn walk(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), String> {
    if depth > DEPTH {
        return Err(format!("more than {DEPTH} directories within one another"));
    }
    let told = |e: std::io::Error| format!("cannot read `{}`: {e}", directory.display());
    for entry in fs::read_dir(directory).map_err(told)? {
        let entry = entry.map_err(told)?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(told)?);
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // Links to directories are not followed: they may lead back.
        if kind.is_dir() {
            walk(&path, depth + 1, found)?;
        } else if Format::of(&path).is_some() && path.is_file() {
            found.push(path);
        }
        if found.len() > FILES {
            return Err(format!("more than {FILES} documents"));
        }
    }
    Ok(())
}

/// The bounds of one document.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub bytes: u64,
    pub time: Duration,
}

/// A document's hash and text; its hash is there where its bytes could be read.
///
/// # Errors
/// An interruption alone. Whatever the document is, it costs itself only.
pub(super) fn document(
    path: &Path,
    bounds: Bounds,
    interrupt: &Interrupt,
) -> Result<(Option<String>, Result<String, Fault>)> {
    let bytes = match bytes(path, bounds.bytes) {
        Ok(bytes) => bytes,
        Err(fault) => return Ok((None, Err(fault))),
    };
    let hash = blake3::hash(&bytes).to_hex().to_string();
    let format = Format::of(path).unwrap_or(Format::Text);
    Ok((Some(hash), guarded(bounds.time, interrupt, move || text(format, &bytes))?))
}

fn bytes(path: &Path, most: u64) -> Result<Vec<u8>, Fault> {
    let told = |e: std::io::Error| Fault("cannot be read", e.to_string());
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(told)?;
    file.take(most + 1).read_to_end(&mut bytes).map_err(told)?;
    match bytes.len() as u64 > most {
        true => Err(Fault("too large", format!("expected {most} bytes at most"))),
        false => Ok(bytes),
    }
}

fn text(format: Format, bytes: &[u8]) -> Result<String, Fault> {
    if format == Format::Pdf {
        return pdf::text(bytes);
    }
    let text = str::from_utf8(bytes).map_err(|error| Fault("not UTF-8", error.to_string()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    Ok(match format {
        Format::Html => html::text(text),
        _ => text.replace("\r\n", "\n"),
    })
}

/// Does `work` in a thread of its own: it may panic, and it may never end. A thread that takes too
/// long cannot be ended, and is left to itself.
fn guarded(
    time: Duration,
    interrupt: &Interrupt,
    work: impl FnOnce() -> Result<String, Fault> + Send + 'static,
) -> Result<Result<String, Fault>> {
    const STACK: usize = 64 << 20;
    let (tell, told) = channel();
    let work = move || {
        let done = catch_unwind(AssertUnwindSafe(work));
        let _ = tell.send(done.unwrap_or_else(|panic| Err(panicked(&*panic))));
    };
    let thread = std::thread::Builder::new().name("document".into()).stack_size(STACK);
    thread.spawn(work).map_err(|e| Error::config(format!("cannot start a thread: {e}")))?;
    let began = Instant::now();
    loop {
        interrupt.check()?;
        match told.recv_timeout(Duration::from_millis(100)) {
            Ok(done) => return Ok(done),
            Err(RecvTimeoutError::Timeout) if began.elapsed() < time => {}
            Err(_) => {
                let detail = format!("more than {} s", time.as_secs());
                return Ok(Err(Fault("takes too long", detail)));
            }
        }
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Fault {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
    Fault("damaged", text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_panics_or_never_ends_costs_its_document_only() {
        let interrupt = Interrupt::new();
        let second = Duration::from_secs(1);
        let fault = guarded(second, &interrupt, || Ok(["a"][interrupted()].to_string()));
        assert_eq!(fault.unwrap().unwrap_err().0, "damaged");
        let fault = guarded(Duration::ZERO, &interrupt, || {
            loop {
                std::thread::sleep(Duration::from_secs(60));
            }
        });
        assert_eq!(fault.unwrap().unwrap_err().0, "takes too long");
        assert_eq!(guarded(second, &interrupt, || Ok("text".into())).unwrap().unwrap(), "text");
    }

    /// An index that no compiler sees through.
    fn interrupted() -> usize {
        std::hint::black_box(7)
    }
}
