//! `halter dpo`: its options, what it refuses, and references that are held in different ways.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod support;

use std::fs;
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Place, TINY, command, lines, text};

const PAIRS: &[&str] = &["--model", "base", "--data", "pairs.jsonl"];
const JUDGED: &[&str] = &["--model", "base", "--data", "judged.jsonl", "--loss", "kto"];
/// Twelve steps: two epochs and a half.
const RUN: &[&str] = &[
    "--batch-size",
    "2",
    "--microbatch-tokens",
    "64",
    "--max-steps",
    "12",
    "--learning-rate",
    "1e-2",
];
const HELD: &[&str] = &["--eval-data", "held.jsonl", "--eval-every", "5"];
const CHECKPOINTS: &[&str] = &["--save-every", "1", "--keep-checkpoints", "0"];
const PRECOMPUTE: &str = "--precompute-ref-log-probs";
const LORA: &[&str] = &["--lora-rank", "4", "--lora-dropout", "0.2"];
const SYNC: &[&str] = &["--sync-ref-model", "--ref-model-sync-steps", "3"];

fn user(question: &str) -> Value {
    json!([{ "role": "user", "content": question }])
}

fn assistant(answer: &str) -> Value {
    json!([{ "role": "assistant", "content": answer }])
}

fn pair(i: usize) -> Value {
    json!({
        "prompt": user(&format!("What is {i} plus {}?", i + 1)),
        "chosen": assistant(&format!("It is {}.", 2 * i + 1)),
        "rejected": assistant(&format!("It is {}, perhaps.", 2 * i + 3)),
    })
}

fn judged(i: usize) -> Value {
    let side = if i.is_multiple_of(3) { "rejected" } else { "chosen" };
    let pair = pair(i);
    json!({ "prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen" })
}

/// A place with a model in `base`, pairs and judged completions.
fn place() -> Place {
    let place = Place::new();
    place.done(&[TINY, &["--output", "base", "--max-steps", "2"]].concat());
    place.write("pairs.jsonl", lines((0..10).map(pair)));
    place.write("judged.jsonl", lines((0..10).map(judged)));
    place.write("held.jsonl", lines((20..23).map(pair)));
    place.write("held-judged.jsonl", lines((20..23).map(judged)));
    place
}

fn dpo(place: &Place, arguments: &[&[&str]]) -> Output {
    command(place.root(), &[&["dpo"], &arguments.concat()[..]].concat()).output().unwrap()
}

#[track_caller]
fn done(place: &Place, arguments: &[&[&str]]) -> String {
    let output = dpo(place, arguments);
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    stderr
}

/// The largest difference of two runs' figures, relative to the larger of each and 1.
fn difference(place: &Place, a: &str, b: &str) -> f64 {
    let (a, b) = (place.metrics(a), place.metrics(b));
    assert_eq!(a.len(), b.len());
    let mut worst = 0f64;
    for (a, b) in a.iter().zip(&b) {
        let (a, b) = (a.as_object().unwrap(), b.as_object().unwrap());
        assert!(a.keys().eq(b.keys()), "{a:?} {b:?}");
        for (a, b) in a.values().zip(b.values()) {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            worst = worst.max((a - b).abs() / a.abs().max(1.0));
        }
    }
    worst
}

#[test]
fn the_options_are_these() {
    let place = Place::new();
    let output = command(place.root(), &["dpo", "--help"]).env("COLUMNS", "100").output().unwrap();
    assert!(output.status.success());
    insta::assert_snapshot!("help", text(&output.stdout));
}

#[test]
fn a_run_that_is_killed_and_resumed_ends_with_the_same_bits() {
    let place = place();
    let cases: [(&str, &[&[&str]]); 6] = [
        ("plain", &[PAIRS]),
        ("shifted", &[PAIRS, &["--loss", "bco_pair"]]),
        ("lora", &[PAIRS, LORA]),
        ("sync", &[PAIRS, SYNC]),
        ("taken", &[PAIRS, &[PRECOMPUTE]]),
        ("judged", &[JUDGED, &["--eval-data", "held-judged.jsonl"]]),
    ];
    for (name, start) in cases {
        let held_out = if name == "judged" { &[][..] } else { HELD };
        let arguments = [start, &[RUN, held_out, CHECKPOINTS]].concat();
        let whole = format!("{name}-whole");
        done(&place, &[&arguments.concat(), &["--output", &whole]]);
        place.cut_back(&whole, name, 5);
        let stderr = done(&place, &[&["--output", name, "--resume"]]);
        assert!(stderr.contains("resuming after step 5"), "{stderr}");
        assert_eq!(place.metrics(name), place.metrics(&whole), "{name}");
        let export = if name == "lora" { "adapter_model" } else { "model" };
        for file in
            [format!("{export}.safetensors"), "checkpoints/step-12/optimizer.safetensors".into()]
        {
            let read = |run: &str| place.read(&format!("{run}/{file}"));
            assert!(read(name) == read(&whole), "{name}: {file}");
        }
    }
}

#[test]
fn a_reference_that_follows_is_kept_in_the_checkpoint_and_changes_the_run() {
    let place = place();
    for (run, more) in [("fixed", &[][..]), ("sync", SYNC)] {
        done(&place, &[PAIRS, RUN, CHECKPOINTS, more, &["--output", run]]);
    }
    let kept = |step| place.path(&format!("sync/checkpoints/step-{step}/method.safetensors"));
    assert!(!place.path("fixed/checkpoints/step-2/method.safetensors").exists());
    let read = |step| fs::read(kept(step)).unwrap();
    assert!(read(2) == read(1) && read(3) != read(2) && read(5) == read(3) && read(6) != read(5));
    let (fixed, sync) = (place.metrics("fixed"), place.metrics("sync"));
    assert_eq!(fixed[..3], sync[..3], "before the first move");
    assert_ne!(fixed[3]["loss"], sync[3]["loss"]);
}

#[test]
fn log_probs_taken_beforehand_change_nothing_but_rounding() {
    let place = place();
    for (name, start) in [("pairs", PAIRS), ("judged", JUDGED)] {
        let held = if name == "judged" { &["--eval-data", "held-judged.jsonl"][..] } else { HELD };
        for (kind, more) in [("full", &[][..]), ("lora", LORA), ("other", &["--ref-model", "base"])]
        {
            let [plain, taken] = ["plain", "taken"].map(|how| format!("{name}-{kind}-{how}"));
            done(&place, &[start, RUN, held, more, &["--output", &plain]]);
            let said = done(&place, &[start, RUN, held, more, &[PRECOMPUTE, "--output", &taken]]);
            assert!(said.contains("reference: log-probs of "), "{said}");
            let worst = difference(&place, &plain, &taken);
            assert!(worst < 1e-4, "{name} {kind}: {worst}");
            println!("{name} {kind}: {worst:e}");
        }
    }
}

#[test]
fn microbatches_change_no_held_out_loss_that_compares_pairs() {
    let place = place();
    let held = ["--eval-data", "held.jsonl", "--eval-every", "1", "--max-steps", "2"];
    for (run, tokens) in [("small", "16"), ("large", "4096")] {
        let size = ["--batch-size", "2", "--microbatch-tokens", tokens, "--output", run];
        done(&place, &[PAIRS, &["--loss", "aot", "--learning-rate", "1e-2"], &held, &size]);
    }
    let losses = |run| place.metrics(run).into_iter().map(|line| line["eval/loss"].clone());
    let (small, large): (Vec<_>, Vec<_>) = (losses("small").collect(), losses("large").collect());
    assert!(small.len() >= 2 && small.last().unwrap().is_number(), "{small:?}");
    assert_eq!(small, large);
}

#[test]
fn tokens_beyond_the_shorter_completion_count_by_ld_alpha() {
    let place = place();
    for (run, more) in
        [("plain", &[][..]), ("whole", &["--ld-alpha", "1"]), ("none", &["--ld-alpha", "0"])]
    {
        done(&place, &[PAIRS, RUN, more, &["--output", run]]);
    }
    let (plain, none) = (place.metrics("plain"), place.metrics("none"));
    assert_eq!(plain, place.metrics("whole"));
    // every rejected completion is the longer one
    let first = |metrics: &[Value], name: &str| metrics[0][name].as_f64().unwrap();
    assert_eq!(first(&plain, "logps/chosen"), first(&none, "logps/chosen"));
    assert!(first(&plain, "logps/rejected") < first(&none, "logps/rejected"));
    assert_ne!(plain.last(), none.last());
}

#[test]
fn what_was_taken_beforehand_is_used_again_and_never_out_of_date() {
    let place = place();
    let keep = ["--ref-log-probs", "kept.logps", PRECOMPUTE];
    let run_of = |model: &str, output: &str, more: &[&str]| {
        let start = ["--model", model, "--data", "pairs.jsonl", "--output", output];
        done(&place, &[&start, RUN, more, &keep])
    };
    let run = |output: &str, more: &[&str]| run_of("base", output, more);
    let said = |stderr: &str, what: &str| assert!(stderr.contains(what), "{stderr}");
    // Ten pairs, of which each comes in two of three epochs at least.
    said(&run("first", &[]), "log-probs of 20 completions, 20 taken now");
    let kept = place.read("kept.logps");
    said(&run("second", &["--beta", "0.3"]), "log-probs of 20 completions, 0 taken now");
    assert_eq!(place.read("kept.logps"), kept);
    // What changes a sum is taken anew.
    let formatting = run("formatting", &["--mask-formatting", "false"]);
    said(&formatting, "log-probs of 40 completions, 20 taken now");
    place.write("kept.logps", &kept);
    let mut rows: Vec<Value> = (0..10).map(pair).collect();
    rows[4]["rejected"] = assistant("No.");
    place.write("pairs.jsonl", lines(rows.into_iter()));
    said(&run("row", &[]), "log-probs of 21 completions, 1 taken now");
    // A file that is damaged, or of another model, is told and made anew.
    place.write("kept.logps", &kept[..kept.len() - 1]);
    said(&run("cut", &[]), "kept.logps is damaged: it is made anew");
    let mut flipped = kept.clone();
    flipped[60] ^= 1;
    place.write("kept.logps", flipped);
    said(&run("flipped", &[]), "kept.logps is damaged: it is made anew");
    place.write("kept.logps", &kept);
    place.done(&[TINY, &["--output", "other", "--max-steps", "3"]].concat());
    let other = run_of("other", "of-other", &[]);
    said(&other, "kept.logps is of another reference: it is made anew");
    said(&other, "20 taken now");
    assert_eq!(place.metrics("row"), place.metrics("cut"));
    assert_eq!(place.metrics("row"), place.metrics("flipped"));
}

#[test]
fn a_run_is_not_resumed_with_another_reference() {
    let place = place();
    for (name, more) in [("held", &[][..]), ("taken", &[PRECOMPUTE])] {
        place.done(&[TINY, &["--output", "ref", "--max-steps", "3"]].concat());
        let arguments = [PAIRS, RUN, &["--ref-model", "ref"], more].concat();
        done(&place, &[&arguments, &["--output", name]]);
        fs::remove_dir_all(place.path("ref")).unwrap();
        place.done(&[TINY, &["--output", "ref", "--max-steps", "4"]].concat());
        let output = dpo(&place, &[&["--output", name, "--resume"]]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        let message = "the reference is not the model that the run began with";
        assert!(stderr.contains(message), "{stderr}");
        fs::remove_dir_all(place.path("ref")).unwrap();
    }
}

#[test]
fn log_probs_are_taken_before_memory_is_needed_for_the_steps() {
    let place = place();
    let planned = |more: &[&str]| {
        let output = dpo(&place, &[PAIRS, more, &["--dry-run", "--json", "--output", "run"]]);
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        plan["predicted_memory"].as_u64().unwrap()
    };
    let weights = fs::metadata(place.path("base/model.safetensors")).unwrap().len();
    let saved = planned(&[]) - planned(&[PRECOMPUTE]);
    assert!(saved.abs_diff(weights) < weights / 10, "{saved} {weights}");
    assert_eq!(planned(&["--ref-model", "base", PRECOMPUTE]), planned(&[PRECOMPUTE]));
    let plan = [&["plan", "dpo", "--json"], PAIRS].concat();
    let output = command(place.root(), &plan).output().unwrap();
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["peak_bytes"], planned(&[]));
}

#[test]
fn wrong_input_is_refused() {
    let place = place();
    place.write("one.jsonl", format!("{}\n", pair(1)));
    let spoilt = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut row = pair(1);
        change(&mut row);
        place.write(name, format!("{}\n{row}\n", pair(0)));
    };
    spoilt("no-rejected.jsonl", &|row| drop(row.as_object_mut().unwrap().remove("rejected")));
    spoilt("same.jsonl", &|row| row["rejected"] = row["chosen"].clone());
    let mut rows: Vec<Value> = (0..20).map(pair).collect();
    rows[17]["rejected"] = assistant("");
    place.write("empty.jsonl", lines(rows.into_iter()));
    spoilt("number.jsonl", &|row| row["chosen"] = json!(7));
    let ranked = json!({ "prompt": "1 + 1 =", "completions": [" 2", " 3", " 4"] });
    place.write("ranked.jsonl", format!("{ranked}\n"));
    place.write("text.jsonl", "not of log-probs\n");
    let mut told = String::new();
    for command in [
        "--data no-rejected.jsonl",
        "--data same.jsonl",
        "--data empty.jsonl --batch-size 2",
        "--data number.jsonl",
        "--data ranked.jsonl",
        "--data m.jsonl",
        "--data judged.jsonl",
        "--data pairs.jsonl --max-seq-len 16",
        "--data pairs.jsonl --loss kto",
        "--data judged.jsonl --loss kto --batch-size 1",
        "--data judged.jsonl --loss kto --ld-alpha 0.5",
        "--data judged.jsonl --loss kto --desirable-weight=-1",
        "--data pairs.jsonl --desirable-weight 2",
        "--data pairs.jsonl --loss ddpo",
        "--data pairs.jsonl --loss sigmoid,kto",
        "--data pairs.jsonl --loss sigmoid:0",
        "--data pairs.jsonl --beta 0",
        "--data pairs.jsonl --nll-weight=-1",
        "--data pairs.jsonl --ld-alpha 2",
        "--data pairs.jsonl --loss exo_pair",
        "--data pairs.jsonl --loss hinge --label-smoothing 0.1",
        "--data pairs.jsonl --simpo-gamma 1",
        "--data judged.jsonl --loss kto --cpo-alpha 0.5",
        "--data pairs.jsonl --loss sigmoid,sft --discopop-tau 0.1",
        "--data pairs.jsonl --loss simpo --ref-model base",
        "--data pairs.jsonl --loss orpo --precompute-ref-log-probs",
        "--data pairs.jsonl --loss cpo --sync-ref-model",
        "--data pairs.jsonl --ref-model none",
        "--data pairs.jsonl --ref-model-sync-steps 3",
        "--data pairs.jsonl --sync-ref-model --ref-model-sync-steps 0",
        "--data pairs.jsonl --sync-ref-model --ref-model-mixup-alpha 1.5",
        "--data pairs.jsonl --sync-ref-model --lora-rank 2",
        "--data pairs.jsonl --sync-ref-model --precompute-ref-log-probs",
        "--data pairs.jsonl --ref-log-probs kept.logps",
        "--data pairs.jsonl --precompute-ref-log-probs --ref-log-probs text.jsonl",
    ] {
        let arguments: Vec<&str> = command.split(' ').collect();
        let output = dpo(&place, &[&["--model", "base", "--output", "run"], &arguments]);
        let stderr = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{command}: {stderr}");
        assert!(!stderr.contains("panicked"), "{command}: {stderr}");
        assert!(!place.path("run").exists(), "{command} left something behind");
        let (_, error) = stderr.split_once("error: ").unwrap();
        told += &format!("{command}\n");
        told.extend(error.lines().map(|line| format!("    {line}\n")));
    }
    insta::assert_snapshot!("refused", told);
    assert_eq!(place.text("text.jsonl"), "not of log-probs\n");
}

#[test]
fn an_interruption_while_log_probs_are_taken_leaves_nothing() {
    let place = place();
    place.write("long.jsonl", lines((0..4000).map(pair)));
    let arguments = ["--model", "base", "--data", "long.jsonl", PRECOMPUTE, "--output", "run"];
    let mut child = command(place.root(), &[&["dpo"], &arguments[..]].concat())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut lines = std::io::BufRead::lines(stderr).map(Result::unwrap);
    assert!(lines.by_ref().any(|line| line.starts_with("reference: ")));
    std::thread::sleep(Duration::from_millis(5));
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("before the first step: nothing to save")));
    assert!(!place.path("run").exists());
}
