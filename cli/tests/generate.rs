//! `halter generate`: completions in the order of the rows, and the same whatever stopped the run.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod support;

use std::fs;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Place, command, failures, halter_in, killed_until_done, lines, text};

const MODEL: &[&str] = &["generate", "--model", "bundled", "--seed", "3"];

#[track_caller]
fn done(place: &Place, arguments: &[&str]) -> Output {
    let output = halter_in(place.root(), &[MODEL, arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    output
}

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_row_gets_its_completions_in_order() {
    let place = Place::new();
    let options = ["--data", "m.jsonl", "--max-new-tokens", "20", "--num-completions", "3"];
    let output = done(&place, &[&options[..], &["--logprobs"]].concat());
    let all = rows(&text(&output.stdout));
    assert_eq!(all.len(), 12);
    let mut texts = Vec::new();
    for (number, row) in all.iter().enumerate() {
        assert_eq!(row["row"], number);
        let question = format!("What is {number} plus {}?", number + 1);
        assert_eq!(row["prompt"], json!([{ "role": "user", "content": question }]));
        let completions = row["completions"].as_array().unwrap();
        assert_eq!(completions.len(), 3);
        for completion in completions {
            let logps = completion["per_token_logps"].as_array().unwrap();
            let count = completion["num_tokens"].as_u64().unwrap() as usize;
            assert_eq!(
                (logps.len(), completion["tokens"].as_array().unwrap().len()),
                (count, count)
            );
            assert!((1..=20).contains(&count));
            let sum: f64 = logps.iter().map(|x| x.as_f64().unwrap()).sum();
            assert!((completion["logps"].as_f64().unwrap() - sum).abs() < 1e-4);
            let length = if count == 20 { "length" } else { "stop" };
            assert!(completion["finish_reason"] == length || count == 20, "{completion}");
            texts.push(completion["text"].as_str().unwrap().to_string());
        }
    }
    let distinct: std::collections::BTreeSet<&String> = texts.iter().collect();
    assert!(distinct.len() > 30, "completions of a prompt differ: {texts:?}");
    // Alone, with other options of the engine, in a file.
    let more = ["--batch-size", "1", "--output", "out.jsonl", "--json"];
    let output = done(&place, &[&options[..], &more].concat());
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told["rows"], &told["completions"]), (&json!(12), &json!(36)));
    for (row, before) in rows(&place.text("out.jsonl")).iter().zip(&all) {
        for (one, other) in [0, 1, 2].map(|i| (&row["completions"][i], &before["completions"][i])) {
            assert_eq!((&one["text"], &one["logps"]), (&other["text"], &other["logps"]));
        }
    }
}

#[test]
fn prompts_are_read_from_rows_of_any_kind() {
    let place = Place::new();
    let greedy = ["--temperature", "0", "--max-new-tokens", "4"];
    let prompts = |name: &str, row: Value| {
        place.write(name, format!("{row}\n"));
        let output = done(&place, &[&["--data", name], &greedy[..]].concat());
        rows(&text(&output.stdout))[0].clone()
    };
    let user = json!([{ "role": "user", "content": "2 plus 2?" }]);
    let asked = prompts("a.jsonl", json!({ "messages": user, "id": "x7" }));
    assert_eq!((&asked["prompt"], &asked["id"]), (&user, &json!("x7")));
    let alone = prompts("b.jsonl", json!({ "prompt": user }));
    assert_eq!(alone["completions"], asked["completions"]);
    let pair = prompts("c.jsonl", json!({ "prompt": "2 plus 2?", "completion": "4" }));
    let text = prompts("d.jsonl", json!({ "text": "2 plus 2?" }));
    assert_eq!(pair["prompt"], "2 plus 2?");
    assert_eq!(pair["completions"], text["completions"], "no template");
    let chosen =
        prompts("e.jsonl", json!({ "prompt": "2 plus 2?", "chosen": "4", "rejected": "5" }));
    assert_eq!(chosen["completions"], text["completions"]);
}

#[test]
fn stop_strings_and_tokens_end_a_completion() {
    let place = Place::new();
    place.write("t.jsonl", lines((1..2).map(|_| json!({ "text": "Tom has 3 eggs." }))));
    let run = |more: &[&str]| {
        let options = ["--data", "t.jsonl", "--temperature", "0", "--max-new-tokens", "30"];
        let output = done(&place, &[&options[..], more].concat());
        rows(&text(&output.stdout))[0]["completions"][0].clone()
    };
    let whole = run(&[])["text"].as_str().unwrap().to_string();
    let stop = whole.split_whitespace().nth(3).unwrap();
    let cut = run(&["--stop", stop]);
    assert_eq!(cut["text"], whole[..whole.find(stop).unwrap()]);
    assert_eq!(cut["finish_reason"], "stop");
    let digit = whole.chars().find(char::is_ascii_digit).unwrap().to_string();
    let cut = run(&["--stop-token", &digit]);
    assert_eq!(cut["text"], whole[..whole.find(&digit).unwrap()]);
}

/// Completions that take a while: long ones, few at a time.
const SLOW: &[&str] = &["--max-new-tokens", "300", "--num-completions", "4", "--batch-size", "4"];

fn many(place: &Place) {
    let question = |i: usize| json!({ "text": format!("Ann has {i} books. Ben has {i} more.") });
    place.write("many.jsonl", lines((0..40).map(question)));
}

fn begin(place: &Place, output: &str) -> Child {
    let arguments = [MODEL, SLOW, &["--data", "many.jsonl", "--output", output]].concat();
    let mut child = command(place.root(), &arguments);
    let child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while fs::read(place.path(output)).map_or(0, |bytes| bytes.len()) < 2000 {
        assert!(began.elapsed() < Duration::from_secs(60), "nothing is written");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

#[test]
fn killed_or_interrupted_it_goes_on_to_the_same_bytes() {
    let place = Place::new();
    many(&place);
    let options = [SLOW, &["--data", "many.jsonl"]].concat();
    done(&place, &[&options[..], &["--output", "whole.jsonl"]].concat());
    let whole = place.text("whole.jsonl");
    assert_eq!(rows(&whole).len(), 40);

    let mut killed = begin(&place, "killed.jsonl");
    killed.kill().unwrap();
    killed.wait().unwrap();
    let before = place.text("killed.jsonl");
    assert!(before.len() < whole.len() && whole.starts_with(&before), "killed in the middle");
    // A line that a kill cut.
    place.write("killed.jsonl", &whole.as_bytes()[..before.len() + 20]);
    done(&place, &[&options[..], &["--output", "killed.jsonl", "--resume"]].concat());
    assert_eq!(place.text("killed.jsonl"), whole);

    let mut interrupted = begin(&place, "stopped.jsonl");
    let id = interrupted.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    assert_eq!(interrupted.wait().unwrap().code(), Some(130));
    let before = place.text("stopped.jsonl");
    assert!(before.ends_with('\n') && before.len() < whole.len(), "stopped in the middle");
    let resumed =
        done(&place, &[&options[..], &["--output", "stopped.jsonl", "--resume"]].concat());
    assert_eq!(place.text("stopped.jsonl"), whole);
    let told = format!("resumed after {} of 40 rows", rows(&before).len());
    assert!(text(&resumed.stderr).contains(&told), "{}", text(&resumed.stderr));
    // All is done already.
    done(&place, &[&options[..], &["--output", "stopped.jsonl", "--resume"]].concat());
    assert_eq!(place.text("stopped.jsonl"), whole);
}

#[test]
fn killed_again_and_again_it_ends_with_the_same_bytes() {
    let place = Place::new();
    many(&place);
    let options = [SLOW, &["--data", "many.jsonl"]].concat();
    let began = Instant::now();
    done(&place, &[&options[..], &["--output", "whole.jsonl"]].concat());
    let taken = began.elapsed();
    let (mut seed, mut kills) = (23, 0);
    for round in 0.. {
        let name = format!("{round}.jsonl");
        let goes_on = |stderr: Stdio| {
            let begun = place.path(&format!("{name}.settings.json")).exists();
            let resume: &[&str] = if begun { &["--resume"] } else { &[] };
            let arguments = [MODEL, &options, &["--output", &name], resume].concat();
            command(place.root(), &arguments).stderr(stderr).spawn().unwrap()
        };
        kills += killed_until_done(&place, &mut seed, taken, goes_on, || {});
        assert_eq!(place.text(&name), place.text("whole.jsonl"), "after {kills} kills");
        if kills >= 10 {
            break;
        }
        assert!(round < 20, "only {kills} kills in {round} runs");
    }
}

#[test]
fn a_small_cache_ends_completions_where_it_did_before() {
    let place = Place::new();
    let options =
        "--data m.jsonl --max-new-tokens 200 --num-completions 2 --temperature 2".split(' ');
    let options: Vec<&str> = options.collect();
    let run = |more: &[&str]| halter_in(place.root(), &[MODEL, &options, more].concat());
    assert!(run(&["--output", "whole.jsonl", "--cache-tokens", "64"]).status.success());
    let whole = place.text("whole.jsonl");
    assert!(whole.contains("\"finish_reason\":\"length\",\"num_tokens\":2"), "{whole}");
    for (cut, line) in whole.match_indices('\n').skip(3).step_by(4) {
        place.write("cut.jsonl", &whole[..cut + line.len()]);
        let settings = [place.path("whole.jsonl"), place.path("cut.jsonl")]
            .map(|path| path.with_extension("jsonl.settings.json"));
        fs::copy(&settings[0], &settings[1]).unwrap();
        let output = run(&["--output", "cut.jsonl", "--resume"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(place.text("cut.jsonl"), whole);
    }
    for (more, told) in [
        (&["--cache-tokens", "96"][..], "`cache_tokens` is `96`, but the output began with `64`"),
        (&["--allow-special-text"], "`allow_special_text` is `true`, but the output began with"),
    ] {
        let output = run(&[&["--output", "cut.jsonl", "--resume"], more].concat());
        assert!(text(&output.stderr).contains(told), "{}", text(&output.stderr));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_told_and_resumed_from() {
    let place = Place::new();
    let options = ["--data", "m.jsonl", "--max-new-tokens", "40", "--num-completions", "8"];
    done(&place, &[&options[..], &["--output", "whole.jsonl"]].concat());
    let whole = place.text("whole.jsonl");
    assert!(whole.len() > 8192, "{}", whole.len());
    // A limit of the file's size stands for the disk: 8 blocks of 512 bytes.
    let arguments = [MODEL, &options, &["--output", "full.jsonl"]].concat().join(" ");
    let script =
        format!("trap '' XFSZ; ulimit -f 8; exec {} {arguments}", env!("CARGO_BIN_EXE_halter"));
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .current_dir(place.root())
        .env("XDG_CACHE_HOME", place.path("cache"))
        .output()
        .unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("error: full.jsonl: cannot write: "), "{stderr}");
    assert!(stderr.contains("rows are whole: `--resume` goes on"), "{stderr}");
    let before = place.text("full.jsonl");
    assert!(before.ends_with('\n') && whole.starts_with(&before) && before.len() > 1000);
    done(&place, &[&options[..], &["--output", "full.jsonl", "--resume"]].concat());
    assert_eq!(place.text("full.jsonl"), whole);
}

#[test]
fn a_row_that_cannot_be_answered_is_told_and_the_others_are_answered() {
    let place = Place::new();
    let long = "one llama and ".repeat(300);
    let texts = ["A short one.", &long, "Another."].map(|text| json!({ "text": text }));
    place.write("t.jsonl", lines(texts.into_iter()));
    let arguments = ["--data", "t.jsonl", "--max-new-tokens", "5", "--output", "out.jsonl"];
    let output = halter_in(place.root(), &[MODEL, &arguments].concat());
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("error: 1 row could not be answered"), "{stderr}");
    assert!(stderr.contains("t.jsonl:2: the prompt has `"), "{stderr}");
    let all = rows(&place.text("out.jsonl"));
    assert_eq!(all.len(), 3);
    assert!(all[1]["error"].as_str().unwrap().contains("the model's context `512`"), "{}", all[1]);
    let counts: Vec<usize> =
        all.iter().map(|row| row["completions"].as_array().unwrap().len()).collect();
    assert_eq!(counts, [1, 0, 1]);
    // It is told again by whatever goes on.
    let again = halter_in(place.root(), &[MODEL, &arguments, &["--resume", "--json"]].concat());
    assert_eq!(again.status.code(), Some(1));
    let told = text(&again.stderr);
    assert!(told.contains("error: 1 row could not be answered"), "{told}");
    assert!(told.contains("t.jsonl:2: the prompt has `"), "{told}");
    let told = &rows(&text(&again.stdout))[0];
    assert_eq!((&told["resumed_after"], &told["failed_rows"]), (&json!(3), &json!(1)));
}

#[test]
fn wrong_options_are_refused_before_anything_is_written() {
    let place = Place::new();
    let options = ["--data", "m.jsonl", "--max-new-tokens", "3"];
    done(&place, &[&options[..], &["--output", "old.jsonl"]].concat());
    let old = place.text("old.jsonl");
    place.write("changed.jsonl", "{\"row\":0}\n{\"row\":5}\n");
    fs::copy(place.path("old.jsonl.settings.json"), place.path("changed.jsonl.settings.json"))
        .unwrap();
    place.write("ids.jsonl", "{\"input_ids\":[1,2,3]}\n");
    let common = "generate --model bundled --data m.jsonl --seed 3 --max-new-tokens 3";
    let told = failures(
        place.root(),
        &[
            &format!("{common} --output old.jsonl"),
            &format!("{common} --output old.jsonl --resume --temperature 0.5"),
            &format!("{common} --output old.jsonl --resume --num-completions 2"),
            &format!("{common} --output changed.jsonl --resume"),
            &format!("{common} --output none.jsonl --resume"),
            &format!("{common} --resume"),
            &format!("{common} --json"),
            &format!("{common} --temperature -1"),
            &format!("{common} --top-p 0"),
            &format!("{common} --stop-token <nothing>"),
            "generate --model bundled",
            "chat --json",
            "generate --model bundled --data m.jsonl:2",
            "generate --model bundled --data ids.jsonl --output ids.out",
            "generate --model bundled --data m.jsonl --max-new-tokens 0",
            "generate --model bundled --data m.jsonl --cache-tokens 16 --output small.jsonl",
        ],
    );
    insta::assert_snapshot!(told);
    assert_eq!(place.text("old.jsonl"), old);
}

#[test]
fn a_chat_goes_on_over_turns_and_forgets_when_told() {
    use std::io::Write;
    let place = Place::new();
    let chat = |input: &str| {
        let arguments =
            ["chat", "--model", "bundled", "--temperature", "0", "--max-new-tokens", "8"];
        let mut child = command(place.root(), &arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        output
    };
    let answers = |output: &Output| text(&output.stdout);
    let first = answers(&chat("What is 2 plus 3?\n"));
    assert!(!first.trim().is_empty());
    let twice = answers(&chat("What is 2 plus 3?\nAnd 4 plus 5?\n"));
    let rest = twice.strip_prefix(&first).expect("the first answer is the same");
    let second = answers(&chat("And 4 plus 5?\n"));
    assert_ne!(rest, second, "the model sees the first turn");
    let reset = answers(&chat("What is 2 plus 3?\n/reset\nAnd 4 plus 5?\n"));
    assert_eq!(reset, format!("{first}{second}"));
    let system = answers(&chat("/system You count llamas.\nAnd 4 plus 5?\n"));
    assert_ne!(system, second);
    let output = chat("/sytem x\n/help\n/quit\nWhat?\n");
    assert_eq!(answers(&output), "");
    let stderr = text(&output.stderr);
    assert!(stderr.contains("no command `/sytem`") && stderr.contains("forget"), "{stderr}");
}
