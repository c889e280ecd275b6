//! The text of a PDF, page by page, in the order in which it is drawn.

use lopdf::{Document, LoadOptions};

use super::read::Fault;

/// Bytes that all streams together may become, as far as they are known before, and one of them.
const DECOMPRESSED: usize = 256 << 20;
const STREAM: std::ops::RangeInclusive<usize> = 1 << 20..=32 << 20;
const PAGES: usize = 10_000;
/// Bytes of text in all.
const TEXT: usize = 64 << 20;

/// The text of `bytes`; pages that cannot be read are left out where others can.
pub(super) fn text(bytes: &[u8]) -> Result<String, Fault> {
    let damaged = |error: lopdf::Error| Fault("damaged PDF", error.to_string());
    let streams = bytes.windows(9).filter(|bytes| *bytes == b"endstream").count();
    let limit = (DECOMPRESSED / streams.max(1)).clamp(*STREAM.start(), *STREAM.end());
    let options = LoadOptions { max_decompressed_size: Some(limit), ..LoadOptions::default() };
    let document = Document::load_mem_with_options(bytes, options).map_err(damaged)?;
    if document.is_encrypted() {
        return Err(Fault("encrypted PDF", "expected a file that opens without a password".into()));
    }
    let pages = document.get_pages();
    if pages.is_empty() {
        return Err(Fault("damaged PDF", "no pages are found in it".into()));
    }
    if pages.len() > PAGES {
        return Err(Fault("too large", format!("{} pages, expected {PAGES} at most", pages.len())));
    }
    let (mut text, mut first) = (String::new(), None);
    for page in pages.into_keys() {
        for part in document.extract_text_chunks_with_limit(&[page], limit) {
            match part {
                Ok(part) => text.push_str(&part),
                Err(error) => first = first.or(Some(error)),
            }
        }
        text.push_str("\n\n");
        if text.len() > TEXT {
            return Err(Fault("too large", format!("more than {TEXT} bytes of text")));
        }
    }
    match (text.trim().is_empty(), first) {
        (false, _) => Ok(joined(&text)),
        (true, Some(error)) => Err(damaged(error)),
        (true, None) => Err(Fault("no text", "a PDF without text, perhaps a scan".into())),
    }
}

/// Words that were divided at the end of a line are whole again.
fn joined(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut lines = text.lines().map(str::trim_end).peekable();
    while let Some(line) = lines.next() {
        let goes_on = |next: &&str| next.starts_with(char::is_lowercase);
        let stem = line.strip_suffix('-').filter(|stem| stem.ends_with(char::is_lowercase));
        match stem.filter(|_| lines.peek().is_some_and(goes_on)) {
            Some(stem) => out.push_str(stem),
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divided_words_are_joined() {
        assert_eq!(joined("an exam-\nple of 2-\n3 and A-\nb\n"), "an example of 2-\n3 and A-\nb\n");
    }
}
