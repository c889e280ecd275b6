//! The binary as a user runs it: `halter reward`, from pairs to an export that goes on.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use serde_json::{Value, json};
use support::{Place, command, halter_in, killed_until_done, lines, text};

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
    assert_no_tokens(dir.path(), "--model first");
}

/// What a reward model would say means nothing.
#[track_caller]
fn assert_no_tokens(dir: &Path, model: &str) {
    for command in ["generate --data pairs.jsonl", "chat", "serve --port 0"] {
        let arguments: Vec<&str> = command.split(' ').chain(model.split(' ')).collect();
        let output = halter_in(dir, &arguments);
        let told = text(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{told}");
        assert!(told.contains("the model is a reward model, which says nothing"), "{told}");
    }
}

/// What a run leaves, less what depends on the clock.
fn remains(place: &Place, run: &str) -> Vec<(&'static str, Vec<u8>)> {
    let weights = ["model.safetensors", "adapter_model.safetensors"];
    let weights = weights.into_iter().find(|name| place.path(run).join(name).exists()).unwrap();
    let last = "checkpoints/step-8";
    let state = ["weights.safetensors", "optimizer.safetensors"];
    let mut remains = vec![(weights, place.read(&format!("{run}/{weights}")))];
    remains.push(("ledger.jsonl", place.read(&format!("{run}/ledger.jsonl"))));
    remains.extend(state.map(|name| (name, place.read(&format!("{run}/{last}/{name}")))));
    let metrics: String = place
        .text(&format!("{run}/metrics.jsonl"))
        .lines()
        .map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            for clock in ["seconds", "tokens_per_second"] {
                line.as_object_mut().unwrap().remove(clock).unwrap();
            }
            format!("{line}\n")
        })
        .collect();
    remains.push(("metrics.jsonl", metrics.into_bytes()));
    let summary: Value = serde_json::from_str(&place.text(&format!("{run}/summary.json"))).unwrap();
    remains.push(("calibration", summary["calibration"].to_string().into_bytes()));
    remains
}

#[test]
fn a_run_that_is_killed_and_resumed_ends_with_the_same_bits() {
    let place = Place::new();
    let message = |role: &str, content: String| json!([{ "role": role, "content": content }]);
    let ranked = |i: usize| {
        json!({
            "prompt": message("user", format!("What is {i} plus {}?", i + 1)),
            "chosen": message("assistant", format!("It is {}.", 2 * i + 1)),
            "rejected": message("assistant", format!("Perhaps {} llamas", 3 * i)),
            "margin": i,
        })
    };
    place.write("pairs.jsonl", lines((0..10).map(ranked)));
    place.write("held.jsonl", lines((20..23).map(ranked)));
    let run = "reward --model bundled --data pairs.jsonl --eval-data held.jsonl --eval-every 3 \
               --max-steps 8 --batch-size 3 --learning-rate 1e-3 --save-every 1";
    for (name, more) in [("full", ""), ("lora", " --lora-rank 2 --lora-dropout 0.2")] {
        let given = format!("{run}{more}");
        let arguments: Vec<&str> = given.split_whitespace().collect();
        let whole = format!("{name}-whole");
        let began = Instant::now();
        let output = halter_in(place.root(), &[&arguments[..], &["--output", &whole]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let taken = began.elapsed();
        let (mut seed, mut kills) = (31, 0);
        for round in 0.. {
            let killed = format!("{name}-{round}");
            let goes_on = |stderr: Stdio| {
                let begun = place.path(&killed).join("config.toml").exists();
                let resume: &[&str] = if begun { &["--resume"] } else { &[] };
                let arguments = [&arguments[..], &["--output", &killed], resume].concat();
                command(place.root(), &arguments).stderr(stderr).spawn().unwrap()
            };
            kills += killed_until_done(&place, &mut seed, taken, goes_on, || {});
            for (a, b) in remains(&place, &whole).into_iter().zip(remains(&place, &killed)) {
                assert!(a == b, "{} differs after {kills} kills", a.0);
            }
            if kills >= 5 {
                break;
            }
            assert!(round < 20, "only {kills} kills in {round} runs");
        }
    }
}

#[test]
fn an_adapter_has_the_value_head_and_merges_to_a_reward_model() {
    let dir = prepared();
    reward(dir.path(), "--model bundled --output lora --lora-rank 2 --max-steps 2 --batch-size 2");
    let config = read(&dir.path().join("lora/adapter_config.json"));
    assert_no_tokens(dir.path(), "--model bundled --adapter lora");
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
