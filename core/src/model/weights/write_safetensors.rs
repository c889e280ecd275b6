//! Writes safetensors as a stream: the header first, from names and shapes, then one piece of one
//! tensor at a time. NaN and infinity are refused on the way.

use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;

use super::stored::StoredTensor;
use crate::model::config::ParamSpec;
use crate::{Error, ErrorKind, Result};

/// Elements that are converted at a time.
const PIECE: usize = 1 << 20;

/// The values of a parameter to be written.
pub enum ParamData {
    /// A tensor on any device, of f32, f16 or bf16.
    Tensor(Tensor),
    /// A tensor of a checkpoint, perhaps quantized.
    Stored(StoredTensor),
}

impl ParamData {
    fn shape(&self) -> &[usize] {
        match self {
            Self::Tensor(tensor) => tensor.dims(),
            Self::Stored(stored) => stored.shape(),
        }
    }
}

/// Names of the types in the header, and their sizes.
pub(super) fn type_name(dtype: DType) -> Result<(&'static str, usize)> {
    match dtype {
        DType::F32 => Ok(("F32", 4)),
        DType::F16 => Ok(("F16", 2)),
        DType::BF16 => Ok(("BF16", 2)),
        other => Err(Error::model(format!(
            "cannot write weights as `{}`: expected f32, f16 or bf16",
            other.as_str()
        ))),
    }
}

/// A temporary file that becomes `path` when it is kept, and vanishes otherwise.
pub(super) struct Pending {
    file: NamedTempFile,
    path: std::path::PathBuf,
}

impl Pending {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("file");
        let prefix = format!(".{name}.");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".tmp");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As any new file: what the umask leaves, not the 0600 of a secret.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(dir).map_err(|e| Error::io("write", path, e))?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// Fills the file and sees it onto the disk.
    pub(super) fn fill(
        path: &Path,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<Self> {
        let pending = Self::create(path)?;
        let mut buffered = std::io::BufWriter::with_capacity(1 << 20, pending.file.as_file());
        write(&mut buffered)?;
        buffered.flush().map_err(|e| Error::io("write", path, e))?;
        drop(buffered);
        pending.file.as_file().sync_all().map_err(|e| Error::io("write", path, e))?;
        Ok(pending)
    }

    /// Renames it to its name.
    pub(super) fn keep(self) -> Result<std::path::PathBuf> {
        self.file.persist(&self.path).map_err(|e| Error::io("rename", &self.path, e.error))?;
        Ok(self.path)
    }
}

/// Writes one file of parameters. `place` is for the messages.
pub(super) fn write(
    out: &mut dyn Write,
    place: &Path,
    params: &[ParamSpec],
    dtype: DType,
    get: &mut dyn FnMut(&ParamSpec) -> Result<ParamData>,
) -> Result<()> {
    let io = |e| Error::io("write", place, e);
    let header = header(params, dtype)?;
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    out.write_all(&header).map_err(io)?;
    let mut bytes = Vec::new();
    for param in params {
        let data = get(param)?;
        if data.shape() != param.shape {
            return Err(Error::model(format!(
                "`{}` has the shape {:?}: expected {:?} from the configuration",
                param.name,
                data.shape(),
                param.shape
            ))
            .in_file(place));
        }
        pieces(&data, &mut |values| {
            encode(values, dtype, &mut bytes);
            check(&param.name, values, dtype).map_err(|e| e.in_file(place))?;
            out.write_all(&bytes).map_err(io)
        })?;
    }
    Ok(())
}

fn header(params: &[ParamSpec], dtype: DType) -> Result<Vec<u8>> {
    let (type_name, size) = type_name(dtype)?;
    let mut map = Map::new();
    map.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut offset = 0;
    for param in params {
        let end = offset + param.shape.iter().product::<usize>() * size;
        let entry =
            json!({ "dtype": type_name, "shape": param.shape, "data_offsets": [offset, end] });
        map.insert(param.name.clone(), entry);
        offset = end;
    }
    let mut header = Value::Object(map).to_string().into_bytes();
    // Tensors begin at a multiple of eight.
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

/// Calls `each` with the values in order, some at a time.
fn pieces(data: &ParamData, each: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
    match data {
        ParamData::Stored(stored) => {
            let (rows, row_len) = (stored.rows(), stored.row_len());
            let step = (PIECE / row_len.max(1)).clamp(1, rows.max(1));
            let mut values = vec![0.0; step * row_len];
            for start in (0..rows).step_by(step) {
                let end = (start + step).min(rows);
                let values = &mut values[..(end - start) * row_len];
                stored.read_rows_into(start..end, values)?;
                each(values)?;
            }
        }
        ParamData::Tensor(tensor) => {
            let rows = tensor.dims().first().copied().unwrap_or(1);
            let tensor = if tensor.rank() == 0 { tensor.reshape(1)? } else { tensor.clone() };
            let step = (PIECE * rows / tensor.elem_count().max(1)).clamp(1, rows.max(1));
            for start in (0..rows).step_by(step) {
                let part = tensor.narrow(0, start, step.min(rows - start))?;
                let part = part.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
                each(&part.flatten_all()?.to_vec1::<f32>()?)?;
            }
        }
    }
    Ok(())
}

fn encode(values: &[f32], dtype: DType, bytes: &mut Vec<u8>) {
    bytes.clear();
    match dtype {
        DType::F16 => {
            bytes.extend(values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()));
        }
        DType::BF16 => {
            bytes.extend(values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()));
        }
        _ => bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
    }
}

fn check(name: &str, values: &[f32], dtype: DType) -> Result<()> {
    let narrow = |value: f32| match dtype {
        DType::F16 => half::f16::from_f32(value).is_finite(),
        DType::BF16 => half::bf16::from_f32(value).is_finite(),
        _ => value.is_finite(),
    };
    match values.iter().find(|&&value| !narrow(value)) {
        None => Ok(()),
        Some(value) if value.is_finite() => Err(Error::new(
            ErrorKind::Numeric,
            format!("`{name}` holds {value}, which does not fit `{}`", dtype.as_str()),
        )
        .hint("export as bf16 or f32")),
        Some(value) => Err(Error::new(
            ErrorKind::Numeric,
            format!("`{name}` holds {value}: refusing to export it"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for some bytes.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.0 < bytes.len() {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            self.0 -= bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing() {
        let params = [ParamSpec { name: "w".into(), shape: vec![64, 64] }];
        let mut get = |p: &ParamSpec| {
            let values = vec![1.0; 64 * 64];
            StoredTensor::from_f32(&p.name, &p.shape, &values).map(ParamData::Stored)
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let result = Pending::fill(&path, |out| {
            let place = Path::new("model.safetensors");
            write(&mut Full(500), place, &params, DType::F32, &mut get)?;
            write(out, place, &params, DType::F32, &mut get)
        });
        let error = result.err().unwrap();
        assert_eq!(error.to_string(), "model.safetensors: cannot write: no storage space");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
