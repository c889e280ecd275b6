//! Configurations of every family, in the layouts of transformers 4 and 5.

use candle_core::DType;
use halter_core::model::config::{Family, ModelConfig, RopeScaling};
use serde_json::{Value, json};

use super::fixtures::{config, tiny_json, with};

fn error(value: &Value) -> String {
    ModelConfig::from_json(value, "config.json").unwrap_err().to_string()
}

#[test]
fn the_families_differ_in_biases_and_norms() {
    let shape = |name: &str| {
        let config = config(&tiny_json(name));
        (config.family, config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm)
    };
    assert_eq!(shape("llama"), (Family::Llama, false, false, false, false));
    assert_eq!(shape("mistral"), (Family::Mistral, false, false, false, false));
    assert_eq!(shape("qwen2"), (Family::Qwen2, true, false, false, false));
    assert_eq!(shape("qwen3"), (Family::Qwen3, false, false, false, true));
    let biased = config(&with(
        with(tiny_json("llama"), "attention_bias", json!(true)),
        "mlp_bias",
        json!(true),
    ));
    assert!(biased.qkv_bias && biased.o_bias && biased.mlp_bias);
}

#[test]
fn what_a_file_leaves_out_is_what_transformers_assumes() {
    let mut bare = tiny_json("llama");
    for key in ["num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings"] {
        bare.as_object_mut().unwrap().remove(key);
    }
    let read = config(&bare);
    assert_eq!((read.num_key_value_heads, read.head_dim), (4, 16));
    assert_eq!((read.rms_norm_eps, read.max_position_embeddings), (1e-6, 2048));
    let mut mistral = tiny_json("mistral");
    mistral.as_object_mut().unwrap().remove("sliding_window");
    assert_eq!(config(&mistral).sliding_window, [Some(4096); 2]);
    let mut qwen3 = tiny_json("qwen3");
    qwen3.as_object_mut().unwrap().remove("head_dim");
    assert_eq!(config(&qwen3).head_dim, 128);
}

#[test]
fn both_layouts_of_rotary_settings_say_the_same() {
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 });
    let old =
        with(with(tiny_json("llama"), "rope_theta", json!(5e5)), "rope_scaling", llama3.clone());
    let mut new = tiny_json("llama");
    new.as_object_mut().unwrap().remove("rope_theta");
    let new = with(new, "rope_parameters", with(llama3, "rope_theta", json!(5e5)));
    let (old, new) = (config(&old), config(&new));
    assert_eq!((old.rope_theta, old.rope_scaling), (new.rope_theta, new.rope_scaling));
    assert!(matches!(old.rope_scaling, RopeScaling::Llama3 { factor: 8.0, .. }));
    let linear = with(tiny_json("llama"), "rope_scaling", json!({ "type": "linear", "factor": 2 }));
    assert_eq!(config(&linear).rope_scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn windows_follow_each_familys_rule() {
    let window = |value: Value| config(&value).sliding_window;
    let mistral = with(tiny_json("mistral"), "sliding_window", json!(7));
    assert_eq!(window(mistral), [Some(7), Some(7)]);
    // Qwen's window is off unless it is switched on, and then only from a layer on.
    let qwen = with(tiny_json("qwen2"), "sliding_window", json!(7));
    assert_eq!(window(qwen.clone()), [None, None]);
    let on = with(with(qwen, "use_sliding_window", json!(true)), "max_window_layers", json!(1));
    assert_eq!(window(on.clone()), [None, Some(7)]);
    let types = json!(["sliding_attention", "full_attention"]);
    assert_eq!(window(with(on, "layer_types", types)), [Some(7), None]);
}

#[test]
fn a_list_of_end_tokens_and_missing_tokens_are_read() {
    let several = with(tiny_json("llama"), "eos_token_id", json!([262, 5]));
    assert_eq!(config(&several).eos_token_ids, [262, 5]);
    let none =
        with(with(tiny_json("llama"), "eos_token_id", Value::Null), "pad_token_id", json!(-1));
    assert_eq!((config(&none).eos_token_ids.len(), config(&none).pad_token_id), (0, None));
}

#[test]
fn keys_that_change_nothing_are_accepted() {
    let mut value = tiny_json("llama");
    for (key, harmless) in [
        ("pretraining_tp", json!(1)),
        ("rope_interleaved", json!(false)),
        ("is_llama_config", json!(true)),
        ("transformers.js_config", json!({ "dtype": "q4" })),
        ("some_future_key", Value::Null),
        ("attention_dropout", json!(0.0)),
        ("partial_rotary_factor", json!(1.0)),
        ("use_cache", json!(true)),
        ("layer_types", json!(["full_attention", "full_attention"])),
        ("pruned_heads", json!({})),
    ] {
        value[key] = harmless;
    }
    config(&value);
}

#[test]
fn an_unchanged_configuration_is_written_as_it_was_read() {
    for family in ["llama", "mistral", "qwen2", "qwen3"] {
        let value = with(tiny_json(family), "_name_or_path", json!("somewhere"));
        let written = config(&value).to_json(DType::BF16).unwrap();
        assert_eq!(Value::Object(written), with(value, "torch_dtype", json!("bfloat16")));
    }
}

#[test]
fn a_changed_configuration_is_written_from_its_fields() {
    for family in ["llama", "mistral", "qwen2", "qwen3"] {
        let value = with(tiny_json(family), "_name_or_path", json!("somewhere"));
        let mut changed = config(&value);
        changed.num_hidden_layers = 1;
        changed.sliding_window.truncate(1);
        let written = Value::Object(changed.to_json(DType::F32).unwrap());
        let mut again = config(&written);
        assert_eq!(written["_name_or_path"], "somewhere");
        again.raw = changed.raw.clone();
        assert_eq!(again, changed, "{family}");
    }
    let mut impossible = config(&tiny_json("llama"));
    impossible.o_bias = true;
    let error = impossible.to_json(DType::F32).unwrap_err();
    assert_eq!(error.to_string(), "a `llama` configuration cannot express this model");
}

#[test]
fn a_key_that_is_not_understood_is_named() {
    let value = with(tiny_json("llama"), "no_such_thing", json!(3));
    assert!(error(&value).contains("`no_such_thing`"));
    let value = with(tiny_json("qwen2"), "attention_bias", json!(false));
    assert!(error(&value).contains("`attention_bias`"));
}
