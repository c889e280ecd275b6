//! AdamW (Loshchilov & Hutter 2019), one pass over memory per parameter.

use candle_core::{DType, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::model::param::{Grads, Param};
use crate::ops::dropout::hash;
use crate::ops::simd::vectorize;
use crate::ops::{assign, on_a_worker, slices, zeros};
use crate::{Error, ErrorKind, Result};

mod eight_bit;

use eight_bit::EightBit;

/// Elements per task.
const CHUNK: usize = 1 << 14;

/// How the optimizer keeps its moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Optim {
    /// In f32: 8 bytes per trained parameter.
    #[default]
    #[serde(rename = "adamw")]
    AdamW,
    /// In 8 bits with a scale per 256 numbers: 2 bytes per trained parameter.
    #[serde(rename = "adamw_8bit")]
    AdamW8bit,
}

impl Optim {
    /// Bytes of the moments of one parameter in f32.
    pub fn bytes_per_parameter(self) -> f64 {
        match self {
            Self::AdamW => 8.0,
            Self::AdamW8bit => 2.0 + 8.0 / eight_bit::BLOCK as f64,
        }
    }
}

/// AdamW's constants.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay of matrices; norms and biases do not decay.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// AdamW's state: two moments per trained parameter, in 8 bits or f32 (f64 for f64 parameters), and
/// f32 master copies of parameters in a narrower type.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    step: u64,
    states: Vec<State>,
}

#[derive(Debug)]
struct State {
    moments: Moments,
    master: Option<Tensor>,
}

#[derive(Debug)]
enum Moments {
    Full { first: Tensor, second: Tensor },
    EightBit(EightBit),
}

/// The factors of one update, the same for every element.
#[derive(Clone, Copy)]
struct Factors {
    beta1: f64,
    beta2: f64,
    /// Learning rate over the first moment's bias correction.
    rate: f64,
    /// Root of the second moment's bias correction.
    correction: f64,
    eps: f64,
    /// What a parameter is multiplied by first.
    keep: f64,
    /// What a gradient is multiplied by first.
    clip: f64,
}

/// [`Factors`] in f32.
#[derive(Clone, Copy)]
struct Narrow {
    beta1: f32,
    beta2: f32,
    fresh1: f32,
    fresh2: f32,
    rate: f32,
    uncorrect: f32,
    eps: f32,
    keep: f32,
    clip: f32,
}

impl Factors {
    fn narrow(self) -> Narrow {
        Narrow {
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            fresh1: (1.0 - self.beta1) as f32,
            fresh2: (1.0 - self.beta2) as f32,
            rate: self.rate as f32,
            uncorrect: (1.0 / self.correction) as f32,
            eps: self.eps as f32,
            keep: self.keep as f32,
            clip: self.clip as f32,
        }
    }
}

impl Narrow {
    /// A parameter and its moments after the update with the gradient `g`.
    #[inline(always)]
    fn apply(self, value: f32, m: f32, v: f32, g: f32) -> (f32, f32, f32) {
        let g = g * self.clip;
        let m = m * self.beta1 + g * self.fresh1;
        let v = v * self.beta2 + g * g * self.fresh2;
        let moved = value * self.keep - self.rate * m / (v.sqrt() * self.uncorrect + self.eps);
        (moved, m, v)
    }
}

impl AdamW {
    /// Zeroed moments in full for `params`, in their order.
    ///
    /// # Errors
    /// A parameter that cannot be trained.
    pub fn new<'a>(
        config: AdamWConfig,
        params: impl IntoIterator<Item = &'a Param>,
    ) -> Result<Self> {
        Self::with_moments(config, Optim::AdamW, params)
    }

    /// Zeroed moments kept as `optim` says for `params`, which are all that the model trains, in
    /// their order.
    ///
    /// # Errors
    /// A parameter that cannot be trained, or for 8 bits one that is not f32 on the CPU.
    pub fn with_moments<'a>(
        config: AdamWConfig,
        optim: Optim,
        params: impl IntoIterator<Item = &'a Param>,
    ) -> Result<Self> {
        let state = |param: &Param| -> Result<State> {
            let value = dense(param)?;
            if optim == Optim::AdamW8bit {
                let moments = Moments::EightBit(EightBit::zeros(value)?);
                return Ok(State { moments, master: None });
            }
            let narrow = matches!(value.dtype(), DType::F16 | DType::BF16);
            let dtype = if narrow { DType::F32 } else { value.dtype() };
            let zeros = || zeros(value.shape(), dtype, value.device());
            let master = if narrow { Some(value.to_dtype(dtype)?) } else { None };
            Ok(State { moments: Moments::Full { first: zeros()?, second: zeros()? }, master })
        };
        let states = params.into_iter().map(state).collect::<Result<_>>()?;
        Ok(Self { config, step: 0, states })
    }

    /// Updates made so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Goes on as after `steps` updates; the moments are restored through [`Self::tensors`].
    pub fn set_steps(&mut self, steps: u64) {
        self.step = steps;
    }

    /// Its state tensors with names made from those of `params`, for a checkpoint.
    pub fn tensors<'a>(&'a self, params: &[&Param]) -> Vec<(String, &'a Tensor)> {
        let named = |(param, state): (&&Param, &'a State)| {
            let parts = match &state.moments {
                Moments::Full { first, second } => {
                    vec![("first_moment", first), ("second_moment", second)]
                }
                Moments::EightBit(moments) => moments.tensors().to_vec(),
            };
            let master = state.master.iter().map(|master| ("master", master));
            let name = param.name();
            let tensors = parts.into_iter().chain(master);
            tensors.map(|(part, tensor)| (format!("{name}.{part}"), tensor)).collect::<Vec<_>>()
        };
        params.iter().zip(&self.states).flat_map(named).collect()
    }

    /// One update with the gradients times `clip`.
    ///
    /// # Errors
    /// If `params` are not those it was made for.
    pub fn update(
        &mut self,
        params: &[&Param],
        grads: &Grads,
        learning_rate: f64,
        clip: f64,
    ) -> Result<()> {
        if params.len() != self.states.len() || grads.buffers().len() != self.states.len() {
            return Err(Error::new(
                ErrorKind::Tensor,
                format!("optimizer of `{}` parameters got `{}`", self.states.len(), params.len()),
            ));
        }
        self.begin_step();
        self.update_some(params, grads, learning_rate, clip)
    }

    /// Begins an update of which the parts follow through [`Self::update_some`].
    pub fn begin_step(&mut self) {
        self.step += 1;
    }

    /// The update of some of the trained parameters.
    ///
    /// # Errors
    /// A parameter that the optimizer was not made for.
    pub fn update_some(
        &self,
        params: &[&Param],
        grads: &Grads,
        learning_rate: f64,
        clip: f64,
    ) -> Result<()> {
        on_a_worker(|| {
            params.iter().try_for_each(|param| self.apply(param, grads, learning_rate, clip))
        })
    }

    fn apply(&self, param: &Param, grads: &Grads, learning_rate: f64, clip: f64) -> Result<()> {
        let slot = param.slot().unwrap_or(usize::MAX);
        let (Some(state), Some(grad)) = (self.states.get(slot), grads.buffers().get(slot)) else {
            let message = format!("the optimizer does not have `{}`", param.name());
            return Err(Error::new(ErrorKind::Tensor, message));
        };
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let power = self.step.min(i32::MAX as u64) as i32;
        let decays = param.dims().len() >= 2;
        let factors = Factors {
            beta1,
            beta2,
            rate: learning_rate / (1.0 - beta1.powi(power)),
            correction: (1.0 - beta2.powi(power)).sqrt(),
            eps,
            keep: if decays { 1.0 - learning_rate * weight_decay } else { 1.0 },
            clip,
        };
        let value = dense(param)?;
        match &state.moments {
            Moments::EightBit(moments) => {
                moments.update(value, grad, factors, hash(self.step, slot as u64))
            }
            Moments::Full { first, second } => {
                update_one(state.master.as_ref().unwrap_or(value), first, second, grad, factors)?;
                match &state.master {
                    Some(master) => assign(value, &master.to_dtype(value.dtype())?),
                    None => Ok(()),
                }
            }
        }
    }
}

fn dense(param: &Param) -> Result<&Tensor> {
    param.dense().ok_or_else(|| {
        Error::new(ErrorKind::Tensor, format!("`{}` cannot be trained", param.name()))
    })
}

fn update_one(
    value: &Tensor,
    first: &Tensor,
    second: &Tensor,
    grad: &Tensor,
    f: Factors,
) -> Result<()> {
    if !(value.device().is_cpu() && value.dtype() == DType::F32) {
        let grad = (grad.to_dtype(value.dtype())? * f.clip)?;
        let new_first = ((first * f.beta1)? + (&grad * (1.0 - f.beta1))?)?;
        let new_second = ((second * f.beta2)? + (grad.sqr()? * (1.0 - f.beta2))?)?;
        let scale = ((new_second.sqrt()? / f.correction)? + f.eps)?;
        let moved = ((value * f.keep)? - ((&new_first / scale)? * f.rate)?)?;
        assign(first, &new_first)?;
        assign(second, &new_second)?;
        return assign(value, &moved);
    }
    let grad = slices::read(grad)?;
    let f = f.narrow();
    slices::write3(value, first, second, |value, first, second| {
        value
            .par_chunks_mut(CHUNK)
            .zip(first.par_chunks_mut(CHUNK))
            .zip(second.par_chunks_mut(CHUNK))
            .zip(grad.par_chunks(CHUNK))
            .for_each(|(((value, first), second), grad)| {
                vectorize!({
                    for (((value, m), v), &g) in value.iter_mut().zip(first).zip(second).zip(grad) {
                        (*value, *m, *v) = f.apply(*value, *m, *v, g);
                    }
                });
            });
    })
}
