//! GGUF files: metadata and tensors as stored, and what they mean in Hugging Face's terms.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod config;
mod names;
mod reader;
mod rope;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::bytes::SharedBytes;
use super::safetensors_header::short;
use super::stored::{RowOrder, StoredKind, StoredTensor};
use crate::{Error, Result};

/// A metadata value.
#[derive(Clone)]
pub enum MetaValue {
    /// Any unsigned or non-negative integer.
    Unsigned(u64),
    /// A negative integer.
    Negative(i64),
    /// Either float type.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    String(String),
    /// An array, left in the file until it is asked for.
    Array(MetaArray),
}

impl MetaValue {
    fn type_name(&self) -> &'static str {
        match self {
            Self::Unsigned(_) => "an integer",
            Self::Negative(_) => "a negative integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a truth value",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
        }
    }
}

/// An array of metadata, checked when the file was opened, decoded when it is asked for.
#[derive(Clone)]
pub struct MetaArray {
    element: u32,
    count: usize,
    bytes: SharedBytes,
}

impl MetaArray {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// A tensor as the file describes it.
#[derive(Clone)]
pub struct GgufTensor {
    /// The file's own name, e.g. `blk.0.attn_q.weight`.
    pub name: String,
    /// Row-major shape (the file lists dimensions in the reverse order).
    pub shape: Vec<usize>,
    /// Type.
    pub kind: StoredKind,
    bytes: SharedBytes,
}

/// A GGUF file, mapped; its header has been read and checked.
pub struct Gguf {
    path: PathBuf,
    metadata: BTreeMap<String, MetaValue>,
    tensors: Vec<GgufTensor>,
}

impl Gguf {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// Anything but a little-endian GGUF file of version 2 or 3 whose tensors lie within it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = SharedBytes::map(path)?;
        Self::parse(&file, path).map_err(|e| e.in_file(path))
    }

    /// Reads a file that is in memory.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::parse(&bytes.into(), Path::new(""))
    }

    fn parse(file: &SharedBytes, path: &Path) -> Result<Self> {
        let (metadata, tensors) = reader::read(file)?;
        Ok(Self { path: path.to_path_buf(), metadata, tensors })
    }

    /// Where it was opened; empty for a file in memory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors as stored.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The tensor of this (GGUF) name.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// The tensor of this (GGUF) name, rows in the file's own order.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn stored(&self, name: &str) -> Result<StoredTensor> {
        let tensor =
            self.tensor(name).ok_or_else(|| self.error(format!("no tensor `{}`", short(name))))?;
        let bytes = tensor.bytes.clone();
        StoredTensor::new(name, &tensor.shape, tensor.kind, bytes, RowOrder::AsStored)
    }

    /// All metadata keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&MetaValue> {
        self.metadata.get(key)
    }

    /// A string, if the key is there.
    ///
    /// # Errors
    /// A value of another type.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        match self.value(key) {
            None => Ok(None),
            Some(MetaValue::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, "a string", other)),
        }
    }

    /// A count or an id, if the key is there.
    ///
    /// # Errors
    /// A value of another type.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        match self.value(key) {
            None => Ok(None),
            Some(MetaValue::Unsigned(number)) => Ok(Some(*number)),
            Some(other) => Err(self.wrong(key, "a whole number", other)),
        }
    }

    /// A number of any kind, if the key is there.
    ///
    /// # Errors
    /// A value of another type.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.value(key) {
            None => Ok(None),
            Some(MetaValue::Float(number)) => Ok(Some(*number)),
            Some(MetaValue::Unsigned(number)) => Ok(Some(*number as f64)),
            Some(MetaValue::Negative(number)) => Ok(Some(*number as f64)),
            Some(other) => Err(self.wrong(key, "a number", other)),
        }
    }

    /// A truth value, if the key is there.
    ///
    /// # Errors
    /// A value of another type.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.value(key) {
            None => Ok(None),
            Some(MetaValue::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(key, "a truth value", other)),
        }
    }

    /// An array of strings, if the key is there.
    ///
    /// # Errors
    /// A value of another type, or text that is not UTF-8.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let decode = |array| reader::strings(array);
        self.array(key, "an array of strings", decode)
    }

    /// An array of numbers, if the key is there.
    ///
    /// # Errors
    /// A value of another type.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.array(key, "an array of numbers", reader::numbers)
    }

    fn array<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        decode: impl Fn(&'a MetaArray) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.value(key) {
            None => Ok(None),
            Some(MetaValue::Array(array)) => decode(array)
                .map(Some)
                .ok_or_else(|| self.error(format!("`{}` is not {expected}", short(key)))),
            Some(other) => Err(self.wrong(key, expected, other)),
        }
    }

    /// Names the file, where there is one.
    pub(crate) fn place(&self, error: Error) -> Error {
        if self.path.as_os_str().is_empty() { error } else { error.in_file(&self.path) }
    }

    pub(crate) fn error(&self, message: impl Into<String>) -> Error {
        self.place(Error::model(message))
    }

    fn wrong(&self, key: &str, expected: &str, got: &MetaValue) -> Error {
        self.error(format!("`{}` is {}: expected {expected}", short(key), got.type_name()))
    }
}
