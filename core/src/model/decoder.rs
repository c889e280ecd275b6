//! The decoder: embedding, blocks, final norm and head, from a configuration.

use std::collections::HashSet;

use candle_core::{Device, Tensor};
use serde_json::Map;

use super::block::Block;
use super::config::{Head, ModelConfig};
use super::linear::Linear;
use super::lora::is_lora;
use super::param::{Grads, Param, Value};
use crate::ops::attention::Shape;
use crate::ops::{Context, rope};
use crate::{Error, Result};

/// Name of a reward model's value head.
const SCORE: &str = "score.weight";

/// A Llama-family decoder.
#[derive(Debug)]
pub struct Decoder {
    /// What it was built from.
    pub config: ModelConfig,
    /// `(vocabulary, hidden)`.
    pub embed: Param,
    /// The blocks, first to last.
    pub blocks: Vec<Block>,
    /// Norm before the head.
    pub norm: Param,
    /// `(vocabulary, hidden)`; the embedding serves where it is `None`.
    pub head: Option<Param>,
    /// `(1, hidden)`: the value head of a reward model.
    pub score: Option<Param>,
    /// Its row of the embedding gets no gradient, as in transformers.
    pub(crate) padding: Option<u32>,
    /// Rotary frequencies.
    pub(crate) frequencies: Vec<f32>,
    /// Device and scratch.
    pub(crate) ctx: Context,
    trained: usize,
}

impl Decoder {
    /// Builds the decoder, asking `value` for each parameter of [`ModelConfig::params`] in order.
    ///
    /// # Errors
    /// Whatever `value` fails with.
    pub fn new(
        config: ModelConfig,
        ctx: Context,
        mut value: impl FnMut(&str, &[usize]) -> Result<Value>,
    ) -> Result<Self> {
        let specs = config.params();
        let mut next = specs.into_iter();
        let mut take = |suffix: &str| -> Result<Param> {
            let spec = next.next().ok_or_else(|| Error::model("too few parameters"))?;
            if !spec.name.ends_with(suffix) {
                return Err(Error::model(format!("expected `…{suffix}`, got `{}`", spec.name)));
            }
            let value = value(&spec.name, &spec.shape)?;
            Ok(Param::new(spec.name, value))
        };
        let embed = take("embed_tokens.weight")?;
        let blocks = (0..config.num_hidden_layers)
            .map(|layer| build_block(&config, layer, &mut take))
            .collect::<Result<Vec<_>>>()?;
        let norm = take("norm.weight")?;
        let (mut head, mut score) = (None, None);
        match config.head {
            Head::Language if config.tie_word_embeddings => {}
            Head::Language => head = Some(take("lm_head.weight")?),
            Head::Score => score = Some(take("score.weight")?),
        }
        let frequencies = rope::inverse_frequencies(&config);
        let padding = config.pad_token_id;
        Ok(Self { config, embed, blocks, norm, head, score, padding, frequencies, ctx, trained: 0 })
    }

    /// Makes a reward model of it: `score (1, hidden)` takes the place of the head, and is trained
    /// beside what was trained before.
    ///
    /// # Errors
    /// A tensor of another shape.
    pub fn set_score(&mut self, score: Tensor) -> Result<()> {
        let expected = [1, self.config.hidden_size];
        if score.dims() != expected {
            let message =
                format!("`score.weight` has the shape {:?}: expected {expected:?}", score.dims());
            return Err(Error::model(message));
        }
        let trained: HashSet<String> =
            self.trained().into_iter().map(|param| param.name().to_string()).collect();
        self.config.head = Head::Score;
        self.head = None;
        self.score = Some(Param::new(SCORE, Value::Dense(score)));
        self.train_where(|param| trained.contains(param.name()) || param.name() == SCORE)
    }

    /// Refuses a reward model where tokens are wanted.
    ///
    /// # Errors
    /// If it is one.
    pub(crate) fn refuse_reward_model(&self) -> Result<()> {
        match self.config.head {
            Head::Language => Ok(()),
            Head::Score => {
                let message = "the model is a reward model, which says nothing of the next token";
                Err(Error::model(message).hint("give the language model that it was made from"))
            }
        }
    }

    /// The device it computes on.
    pub fn device(&self) -> &Device {
        self.ctx.device()
    }

    /// Scratch and device of its operations.
    pub fn context(&self) -> &Context {
        &self.ctx
    }

    /// The matrix of the head.
    pub fn head(&self) -> &Param {
        self.head.as_ref().unwrap_or(&self.embed)
    }

    /// Every parameter once, adapters included, in a fixed order.
    pub fn params(&self) -> Vec<&Param> {
        let mut params = vec![&self.embed];
        params.extend(self.blocks.iter().flat_map(Block::params));
        params.push(&self.norm);
        params.extend(self.top());
        params
    }

    /// What follows the norm.
    pub(crate) fn top(&self) -> impl Iterator<Item = &Param> {
        self.head.iter().chain(&self.score)
    }

    fn params_mut(&mut self) -> Vec<&mut Param> {
        let mut params = vec![&mut self.embed];
        params.extend(self.blocks.iter_mut().flat_map(Block::params_mut));
        params.push(&mut self.norm);
        params.extend(&mut self.head);
        params.extend(&mut self.score);
        params
    }

    /// The trained parameters; gradients and optimizer state follow this order.
    pub fn trained(&self) -> Vec<&Param> {
        self.params().into_iter().filter(|param| param.is_trained()).collect()
    }

    /// Trains exactly the parameters for which `choose` says so.
    ///
    /// # Errors
    /// If one of them is held in a form that cannot be trained.
    pub fn train_where(&mut self, choose: impl Fn(&Param) -> bool) -> Result<()> {
        let mut slot = 0;
        for param in self.params_mut() {
            if choose(param) {
                param.train(slot)?;
                slot += 1;
            } else {
                param.freeze();
            }
        }
        self.trained = slot;
        Ok(())
    }

    /// A copy that stays as it is while this one is trained; what is held as in its file is shared.
    ///
    /// # Errors
    /// When candle cannot allocate.
    pub fn frozen_copy(&self) -> Result<Self> {
        let mut copy = Self {
            config: self.config.clone(),
            embed: self.embed.clone(),
            blocks: self.blocks.clone(),
            norm: self.norm.clone(),
            head: self.head.clone(),
            score: self.score.clone(),
            padding: self.padding,
            frequencies: self.frequencies.clone(),
            ctx: self.ctx.clone(),
            trained: 0,
        };
        copy.params_mut().into_iter().try_for_each(Param::detach_and_freeze)?;
        Ok(copy)
    }

    /// Zeroed gradient buffers for [`Self::trained`].
    pub fn grads(&self) -> Result<Grads> {
        Grads::zeros(self.trained())
    }

    /// Gradient buffers for [`crate::train::pass::Pass::backward_each`] alone: one set for all
    /// blocks.
    pub fn rolling_grads(&self) -> Result<Grads> {
        let blocks = self.blocks.iter().map(|block| (true, block.params()));
        let last = std::iter::once(&self.norm).chain(self.top()).collect();
        Grads::shared([(false, vec![&self.embed])].into_iter().chain(blocks).chain([(false, last)]))
    }

    /// Elements of all parameters.
    pub fn parameters(&self) -> usize {
        self.params().into_iter().map(Param::elem_count).sum()
    }

    /// Bytes of all parameters as they are held.
    pub fn bytes(&self) -> usize {
        let bytes = |param: &Param| match param.dense() {
            Some(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
            None => param.stored_bytes(),
        };
        self.params().into_iter().map(bytes).sum()
    }

    /// What its frozen parameters are, hashed: name, shape, type and first elements of each.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn frozen_fingerprint(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"halter frozen parameters 1");
        for param in self.params().into_iter().filter(|param| !param.is_trained()) {
            param.hash_into(&mut hasher)?;
        }
        Ok(hasher.finalize().to_hex()[..32].to_string())
    }

    /// What its log-probs follow from, hashed: configuration and every element, with or without the
    /// adapters.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn fingerprint(&self, with_adapters: bool) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        let config = ModelConfig { raw: Map::new(), ..self.config.clone() };
        hasher.update(format!("halter model 1 {config:?}").as_bytes());
        for param in self.params().into_iter().filter(|p| with_adapters || !is_lora(p.name())) {
            param.hash_all_into(&mut hasher)?;
        }
        let loras = self.blocks.iter().flat_map(Block::linears).filter_map(|l| l.lora.as_ref());
        for lora in loras.filter(|_| with_adapters) {
            hasher.update(&lora.scale.to_le_bytes());
        }
        Ok(hasher.finalize().to_hex()[..32].to_string())
    }

    /// The lowest block that gradients must reach; `None` if they must reach the embedding.
    pub(crate) fn lowest_trained_block(&self) -> Option<usize> {
        if self.embed.is_trained() {
            return None;
        }
        let lowest = self.blocks.iter().position(Block::is_trained);
        Some(lowest.unwrap_or(self.blocks.len()))
    }
}

fn build_block(
    config: &ModelConfig,
    layer: usize,
    take: &mut impl FnMut(&str) -> Result<Param>,
) -> Result<Block> {
    fn linear(
        take: &mut impl FnMut(&str) -> Result<Param>,
        name: &str,
        bias: bool,
    ) -> Result<Linear> {
        let weight = take(&format!("{name}.weight"))?;
        let bias = if bias { Some(take(&format!("{name}.bias"))?) } else { None };
        Ok(Linear { weight, bias, lora: None })
    }
    Ok(Block {
        attention_norm: take("input_layernorm.weight")?,
        q: linear(take, "q_proj", config.qkv_bias)?,
        k: linear(take, "k_proj", config.qkv_bias)?,
        v: linear(take, "v_proj", config.qkv_bias)?,
        qk_norm: match config.qk_norm {
            true => Some((take("q_norm.weight")?, take("k_norm.weight")?)),
            false => None,
        },
        o: linear(take, "o_proj", config.o_bias)?,
        ffn_norm: take("post_attention_layernorm.weight")?,
        gate: linear(take, "gate_proj", config.mlp_bias)?,
        up: linear(take, "up_proj", config.mlp_bias)?,
        down: linear(take, "down_proj", config.mlp_bias)?,
        shape: Shape {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            window: config.sliding_window.get(layer).copied().flatten(),
        },
        eps: config.rms_norm_eps,
    })
}
