//! Adapters as PEFT writes and reads them.

use candle_core::DType;
use halter_core::model::weights::StoredTensor;
use halter_core::model::weights::adapter::{
    Adapter, AdapterConfig, Part, TargetModules, write_adapter,
};
use halter_core::model::weights::export::ParamData;
use serde_json::json;

use super::fixtures::{config, tiny_json};

fn lora(targets: TargetModules) -> AdapterConfig {
    AdapterConfig {
        rank: 4,
        alpha: 8.0,
        target_modules: targets,
        use_rslora: false,
        dropout: 0.05,
        base_model: Some("base".into()),
        revision: Some("v2".into()),
        with_score: false,
    }
}

/// A value that says which factor of which layer it belongs to.
fn mark(module: &str, factor: Part) -> f32 {
    module.len() as f32 + if factor == Part::A { 0.25 } else { 0.5 }
}

fn constant(adapter: &AdapterConfig, module: &str, factor: Part) -> halter_core::Result<ParamData> {
    let model = config(&tiny_json("llama"));
    let modules = adapter.modules(&model).unwrap();
    let (out, input) = modules
        .iter()
        .find(|(path, ..)| path == module)
        .map_or((1, model.hidden_size), |(_, out, input)| (*out, *input));
    let shape = match factor {
        Part::A => [adapter.rank, input],
        Part::B => [out, adapter.rank],
        Part::Whole => [out, input],
    };
    let values = vec![mark(module, factor); shape[0] * shape[1]];
    StoredTensor::from_f32("", &shape, &values).map(ParamData::Stored)
}

#[test]
fn an_adapter_opens_again_as_it_was_written() {
    let model = config(&tiny_json("llama"));
    let some = TargetModules::Named(vec!["q_proj".into(), "layers.1.mlp.up_proj".into()]);
    for (targets, count) in [(TargetModules::AllLinear, 14), (some, 3)] {
        let dir = tempfile::tempdir().unwrap();
        let lora = lora(targets);
        let get = |module: &str, factor| constant(&lora, module, factor);
        write_adapter(dir.path(), &lora, &model, DType::F32, get).unwrap();
        let read = Adapter::open(dir.path(), &model).unwrap();
        assert_eq!(read.config, lora);
        assert_eq!(read.factors.len(), count);
        for (module, factors) in &read.factors {
            let first = |tensor: &StoredTensor| tensor.to_vec().unwrap()[0];
            assert_eq!(first(&factors.a), mark(module, Part::A));
            assert_eq!(first(&factors.b), mark(module, Part::B));
            assert_eq!(factors.a.shape()[0], 4);
        }
        let text = std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
        assert!(text.contains(r#""peft_type": "LORA""#), "{text}");
    }
}

#[test]
fn the_value_head_of_a_reward_model_goes_with_its_adapter() {
    let model = config(&tiny_json("llama"));
    let dir = tempfile::tempdir().unwrap();
    let lora = AdapterConfig { with_score: true, ..lora(TargetModules::AllLinear) };
    let get = |module: &str, part| constant(&lora, module, part);
    write_adapter(dir.path(), &lora, &model, DType::F32, get).unwrap();
    let read = Adapter::open(dir.path(), &model).unwrap();
    assert_eq!(read.config, lora);
    let score = read.score.unwrap();
    assert_eq!(score.shape(), [1, model.hidden_size]);
    assert_eq!(score.name(), "base_model.model.score.weight", "as PEFT names it");
    let text = std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["modules_to_save"], serde_json::json!(["score"]));
    assert_eq!(json["task_type"], "SEQ_CLS");
}

#[test]
fn names_are_those_of_peft() {
    let model = config(&tiny_json("llama"));
    let dir = tempfile::tempdir().unwrap();
    let lora = lora(TargetModules::Named(vec!["k_proj".into()]));
    let get = |module: &str, factor| constant(&lora, module, factor);
    write_adapter(dir.path(), &lora, &model, DType::F32, get).unwrap();
    let bytes = std::fs::read(dir.path().join("adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names = file.names();
    names.sort();
    let expected = ["0.self_attn.k_proj.lora_A", "0.self_attn.k_proj.lora_B"]
        .into_iter()
        .chain(["1.self_attn.k_proj.lora_A", "1.self_attn.k_proj.lora_B"])
        .map(|name| format!("base_model.model.model.layers.{name}.weight"));
    assert_eq!(names, expected.collect::<Vec<_>>());
}

#[test]
fn the_scaling_is_alpha_over_rank_or_over_its_root() {
    let mut lora = lora(TargetModules::AllLinear);
    assert_eq!(lora.scaling(), 2.0);
    lora.use_rslora = true;
    assert_eq!(lora.scaling(), 4.0);
}

#[test]
fn a_configuration_of_current_peft_is_understood() {
    let value = json!({
        "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null,
        "auto_mapping": null, "base_model_name_or_path": "b", "bias": "none",
        "corda_config": null, "ensure_weight_tying": false, "eva_config": null,
        "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
        "init_lora_weights": true, "layer_replication": null, "layers_pattern": null,
        "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 16, "lora_bias": false,
        "lora_dropout": 0.1, "megatron_config": null, "megatron_core": "megatron.core",
        "modules_to_save": null, "peft_type": "LORA", "peft_version": "0.21.2",
        "qalora_group_size": 16, "r": 8, "rank_pattern": {}, "revision": null,
        "target_modules": ["v_proj", "q_proj"], "target_parameters": null,
        "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_dora": false,
        "use_qalora": false, "use_rslora": true
    });
    let read = AdapterConfig::from_json(&value, "adapter_config.json".as_ref()).unwrap();
    assert_eq!((read.rank, read.alpha, read.dropout, read.use_rslora), (8, 16.0, 0.1, true));
}
