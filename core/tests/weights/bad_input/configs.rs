//! Configurations that are wrong, or that would compute something else.

use halter_core::model::config::ModelConfig;
use serde_json::{Value, json};

use super::super::fixtures::{tiny_json, with};
use super::Table;

#[test]
fn wrong_configurations() {
    let mut table = Table::new();
    let dir = table.dir();
    let path = dir.path().join("config.json");
    table.case("no file", Some(dir.path()), ModelConfig::from_file(&path));
    std::fs::write(&path, "{\"model_type\": \"llama\",\n oops}").unwrap();
    table.case("not JSON", Some(dir.path()), ModelConfig::from_file(&path));

    let mut case = |name: &str, value: Value| {
        table.case(name, None, ModelConfig::from_json(&value, "config.json"));
    };
    let llama = || tiny_json("llama");
    let set = |key: &str, value: Value| with(llama(), key, value);
    let without = |key: &str| {
        let mut value = llama();
        value.as_object_mut().unwrap().remove(key);
        value
    };
    case("not an object", json!([1]));
    case("unknown family", set("model_type", json!("mixtral")));
    case("no family", without("model_type"));
    case("another head", set("architectures", json!(["LlamaForSequenceClassification"])));
    case("another activation", set("hidden_act", json!("gelu")));
    case("no size", without("hidden_size"));
    case("a size in words", set("hidden_size", json!("many")));
    case("a negative size", set("hidden_size", json!(-64)));
    case("a broken size", set("intermediate_size", json!(96.5)));
    case("no layers", set("num_hidden_layers", json!(0)));
    case("absurdly many layers", set("num_hidden_layers", json!(1_000_000)));
    case("an absurd vocabulary", set("vocab_size", json!(1u64 << 60)));
    case("key heads that do not divide", set("num_key_value_heads", json!(3)));
    case("an odd head", set("head_dim", json!(15)));
    case(
        "heads that are far too wide",
        with(set("head_dim", json!(1 << 20)), "num_attention_heads", json!(1 << 20)),
    );
    let mut uneven = without("head_dim");
    uneven["num_attention_heads"] = json!(6);
    case("heads that do not divide", uneven);
    case("no epsilon to speak of", set("rms_norm_eps", json!(0)));
    case("a negative base", set("rope_theta", json!(-1)));
    case("a flag that is a number", set("tie_word_embeddings", json!(1)));
    case("yarn", set("rope_scaling", json!({ "rope_type": "yarn", "factor": 4.0 })));
    case("dynamic scaling", set("rope_scaling", json!({ "type": "dynamic", "factor": 2.0 })));
    case("scaling that is a number", set("rope_scaling", json!(2)));
    case("linear scaling without a factor", set("rope_scaling", json!({ "type": "linear" })));
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 });
    case(
        "llama3 scaling, incomplete",
        set("rope_scaling", with(llama3.clone(), "high_freq_factor", Value::Null)),
    );
    case(
        "llama3 scaling, reversed",
        set("rope_scaling", with(llama3.clone(), "high_freq_factor", json!(0.5))),
    );
    case(
        "llama3 scaling, something more",
        set("rope_scaling", with(llama3.clone(), "mscale", json!(0.7))),
    );
    case("two bases", set("rope_parameters", json!({ "rope_theta": 5e5 })));
    case(
        "two scalings",
        with(
            set("rope_scaling", llama3),
            "rope_parameters",
            json!({ "rope_type": "linear", "factor": 2.0 }),
        ),
    );
    case(
        "a base for each kind of layer",
        set(
            "rope_parameters",
            json!({
        "full_attention": { "rope_theta": 1e6 }, "sliding_attention": { "rope_theta": 1e4 } }),
        ),
    );
    case("part of a head rotated", set("partial_rotary_factor", json!(0.5)));
    case(
        "part of a head rotated, newer layout",
        set("rope_parameters", json!({ "partial_rotary_factor": 0.5 })),
    );
    case("products cut up", set("pretraining_tp", json!(2)));
    case("quantized", set("quantization_config", json!({ "quant_method": "gptq", "bits": 4 })));
    case("soft capping", set("final_logit_softcapping", json!(30.0)));
    case("experts", set("num_local_experts", json!(8)));
    case("dropout", set("attention_dropout", json!(0.1)));
    case("an unknown key", set("attention_sink_size", json!(4)));
    case("a window on a llama", set("sliding_window", json!(4096)));
    case("a bias on a mistral", with(tiny_json("mistral"), "attention_bias", json!(true)));
    case("a qwen2 without its biases", with(tiny_json("qwen2"), "attention_bias", json!(false)));
    case("a feed-forward bias on a qwen3", with(tiny_json("qwen3"), "mlp_bias", json!(true)));
    case("too few layer types", set("layer_types", json!(["full_attention"])));
    case(
        "an unknown layer type",
        set("layer_types", json!(["full_attention", "linear_attention"])),
    );
    case(
        "layer types that contradict",
        set("layer_types", json!(["full_attention", "sliding_attention"])),
    );
    case("an end token outside of the vocabulary", set("eos_token_id", json!([262, 264])));
    case("a token that is no number", set("bos_token_id", json!("<s>")));
    insta::assert_snapshot!(table.finish(45));
}
