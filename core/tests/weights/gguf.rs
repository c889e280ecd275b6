//! GGUF files mean what the same model in Hugging Face's layout means.

use candle_core::DType;
use halter_core::model::config::{Family, ModelConfig, RopeScaling};
use halter_core::model::merge::{Method, Weighted, merge_models};
use halter_core::model::weights::gguf::Gguf;
use halter_core::model::weights::{HubOptions, ModelFiles, WeightFiles};
use halter_core::text::gguf_tokenizer;
use halter_core::train::progress::Silent;
use serde_json::{Value, json};

use super::fixtures::{
    GgufBuilder, config, gguf_of, le_bytes, random_values, template, tiny_gguf, tiny_json, with,
};

fn same_model(arch: &str, value: &Value) -> ModelConfig {
    let config = config(value);
    let values = random_values(&config, 3);
    let gguf = Gguf::from_bytes(gguf_of(arch, &config, &values).build()).unwrap();
    let mut read = gguf.model_config().unwrap();
    let files = WeightFiles::from_gguf(gguf).unwrap();
    files.check(&read).unwrap();
    for (name, (shape, expected)) in &values {
        let tensor = files.get(name).unwrap();
        assert_eq!(tensor.shape(), shape, "{name}");
        assert_eq!(&tensor.to_vec().unwrap(), expected, "{name}");
        if shape.len() == 2 {
            let mut rows = vec![0.0; 2 * shape[1]];
            tensor.read_rows_into(3..5, &mut rows).unwrap();
            assert_eq!(rows, expected[3 * shape[1]..5 * shape[1]], "rows of {name}");
        }
    }
    assert!(!read.raw.is_empty());
    read.raw.clone_from(&config.raw);
    assert_eq!(read, config, "{arch}");
    read
}

#[test]
fn a_llama_reads_the_same_from_gguf_with_its_heads_put_in_order() {
    same_model("llama", &tiny_json("llama"));
}

#[test]
fn biases_on_queries_and_keys_are_put_in_order_too() {
    same_model("llama", &with(tiny_json("llama"), "attention_bias", json!(true)));
}

#[test]
fn qwen_reads_the_same_from_gguf_where_nothing_is_permuted() {
    same_model("qwen2", &tiny_json("qwen2"));
    same_model("qwen3", &tiny_json("qwen3"));
}

#[test]
fn without_an_output_matrix_the_embeddings_are_tied() {
    let read = same_model("llama", &with(tiny_json("llama"), "tie_word_embeddings", json!(true)));
    assert!(read.tie_word_embeddings);
}

#[test]
fn a_window_makes_it_a_mistral() {
    let mut builder = tiny_gguf();
    builder.u32("llama.attention.sliding_window", 32);
    let config = Gguf::from_bytes(builder.build()).unwrap().model_config().unwrap();
    assert_eq!(config.family, Family::Mistral);
    assert_eq!(config.sliding_window, [Some(32), Some(32)]);
}

/// The divisors that llama.cpp's converter stores for `factor`, context 8192.
fn rope_table(head_dim: usize, theta: f64, factor: f64) -> Vec<f32> {
    let divisor = |pair: usize| {
        let turns = 8192.0 * theta.powf(-2.0 * pair as f64 / head_dim as f64)
            / (2.0 * std::f64::consts::PI);
        match turns {
            t if t > 4.0 => 1.0,
            t if t < 1.0 => factor,
            t => 1.0 / ((1.0 - (t - 1.0) / 3.0) / factor + (t - 1.0) / 3.0),
        }
    };
    (0..head_dim / 2).map(|pair| divisor(pair) as f32).collect()
}

#[test]
fn llama_3_scaling_is_recognised_from_its_table() {
    let mut builder = tiny_gguf();
    builder.without("llama.rope.freq_base").f32("llama.rope.freq_base", 5e5);
    let mut other = builder.clone();
    let table = rope_table(16, 5e5, 32.0);
    builder.tensor("rope_freqs.weight", &[8], 0, &le_bytes(&table));
    let config = Gguf::from_bytes(builder.build()).unwrap().model_config().unwrap();
    let expected = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(config.rope_scaling, expected);
    let wrong: Vec<f32> = table.iter().map(|d| d.sqrt()).collect();
    other.tensor("rope_freqs.weight", &[8], 0, &le_bytes(&wrong));
    let error = Gguf::from_bytes(other.build()).unwrap().model_config().unwrap_err();
    assert!(error.message().contains("`rope_freqs.weight` is not"), "{error}");
}

#[test]
fn linear_scaling_is_read() {
    let mut builder = tiny_gguf();
    builder.string("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0);
    let config = Gguf::from_bytes(builder.build()).unwrap().model_config().unwrap();
    assert_eq!(config.rope_scaling, RopeScaling::Linear { factor: 4.0 });
}

fn encode(builder: &GgufBuilder, text: &str, special: bool) -> Vec<u32> {
    let gguf = Gguf::from_bytes(builder.build()).unwrap();
    let rebuilt = gguf_tokenizer::from_gguf(&gguf).unwrap();
    rebuilt.tokenizer.encode(text, special).unwrap().get_ids().to_vec()
}

#[test]
fn a_byte_level_tokenizer_is_rebuilt_with_its_added_tokens() {
    let builder = tiny_gguf();
    // `smollm` takes digits one by one, so the merge of `12` never applies.
    assert_eq!(encode(&builder, "the the12", true), [258, 259, 49, 50]);
    assert_eq!(encode(&builder, "<|user|>th<|end|>", true), [263, 256, 262]);
    let mut gpt2 = tiny_gguf();
    gpt2.without("tokenizer.ggml.pre").string("tokenizer.ggml.pre", "gpt-2");
    assert_eq!(encode(&gpt2, "the the12", true), [258, 259, 260]);
}

#[test]
fn bos_and_eos_are_added_as_the_file_says() {
    let mut builder = tiny_gguf();
    builder.bool("tokenizer.ggml.add_bos_token", true).bool("tokenizer.ggml.add_eos_token", true);
    assert_eq!(encode(&builder, "th", true), [261, 256, 262]);
    assert_eq!(encode(&builder, "th", false), [256]);
    // Llama 3's kind adds BOS unless the file says not.
    let mut llama3 = tiny_gguf();
    llama3.without("tokenizer.ggml.pre").string("tokenizer.ggml.pre", "llama-bpe");
    assert_eq!(encode(&llama3, "th", true), [261, 256]);
    assert_eq!(encode(&llama3, "12", false), [260]);
}

#[test]
fn every_known_way_of_splitting_builds_a_tokenizer_that_gives_text_back() {
    for pre in ["llama-bpe", "smaug-bpe", "qwen2", "tekken", "smollm", "gpt-2", "default"] {
        let mut builder = tiny_gguf();
        builder.without("tokenizer.ggml.pre").string("tokenizer.ggml.pre", pre);
        assert!(!encode(&builder, "a  b\n\n 12", true).is_empty(), "{pre}");
    }
}

/// A SentencePiece vocabulary: unknown, BOS, EOS, 256 bytes, then pieces.
pub fn sentencepiece(pieces: &[(&str, f32)]) -> GgufBuilder {
    let mut builder = tiny_gguf();
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    let mut types = vec![2i32, 3, 3];
    types.extend([6; 256]);
    let mut scores = vec![0.0f32; 259];
    for (piece, score) in pieces {
        tokens.push((*piece).into());
        types.push(1);
        scores.push(*score);
    }
    let types: Vec<u8> = types.iter().flat_map(|t| t.to_le_bytes()).collect();
    builder.entries.retain(|entry| !String::from_utf8_lossy(entry).contains("tokenizer."));
    builder
        .string("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &tokens)
        .array("tokenizer.ggml.token_type", 5, tokens.len(), &types)
        .array("tokenizer.ggml.scores", 6, tokens.len(), &le_bytes(&scores))
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2);
    builder
}

const PIECES: [(&str, f32); 9] = [
    ("▁", -9.0),
    ("a", -9.0),
    ("b", -9.0),
    ("c", -9.0),
    ("ab", -1.0),
    ("bc", -2.0),
    ("▁a", -3.0),
    ("▁ab", -4.0),
    ("abc", -5.0),
];

#[test]
fn a_sentencepiece_tokenizer_joins_the_best_scores_first() {
    let builder = sentencepiece(&PIECES);
    // `▁abc`: `ab` scores best, then `▁ab` beats `abc`; what is left of it is `c`.
    assert_eq!(encode(&builder, "abc", true), [1, 266, 262]);
    // `▁bc`: only `bc`.
    assert_eq!(encode(&builder, "bc", false), [259, 264]);
    // A letter that is not a piece goes by its bytes.
    assert_eq!(encode(&builder, "é", false), [259, 3 + 0xc3, 3 + 0xa9]);
}

#[test]
fn a_sentencepiece_tokenizer_without_its_space_adds_none() {
    let mut builder = sentencepiece(&PIECES);
    builder.bool("tokenizer.ggml.add_space_prefix", false);
    assert_eq!(encode(&builder, "bc", false), [264]);
    assert_eq!(encode(&builder, " bc", false), [259, 264]);
}

#[test]
fn a_tokenizer_of_ones_own_does_where_the_files_cannot_be_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    let mut builder = tiny_gguf();
    builder.entries.retain(|entry| !String::from_utf8_lossy(entry).contains("tokenizer.ggml.pre"));
    std::fs::write(&path, builder.string("tokenizer.ggml.pre", "gpt-9").build()).unwrap();
    let open = |tokenizer| {
        ModelFiles::open_with(path.to_str().unwrap(), &HubOptions::default(), tokenizer)
    };
    assert!(open(None).err().unwrap().remedy().unwrap().contains("`--tokenizer`"));
    let tokenizer = dir.path().join("other.json");
    let words = r#"{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}"#;
    std::fs::write(&tokenizer, words).unwrap();
    let text = open(Some(&tokenizer)).unwrap().text;
    assert_eq!(text.tokenizer().unwrap().get_vocab_size(true), 1);
    assert!(text.chat_templates.is_empty());
    assert_eq!(text.generation_config.unwrap()["eos_token_id"], 262);
    let names: Vec<_> = text.side_files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["tokenizer.json", "generation_config.json"]);
}

#[test]
fn a_gguf_file_opens_as_a_whole_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, tiny_gguf().build()).unwrap();
    let model = ModelFiles::open(path.to_str().unwrap(), &HubOptions::default()).unwrap();
    assert_eq!(template(&model), "{{ messages[0]['content'] }}");
    assert_eq!(model.text.tokenizer_config["bos_token"], "<|bos|>");
    assert_eq!(model.text.generation_config.as_ref().unwrap()["eos_token_id"], 262);
    let names: Vec<_> = model.text.side_files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "tokenizer.json",
            "chat_template.jinja",
            "tokenizer_config.json",
            "generation_config.json"
        ]
    );
}

#[test]
fn a_gguf_file_merges_with_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("tiny.gguf"), tiny_gguf().build()).unwrap();
    let expected = random_values(&config(&tiny_json("llama")), 1);
    // Of the file twice comes a directory, and of both the same values again.
    for (names, output) in [(["tiny.gguf"; 2], "twice"), (["tiny.gguf", "twice"], "both")] {
        let models = names.map(|name| Weighted {
            files: ModelFiles::open(path(name).to_str().unwrap(), &HubOptions::default()).unwrap(),
            weight: 1.0,
        });
        let output = path(output);
        merge_models(&models, &Method::Linear, DType::F32, &output, &mut Silent).unwrap();
        let weights = WeightFiles::open(&output).unwrap();
        for (name, (_, values)) in &expected {
            assert_eq!(&weights.get(name).unwrap().to_vec().unwrap(), values, "{name}");
        }
    }
}
