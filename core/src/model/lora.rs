//! LoRA adapters on a decoder's linear layers (Hu et al. 2021; rsLoRA: Kalajdzievski 2023).

use std::collections::HashSet;

use candle_core::{Device, Tensor};

use super::Decoder;
use super::linear::Lora;
use super::param::{Param, Value};
use super::weights::adapter::{Adapter, AdapterConfig};
use crate::ops::dropout::hash;
use crate::{Error, Result};

/// The linear layers of a block, in the order of the computation.
pub const MATRICES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

impl AdapterConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// A rank of zero, an alpha of zero, a dropout outside [0, 1).
    pub fn validate(&self) -> Result<()> {
        if self.rank == 0 {
            return Err(Error::config("`lora-rank` is `0`: expected at least 1"));
        }
        if !self.alpha.is_finite() || self.alpha == 0.0 {
            let message = format!("`lora-alpha` is `{}`: expected a number, not 0", self.alpha);
            return Err(Error::config(message));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let message = format!("`lora-dropout` is `{}`: expected 0 ≤ dropout < 1", self.dropout);
            return Err(Error::config(message));
        }
        Ok(())
    }
}

impl Decoder {
    /// Gives each targeted layer a fresh adapter and trains the adapters alone. `A` is uniform in
    /// ±1/√in as in PEFT, drawn from SplitMix64 by (seed, matrix, element); `B` is zero.
    ///
    /// # Errors
    /// An invalid configuration.
    pub fn add_lora(&mut self, config: &AdapterConfig, seed: u64) -> Result<()> {
        let device = self.device().clone();
        self.attach_lora(config, |_, number, shape, is_a| {
            let count = shape.0 * shape.1;
            let values = match is_a {
                true => uniform(seed, number, count, shape.1),
                false => vec![0.0; count],
            };
            Ok(Tensor::from_vec(values, shape, &device)?)
        })
    }

    /// Gives each targeted layer its factors of a PEFT adapter, and trains the adapters alone, with
    /// the value head where the adapter has one.
    ///
    /// # Errors
    /// An adapter made for another model.
    pub fn load_lora(&mut self, adapter: &Adapter) -> Result<()> {
        let device = self.device().clone();
        self.attach_lora(&adapter.config, |path, _, _, is_a| {
            let factors = adapter
                .factors
                .get(path)
                .ok_or_else(|| Error::model(format!("the adapter has no factors for `{path}`")))?;
            if is_a { factors.a.to_tensor(&device) } else { factors.b.to_tensor(&device) }
        })?;
        match &adapter.score {
            Some(score) => self.set_score(score.to_tensor(&device)?),
            None => Ok(()),
        }
    }

    fn attach_lora(
        &mut self,
        config: &AdapterConfig,
        mut make: impl FnMut(&str, u64, (usize, usize), bool) -> Result<Tensor>,
    ) -> Result<()> {
        config.validate()?;
        let targets: HashSet<String> =
            config.modules(&self.config)?.into_iter().map(|(path, ..)| path).collect();
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            for (index, (matrix, linear)) in MATRICES.iter().zip(block.linears_mut()).enumerate() {
                let path = format!("model.layers.{layer}.{matrix}");
                if !targets.contains(&path) {
                    continue;
                }
                let number = (MATRICES.len() * layer + index) as u64;
                let (output, input) = (linear.weight.dims()[0], linear.weight.dims()[1]);
                let mut param = |side: &str, shape, is_a| -> Result<Param> {
                    let name = format!("{path}.lora_{side}.weight");
                    let value = make(&path, number, shape, is_a)?;
                    Ok(Param::new(name, Value::Dense(value)))
                };
                linear.lora = Some(Lora {
                    a: param("A", (config.rank, input), true)?,
                    b: param("B", (output, config.rank), false)?,
                    scale: config.scaling() as f32,
                    dropout: config.dropout as f32,
                    id: number,
                });
            }
        }
        self.train_where(|param| is_lora(param.name()))
    }

    /// Adds each adapter to its matrix and removes it. Matrices that were held as in their file
    /// become dense.
    ///
    /// # Errors
    /// When candle cannot allocate.
    pub fn merge_lora(&mut self) -> Result<()> {
        let device = self.device().clone();
        for block in &mut self.blocks {
            for linear in block.linears_mut() {
                if let Some(lora) = linear.lora.take() {
                    linear.weight = merged(&linear.weight, &lora, &device)?;
                }
            }
        }
        self.train_where(|_| false)
    }
}

/// Whether a parameter of this name belongs to an adapter.
pub fn is_lora(name: &str) -> bool {
    name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight")
}

fn merged(weight: &Param, lora: &Lora, device: &Device) -> Result<Param> {
    let (a, b) = (lora.a.to_f32()?, lora.b.to_f32()?);
    let update = (b.matmul(&a)? * f64::from(lora.scale))?;
    let sum = (weight.to_f32()? + update)?.to_device(device)?;
    Ok(Param::new(weight.name(), Value::Dense(sum)))
}

/// Uniform in ±1/√input, 24 random bits each.
fn uniform(seed: u64, number: u64, count: usize, input: usize) -> Vec<f32> {
    let bound = (1.0 / (input as f64).sqrt()) as f32;
    (0..count as u64)
        .map(|element| {
            let unit = (hash(seed, number << 32 | element) >> 40) as f32 / (1 << 24) as f32;
            (2.0 * unit - 1.0) * bound
        })
        .collect()
}
