//! A base and its LoRA adapter as one model: `W + scaling · B A` (Hu et al. 2021, section 4.1),
//! written as an export, one matrix in memory at a time.

use std::path::{Path, PathBuf};

use candle_core::DType;

use super::{PIECE, Values, refuse_occupied, write_verified};
use crate::model::config::{Head, ModelConfig, ParamSpec};
use crate::model::weights::adapter::{Adapter, LoraFactors};
use crate::model::weights::export::{SideContent, SideFile};
use crate::model::weights::text_files::{GENERATION, TextFiles, is_template_file};
use crate::model::weights::{ModelFiles, StoredTensor};
use crate::ops::matmul::{self, Into, Mat, MatMut};
use crate::train::progress::Progress;
use crate::{Error, Result};

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
/// generation settings of the adapter where they are saved beside it, else of the base, and reads
/// the export again: every element must be the one computed.
///
/// # Errors
/// An output that is not an empty directory, an adapter or a tokenizer of another model, values that
/// are not finite, a disk that is full or gives back something else. Nothing of a failed export
/// remains.
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

    let written = write_verified(output, &config, &side_files, dtype, progress, |param| {
        source.values(&param.name)
    })?;
    Ok(Merged { files: written.files, matrices, parameters: written.parameters })
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

    fn values(&self, param: &str) -> Result<Values> {
        let stored = self.stored(param)?;
        Ok(match self.factors(param) {
            None => Values::Stored(stored),
            Some(factors) => {
                let scaling = self.adapter.config.scaling() as f32;
                Values::Computed(merged(&stored, factors, scaling)?)
            }
        })
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
}
