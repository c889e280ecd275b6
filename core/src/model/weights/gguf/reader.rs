//! The header's parser. Every count, length and offset is a claim: it is compared with the bytes
//! that are there before anything is allocated for it.

use std::collections::BTreeMap;

use candle_core::quantized::GgmlDType;

use super::super::bytes::SharedBytes;
use super::super::safetensors_header::short;
use super::super::stored::StoredKind;
use super::{GgufTensor, MetaArray, MetaValue};
use crate::{Error, Result};

/// Arrays within arrays beyond this are an attack on the stack.
const MAX_DEPTH: usize = 8;
/// A tensor's entry takes at least this many bytes: name length, dimensions, type, offset.
const MIN_TENSOR: usize = 8 + 4 + 4 + 8;
/// A metadata entry takes at least this many bytes: key length, type, one byte of value.
const MIN_ENTRY: usize = 8 + 4 + 1;
const MAX_ALIGNMENT: u64 = 1 << 16;

const STRING: u32 = 8;
const ARRAY: u32 = 9;

pub(super) type Parsed = (BTreeMap<String, MetaValue>, Vec<GgufTensor>);

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| {
            Error::model(format!(
                "the header ends in the middle of {what}: {count} bytes wanted at byte {}, {} left",
                self.at,
                self.left()
            ))
            .hint("the file is truncated or damaged: fetch it again")
        })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut value = [0; N];
        value.copy_from_slice(self.take(N, what)?);
        Ok(value)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, least: usize, what: &str) -> Result<usize> {
        let stated = self.u64(&format!("the number of {what}"))?;
        let fits = (self.left() / least) as u64;
        if stated > fits {
            return Err(Error::model(format!(
                "the header claims {stated} {what}, but the {} bytes left hold at most {fits}",
                self.left()
            ))
            .hint("the file is truncated or damaged: fetch it again"));
        }
        Ok(stated as usize)
    }

    fn string(&mut self, what: &str) -> Result<&'a str> {
        let length = self.count(1, &format!("bytes of {what}"))?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| Error::model(format!("{what} is not valid UTF-8")))
    }
}

/// Bytes of a scalar; `None` for strings, arrays and unknown types.
fn scalar_size(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn scalar(kind: u32, bytes: &[u8]) -> Option<MetaValue> {
    let signed = |value: i64| match u64::try_from(value) {
        Ok(value) => MetaValue::Unsigned(value),
        Err(_) => MetaValue::Negative(value),
    };
    Some(match kind {
        0 => MetaValue::Unsigned(u64::from(*bytes.first()?)),
        1 => signed(i64::from(bytes.first()?.cast_signed())),
        2 => MetaValue::Unsigned(u64::from(u16::from_le_bytes(bytes.try_into().ok()?))),
        3 => signed(i64::from(i16::from_le_bytes(bytes.try_into().ok()?))),
        4 => MetaValue::Unsigned(u64::from(u32::from_le_bytes(bytes.try_into().ok()?))),
        5 => signed(i64::from(i32::from_le_bytes(bytes.try_into().ok()?))),
        6 => MetaValue::Float(f64::from(f32::from_le_bytes(bytes.try_into().ok()?))),
        7 => MetaValue::Bool(*bytes.first()? != 0),
        10 => MetaValue::Unsigned(u64::from_le_bytes(bytes.try_into().ok()?)),
        11 => signed(i64::from_le_bytes(bytes.try_into().ok()?)),
        12 => MetaValue::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
        _ => return None,
    })
}

pub(super) fn read(file: &SharedBytes) -> Result<Parsed> {
    let mut cursor = Cursor { bytes: file.as_slice(), at: 0 };
    let magic = cursor.take(4, "the magic number")?;
    if magic != b"GGUF" {
        return Err(Error::model(format!(
            "not a GGUF file: it begins with `{}`, expected `GGUF`",
            magic.escape_ascii()
        )));
    }
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 2 | 3) => {
            return Err(Error::model("a big-endian GGUF file: expected little-endian"));
        }
        _ => {
            return Err(Error::model(format!("GGUF version {version}: expected 2 or 3"))
                .hint("convert it again with a current llama.cpp"));
        }
    }
    // Both counts come first; the tensors are compared with what is left after the metadata too.
    let tensor_count = cursor.count(MIN_TENSOR, "tensors")?;
    let entry_count = cursor.count(MIN_ENTRY, "metadata entries")?;
    let mut metadata = BTreeMap::new();
    for i in 0..entry_count {
        let key = cursor.string(&format!("the key of metadata entry {i}"))?;
        let kind = cursor.u32("a metadata type")?;
        let value = value(&mut cursor, file, kind, key)?;
        if metadata.insert(key.to_string(), value).is_some() {
            return Err(Error::model(format!("the metadata names `{}` twice", short(key))));
        }
    }
    let alignment = alignment(&metadata)?;
    let tensors = tensors(&mut cursor, file, tensor_count, alignment)?;
    Ok((metadata, tensors))
}

fn value(cursor: &mut Cursor<'_>, file: &SharedBytes, kind: u32, key: &str) -> Result<MetaValue> {
    let what = || format!("the value of `{}`", short(key));
    match kind {
        STRING => Ok(MetaValue::String(cursor.string(&what())?.to_string())),
        ARRAY => {
            let element = cursor.u32("an array's type")?;
            let count = cursor.count(1, &format!("elements of `{}`", short(key)))?;
            let start = cursor.at;
            skip(cursor, element, count, key, 1)?;
            let bytes = file.slice(start..cursor.at).ok_or_else(|| Error::model("out of range"))?;
            Ok(MetaValue::Array(MetaArray { element, count, bytes }))
        }
        _ => {
            let size = scalar_size(kind).ok_or_else(|| unknown_type(kind, key))?;
            let bytes = cursor.take(size, &what())?;
            scalar(kind, bytes).ok_or_else(|| unknown_type(kind, key))
        }
    }
}

fn unknown_type(kind: u32, key: &str) -> Error {
    Error::model(format!("`{}` has the unknown metadata type {kind}", short(key)))
}

/// Walks over an array's elements without keeping them.
fn skip(
    cursor: &mut Cursor<'_>,
    element: u32,
    count: usize,
    key: &str,
    depth: usize,
) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::model(format!(
            "`{}` nests arrays more than {MAX_DEPTH} deep",
            short(key)
        )));
    }
    if let Some(size) = scalar_size(element) {
        let bytes = count.saturating_mul(size);
        cursor.take(bytes, &format!("the array `{}`", short(key)))?;
        return Ok(());
    }
    for _ in 0..count {
        match element {
            STRING => {
                let length = cursor.count(1, &format!("bytes in a string of `{}`", short(key)))?;
                cursor.take(length, "a string")?;
            }
            ARRAY => {
                let inner = cursor.u32("an array's type")?;
                let inner_count = cursor.count(1, &format!("elements within `{}`", short(key)))?;
                skip(cursor, inner, inner_count, key, depth + 1)?;
            }
            other => return Err(unknown_type(other, key)),
        }
    }
    Ok(())
}

fn alignment(metadata: &BTreeMap<String, MetaValue>) -> Result<usize> {
    match metadata.get("general.alignment") {
        None => Ok(32),
        Some(MetaValue::Unsigned(n)) if n.is_power_of_two() && *n <= MAX_ALIGNMENT => {
            Ok(*n as usize)
        }
        Some(MetaValue::Unsigned(n)) => Err(Error::model(format!(
            "`general.alignment` is {n}: expected a power of two, at most {MAX_ALIGNMENT}"
        ))),
        Some(other) => Err(Error::model(format!(
            "`general.alignment` is {}: expected a whole number",
            other.type_name()
        ))),
    }
}

/// A tensor's entry, before the data's place is known.
struct Entry<'a> {
    name: &'a str,
    shape: Vec<usize>,
    kind: StoredKind,
    size: usize,
    offset: u64,
}

fn tensors(
    cursor: &mut Cursor<'_>,
    file: &SharedBytes,
    count: usize,
    alignment: usize,
) -> Result<Vec<GgufTensor>> {
    if count > cursor.left() / MIN_TENSOR {
        return Err(Error::model(format!(
            "the header claims {count} tensors, but only {} bytes are left for their entries",
            cursor.left()
        ))
        .hint("the file is truncated or damaged: fetch it again"));
    }
    let entries = (0..count).map(|i| entry(cursor, i)).collect::<Result<Vec<_>>>()?;
    let mut names = std::collections::HashSet::with_capacity(count);
    if let Some(entry) = entries.iter().find(|entry| !names.insert(entry.name)) {
        return Err(Error::model(format!("the header names `{}` twice", short(entry.name))));
    }
    let start = cursor.at.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    let available = file.len().saturating_sub(start);
    let mut tensors = Vec::with_capacity(count);
    let mut spans = Vec::with_capacity(count);
    for entry in &entries {
        let name = short(entry.name);
        if !entry.offset.is_multiple_of(alignment as u64) {
            return Err(Error::model(format!(
                "`{name}` begins at byte {}: expected a multiple of {alignment}",
                entry.offset
            )));
        }
        let offset = usize::try_from(entry.offset).unwrap_or(usize::MAX);
        let end = offset.checked_add(entry.size).filter(|&end| end <= available);
        let bytes =
            end.and_then(|end| file.slice(start + offset..start + end)).ok_or_else(|| {
                Error::model(format!(
                "`{name}` takes {} bytes from byte {}, but the file has {available} bytes of data",
                entry.size, entry.offset
            ))
            .hint("the file is truncated or damaged: fetch it again")
            })?;
        spans.push((offset, offset + entry.size, entry.name));
        tensors.push(GgufTensor {
            name: entry.name.to_string(),
            shape: entry.shape.clone(),
            kind: entry.kind,
            bytes,
        });
    }
    spans.sort_unstable();
    for pair in spans.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Err(Error::model(format!(
                "`{}` and `{}` overlap",
                short(pair[0].2),
                short(pair[1].2)
            )));
        }
    }
    Ok(tensors)
}

fn entry<'a>(cursor: &mut Cursor<'a>, index: usize) -> Result<Entry<'a>> {
    let name = cursor.string(&format!("the name of tensor {index}"))?;
    let shown = short(name);
    let rank = cursor.u32("a tensor's rank")?;
    if !(1..=4).contains(&rank) {
        return Err(Error::model(format!("`{shown}` has {rank} dimensions: expected 1 to 4")));
    }
    let mut shape = Vec::with_capacity(rank as usize);
    for _ in 0..rank {
        let dim = cursor.u64("a tensor's dimensions")?;
        match usize::try_from(dim) {
            Ok(dim) if dim > 0 => shape.push(dim),
            _ => return Err(Error::model(format!("`{shown}` has a dimension of {dim}"))),
        }
    }
    shape.reverse();
    let id = cursor.u32("a tensor's type")?;
    let kind = kind(id).ok_or_else(|| unsupported(&shown, id))?;
    let (_, block) = kind.block();
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(block) {
        return Err(Error::model(format!(
            "`{shown}` has rows of {row}: expected a multiple of {block} for type {kind}"
        )));
    }
    let elements = shape.iter().try_fold(1usize, |all, &dim| all.checked_mul(dim));
    let size = elements.and_then(|elements| kind.size_of(elements)).ok_or_else(|| {
        Error::model(format!("`{shown}` of shape {shape:?} has more than 2^64 bytes"))
    })?;
    let offset = cursor.u64("a tensor's offset")?;
    Ok(Entry { name, shape, kind, size, offset })
}

fn kind(id: u32) -> Option<StoredKind> {
    use GgmlDType::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Q8_1, Q8K};
    Some(match id {
        0 => StoredKind::F32,
        1 => StoredKind::F16,
        30 => StoredKind::BF16,
        2 => StoredKind::Ggml(Q4_0),
        3 => StoredKind::Ggml(Q4_1),
        6 => StoredKind::Ggml(Q5_0),
        7 => StoredKind::Ggml(Q5_1),
        8 => StoredKind::Ggml(Q8_0),
        9 => StoredKind::Ggml(Q8_1),
        10 => StoredKind::Ggml(Q2K),
        11 => StoredKind::Ggml(Q3K),
        12 => StoredKind::Ggml(Q4K),
        13 => StoredKind::Ggml(Q5K),
        14 => StoredKind::Ggml(Q6K),
        15 => StoredKind::Ggml(Q8K),
        _ => return None,
    })
}

fn unsupported(name: &str, id: u32) -> Error {
    let known = match id {
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24..=27 => "an integer type",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => "unknown",
    };
    Error::model(format!("`{name}` is of type {id} ({known}), which is not supported"))
        .hint("use a file of type F16, BF16, Q8_0, Q4_0–Q5_1 or Q2_K–Q6_K")
}

/// The strings of an array; `None` where it holds something else or is not UTF-8.
pub(super) fn strings(array: &MetaArray) -> Option<Vec<&str>> {
    if array.element != STRING {
        return None;
    }
    let mut cursor = Cursor { bytes: array.bytes.as_slice(), at: 0 };
    (0..array.count).map(|_| cursor.string("a string").ok()).collect()
}

/// The numbers of an array; `None` where it holds something else.
pub(super) fn numbers(array: &MetaArray) -> Option<Vec<f64>> {
    let size = scalar_size(array.element)?;
    let read = |bytes: &[u8]| match scalar(array.element, bytes)? {
        MetaValue::Unsigned(number) => Some(number as f64),
        MetaValue::Negative(number) => Some(number as f64),
        MetaValue::Float(number) => Some(number),
        _ => None,
    };
    array.bytes.as_slice().chunks_exact(size).map(read).collect()
}
