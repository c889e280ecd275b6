//! Tiny models in both formats, made from seeds.

use std::collections::BTreeMap;
use std::path::Path;

use halter_core::model::config::ModelConfig;
use halter_core::model::weights::ModelFiles;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Values by Hugging Face name.
pub type Values = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A configuration small enough for every test; rows are whole quantization blocks.
pub fn tiny_json(model_type: &str) -> Value {
    let class = match model_type {
        "llama" => "LlamaForCausalLM",
        "mistral" => "MistralForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        _ => "Qwen3ForCausalLM",
    };
    let mut config = json!({
        "architectures": [class],
        "model_type": model_type,
        "vocab_size": 264,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": false,
        "bos_token_id": 261,
        "eos_token_id": 262,
        "torch_dtype": "float32",
    });
    if model_type == "mistral" {
        config["sliding_window"] = Value::Null;
    }
    config
}

pub fn with(mut value: Value, key: &str, new: Value) -> Value {
    value[key] = new;
    value
}

pub fn config(value: &Value) -> ModelConfig {
    ModelConfig::from_json(value, "config.json").unwrap()
}

pub fn random_values(config: &ModelConfig, seed: u64) -> Values {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut make = |count: usize| (0..count).map(|_| random.random_range(-1.0..1.0)).collect();
    config
        .params()
        .into_iter()
        .map(|p| {
            let values = make(p.shape.iter().product());
            (p.name, (p.shape, values))
        })
        .collect()
}

pub fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A safetensors file of any header and data.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

pub fn safetensors_of(values: &Values) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (shape, values)) in values {
        let start = data.len();
        data.extend(le_bytes(values));
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] });
        header.insert(name.clone(), entry);
    }
    safetensors(&Value::Object(header).to_string(), &data)
}

/// A directory that `ModelFiles` opens (without a tokenizer).
pub fn write_dir(dir: &Path, config: &Value, values: &Values) {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.join("model.safetensors"), safetensors_of(values)).unwrap();
}

/// Writes GGUF files, honest ones and others.
#[derive(Clone)]
pub struct GgufBuilder {
    pub version: u32,
    pub entries: Vec<Vec<u8>>,
    pub tensors: Vec<(String, Vec<u64>, u32, u64)>,
    pub data: Vec<u8>,
    pub counts: Option<(u64, u64)>,
}

fn gguf_string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl GgufBuilder {
    pub fn new() -> Self {
        Self { version: 3, entries: vec![], tensors: vec![], data: vec![], counts: None }
    }

    pub fn raw(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        self.entries.push([&gguf_string(key)[..], &kind.to_le_bytes(), value].concat());
        self
    }

    pub fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub fn bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.raw(key, 7, &[u8::from(value)])
    }

    pub fn string(&mut self, key: &str, value: &str) -> &mut Self {
        self.raw(key, 8, &gguf_string(value))
    }

    pub fn array(&mut self, key: &str, element: u32, count: usize, items: &[u8]) -> &mut Self {
        let head = [&element.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat();
        self.raw(key, 9, &[&head[..], items].concat())
    }

    pub fn strings(&mut self, key: &str, items: &[String]) -> &mut Self {
        let bytes: Vec<u8> = items.iter().flat_map(|item| gguf_string(item)).collect();
        self.array(key, 8, items.len(), &bytes)
    }

    /// Removes a key, or replaces it when called before setting it again.
    pub fn without(&mut self, key: &str) -> &mut Self {
        let start = gguf_string(key);
        self.entries.retain(|entry| !entry.starts_with(&start));
        self
    }

    /// Adds a tensor; `shape` is row-major.
    pub fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, bytes: &[u8]) -> &mut Self {
        let offset = self.data.len() as u64;
        let dims = shape.iter().rev().map(|&dim| dim as u64).collect();
        self.tensors.push((name.into(), dims, kind, offset));
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        let counts = self.counts.unwrap_or((self.tensors.len() as u64, self.entries.len() as u64));
        file.extend(counts.0.to_le_bytes());
        file.extend(counts.1.to_le_bytes());
        file.extend(self.entries.concat());
        for (name, dims, kind, offset) in &self.tensors {
            file.extend(gguf_string(name));
            file.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
            file.extend(kind.to_le_bytes());
            file.extend(offset.to_le_bytes());
        }
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&self.data);
        file
    }
}

/// GPT-2's letters for the 256 bytes.
pub fn byte_letters() -> Vec<String> {
    let plain =
        |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    (0..256u32)
        .map(|byte| {
            let code = if plain(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap().to_string()
        })
        .collect()
}

/// Adds a byte-level tokenizer of 264 tokens.
pub fn add_byte_level(builder: &mut GgufBuilder) {
    let mut tokens = byte_letters();
    let more = ["th", "he", "the", "Ġthe", "12", "<|bos|>", "<|end|>", "<|user|>"];
    tokens.extend(more.map(String::from));
    let mut types = [1i32; 264];
    (types[261], types[262], types[263]) = (3, 3, 4);
    let merges = ["t h", "h e", "th e", "Ġ the", "1 2"].map(String::from);
    let types: Vec<u8> = types.iter().flat_map(|t| t.to_le_bytes()).collect();
    builder
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", "smollm")
        .strings("tokenizer.ggml.tokens", &tokens)
        .array("tokenizer.ggml.token_type", 5, 264, &types)
        .strings("tokenizer.ggml.merges", &merges)
        .u32("tokenizer.ggml.bos_token_id", 261)
        .u32("tokenizer.ggml.eos_token_id", 262)
        .string("tokenizer.chat_template", "{{ messages[0]['content'] }}");
}

/// llama.cpp's order of a head's rows: the halves interleaved.
pub fn interleave(values: &[f32], head_dim: usize, row_len: usize) -> Vec<f32> {
    let mut turned = vec![0.0; values.len()];
    for (row, source) in values.chunks(row_len).enumerate() {
        let (head, half, pair) =
            (row / head_dim, row % head_dim / (head_dim / 2), row % (head_dim / 2));
        let target = (head * head_dim + 2 * pair + half) * row_len;
        turned[target..target + row_len].copy_from_slice(source);
    }
    turned
}

/// The GGUF name of a Hugging Face parameter.
pub fn gguf_name(name: &str) -> String {
    let name = match name {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        other => other.replace("model.layers.", "blk."),
    };
    [
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ]
    .into_iter()
    .fold(name, |name, (hf, gguf)| name.replace(hf, gguf))
}

/// A GGUF file of the model, f32, with a byte-level tokenizer.
pub fn gguf_of(arch: &str, config: &ModelConfig, values: &Values) -> GgufBuilder {
    let mut builder = GgufBuilder::new();
    let key = |name: &str| format!("{arch}.{name}");
    builder
        .string("general.architecture", arch)
        .u32(&key("block_count"), config.num_hidden_layers as u32)
        .u32(&key("context_length"), config.max_position_embeddings as u32)
        .u32(&key("embedding_length"), config.hidden_size as u32)
        .u32(&key("feed_forward_length"), config.intermediate_size as u32)
        .u32(&key("attention.head_count"), config.num_attention_heads as u32)
        .u32(&key("attention.head_count_kv"), config.num_key_value_heads as u32)
        .u32(&key("attention.key_length"), config.head_dim as u32)
        .u32(&key("attention.value_length"), config.head_dim as u32)
        .u32(&key("rope.dimension_count"), config.head_dim as u32)
        .f32(&key("rope.freq_base"), config.rope_theta as f32)
        .f32(&key("attention.layer_norm_rms_epsilon"), config.rms_norm_eps as f32);
    add_byte_level(&mut builder);
    for (name, (shape, values)) in values {
        let turned = arch == "llama" && (name.contains("q_proj") || name.contains("k_proj"));
        let row_len = if shape.len() == 1 { 1 } else { shape[1] };
        let stored = match turned {
            true => interleave(values, config.head_dim, row_len),
            false => values.clone(),
        };
        builder.tensor(&gguf_name(name), shape, 0, &le_bytes(&stored));
    }
    builder
}

/// The tiny llama as GGUF.
pub fn tiny_gguf() -> GgufBuilder {
    let config = config(&tiny_json("llama"));
    gguf_of("llama", &config, &random_values(&config, 1))
}

/// The text of a model's chat template.
pub fn template(model: &ModelFiles) -> String {
    model.text.template().unwrap().unwrap().source().unwrap().to_string()
}
