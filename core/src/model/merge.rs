//! A base and its LoRA adapter as one model: `W + scaling · B A` (Hu et al. 2021, section 4.1),
//! written as an export, one matrix in memory at a time.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::config::{Head, ModelConfig, ParamSpec};
use super::weights::adapter::{Adapter, LoraFactors};
use super::weights::export::{ExportOptions, ParamData, SideContent, SideFile, write_model};
use super::weights::text_files::{GENERATION, TextFiles, is_template_file};
use super::weights::{ModelFiles, StoredTensor, WeightFiles};
use crate::ops::matmul::{self, Into, Mat, MatMut};
use crate::train::progress::{Progress, Unit, counted};
use crate::{Error, Result};

/// Elements that are computed or compared at a time.
const PIECE: usize = 1 << 20;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// The files of the export.
    pub files: Vec<PathBuf>,
    /// Matrices that the adapter was added to.
    pub matrices: usize,
    /// Parameters of the model.
    pub parameters: usize,
}

/// Writes base plus adapter into `output` as weights of `dtype`, with tokenizer, template and
/// generation settings of the adapter where they are saved beside it, else of the base, and reads the export again: every element must be the one computed.
///
/// # Errors
/// An output that is not an empty directory, an adapter or a tokenizer of another model, values that are not
/// finite, a disk that is full or gives back something else. Nothing of a failed export remains.
pub fn merge(
    base: &ModelFiles,
    adapter: &Adapter,
    dtype: DType,
    output: &Path,
    progress: &mut dyn Progress,
) -> Result<Merged> {
    refuse_occupied(output)?;
    let source = Source { base, adapter };
    let config = source.config()?;
    let params = config.params();
    let matrices = source.check(&params)?;
    let new_dir = !output.exists();
    let (of_base, of_adapter) = side_files(&base.text.side_files, &adapter.side_files);
    for file in &of_adapter {
        if let ("tokenizer.json", SideContent::File(path)) = (&*file.name, &file.content) {
            TextFiles::open(path)?.check_fits(base.config.vocab_size)?;
        }
    }
    if !of_adapter.is_empty() {
        let names: Vec<&str> = of_adapter.iter().map(|file| &*file.name).collect();
        progress.note(&format!("from the adapter's directory: {}", names.join(", ")));
    }
    let side_files = [of_base, of_adapter].concat();

    let options = ExportOptions { dtype, ..ExportOptions::default() };
    let mut written = 0;
    progress.begin("writing", params.len() as u64, Unit::Items);
    let files = write_model(output, &config, &side_files, &options, |param| {
        written += 1;
        progress.advance(written, "");
        source.data(param)
    });
    progress.finish();
    let files = files?;

    progress.begin("reading again", params.len() as u64, Unit::Items);
    let verified = source.verify(output, &params, dtype, progress);
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
    Ok(Merged { files, matrices, parameters })
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

/// What is taken of the base's files and of the adapter's, which go first, a kind at a time: what
/// it was trained with belongs together. A tokenizer has its template with it.
fn side_files(base: &[SideFile], adapter: &[SideFile]) -> (Vec<SideFile>, Vec<SideFile>) {
    let is_there = |kind: &dyn Fn(&str) -> bool| adapter.iter().any(|file| kind(&file.name));
    let tokenizer = is_there(&|name| name == "tokenizer.json");
    let (template, generation) =
        (is_there(&is_template_file), is_there(&|name| name == GENERATION));
    let of_adapter = |file: &&SideFile| match file.name.as_str() {
        GENERATION => generation,
        name if is_template_file(name) => template || tokenizer,
        _ => tokenizer,
    };
    let of_base = base.iter().filter(|file| !of_adapter(file));
    (of_base.cloned().collect(), adapter.iter().filter(of_adapter).cloned().collect())
}

struct Source<'a> {
    base: &'a ModelFiles,
    adapter: &'a Adapter,
}

impl Source<'_> {
    /// The configuration of the merged model: an adapter with a value head makes a reward model.
    fn config(&self) -> Result<ModelConfig> {
        let mut config = self.base.config.clone();
        if self.adapter.score.is_some() {
            config.head = Head::Score;
            config.pad_token_id = match config.pad_token_id {
                Some(id) => Some(id),
                None => self.base.padding()?,
            };
        }
        Ok(config)
    }

    /// A parameter before the factors are added.
    fn stored(&self, name: &str) -> Result<StoredTensor> {
        match &self.adapter.score {
            Some(score) if name == "score.weight" => Ok(score.clone()),
            _ => self.base.weights.get(name),
        }
    }

    /// Every pair of factors must have its matrix; returns how many there are.
    fn check(&self, params: &[ParamSpec]) -> Result<usize> {
        let found = params.iter().filter(|param| self.factors(&param.name).is_some()).count();
        if found != self.adapter.factors.len() {
            return Err(Error::model(format!(
                "the adapter has factors for {} matrices, of which the model has {found}",
                self.adapter.factors.len()
            )));
        }
        Ok(found)
    }

    fn factors(&self, param: &str) -> Option<&LoraFactors> {
        self.adapter.factors.get(param.strip_suffix(".weight")?)
    }

    fn data(&self, param: &ParamSpec) -> Result<ParamData> {
        let stored = self.stored(&param.name)?;
        let Some(factors) = self.factors(&param.name) else { return Ok(ParamData::Stored(stored)) };
        let sum = merged(&stored, factors, self.adapter.config.scaling() as f32)?;
        Ok(ParamData::Tensor(Tensor::from_vec(sum, stored.shape(), &Device::Cpu)?))
    }

    /// Reads the export and compares every element with the one computed anew.
    fn verify(
        &self,
        output: &Path,
        params: &[ParamSpec],
        dtype: DType,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let config = ModelConfig::from_file(output.join("config.json"))?;
        let export = WeightFiles::open(output)?;
        export.check(&config)?;
        for (index, param) in params.iter().enumerate() {
            let (found, stored) = (export.get(&param.name)?, self.stored(&param.name)?);
            let sum = match self.factors(&param.name) {
                Some(factors) => {
                    Some(merged(&stored, factors, self.adapter.config.scaling() as f32)?)
                }
                None => None,
            };
            compare(&found, &stored, sum.as_deref(), dtype).map_err(|e| e.in_file(output))?;
            progress.advance(index as u64 + 1, "");
        }
        Ok(())
    }
}

/// `W + scaling · B A`, row-major. The product is made for some rows at a time, so that it needs
/// no second matrix.
fn merged(weight: &StoredTensor, factors: &LoraFactors, scaling: f32) -> Result<Vec<f32>> {
    let (out, input) = (weight.rows(), weight.row_len());
    let rank = factors.a.rows();
    if factors.a.shape() != [rank, input] || factors.b.shape() != [out, rank] {
        return Err(Error::model(format!(
            "`{}` has the shape {:?}, its factors {:?} and {:?}",
            weight.name(),
            weight.shape(),
            factors.b.shape(),
            factors.a.shape()
        )));
    }
    let (a, b) = (factors.a.to_vec()?, factors.b.to_vec()?);
    let mut sum = weight.to_vec()?;
    let step = (PIECE / input.max(1)).clamp(1, out.max(1));
    let mut update = vec![0.0; step * input];
    for (b, sum) in b.chunks(step * rank).zip(sum.chunks_mut(step * input)) {
        let (rows, update) = (sum.len() / input, &mut update[..sum.len()]);
        let (b, a) = (Mat::new(b, rows, rank), Mat::new(&a, rank, input));
        matmul::parallel(b, a, Into::Overwrite, MatMut::new(update, rows, input));
        for (sum, update) in sum.iter_mut().zip(update) {
            *sum += *update * scaling;
        }
    }
    Ok(sum)
}

/// Compares a tensor of the export with `sum`, or with the base's where nothing was added.
fn compare(
    found: &StoredTensor,
    stored: &StoredTensor,
    sum: Option<&[f32]>,
    dtype: DType,
) -> Result<()> {
    let (rows, row_len) = (found.rows(), found.row_len());
    let step = (PIECE / row_len.max(1)).clamp(1, rows.max(1));
    let (mut got, mut own) = (vec![0.0; step * row_len], vec![0.0; step * row_len]);
    for start in (0..rows).step_by(step) {
        let end = (start + step).min(rows);
        let got = &mut got[..(end - start) * row_len];
        found.read_rows_into(start..end, got)?;
        let expected = match sum {
            Some(sum) => &sum[start * row_len..end * row_len],
            None => {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(shape: &[usize], value: impl Fn(usize) -> f32) -> StoredTensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        StoredTensor::from_f32("w", shape, &values).unwrap()
    }

    #[test]
    fn the_pieces_of_a_wide_matrix_are_those_of_the_whole() {
        // Rows of more than half a piece: each is a piece of its own.
        let input = PIECE / 2 + 1;
        let factors = LoraFactors {
            a: stored(&[2, input], |i| (i % 7) as f32),
            b: stored(&[3, 2], |i| i as f32),
        };
        let sum = merged(&stored(&[3, input], |i| (i % 5) as f32), &factors, 0.5).unwrap();
        for row in 0..3 {
            for column in [0, 1, 2, 100, input - 1] {
                let a = |r: usize| ((r * input + column) % 7) as f32;
                let update = (2 * row) as f32 * a(0) + (2 * row + 1) as f32 * a(1);
                let expected = ((row * input + column) % 5) as f32 + 0.5 * update;
                assert_eq!(sum[row * input + column], expected, "{row} {column}");
            }
        }
    }

    #[test]
    fn factors_of_another_shape_are_an_error() {
        let factors = LoraFactors { a: stored(&[2, 4], |_| 0.0), b: stored(&[3, 1], |_| 0.0) };
        let error = merged(&stored(&[3, 4], |_| 0.0), &factors, 1.0).unwrap_err();
        assert_eq!(error.to_string(), "`w` has the shape [3, 4], its factors [3, 1] and [2, 4]");
    }

    #[test]
    fn a_changed_element_is_found_in_every_type() {
        let base = stored(&[4, 5], |i| 1.0 + i as f32 / 3.0);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let written = |bump: f32| {
                stored(&[4, 5], |i| {
                    let value = narrowed(1.0 + i as f32 / 3.0, dtype);
                    if i == 13 { value + bump } else { value }
                })
            };
            assert!(compare(&written(0.0), &base, None, dtype).is_ok());
            let error = compare(&written(0.5), &base, None, dtype).unwrap_err();
            assert!(error.message().ends_with("`w` differs in 1 place"), "{error}");
        }
    }
}
