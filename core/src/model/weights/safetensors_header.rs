//! The header of a safetensors file: eight bytes of length, then JSON. It is trusted in nothing.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::bytes::SharedBytes;
use super::stored::{RowOrder, StoredKind, StoredTensor};
use crate::{Error, Result};

/// The format's own limit.
const MAX_HEADER: usize = 100_000_000;

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// Entries in file order, so that a name that comes twice is seen.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        let entry = map.next_value::<Entry>().map_err(|e| {
                            serde::de::Error::custom(format!("tensor `{}`: {e}", short(&name)))
                        })?;
                        entries.push((name, entry));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A name short enough for a message, without control characters.
pub(super) fn short(name: &str) -> String {
    let mut clean = String::new();
    for letter in name.chars().take(80) {
        if letter.is_control() {
            clean.extend(letter.escape_default());
        } else {
            clean.push(letter);
        }
    }
    if name.chars().nth(80).is_some() {
        clean.push('…');
    }
    clean
}

/// All tensors of one file, mapped.
pub(super) fn open(path: &Path) -> Result<Vec<StoredTensor>> {
    read(&SharedBytes::map(path)?).map_err(|e| e.in_file(path))
}

pub(super) fn read(file: &SharedBytes) -> Result<Vec<StoredTensor>> {
    let bytes = file.as_slice();
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(Error::model(format!(
            "not a safetensors file: {} bytes long, expected at least 8",
            bytes.len()
        )));
    };
    let stated = u64::from_le_bytes(*length);
    let length = usize::try_from(stated).unwrap_or(usize::MAX);
    if length > MAX_HEADER || length > rest.len() {
        return Err(Error::model(format!(
            "the header says that it is {stated} bytes long, but {} follow (and at most \
             {MAX_HEADER} are allowed)",
            rest.len()
        ))
        .hint("the file is truncated, or not a safetensors file"));
    }
    let (header, data) = rest.split_at(length);
    let Header(entries) = serde_json::from_slice(header)
        .map_err(|e| Error::model(format!("the header is not that of a safetensors file: {e}")))?;
    let mut tensors = Vec::with_capacity(entries.len());
    let mut spans: Vec<(usize, usize, usize)> = Vec::with_capacity(entries.len());
    for (i, (name, entry)) in entries.iter().enumerate() {
        tensors.push(tensor(file, 8 + length, data.len(), name, entry)?);
        spans.push((entry.data_offsets.0, entry.data_offsets.1, i));
    }
    check_names(&entries)?;
    spans.sort_unstable();
    let mut end = 0;
    for (start, stop, i) in spans {
        let name = short(&entries[i].0);
        if start < end {
            return Err(Error::model(format!(
                "`{name}` begins at byte {start}, inside of the tensor before it, which ends at {end}"
            )));
        }
        if start > end {
            return Err(Error::model(format!(
                "{} bytes before `{name}` belong to no tensor",
                start - end
            )));
        }
        end = stop;
    }
    if end != data.len() {
        return Err(Error::model(format!(
            "the header describes {end} bytes of tensors, but {} follow it",
            data.len()
        )));
    }
    Ok(tensors)
}

fn check_names(entries: &[(String, Entry)]) -> Result<()> {
    let mut seen = std::collections::HashSet::with_capacity(entries.len());
    match entries.iter().find(|(name, _)| !seen.insert(name.as_str())) {
        Some((name, _)) => Err(Error::model(format!("the header names `{}` twice", short(name)))),
        None => Ok(()),
    }
}

fn tensor(
    file: &SharedBytes,
    data_start: usize,
    data_len: usize,
    name: &str,
    entry: &Entry,
) -> Result<StoredTensor> {
    let shown = short(name);
    let kind = match entry.dtype.as_str() {
        "F32" => StoredKind::F32,
        "F16" => StoredKind::F16,
        "BF16" => StoredKind::BF16,
        other => {
            return Err(Error::model(format!(
                "`{shown}` is of type `{}`: expected F32, F16 or BF16",
                short(other)
            ))
            .hint("quantized safetensors are not supported: use the unquantized checkpoint"));
        }
    };
    let (start, end) = entry.data_offsets;
    if start > end || end > data_len {
        return Err(Error::model(format!(
            "`{shown}` is said to lie at bytes {start} to {end} of {data_len}"
        ))
        .hint("the file is truncated or damaged: fetch it again"));
    }
    let elements = entry.shape.iter().try_fold(1usize, |all, &dim| all.checked_mul(dim));
    let expected = elements.and_then(|elements| kind.size_of(elements));
    if expected != Some(end - start) {
        return Err(Error::model(format!(
            "`{shown}` of shape {:?} and type {kind} takes {} bytes, but the header gives it {}",
            entry.shape,
            expected.map_or("more than 2^64".to_string(), |n| n.to_string()),
            end - start
        )));
    }
    let bytes = file
        .slice(data_start + start..data_start + end)
        .ok_or_else(|| Error::model(format!("`{shown}` does not lie within the file")))?;
    StoredTensor::new(name, &entry.shape, kind, bytes, RowOrder::AsStored)
}
