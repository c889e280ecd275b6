//! Tensors as a safetensors file, written as they are met: no copy of a tensor is made for it.
//!
//! Layout: an 8-byte little-endian length, a JSON header padded with spaces to a multiple of
//! eight, the tensors' bytes one after another (<https://github.com/huggingface/safetensors>).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use safetensors::{SafeTensors, tensor::Dtype};

use crate::{Error, ErrorKind, Result};

/// The values of one entry of a checkpoint.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// A tensor of any type on any device.
    Tensor(&'a Tensor),
    /// A buffer of f32 with its shape (optimizer moments, accumulated gradients).
    F32 {
        /// The product is the number of values.
        shape: &'a [usize],
        /// Row-major.
        values: &'a [f32],
    },
    /// Bytes (quantized moments).
    U8 {
        /// The product is the number of values.
        shape: &'a [usize],
        /// Row-major.
        values: &'a [u8],
    },
}

impl<'a> From<&'a Tensor> for Values<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Values::Tensor(tensor)
    }
}

impl Values<'_> {
    fn shape(&self) -> &[usize] {
        match self {
            Values::Tensor(tensor) => tensor.dims(),
            Values::F32 { shape, .. } | Values::U8 { shape, .. } => shape,
        }
    }

    fn dtype(&self) -> DType {
        match self {
            Values::Tensor(tensor) => tensor.dtype(),
            Values::F32 { .. } => DType::F32,
            Values::U8 { .. } => DType::U8,
        }
    }

    fn byte_len(&self) -> usize {
        self.shape().iter().product::<usize>() * self.dtype().size_in_bytes()
    }

    /// Refuses a slice that is not as long as its shape says.
    fn check(&self, name: &str) -> Result<()> {
        let elements = self.shape().iter().product::<usize>();
        let given = match self {
            Values::Tensor(_) => elements,
            Values::F32 { values, .. } => values.len(),
            Values::U8 { values, .. } => values.len(),
        };
        if given != elements {
            let shape = self.shape();
            let message =
                format!("`{name}` has {given} values, expected {elements} for the shape {shape:?}");
            return Err(Error::new(ErrorKind::Tensor, message));
        }
        Ok(())
    }

    fn write(&self, sink: &mut dyn Write) -> Result<(), WriteError> {
        match self {
            Values::Tensor(tensor) => write_tensor(tensor, sink),
            Values::F32 { values, .. } => Ok(sink.write_all(bytemuck::cast_slice(values))?),
            Values::U8 { values, .. } => Ok(sink.write_all(values)?),
        }
    }
}

/// Why a tensor file could not be written: the disk, or the tensor.
#[derive(Debug)]
pub(crate) enum WriteError {
    Io(io::Error),
    Tensor(Error),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        WriteError::Io(error)
    }
}

impl From<Error> for WriteError {
    fn from(error: Error) -> Self {
        WriteError::Tensor(error)
    }
}

impl From<candle_core::Error> for WriteError {
    fn from(error: candle_core::Error) -> Self {
        WriteError::Tensor(error.into())
    }
}

/// Writes the file, in the order given.
pub(crate) fn write(
    tensors: &[(String, Values<'_>)],
    sink: &mut dyn Write,
) -> Result<(), WriteError> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, values) in tensors {
        values.check(name)?;
        let begin = end;
        end += values.byte_len();
        let dtype = Dtype::from(values.dtype());
        let entry = serde_json::json!({
            "dtype": dtype.to_string(), "shape": values.shape(), "data_offsets": [begin, end],
        });
        if header.insert(name.clone(), entry).is_some() {
            let message = format!("two tensors of a checkpoint are called `{name}`");
            return Err(Error::new(ErrorKind::Tensor, message).into());
        }
    }
    let mut header = serde_json::to_vec(&header).map_err(io::Error::from)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    sink.write_all(&(header.len() as u64).to_le_bytes())?;
    sink.write_all(&header)?;
    for (_, values) in tensors {
        values.write(sink)?;
    }
    Ok(())
}

fn write_tensor(tensor: &Tensor, sink: &mut dyn Write) -> Result<(), WriteError> {
    let on_cpu = tensor.device().is_cpu() && tensor.is_contiguous();
    let copy;
    let tensor = if on_cpu {
        tensor
    } else {
        copy = tensor.to_device(&Device::Cpu)?.contiguous()?;
        &copy
    };
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(Error::new(ErrorKind::Tensor, "a tensor did not come to the CPU").into());
    };
    let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
    let outside = || Error::new(ErrorKind::Tensor, "a tensor is longer than its storage");
    // Little-endian machines only, as candle's own readers and writers are.
    macro_rules! bytes {
        ($values:expr) => {
            bytemuck::cast_slice($values.get(range).ok_or_else(outside)?)
        };
    }
    let bytes: &[u8] = match storage {
        CpuStorage::U8(values) => bytes!(values),
        CpuStorage::U32(values) => bytes!(values),
        CpuStorage::I16(values) => bytes!(values),
        CpuStorage::I32(values) => bytes!(values),
        CpuStorage::I64(values) => bytes!(values),
        CpuStorage::BF16(values) => bytes!(values),
        CpuStorage::F16(values) => bytes!(values),
        CpuStorage::F32(values) => bytes!(values),
        CpuStorage::F64(values) => bytes!(values),
        _ => {
            let message = format!("a checkpoint cannot hold `{}`", tensor.dtype().as_str());
            return Err(Error::new(ErrorKind::Tensor, message).into());
        }
    };
    Ok(sink.write_all(bytes)?)
}

/// Reads a whole file to `device`.
pub(crate) fn read(path: &Path, device: &Device) -> Result<BTreeMap<String, Tensor>> {
    let file = File::open(path).map_err(|error| Error::io("read", path, error))?;
    // SAFETY: the run directory is locked by this process, so nobody shortens the file meanwhile.
    let map = unsafe { memmap2::Mmap::map(&file) };
    let map = map.map_err(|error| Error::io("read", path, error))?;
    let damaged = |error| {
        Error::new(ErrorKind::Io, "the checkpoint's tensors cannot be read")
            .in_file(path)
            .because(error)
    };
    let tensors = SafeTensors::deserialize(&map).map_err(damaged)?;
    let mut read = BTreeMap::new();
    for (name, view) in tensors.iter() {
        let dtype = DType::try_from(view.dtype())?;
        let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), device)?;
        read.insert(name.to_string(), tensor);
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn written(tensors: &[(String, Values<'_>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(tensors, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn every_type_comes_back_bit_for_bit() {
        let cpu = &Device::Cpu;
        // A NaN with a payload and a negative zero: values that a conversion would lose.
        let odd = [f32::from_bits(0x7fc1_2345), -0.0, f32::MIN_POSITIVE / 2.0, 1.5];
        let floats = Tensor::from_slice(&odd, (2, 2), cpu).unwrap();
        let halves = Tensor::from_slice(&[bf16::from_bits(0x7fa1), bf16::ONE], 2, cpu).unwrap();
        let wide = Tensor::from_slice(&[0.1f64, f64::NAN], (1, 2), cpu).unwrap();
        let ids = Tensor::from_slice(&[u32::MAX, 0], 2, cpu).unwrap();
        let turned = floats.t().unwrap();
        let part = floats.narrow(0, 1, 1).unwrap();
        let scalar = Tensor::new(2.5f32, cpu).unwrap();
        let empty = Tensor::zeros((0, 3), DType::F32, cpu).unwrap();
        let named: Vec<(String, Values<'_>)> = [
            ("floats", &floats),
            ("halves", &halves),
            ("wide", &wide),
            ("ids", &ids),
            ("turned", &turned),
            ("part", &part),
            ("scalar", &scalar),
            ("empty", &empty),
        ]
        .into_iter()
        .map(|(name, tensor)| (name.to_string(), tensor.into()))
        .chain([("moment".to_string(), Values::F32 { shape: &[4], values: &odd })])
        .collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        std::fs::write(&path, written(&named)).unwrap();
        let back = read(&path, cpu).unwrap();
        assert_eq!(back.len(), 9);
        let bits = |name: &str| -> Vec<u32> {
            let values = back[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.into_iter().map(f32::to_bits).collect()
        };
        let expected = odd.map(f32::to_bits);
        assert_eq!(bits("floats"), expected);
        assert_eq!(bits("moment"), expected);
        assert_eq!(bits("turned"), [expected[0], expected[2], expected[1], expected[3]]);
        assert_eq!(bits("part"), expected[2..]);
        assert_eq!(back["halves"].to_vec1::<bf16>().unwrap()[0].to_bits(), 0x7fa1);
        assert!(back["wide"].to_vec2::<f64>().unwrap()[0][1].is_nan());
        assert_eq!(back["ids"].to_vec1::<u32>().unwrap(), [u32::MAX, 0]);
        assert_eq!(back["scalar"].to_scalar::<f32>().unwrap(), 2.5);
        assert_eq!(back["empty"].dims(), [0, 3]);
    }

    #[test]
    fn a_buffer_that_does_not_fit_its_shape_is_refused() {
        let values = Values::F32 { shape: &[3], values: &[1.0] };
        let WriteError::Tensor(error) =
            write(&[("m".to_string(), values)], &mut Vec::new()).unwrap_err()
        else {
            panic!("not a tensor error")
        };
        assert_eq!(error.message(), "`m` has 1 values, expected 3 for the shape [3]");
    }

    #[test]
    fn a_name_used_twice_is_refused() {
        let one = || ("m".to_string(), Values::U8 { shape: &[1], values: &[1] });
        assert!(write(&[one(), one()], &mut Vec::new()).is_err());
    }
}
