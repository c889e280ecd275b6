//! `halter distill`: its options, what it refuses, and what a teacher said beforehand.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod support;

use std::fs;
use std::process::Output;

use serde_json::{Value, json};
use support::{Place, TINY, command, text};

const BASE: &[&str] = &["--model", "base", "--data", "m.jsonl"];
const RUN: &[&str] = &[
    "--batch-size",
    "3",
    "--microbatch-tokens",
    "64",
    "--max-steps",
    "10",
    "--learning-rate",
    "1e-2",
    "--eval-data",
    "m.jsonl",
    "--eval-every",
    "4",
];
const CHECKPOINTS: &[&str] = &["--save-every", "1", "--keep-checkpoints", "0"];
const TEACHER: &[&str] = &["--teacher", "teacher"];
const INSIDE: &[&str] = &["--hidden-weight", "1", "--attention-weight", "0.5"];
const ON_POLICY: &[&str] = &["--on-policy-fraction", "0.5", "--max-completion-tokens", "6"];

/// A place with a student in `base`, and a wider and deeper `teacher` that knows a little.
fn place() -> Place {
    let place = Place::new();
    place.done(&[TINY, &["--output", "base", "--max-steps", "1"]].concat());
    let mut wide = support::config();
    wide["hidden_size"] = json!(48);
    wide["num_hidden_layers"] = json!(3);
    place.write("wide.json", wide.to_string());
    let wide = ["--init-from", "wide.json", "--tokenizer", "tok", "--data", "m.jsonl"];
    let taught = ["--output", "teacher", "--max-steps", "12", "--learning-rate", "1e-2"];
    place.done(&[wide.as_slice(), &taught].concat());
    place
}

fn distill(place: &Place, arguments: &[&[&str]]) -> Output {
    command(place.root(), &[&["distill"], arguments.concat().as_slice()].concat()).output().unwrap()
}

/// What it said, to its good end.
#[track_caller]
fn done(place: &Place, arguments: &[&[&str]]) -> String {
    let output = distill(place, arguments);
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    stderr
}

fn figure(line: &Value, key: &str) -> f64 {
    line[key].as_f64().unwrap()
}

#[test]
fn the_options_are_these() {
    let place = Place::new();
    for (name, words) in
        [("help", &["distill", "--help"][..]), ("capture", &["distill", "capture", "--help"])]
    {
        let output = command(place.root(), words).env("COLUMNS", "100").output().unwrap();
        assert!(output.status.success());
        insta::assert_snapshot!(name, text(&output.stdout));
    }
}

#[test]
fn a_student_comes_nearer_to_its_teacher() {
    let place = place();
    for (name, more) in [
        ("kl", &[][..]),
        ("jsd", &["--divergence", "jsd", "--temperature", "2", "--ce-weight", "0.5"]),
        ("inside", INSIDE),
        ("on-policy", ON_POLICY),
        ("told", &["--teacher-completions", "--max-completion-tokens", "6"]),
        ("minillm", &["--on-policy-fraction", "1", "--divergence", "minillm"]),
    ] {
        done(&place, &[BASE, TEACHER, RUN, more, &["--output", name]]);
        let lines = place.metrics(name);
        let ends = [&lines[3], &lines[9]].map(|line| figure(line, "eval/divergence"));
        assert!(ends[1] < ends[0], "{name}: {ends:?}");
        if name == "inside" {
            for key in ["hidden_distance", "attention_distance"] {
                let ends = [&lines[0], &lines[9]].map(|line| figure(line, key));
                assert!(ends[1] < ends[0], "{key}: {ends:?}");
            }
        }
        let shares: Vec<&Value> = lines.iter().filter_map(|line| line.get("on_policy")).collect();
        let writes = ["on-policy", "told", "minillm"].contains(&name);
        assert_eq!(shares.len(), if writes { 10 } else { 0 }, "{name}");
        let all = |share: f64| shares.iter().all(|&seen| *seen == json!(share));
        assert!(name != "told" || all(0.0));
        assert!(name != "minillm" || all(1.0));
    }
}

#[test]
fn a_run_that_is_killed_and_resumed_ends_with_the_same_bits() {
    let place = place();
    done(&place, &[&["capture", "--model", "teacher", "--data", "m.jsonl", "--output", "told"]]);
    let cases: [(&str, &[&[&str]]); 4] = [
        ("plain", &[TEACHER]),
        ("stored", &[&["--teacher-logps", "told"]]),
        ("inside", &[TEACHER, INSIDE]),
        ("on-policy", &[TEACHER, ON_POLICY]),
    ];
    for (name, more) in cases {
        let whole = format!("{name}-whole");
        let arguments = [BASE, RUN, CHECKPOINTS].concat();
        done(&place, &[&arguments, &more.concat(), &["--output", &whole]]);
        place.cut_back(&whole, name, 5);
        let stderr = done(&place, &[&["--output", name, "--resume"]]);
        assert!(stderr.contains("resuming after step 5"), "{stderr}");
        assert_eq!(place.metrics(name), place.metrics(&whole), "{name}");
        for file in ["model.safetensors", "checkpoints/step-10/optimizer.safetensors"] {
            let read = |run: &str| place.read(&format!("{run}/{file}"));
            assert!(read(name) == read(&whole), "{name}: {file}");
        }
    }
}

#[test]
fn another_teacher_is_refused_by_a_run_that_is_resumed() {
    let place = place();
    for (name, said) in [("first", "8"), ("second", "4")] {
        let capture = ["capture", "--model", "teacher", "--data", "m.jsonl", "--top-k", said];
        done(&place, &[&capture, &["--output", name]]);
    }
    let stored = ["--teacher-logps", "told"];
    fs::copy(place.path("first"), place.path("told")).unwrap();
    done(&place, &[BASE, RUN, CHECKPOINTS, TEACHER, &["--output", "model-whole"]]);
    done(&place, &[BASE, RUN, CHECKPOINTS, &stored, &["--output", "told-whole"]]);
    place.cut_back("model-whole", "model", 5);
    place.cut_back("told-whole", "file", 5);
    fs::copy(place.path("second"), place.path("told")).unwrap();
    let weights = place.path("teacher/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    for run in ["model", "file"] {
        let output = distill(&place, &[&["--output", run, "--resume"]]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("the teacher is not the one"), "{stderr}");
    }
}

#[test]
fn what_a_teacher_said_is_what_it_says() {
    let place = place();
    let online = [TEACHER, &["--teacher-top-k", "8"]].concat();
    done(&place, &[BASE, RUN, &online, &["--output", "online"]]);
    let capture = ["capture", "--model", "teacher", "--data", "m.jsonl", "--top-k", "8"];
    let said = done(&place, &[&capture, &["--output", "told"]]);
    assert!(said.contains("told: 12 rows, 12 taken now"), "{said}");
    done(&place, &[BASE, RUN, &["--teacher-logps", "told", "--output", "offline"]]);
    let mut worst = 0f64;
    for (online, offline) in place.metrics("online").iter().zip(&place.metrics("offline")) {
        for key in ["loss", "grad_norm", "divergence", "cross_entropy"] {
            let (online, offline) = (figure(online, key), figure(offline, key));
            worst = worst.max((online - offline).abs() / online.abs().max(1.0));
        }
    }
    assert!(worst < 1e-3, "{worst}");
    println!("at most {worst:e} apart");

    // A file that a killed process left half written is continued; nothing is asked twice.
    let whole = place.read("told");
    place.write("told", &whole[..whole.len() - 100]);
    let said = done(&place, &[&capture, &["--output", "told"]]);
    assert!(said.contains("damaged bytes cut off its end"), "{said}");
    assert!(said.contains("told: 12 rows, 1 taken now"), "{said}");
    assert!(place.read("told") == whole);
}

#[test]
fn a_teacher_in_its_file_says_the_same() {
    let place = place();
    let capture = ["capture", "--model", "teacher", "--data", "m.jsonl", "--data", "t.jsonl"];
    let capture = [&capture[..], &["--microbatch-tokens", "100"]].concat();
    done(&place, &[&capture, &["--output", "whole"]]);
    let said = done(&place, &[&capture, &["--output", "layered", "--memory-ceiling", "1GB"]]);
    assert!(said.contains(" under a ceiling of 1.00 GB"), "{said}");
    assert!(place.read("whole") == place.read("layered"));
}

#[test]
fn a_student_is_made_of_its_teachers_blocks() {
    let place = place();
    done(&place, &[&["init", "--teacher", "teacher", "--keep-blocks", "0,2", "--output", "small"]]);
    let config: Value = serde_json::from_slice(&place.read("small/config.json")).unwrap();
    assert_eq!(config["num_hidden_layers"], 2);
    let small = ["--model", "small", "--data", "m.jsonl", "--layer-map", "0:1,1:2"];
    done(&place, &[&small, TEACHER, INSIDE, RUN, &["--output", "healed"]]);
    let lines = place.metrics("healed");
    let ends = [&lines[3], &lines[9]].map(|line| figure(line, "eval/divergence"));
    assert!(ends[1] < ends[0], "{ends:?}");
}

#[test]
fn wrong_input_is_refused() {
    let place = place();
    done(&place, &[&["capture", "--model", "teacher", "--data", "m.jsonl", "--output", "told"]]);
    place.write("few.jsonl", place.text("m.jsonl").lines().next().unwrap());
    place.write("text.txt", "not of log-probs\n");
    place.write("local.toml", "local = 'teacher'\n");
    place.write("wrong.toml", "model = 'big'\nendpoint = 'http://127.0.0.1:9/v1'\n");
    place.write("big.toml", "model = 'big'\n[[endpoints]]\nurl = 'http://127.0.0.1:9/v1'\n");
    let (mut other, mut config) = (String::new(), support::config());
    config["vocab_size"] = json!(513);
    other += &config.to_string();
    place.write("other.json", other);
    let mut told = String::new();
    for command in [
        "",
        "--teacher none",
        "--teacher teacher --teacher-logps told",
        "--teacher teacher --divergence kl",
        "--teacher teacher --beta 0.1",
        "--teacher teacher --divergence jsd --beta 1",
        "--teacher teacher --temperature 0",
        "--teacher teacher --divergence-weight=-1",
        "--teacher teacher --teacher-top-k 0",
        "--teacher teacher --layer-map 0:1",
        "--teacher teacher --hidden-weight 1 --layer-map 0",
        "--teacher teacher --hidden-weight 1 --layer-map 2:1",
        "--teacher teacher --hidden-weight 1 --layer-map 1:3",
        "--teacher teacher --on-policy-fraction 2",
        "--teacher teacher --max-completion-tokens 9",
        "--teacher teacher --divergence minillm",
        "--teacher-logps text.txt",
        "--teacher-logps told --temperature 2",
        "--teacher-logps told --on-policy-fraction 1",
        "--teacher-logps told --hidden-weight 1",
        "--teacher-logps told --data t.jsonl --overlong truncate",
        "capture --data m.jsonl --output told",
        "capture --data m.jsonl --output new --top-k 0",
        "capture --data m.jsonl --output new --temperature 0",
        "capture --data m.jsonl --output new --memory-ceiling much",
        "capture --data few.jsonl --model teacher --output text.txt",
        "capture --data m.jsonl --output new --endpoint http://127.0.0.1:9/v1",
        "capture --data m.jsonl --output new --endpoint nowhere --endpoint-model big",
        "capture --data m.jsonl --output new --prompt-as text",
        "capture --data m.jsonl --output new --teacher-config none.toml",
        "capture --data m.jsonl --output new --teacher-config local.toml",
        "capture --data m.jsonl --output new --teacher-config wrong.toml",
        "capture --data m.jsonl --output new --teacher-config big.toml --temperature 2",
        "capture --data m.jsonl --output new --teacher-config big.toml --top-k 0",
        "capture --data few.jsonl --output text.txt --teacher-config big.toml",
        "init --teacher teacher --output new",
        "init --teacher teacher --keep-blocks 3 --output new",
        "init --teacher teacher --drop-every 1 --output new",
        "init --teacher teacher --num-blocks 4 --output new",
        "init --teacher teacher --num-blocks 2 --output base",
    ] {
        let mut arguments: Vec<&str> = command.split(' ').filter(|word| !word.is_empty()).collect();
        match arguments.first() {
            Some(&"capture") if !arguments.contains(&"--model") => {
                arguments.extend(["--model", "base"]);
            }
            Some(&("init" | "capture")) => {}
            _ if arguments.contains(&"--data") => {
                arguments.extend(["--model", "base", "--output", "run"]);
            }
            _ => arguments.extend([BASE, &["--output", "run"]].concat()),
        }
        let output = distill(&place, &[&arguments]);
        let stderr = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{command}: {stderr}");
        assert!(!stderr.contains("panicked"), "{command}: {stderr}");
        assert!(!place.path("new").exists(), "{command} left something behind");
        let (_, error) = stderr.split_once("error: ").unwrap();
        told += &format!("{command}\n");
        told.extend(error.lines().map(|line| format!("    {line}\n")));
        if place.path("run").exists() {
            fs::remove_dir_all(place.path("run")).unwrap();
            told += "    (a run directory stays)\n";
        }
    }
    insta::assert_snapshot!("refused", told);
    assert_eq!(place.text("text.txt"), "not of log-probs\n");
}
