//! GGUF's names, shapes and row orders in Hugging Face's terms.

use super::super::bytes::SharedBytes;
use super::super::safetensors_header::short;
use super::super::stored::{RowOrder, StoredKind, StoredTensor};
use super::{Gguf, GgufTensor};
use crate::Result;
use crate::model::config::{Family, ModelConfig};

/// Within a block: GGUF's name, Hugging Face's name.
const BLOCK: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Hugging Face's name; `None` where there is none.
pub(super) fn to_hf(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    // `+1` or `007` would parse too, and then two names could mean one tensor.
    let plain =
        layer.bytes().all(|b| b.is_ascii_digit()) && (layer == "0" || !layer.starts_with('0'));
    let layer: u32 = layer.parse().ok().filter(|_| plain)?;
    let (part, suffix) = rest.rsplit_once('.')?;
    let (_, hf) = BLOCK.iter().find(|(gguf, _)| *gguf == part)?;
    matches!(suffix, "weight" | "bias").then(|| format!("model.layers.{layer}.{hf}.{suffix}"))
}

impl Gguf {
    /// All tensors under their Hugging Face names, rows in Hugging Face's order when read.
    pub(crate) fn hf_tensors(&self, config: &ModelConfig) -> Result<Vec<StoredTensor>> {
        // llama.cpp's converter reorders Q and K of these families only.
        let interleaved = matches!(config.family, Family::Llama | Family::Mistral);
        let mut tensors = Vec::with_capacity(self.tensors.len());
        for tensor in &self.tensors {
            // The rotation's table is in the configuration already.
            if tensor.name == "rope_freqs.weight" {
                continue;
            }
            let name = to_hf(&tensor.name).ok_or_else(|| {
                let hint = "it may belong to a variant that is not supported here";
                self.error(format!("unknown tensor `{}`", short(&tensor.name))).hint(hint)
            })?;
            let turned = interleaved && (name.contains(".q_proj.") || name.contains(".k_proj."));
            let order = RowOrder::InterleavedHeads { head_dim: config.head_dim };
            let stored = match (turned, tensor.shape.len()) {
                (false, _) => stored(&name, tensor, RowOrder::AsStored),
                (true, 1) => turned_bias(&name, tensor, order),
                (true, _) => stored(&name, tensor, order),
            };
            tensors.push(stored.map_err(|e| self.place(e))?);
        }
        Ok(tensors)
    }
}

fn stored(name: &str, tensor: &GgufTensor, order: RowOrder) -> Result<StoredTensor> {
    StoredTensor::new(name, &tensor.shape, tensor.kind, tensor.bytes.clone(), order)
}

/// A bias is one row of a few numbers: reordered once, kept in memory.
fn turned_bias(name: &str, tensor: &GgufTensor, order: RowOrder) -> Result<StoredTensor> {
    let values = stored(name, tensor, RowOrder::AsStored)?.to_vec()?;
    let column = [values.len(), 1];
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let bytes = SharedBytes::from(bytes);
    let turned = StoredTensor::new(name, &column, StoredKind::F32, bytes, order)?;
    StoredTensor::from_f32(name, &tensor.shape, &turned.to_vec()?)
}
