//! The binary as a user runs it: `halter reward`, from pairs to an export that goes on.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::{halter_in, lines, text};

/// A directory with pairs: two that differ, one that hardly does, a weak one.
fn prepared() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let pair = |chosen: &str, rejected: &str, strength: &str| {
        let message = |role: &str, content: &str| json!([{"role": role, "content": content}]);
        json!({
            "prompt": message("user", "two and two?"),
            "chosen": message("assistant", chosen),
            "rejected": message("assistant", rejected),
            "strength": strength,
        })
    };
    let long = "one two three four five six seven eight nine ten eleven twelve ";
    let rows = [
        pair("it is four", "a fish", "significantly better"),
        pair("four", "perhaps it is seven or eight", "better"),
        pair(&long.repeat(4), &format!("{}!", long.repeat(4)), "better"),
        pair("four", "five", "slightly better"),
    ];
    fs::write(dir.path().join("pairs.jsonl"), lines(rows.into_iter())).unwrap();
    dir
}

fn reward(dir: &Path, arguments: &str) -> Value {
    let arguments: Vec<&str> = ["reward", "--json", "--data", "pairs.jsonl"]
        .into_iter()
        .chain(arguments.split(' '))
        .collect();
    let output = halter_in(dir, &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_run_leaves_a_classifier_of_one_label_that_another_run_goes_on_from() {
    let dir = prepared();
    let filters = "--min-strength better --batch-size 2 --epochs 2 --learning-rate 1e-3";
    let first = format!("--model bundled --output first --eval-data pairs.jsonl {filters}");
    let outcome = reward(dir.path(), &first);
    assert_eq!(outcome["steps"], 2, "two of four rows are left of each epoch");
    let accuracy = outcome["evaluation"]["accuracy"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&accuracy), "{outcome}");
    let root = dir.path().join("first");
    let config = read(&root.join("config.json"));
    assert_eq!(config["architectures"], json!(["LlamaForSequenceClassification"]));
    assert_eq!(config["id2label"], json!({"0": "LABEL_0"}));
    assert!(config["pad_token_id"].is_u64(), "{config}");
    let ledger = fs::read_to_string(root.join("ledger.jsonl")).unwrap();
    assert_eq!(ledger.matches("near-identical completions").count(), 2, "{ledger}");
    assert_eq!(ledger.matches("weaker than min_strength").count(), 2, "{ledger}");
    let summary = read(&root.join("summary.json"));
    assert_eq!(summary["calibration"].as_array().unwrap().len(), 10);
    let report = fs::read_to_string(root.join("report.html")).unwrap();
    assert!(report.contains("<h2>Calibration</h2>"));
    let card = fs::read_to_string(root.join("README.md")).unwrap();
    assert!(card.contains("AutoModelForSequenceClassification.from_pretrained(path)"), "{card}");

    let second = format!("--model first --output second {filters}");
    assert_eq!(reward(dir.path(), &second)["steps"], 2);
    let output = halter_in(dir.path(), &["dpo", "--model", "first", "--data", "pairs.jsonl"]);
    let told = text(&output.stderr);
    assert!(told.contains("the model is a reward model"), "{told}");
}

#[test]
fn an_adapter_has_the_value_head_and_merges_to_a_reward_model() {
    let dir = prepared();
    reward(dir.path(), "--model bundled --output lora --lora-rank 2 --max-steps 2 --batch-size 2");
    let config = read(&dir.path().join("lora/adapter_config.json"));
    assert_eq!(
        (&config["task_type"], &config["modules_to_save"]),
        (&json!("SEQ_CLS"), &json!(["score"]))
    );
    let merge = ["merge", "--model", "bundled", "--adapter", "lora", "--output", "merged"];
    let output = halter_in(dir.path(), &merge);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let config = read(&dir.path().join("merged/config.json"));
    assert_eq!(config["architectures"], json!(["LlamaForSequenceClassification"]));
}

#[test]
fn what_a_reward_model_cannot_do_is_refused() {
    let dir = prepared();
    let refused = |arguments: &[&str]| {
        let all = [&["reward", "--model", "bundled", "--data", "pairs.jsonl"], arguments].concat();
        let output = halter_in(dir.path(), &all);
        assert!(!output.status.success());
        text(&output.stderr)
    };
    let told = refused(&["--eval-data", "pairs.jsonl", "--eval-generate", "1"]);
    assert!(told.contains("a reward model writes nothing"), "{told}");
    let told = refused(&["--max-similarity", "0"]);
    assert!(told.contains("`max-similarity` is `0`: expected in (0, 1]"), "{told}");
    let told = refused(&["--min-strength", "strong"]);
    assert!(told.contains("unknown strength `strong`"), "{told}");
}
