//! Models made of others, written as exports: an adapter in its base, or several models as one.
//! Either way one parameter is in memory at a time.

mod adapter;
mod formulas;
mod models;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

pub use adapter::{Merged, merge};
pub use models::{Method, Weighted, merge_models};

use super::config::{ModelConfig, ParamSpec};
use super::weights::export::{ExportOptions, ParamData, SideFile, write_model};
use super::weights::{StoredTensor, WeightFiles};
use crate::train::progress::{Progress, Unit, counted};
use crate::{Error, Result};

/// Elements that are computed or compared at a time.
const PIECE: usize = 1 << 20;

/// An export that was read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its files.
    pub files: Vec<PathBuf>,
    /// Parameters of the model.
    pub parameters: usize,
}

/// A parameter of the model that is written.
enum Values {
    /// As another model has it.
    Stored(StoredTensor),
    /// Computed, row-major.
    Computed(Vec<f32>),
}

impl Values {
    /// As the writer takes it.
    fn into_data(self, param: &ParamSpec) -> Result<ParamData> {
        Ok(match self {
            Self::Stored(stored) => ParamData::Stored(stored),
            Self::Computed(values) => {
                ParamData::Tensor(Tensor::from_vec(values, &*param.shape, &Device::Cpu)?)
            }
        })
    }
}

/// Writes what `get` gives for each parameter into `output` as weights of `dtype`, and reads the
/// export again: every element must be the one that `get`, asked anew, gives.
///
/// # Errors
/// Those of `get`, values that are not finite, a disk that is full or gives back something else.
/// Nothing of a failed export remains.
fn write_verified(
    output: &Path,
    config: &ModelConfig,
    side_files: &[SideFile],
    dtype: DType,
    progress: &mut dyn Progress,
    get: impl Fn(&ParamSpec) -> Result<Values>,
) -> Result<Written> {
    let params = config.params();
    let new_dir = !output.exists();
    let options = ExportOptions { dtype, ..ExportOptions::default() };
    let mut written = 0;
    progress.begin("writing", params.len() as u64, Unit::Items);
    let files = write_model(output, config, side_files, &options, |param| {
        written += 1;
        progress.advance(written, "");
        get(param)?.into_data(param)
    });
    progress.finish();
    let files = files?;

    progress.begin("reading again", params.len() as u64, Unit::Items);
    let verified = verify(output, &params, dtype, progress, get);
    progress.finish();
    if let Err(error) = verified {
        for file in &files {
            // The error at hand says more than one about cleaning up after it.
            let _ = std::fs::remove_file(file);
        }
        if new_dir {
            let _ = std::fs::remove_dir(output);
        }
        return Err(error);
    }
    let parameters = params.iter().map(|param| param.shape.iter().product::<usize>()).sum();
    Ok(Written { files, parameters })
}

/// Reads the export and compares every element with the one computed anew.
fn verify(
    output: &Path,
    params: &[ParamSpec],
    dtype: DType,
    progress: &mut dyn Progress,
    get: impl Fn(&ParamSpec) -> Result<Values>,
) -> Result<()> {
    let config = ModelConfig::from_file(output.join("config.json"))?;
    let export = WeightFiles::open(output)?;
    export.check(&config)?;
    for (index, param) in params.iter().enumerate() {
        let found = export.get(&param.name)?;
        compare(&found, &get(param)?, dtype).map_err(|e| e.in_file(output))?;
        progress.advance(index as u64 + 1, "");
    }
    Ok(())
}

/// Compares a tensor of the export with what was to be written.
fn compare(found: &StoredTensor, expected: &Values, dtype: DType) -> Result<()> {
    let (rows, row_len) = (found.rows(), found.row_len());
    let step = (PIECE / row_len.max(1)).clamp(1, rows.max(1));
    let (mut got, mut own) = (vec![0.0; step * row_len], vec![0.0; step * row_len]);
    for start in (0..rows).step_by(step) {
        let end = (start + step).min(rows);
        let got = &mut got[..(end - start) * row_len];
        found.read_rows_into(start..end, got)?;
        let expected = match expected {
            Values::Computed(values) => &values[start * row_len..end * row_len],
            Values::Stored(stored) => {
                let own = &mut own[..(end - start) * row_len];
                stored.read_rows_into(start..end, own)?;
                own
            }
        };
        let differing = got.iter().zip(expected).filter(|&(&a, &b)| a != narrowed(b, dtype));
        let count = differing.count();
        if count > 0 {
            return Err(Error::model(format!(
                "the export is not what was computed: `{}` differs in {}",
                found.name(),
                counted(count, "place")
            ))
            .hint("the disk gave back other values than were written"));
        }
    }
    Ok(())
}

/// The value as a type holds it.
fn narrowed(value: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => half::f16::from_f32(value).to_f32(),
        DType::BF16 => half::bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// Refuses an output that holds anything: an export must not mix with other files.
///
/// # Errors
/// A file, or a directory that is not empty.
pub fn refuse_occupied(output: &Path) -> Result<()> {
    let hint = "choose another `--output`, or an empty directory";
    if !output.exists() {
        return Ok(());
    }
    if !output.is_dir() {
        return Err(Error::config("the output is not a directory").in_file(output).hint(hint));
    }
    let failed = |error| Error::io("read", output, error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(output).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name());
    }
    // The first by name, not by the file system's order.
    match names.iter().min() {
        None => Ok(()),
        Some(name) => Err(Error::config(format!(
            "the output directory is not empty: it holds `{}`",
            name.to_string_lossy()
        ))
        .in_file(output)
        .hint(hint)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(shape: &[usize], value: impl Fn(usize) -> f32) -> StoredTensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        StoredTensor::from_f32("w", shape, &values).unwrap()
    }

    #[test]
    fn a_changed_element_is_found_in_every_type() {
        let value = |i: usize| 1.0 + i as f32 / 3.0;
        for expected in
            [Values::Stored(stored(&[4, 5], value)), Values::Computed((0..20).map(value).collect())]
        {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let written = |bump: f32| {
                    stored(&[4, 5], |i| {
                        narrowed(value(i), dtype) + if i == 13 { bump } else { 0.0 }
                    })
                };
                assert!(compare(&written(0.0), &expected, dtype).is_ok());
                let error = compare(&written(0.5), &expected, dtype).unwrap_err();
                assert!(error.message().ends_with("`w` differs in 1 place"), "{error}");
            }
        }
    }
}
