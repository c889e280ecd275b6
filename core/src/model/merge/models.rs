//! Several models of one configuration as one, parameter by parameter.

use std::path::Path;

use candle_core::DType;

use super::{Values, Written, formulas, refuse_occupied, write_verified};
use crate::model::config::{ModelConfig, ParamSpec};
use crate::model::weights::ModelFiles;
use crate::ops::dropout::{hash, hash_name};
use crate::text::tokenizer::Tokenizer;
use crate::train::progress::{Progress, counted};
use crate::{Error, Result};

/// One of the models.
pub struct Weighted {
    /// Its configuration, weights and tokenizer.
    pub files: ModelFiles,
    /// Its share, relative to the other models' weights; more than 0.
    pub weight: f64,
}

/// How the models become one.
pub enum Method<'a> {
    /// The weighted mean (Wortsman et al. 2022).
    Linear,
    /// Two models along the arc between them, each parameter as one vector (Shoemake 1985).
    Slerp {
        /// From the first model, 0, to the second, 1.
        t: f64,
    },
    /// Changes of a base, trimmed and with an elected sign (Yadav et al. 2023).
    Ties {
        /// What the models were trained from.
        base: &'a ModelFiles,
        /// The share of each parameter's changes that stays: above 0, at most 1.
        density: f64,
    },
    /// Changes of a base of which a random share stays, rescaled (Yu et al. 2024).
    Dare {
        /// What the models were trained from.
        base: &'a ModelFiles,
        /// The share of the changes that stays: above 0, at most 1.
        density: f64,
        /// Decides which ones, with the parameter's name and the model's place among the models.
        seed: u64,
        /// Whether signs are elected, as in TIES; else the changes' weighted mean is taken.
        elect: bool,
    },
}

impl Method<'_> {
    fn base(&self) -> Option<&ModelFiles> {
        match self {
            Self::Linear | Self::Slerp { .. } => None,
            Self::Ties { base, .. } | Self::Dare { base, .. } => Some(base),
        }
    }

    /// Refuses numbers that mean nothing, and too few or too many models.
    fn check(&self, models: &[Weighted]) -> Result<()> {
        let (least, most) = match self {
            Self::Linear => (2, usize::MAX),
            Self::Slerp { .. } => (2, 2),
            Self::Ties { .. } | Self::Dare { .. } => (1, usize::MAX),
        };
        if models.len() < least || models.len() > most {
            let expected = if most == least { "exactly" } else { "at least" };
            return Err(Error::config(format!(
                "{} given: the method takes {expected} {least}",
                counted(models.len(), "model")
            ))
            .hint("give as many `--model`"));
        }
        for model in models {
            if !(model.weight > 0.0 && model.weight.is_finite()) {
                return Err(Error::config(format!(
                    "the weight of `{}` is `{}`: expected a number above 0",
                    model.files.spec, model.weight
                )));
            }
        }
        match *self {
            Self::Slerp { t } if !(0.0..=1.0).contains(&t) => {
                Err(Error::config(format!("`t` is `{t}`: expected 0 to 1")))
            }
            Self::Slerp { .. } if models.iter().any(|model| model.weight != 1.0) => {
                Err(Error::config("models have weights, but SLERP takes none")
                    .hint("`--t` says how far to go from the first model to the second"))
            }
            Self::Ties { density, .. } | Self::Dare { density, .. }
                if !(density > 0.0 && density <= 1.0) =>
            {
                Err(Error::config(format!("`density` is `{density}`: expected above 0, at most 1")))
            }
            _ => Ok(()),
        }
    }

    /// What the models' values of the parameter become.
    fn merge(&self, models: &[Weighted], param: &ParamSpec) -> Result<Vec<f32>> {
        let values = |files: &ModelFiles| files.weights.get(&param.name)?.to_vec();
        let all = || models.iter().map(|model| values(&model.files)).collect::<Result<Vec<_>>>();
        let weights: Vec<f64> = models.iter().map(|model| model.weight).collect();
        Ok(match *self {
            Self::Linear => formulas::linear(&all()?, &weights),
            Self::Slerp { t } => {
                let all = all()?;
                formulas::slerp(&all[0], &all[1], t)
            }
            Self::Ties { base, density } => {
                formulas::ties(&values(base)?, &all()?, &weights, density)
            }
            Self::Dare { base, density, seed, elect } => {
                let of_param = hash_name(seed, &param.name);
                let seeds: Vec<u64> =
                    (0..models.len() as u64).map(|index| hash(of_param, index)).collect();
                formulas::dare(&values(base)?, &all()?, &weights, density, &seeds, elect)
            }
        })
    }
}

/// Writes what `method` makes of the models into `output` as weights of `dtype`, with the first
/// model's configuration, tokenizer, template and generation settings, and reads the export again:
/// every element must be the one computed. One parameter of every model is in memory at a time,
/// in f32.
///
/// # Errors
/// An output that is not an empty directory, numbers or a number of models that the method does not
/// take, models (the base among them) that differ in more than their weights, values that are not
/// finite, a disk that is full or gives back something else. Nothing of a failed export remains.
pub fn merge_models(
    models: &[Weighted],
    method: &Method,
    dtype: DType,
    output: &Path,
    progress: &mut dyn Progress,
) -> Result<Written> {
    refuse_occupied(output)?;
    method.check(models)?;
    let all: Vec<&ModelFiles> =
        models.iter().map(|model| &model.files).chain(method.base()).collect();
    all.windows(2).try_for_each(|pair| check_alike(pair[0], pair[1]))?;
    let first = all[0];
    write_verified(output, &first.config, &first.text.side_files, dtype, progress, |param| {
        Ok(Values::Computed(method.merge(models, param)?))
    })
}

/// Refuses two models that compute differently or read other tokens.
fn check_alike(a: &ModelFiles, b: &ModelFiles) -> Result<()> {
    let fields = fields(&a.config).into_iter().zip(fields(&b.config));
    for ((name, of_a), (_, of_b)) in fields {
        if of_a != of_b {
            return Err(Error::model(format!(
                "the models differ in `{name}`: {of_a} in `{}`, {of_b} in `{}`",
                a.spec, b.spec
            ))
            .hint("only models of one architecture and size can be merged"));
        }
    }
    let hint = "merge models that were trained from one, with its tokenizer";
    match (&a.text.tokenizer, &b.text.tokenizer) {
        (None, None) => return Ok(()),
        (Some(_), Some(_)) => {}
        (of_a, _) => {
            let (with, without) = if of_a.is_some() { (a, b) } else { (b, a) };
            return Err(Error::model(format!(
                "`{}` has a tokenizer, `{}` has none",
                with.spec, without.spec
            ))
            .hint(hint));
        }
    }
    let (of_a, of_b) = (a.tokenizer()?, b.tokenizer()?);
    if of_a.fingerprint() == of_b.fingerprint() {
        return Ok(());
    }
    let token = |of: &Tokenizer, id| of.id_to_token(id).unwrap_or_default();
    let ids = 0..of_a.id_limit().max(of_b.id_limit()) as u32;
    let differing = ids.map(|id| (id, token(&of_a, id), token(&of_b, id))).find(|x| x.1 != x.2);
    let (id, of_a, of_b) = differing.unwrap_or_default();
    Err(Error::model(format!(
        "the models have different tokenizers: token {id} is `{of_a}` in `{}`, `{of_b}` in `{}`",
        a.spec, b.spec
    ))
    .hint(hint))
}

/// What decides shapes and computation, by name.
fn fields(config: &ModelConfig) -> Vec<(&'static str, String)> {
    // Taken apart whole, so that a new field is thought of.
    macro_rules! apart {
        ($($field:ident)*; $($other:ident)*) => {{
            let ModelConfig { $($field,)* $($other: _,)* } = config;
            vec![$((stringify!($field), format!("{:?}", $field))),*]
        }};
    }
    apart!(
        family head vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
        num_key_value_heads head_dim rms_norm_eps rope_theta rope_scaling tie_word_embeddings
        qkv_bias o_bias mlp_bias qk_norm sliding_window;
        max_position_embeddings bos_token_id eos_token_ids pad_token_id raw
    )
}
