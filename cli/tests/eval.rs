//! `halter eval`: figures that follow from the samples, the same whatever stopped the run.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod support;

use std::fs;
use std::process::Output;

use serde_json::{Value, json};
use support::{Place, failures, halter_in, lines, text};

const CHOICES: &str = "choices.jsonl";

/// Rows of choices, of yes and no, and of questions with an answer.
fn place() -> Place {
    let place = Place::new();
    let number = |i: usize| {
        json!({
            "context": format!("{i} eggs and 2 eggs are"), "answer": i % 3,
            "choices": [format!("{} eggs", i + 2), "boxes", format!("{i}")],
        })
    };
    place.write(CHOICES, lines((0..30).map(number)));
    let boolq = |i: usize| {
        json!({ "passage": "Tom buys eggs.", "question": format!("are {i} eggs bought"),
                "answer": i.is_multiple_of(2) })
    };
    place.write("boolq.jsonl", lines((0..10).map(boolq)));
    let problem =
        |i: usize| json!({ "prompt": format!("What is {i} + 2?"), "answer": format!("{}", i + 2) });
    place.write("problems.jsonl", lines((0..6).map(problem)));
    place
}

#[track_caller]
fn done(place: &Place, arguments: &[&str]) -> Output {
    let output = halter_in(place.root(), &[&["eval"], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    output
}

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_bundled_model_answers_the_bundled_problems() {
    let place = Place::new();
    let output = done(&place, &["--limit", "12", "--output", "out", "--json"]);
    assert!(text(&output.stderr).contains("no --model and no --task"));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let samples = rows(&place.text("out/samples-eval.jsonl"));
    assert_eq!(samples.len(), 12);
    let right = samples.iter().filter(|line| line["completions"][0]["score"] == 1.0).count();
    let task = &told["tasks"][0];
    assert_eq!((&task["task"], &task["format"]), (&json!("eval"), &json!("open")));
    assert_eq!(task["rows"], 12);
    let acc = right as f64 / 12.0;
    assert_eq!(task["acc"], acc);
    let stderr = (acc * (1.0 - acc) / 11.0).sqrt();
    assert!((task["acc_stderr"].as_f64().unwrap() - stderr).abs() < 1e-12);
    let written: Value = serde_json::from_str(&place.text("out/results.json")).unwrap();
    assert_eq!(written["tasks"], told["tasks"]);
    assert_eq!(written["settings"]["temperature"], 0.0);
}

#[test]
fn choices_are_counted_and_a_run_goes_on_to_the_same_files() {
    let place = place();
    let options = ["--task", CHOICES, "--task", "boolq=boolq.jsonl", "--num-fewshot", "2"];
    let output = done(&place, &[&options[..], &["--output", "out"]].concat());
    let told = text(&output.stderr);
    assert!(told.contains("choices: acc ") && told.contains("boolq: acc "), "{told}");
    let files = ["out/samples-choices.jsonl", "out/samples-boolq.jsonl", "out/results.json"];
    let whole = files.map(|name| place.text(name));
    let samples = rows(&whole[0]);
    assert_eq!(samples.len(), 30);
    // Examples are the first rows that are not the row itself.
    let context = samples[1]["context"].as_str().unwrap();
    let shown = "0 eggs and 2 eggs are 2 eggs\n\n2 eggs and 2 eggs are 2\n\n1 eggs and 2 eggs are";
    assert_eq!(context, shown);
    let mut right = 0;
    for (number, line) in samples.iter().enumerate() {
        let logps: Vec<f64> = line["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|choice| choice["logps"].as_f64().unwrap())
            .collect();
        let best = (0..3).max_by(|a, b| logps[*a].total_cmp(&logps[*b])).unwrap();
        assert_eq!(line["prediction"], best);
        assert_eq!(line["correct"], best == number % 3);
        right += usize::from(best == number % 3);
    }
    let results: Value = serde_json::from_str(&whole[2]).unwrap();
    assert_eq!(results["tasks"][0]["acc"], right as f64 / 30.0);
    assert_eq!(results["tasks"][1]["rows"], 10);
    // Stopped in the first task, before the second.
    let cut = whole[0].len() / 2;
    fs::write(place.path(files[0]), &whole[0][..cut]).unwrap();
    fs::remove_file(place.path(files[1])).unwrap();
    fs::remove_file(place.path("out/samples-boolq.jsonl.settings.json")).unwrap();
    let again = [&options[..], &["--output", "out", "--resume"]].concat();
    done(&place, &again);
    assert_eq!(files.map(|name| place.text(name)), whole);
    let other = [&["eval"], &again[..], &["--limit", "9"]].concat();
    let refused = halter_in(place.root(), &other);
    assert!(text(&refused.stderr).contains("`limit` is `9`, but the output began with `null`"));
}

#[test]
fn several_completions_give_pass_at_k() {
    let place = place();
    let options = ["--task", "open=problems.jsonl", "--scorer", "numeric", "--num-completions"];
    let more = ["4", "--max-new-tokens", "24", "--seed", "3", "--output", "out"];
    done(&place, &[&options[..], &more].concat());
    let results: Value = serde_json::from_str(&place.text("out/results.json")).unwrap();
    let task = &results["tasks"][0];
    let ks: Vec<_> = task["pass_at"].as_array().unwrap().iter().map(|rate| &rate["k"]).collect();
    assert_eq!(ks, [1, 2, 4]);
    assert_eq!(task["pass_at"][0]["mean"], task["acc"]);
    // A text is completed as it stands where no conversation is wanted.
    let plain = ["--task", "open=problems.jsonl", "--no-chat-template", "--output", "plain"];
    done(&place, &[&plain[..], &["--max-new-tokens", "4"]].concat());
    let samples = rows(&place.text("plain/samples-open.jsonl"));
    assert_eq!(samples[3]["prompt"], "What is 3 + 2?");
    // An empty line would begin another problem.
    let settings = place.text("plain/samples-open.jsonl.settings.json");
    let settings: Value = serde_json::from_str(&settings).unwrap();
    assert_eq!(settings["stop"], json!(["\n\n"]));
}

#[test]
fn what_could_not_be_judged_is_judged_again() {
    let place = place();
    let options = ["--task", "problems.jsonl", "--scorer", "numeric", "--max-new-tokens", "24"];
    let options = [&options[..], &["--output", "out"]].concat();
    done(&place, &options);
    let path = "out/samples-problems.jsonl";
    let whole = place.text(path);
    let mut samples = rows(&whole);
    let said = samples[2]["completions"][0].as_object_mut().unwrap();
    said.remove("score");
    said.remove("detail");
    said.insert("error".into(), json!("the judge did not answer"));
    place.write(path, lines(samples.into_iter()));
    done(&place, &[&options[..], &["--resume"]].concat());
    assert_eq!(place.text(path), whole);
}

#[test]
fn tasks_of_one_format_have_names_of_their_own() {
    let place = place();
    let tasks = ["--task", "boolq=boolq.jsonl", "--task", "boolq=boolq.jsonl", "--limit", "2"];
    done(&place, &[&tasks[..], &["--output", "out"]].concat());
    assert_eq!(rows(&place.text("out/samples-boolq-2.jsonl")).len(), 2);
}

#[test]
fn what_cannot_be_evaluated_is_refused_with_its_place() {
    let place = place();
    place.write(
        "bad.jsonl",
        "{\"context\":\"x\",\"choices\":[\"a\"],\"answer\":0}\n\n{\"context\":1}\n",
    );
    let chat = json!({ "messages": [{ "role": "user", "content": "Hi" }], "answer": "Hi" });
    place.write("chat.jsonl", lines([chat].into_iter()));
    let long = json!({ "prompt": "eggs ".repeat(600), "answer": "1" });
    place.write("long.jsonl", lines([long].into_iter()));
    fs::create_dir(place.path("there")).unwrap();
    place.write("there/samples-boolq.jsonl", "");
    let commands = [
        "eval --model bundled --output o",
        "eval --task bolq=boolq.jsonl --output o",
        "eval --task boolq= --output o",
        "eval --task missing.jsonl --output o",
        "eval --task boolq=boolq.jsonl --output there",
        "eval --task boolq=boolq.jsonl --output o --resume",
        "eval --task boolq=choices.jsonl --output o",
        "eval --task bad.jsonl --output o",
        "eval --task m.jsonl --scorer nonsense --output o",
        "eval --task chat.jsonl --no-chat-template --output o",
        "eval --task long.jsonl --output o",
        "eval --task boolq=boolq.jsonl --limit 0 --output o",
        "eval --task boolq=boolq.jsonl --num-completions 2 --output o",
        "eval --task problems.jsonl --num-completions 2 --temperature 0 --output o",
        "eval --task gsm8k=problems.jsonl --scorer exact --output o",
        "eval --task boolq=boolq.jsonl --fewshot boolq=boolq.jsonl --output o",
        "eval --task boolq=boolq.jsonl --num-fewshot 2 --fewshot piqa=boolq.jsonl --output o",
        "eval --task boolq=boolq.jsonl --num-fewshot 10 --output o",
        "eval --task m.jsonl --num-fewshot 1 --output o",
    ];
    insta::assert_snapshot!("eval_failures", failures(place.root(), &commands));
    // A completion that cannot be judged is counted as wrong, and the command fails.
    place.write("unjudged.jsonl", lines((0..2).map(|i| json!({ "prompt": format!("{i}?") }))));
    let output = halter_in(
        place.root(),
        &["eval", "--task", "unjudged.jsonl", "--max-new-tokens", "4", "--output", "unjudged"],
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("2 completions could not be judged"));
    let results: Value = serde_json::from_str(&place.text("unjudged/results.json")).unwrap();
    assert_eq!(
        (&results["tasks"][0]["acc"], &results["tasks"][0]["unscored"]),
        (&json!(0.0), &json!(2))
    );
}
