//! A narrower student: the channels, neurons and heads of its teacher that most goes through
//! ("Compact Language Models via Pruning and Knowledge Distillation", Muralidharan et al. 2024).

use candle_core::{Device, Tensor};
use halter_core::model::config::ModelConfig;
use halter_core::model::importance::Importance;
use halter_core::model::weights::StoredTensor;
use halter_core::{Error, Result};

/// How wide a student is to be; as its teacher where nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Widths {
    /// Of the stream.
    pub hidden_size: Option<usize>,
    /// Of the feed-forward layer.
    pub intermediate_size: Option<usize>,
    /// Key and value heads, each with its query heads.
    pub num_key_value_heads: Option<usize>,
}

impl Widths {
    /// Whether anything is said.
    pub fn are_given(&self) -> bool {
        *self != Self::default()
    }

    /// Refuses what a model of `config` cannot be narrowed to.
    ///
    /// # Errors
    /// Names the value, and what was expected.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        for (name, wanted, most) in [
            ("hidden-size", self.hidden_size, config.hidden_size),
            ("intermediate-size", self.intermediate_size, config.intermediate_size),
            ("num-key-value-heads", self.num_key_value_heads, config.num_key_value_heads),
        ] {
            if let Some(wanted) = wanted.filter(|wanted| !(1..=most).contains(wanted)) {
                return Err(Error::config(format!("`{name}` is `{wanted}`: expected 1 to {most}")));
            }
        }
        Ok(())
    }
}

/// What stays of a teacher's width; every list rises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Narrowed {
    hidden: Vec<usize>,
    /// By the teacher's blocks.
    neurons: Vec<Vec<usize>>,
    /// By the teacher's blocks.
    kv_heads: Vec<Vec<usize>>,
    heads_per_kv: usize,
    head_dim: usize,
}

/// The places of the `count` largest, rising; of equal ones the first.
fn largest(values: &[f64], count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..values.len()).collect();
    places.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    places.truncate(count);
    places.sort_unstable();
    places
}

impl Narrowed {
    /// What stays of a model of `config`.
    pub fn new(config: &ModelConfig, importance: &Importance, widths: Widths) -> Self {
        let heads_per_kv = config.num_attention_heads / config.num_key_value_heads;
        let neurons = widths.intermediate_size.unwrap_or(config.intermediate_size);
        let kv_heads = widths.num_key_value_heads.unwrap_or(config.num_key_value_heads);
        let groups = |heads: &Vec<f64>| -> Vec<f64> {
            heads.chunks(heads_per_kv).map(|group| group.iter().sum()).collect()
        };
        let of_block = |heads| largest(&groups(heads), kv_heads);
        Self {
            hidden: largest(&importance.hidden, widths.hidden_size.unwrap_or(config.hidden_size)),
            neurons: importance.neurons.iter().map(|all| largest(all, neurons)).collect(),
            kv_heads: importance.heads.iter().map(of_block).collect(),
            heads_per_kv,
            head_dim: config.head_dim,
        }
    }

    /// The student's configuration.
    pub fn config(&self, teacher: &ModelConfig) -> ModelConfig {
        let mut config = teacher.clone();
        config.hidden_size = self.hidden.len();
        config.intermediate_size = self.neurons.first().map_or(0, Vec::len);
        config.num_key_value_heads = self.kv_heads.first().map_or(0, Vec::len);
        config.num_attention_heads = config.num_key_value_heads * self.heads_per_kv;
        for (key, value) in [
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("num_key_value_heads", config.num_key_value_heads),
            ("num_attention_heads", config.num_attention_heads),
            // Elsewhere it would be the quotient of the two.
            ("head_dim", config.head_dim),
        ] {
            config.raw.insert(key.into(), value.into());
        }
        config
    }

    /// What stays of the teacher's parameter `stored`.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn cut(&self, stored: &StoredTensor) -> Result<Tensor> {
        let (block, part) = place(stored.name());
        let kv = || self.elements(&self.kv_heads[block], self.head_dim);
        let q = || self.elements(&self.kv_heads[block], self.head_dim * self.heads_per_kv);
        let (hidden, neurons) = (|| self.hidden.clone(), || self.neurons[block].clone());
        // Rows, or the elements of a vector, and columns; `None` for all.
        let (rows, columns) = match part {
            "embed_tokens.weight" | "lm_head.weight" | "score.weight" => (None, Some(hidden())),
            "self_attn.q_proj.weight" => (Some(q()), Some(hidden())),
            "self_attn.k_proj.weight" | "self_attn.v_proj.weight" => (Some(kv()), Some(hidden())),
            "self_attn.q_proj.bias" => (Some(q()), None),
            "self_attn.k_proj.bias" | "self_attn.v_proj.bias" => (Some(kv()), None),
            "self_attn.o_proj.weight" => (Some(hidden()), Some(q())),
            "mlp.gate_proj.weight" | "mlp.up_proj.weight" => (Some(neurons()), Some(hidden())),
            "mlp.gate_proj.bias" | "mlp.up_proj.bias" => (Some(neurons()), None),
            "mlp.down_proj.weight" => (Some(hidden()), Some(neurons())),
            "self_attn.q_norm.weight" | "self_attn.k_norm.weight" => (None, None),
            // Norms of the stream, and biases of what is added to it.
            _ => (Some(hidden()), None),
        };
        let whole = stored.to_tensor(&Device::Cpu)?;
        let select = |tensor: Tensor, kept: Option<Vec<usize>>, dim: usize| -> Result<Tensor> {
            let Some(kept) = kept else { return Ok(tensor) };
            let kept: Vec<u32> = kept.into_iter().map(|at| at as u32).collect();
            let count = kept.len();
            Ok(tensor.index_select(&Tensor::from_vec(kept, count, &Device::Cpu)?, dim)?)
        };
        select(select(whole, rows, 0)?, columns, 1)
    }

    /// The elements of groups of so many.
    fn elements(&self, groups: &[usize], size: usize) -> Vec<usize> {
        groups.iter().flat_map(|group| group * size..(group + 1) * size).collect()
    }
}

/// The block of a parameter, 0 where it has none, and its name there.
fn place(name: &str) -> (usize, &str) {
    let name = name.strip_prefix("model.").unwrap_or(name);
    let of_block = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    match of_block.and_then(|(at, part)| Some((at.parse().ok()?, part))) {
        Some(found) => found,
        None => (0, name),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

    use super::*;

    #[test]
    fn the_largest_stay_in_their_order() {
        assert_eq!(largest(&[0.5, 2.0, 1.0, 2.0], 2), [1, 3]);
        assert_eq!(largest(&[1.0, 1.0, 1.0], 2), [0, 1]);
        assert_eq!(largest(&[3.0, 1.0], 2), [0, 1]);
    }

    #[test]
    fn parameters_are_found_by_name() {
        assert_eq!(place("model.layers.12.mlp.up_proj.weight"), (12, "mlp.up_proj.weight"));
        assert_eq!(place("model.norm.weight"), (0, "norm.weight"));
        assert_eq!(place("lm_head.weight"), (0, "lm_head.weight"));
    }
}
