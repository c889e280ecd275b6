//! LoRA adapters on a decoder's linear layers (Hu et al. 2021; rsLoRA: Kalajdzievski 2023).

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::Decoder;
use super::block::Block;
use super::linear::{Linear, Lora};
use super::param::{Param, Value};
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

/// What an adapter is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Width of the low-rank update.
    pub rank: usize,
    /// The update counts `alpha / rank`-fold (`alpha / √rank` with `use_rslora`).
    pub alpha: f64,
    /// Names of the matrices that get one (`q_proj`, …); all linear layers where empty.
    pub target_modules: Vec<String>,
    /// Scale by `1 / √rank`.
    pub use_rslora: bool,
    /// Probability that an input of the adapter is dropped in training.
    pub dropout: f64,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0, target_modules: Vec::new(), use_rslora: false, dropout: 0.0 }
    }
}

impl LoraConfig {
    /// What the product of the two matrices is multiplied by.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Checks the values.
    ///
    /// # Errors
    /// A rank of zero, a dropout outside [0, 1), an unknown target module.
    pub fn validate(&self) -> Result<()> {
        if self.rank == 0 {
            return Err(Error::config("`lora-rank` is `0`: expected at least 1"));
        }
        if !self.alpha.is_finite() || self.alpha == 0.0 {
            return Err(Error::config(format!("`lora-alpha` is `{}`", self.alpha)));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let message = format!("`lora-dropout` is `{}`: expected 0 ≤ dropout < 1", self.dropout);
            return Err(Error::config(message));
        }
        for target in &self.target_modules {
            if !MATRICES.iter().any(|name| matches_target(name, target)) {
                let known: Vec<&str> = MATRICES.iter().map(|name| short(name)).collect();
                return Err(Error::config(format!("unknown LoRA target module `{target}`"))
                    .hint(format!("the targets are {}", known.join(", "))));
            }
        }
        Ok(())
    }

    fn targets(&self, matrix: &str) -> bool {
        self.target_modules.is_empty()
            || self.target_modules.iter().any(|target| matches_target(matrix, target))
    }
}

fn short(matrix: &str) -> &str {
    matrix.rsplit('.').next().unwrap_or(matrix)
}

fn matches_target(matrix: &str, target: &str) -> bool {
    matrix == target || short(matrix) == target
}

impl Decoder {
    /// Gives each targeted layer a fresh adapter and trains the adapters alone. `A` is uniform in
    /// ±1/√in as in PEFT, drawn from SplitMix64 by (seed, matrix, element); `B` is zero.
    ///
    /// # Errors
    /// An invalid configuration.
    pub fn add_lora(&mut self, config: &LoraConfig, seed: u64) -> Result<()> {
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

    /// Gives each targeted layer the adapter that `tensor` returns by parameter name
    /// (`model.layers.0.self_attn.q_proj.lora_A.weight`), and trains the adapters alone.
    ///
    /// # Errors
    /// An invalid configuration, a tensor that is missing or of another shape.
    pub fn load_lora(
        &mut self,
        config: &LoraConfig,
        mut tensor: impl FnMut(&str) -> Result<Tensor>,
    ) -> Result<()> {
        let device = self.device().clone();
        self.attach_lora(config, |name, _, shape, _| {
            let loaded = tensor(name)?;
            if loaded.dims() != [shape.0, shape.1] {
                return Err(Error::model(format!(
                    "`{name}` has the shape {:?}, expected {:?}",
                    loaded.dims(),
                    [shape.0, shape.1]
                )));
            }
            Ok(loaded.to_dtype(candle_core::DType::F32)?.to_device(&device)?)
        })
    }

    fn attach_lora(
        &mut self,
        config: &LoraConfig,
        mut make: impl FnMut(&str, u64, (usize, usize), bool) -> Result<Tensor>,
    ) -> Result<()> {
        config.validate()?;
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            for (index, (matrix, linear)) in MATRICES.iter().zip(linears(block)).enumerate() {
                if !config.targets(matrix) {
                    continue;
                }
                let number = (MATRICES.len() * layer + index) as u64;
                let (output, input) = (linear.weight.dims()[0], linear.weight.dims()[1]);
                let mut param = |side: &str, shape, is_a| -> Result<Param> {
                    let name = format!("model.layers.{layer}.{matrix}.lora_{side}.weight");
                    let value = make(&name, number, shape, is_a)?;
                    Ok(Param::new(name, Value::Dense(value)))
                };
                linear.lora = Some(Lora {
                    a: param("A", (config.rank, input), true)?,
                    b: param("B", (output, config.rank), false)?,
                    scale: config.scale() as f32,
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
            for linear in linears(block) {
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

fn linears(block: &mut Block) -> [&mut Linear; 7] {
    [
        &mut block.q,
        &mut block.k,
        &mut block.v,
        &mut block.o,
        &mut block.gate,
        &mut block.up,
        &mut block.down,
    ]
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
