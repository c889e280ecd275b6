//! AdamW (Loshchilov & Hutter 2019), one pass over memory per parameter.

use candle_core::{DType, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::model::param::{Grads, Param};
use crate::ops::simd::vectorize;
use crate::ops::{assign, on_a_worker, slices, zeros};
use crate::{Error, ErrorKind, Result};

/// Elements per task.
const CHUNK: usize = 1 << 14;

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

/// AdamW's state: two moments per trained parameter, in f32 (f64 for f64 parameters), and f32
/// master copies of parameters in a narrower type.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    step: u64,
    states: Vec<State>,
}

#[derive(Debug)]
struct State {
    first: Tensor,
    second: Tensor,
    master: Option<Tensor>,
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

impl AdamW {
    /// Zeroed moments for `params`, in their order.
    pub fn new<'a>(
        config: AdamWConfig,
        params: impl IntoIterator<Item = &'a Param>,
    ) -> Result<Self> {
        let state = |param: &Param| -> Result<State> {
            let value = dense(param)?;
            let narrow = matches!(value.dtype(), DType::F16 | DType::BF16);
            let dtype = if narrow { DType::F32 } else { value.dtype() };
            let zeros = || zeros(value.shape(), dtype, value.device());
            let master = if narrow { Some(value.to_dtype(dtype)?) } else { None };
            Ok(State { first: zeros()?, second: zeros()?, master })
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
            let name = param.name();
            let mut all = vec![
                (format!("{name}.first_moment"), &state.first),
                (format!("{name}.second_moment"), &state.second),
            ];
            all.extend(state.master.as_ref().map(|master| (format!("{name}.master"), master)));
            all
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
        self.step += 1;
        on_a_worker(|| self.apply(params, grads, learning_rate, clip))
    }

    fn apply(&self, params: &[&Param], grads: &Grads, learning_rate: f64, clip: f64) -> Result<()> {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let power = self.step.min(i32::MAX as u64) as i32;
        for ((param, state), grad) in params.iter().zip(&self.states).zip(grads.buffers()) {
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
            update_one(state.master.as_ref().unwrap_or(value), state, grad, factors)?;
            if let Some(master) = &state.master {
                assign(value, &master.to_dtype(value.dtype())?)?;
            }
        }
        Ok(())
    }
}

fn dense(param: &Param) -> Result<&Tensor> {
    param.dense().ok_or_else(|| {
        Error::new(ErrorKind::Tensor, format!("`{}` cannot be trained", param.name()))
    })
}

fn update_one(value: &Tensor, state: &State, grad: &Tensor, f: Factors) -> Result<()> {
    if !(value.device().is_cpu() && value.dtype() == DType::F32) {
        let grad = (grad.to_dtype(value.dtype())? * f.clip)?;
        let first = ((&state.first * f.beta1)? + (&grad * (1.0 - f.beta1))?)?;
        let second = ((&state.second * f.beta2)? + (grad.sqr()? * (1.0 - f.beta2))?)?;
        let scale = ((second.sqrt()? / f.correction)? + f.eps)?;
        let moved = ((value * f.keep)? - ((&first / scale)? * f.rate)?)?;
        assign(&state.first, &first)?;
        assign(&state.second, &second)?;
        return assign(value, &moved);
    }
    let grad = slices::read(grad)?;
    let narrow = |x: f64| x as f32;
    let (beta1, beta2) = (narrow(f.beta1), narrow(f.beta2));
    let (fresh1, fresh2) = (narrow(1.0 - f.beta1), narrow(1.0 - f.beta2));
    let (rate, uncorrect) = (narrow(f.rate), narrow(1.0 / f.correction));
    let (eps, keep, clip) = (narrow(f.eps), narrow(f.keep), narrow(f.clip));
    slices::write3(value, &state.first, &state.second, |value, first, second| {
        value
            .par_chunks_mut(CHUNK)
            .zip(first.par_chunks_mut(CHUNK))
            .zip(second.par_chunks_mut(CHUNK))
            .zip(grad.par_chunks(CHUNK))
            .for_each(|(((value, first), second), grad)| {
                vectorize!({
                    for (((value, m), v), &g) in value.iter_mut().zip(first).zip(second).zip(grad) {
                        let g = g * clip;
                        *m = *m * beta1 + g * fresh1;
                        *v = *v * beta2 + g * g * fresh2;
                        *value = *value * keep - rate * *m / (v.sqrt() * uncorrect + eps);
                    }
                });
            });
    })
}
