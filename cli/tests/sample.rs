//! `halter sample`: every row completed, scored and kept the same, whatever stopped the run.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Place, SmallDisk, command, halter_in, killed_until_done, lines, text};

const SAMPLE: &[&str] = &[
    "sample",
    "--model",
    "bundled",
    "--data",
    "rows.jsonl",
    "--num-completions",
    "4",
    "--max-new-tokens",
    "24",
    "--seed",
    "5",
    "--scorer",
    "numeric",
    "--scorer",
    "0.1*length:10",
    "--temperatures",
    "0.5,1.5",
    "--select",
    "top=0.5",
];
const RESULTS: [&str; 3] = ["completions.jsonl", "sft.jsonl", "preferences.jsonl"];

fn place(rows: usize) -> Place {
    let place = Place::new();
    let row = |i: usize| {
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"What is {i} + 2?\"}},\
                 {{\"role\":\"assistant\",\"content\":\"#### {}\"}}]}}\n",
            i + 2
        )
    };
    let rows: String = (0..rows).map(row).collect();
    fs::write(place.root().join("rows.jsonl"), rows).unwrap();
    place
}

#[track_caller]
fn done(output: &Output) {
    assert!(output.status.success(), "{}", text(&output.stderr));
}

fn results(folder: &Path) -> [String; 3] {
    RESULTS.map(|name| fs::read_to_string(folder.join(name)).unwrap())
}

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn completions_are_scored_and_the_best_kept() {
    let place = place(6);
    let output = halter_in(
        place.root(),
        &[SAMPLE, &["--output", "out", "--json", "--min-score", "-1"]].concat(),
    );
    done(&output);
    let [all, kept, pairs] = results(&place.root().join("out")).map(|text| rows(&text));
    assert_eq!(all.len(), 6);
    for (number, line) in all.iter().enumerate() {
        assert_eq!(line["row"], number);
        let completions = line["completions"].as_array().unwrap();
        let temperatures: Vec<_> = completions.iter().map(|c| c["temperature"].clone()).collect();
        assert_eq!(temperatures, [0.5, 0.5, 1.5, 1.5]);
        for completion in completions {
            let tokens = completion["num_tokens"].as_f64().unwrap();
            let score = completion["score"].as_f64().unwrap();
            let ended = completion["finish_reason"] == "stop";
            let right = completion["detail"].as_str().unwrap().contains("numeric 1.000");
            let penalty = if ended { ((tokens - 10.0) / 10.0).clamp(0.0, 1.0) } else { 1.0 };
            let want = f64::from(u8::from(right)) - 0.1 * penalty;
            assert!((score - want).abs() < 1e-9, "{completion}");
        }
    }
    assert!(!kept.is_empty() && !pairs.is_empty(), "{} {}", kept.len(), pairs.len());
    for row in &kept {
        let said = &row["provenance"];
        let line = &all[said["row"].as_u64().unwrap() as usize];
        let completion = &line["completions"][said["completion"].as_u64().unwrap() as usize];
        assert_eq!(row["messages"][1]["content"], completion["text"]);
        assert_eq!(said["score"], completion["score"]);
        assert_eq!(said["scorer"], "numeric + 0.1*length:10");
    }
    for pair in &pairs {
        let score = |which: &str| pair["provenance"][which]["score"].as_f64().unwrap();
        assert!(score("chosen") > score("rejected"));
    }
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told["kept_rows"], &told["pairs"]), (&kept.len().into(), &pairs.len().into()));
    assert_eq!(told["figures"]["completions"], 24);
    assert!(place.root().join("out/report.html").exists());
    // What was kept can be trained on.
    let sft =
        ["sft", "--dry-run", "--model", "bundled", "--output", "s", "--data", "out/sft.jsonl"];
    done(&halter_in(place.root(), &sft));
    let dpo = ["dpo", "--dry-run", "--model", "bundled", "--output", "d", "--data"];
    done(&halter_in(place.root(), &[&dpo[..], &["out/preferences.jsonl"]].concat()));
}

#[test]
fn a_killed_run_goes_on_to_the_same_results() {
    let place = place(60);
    done(&halter_in(place.root(), &[SAMPLE, &["--output", "whole", "--min-score", "-1"]].concat()));
    let whole = results(&place.root().join("whole"));
    let arguments = [SAMPLE, &["--output", "killed"]].concat();
    let mut child = command(place.root(), &arguments)
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let path = place.root().join("killed/completions.jsonl");
    let began = Instant::now();
    while fs::read_to_string(&path).map_or(0, |text| text.lines().count()) < 5 {
        assert!(began.elapsed() < Duration::from_secs(120), "nothing is written");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let written = rows(fs::read_to_string(&path).unwrap().rsplit_once('\n').unwrap().0).len();
    assert!(written < 60, "it was not killed in its midst");
    // Without `--resume` nothing is touched; with other completions it is refused.
    let again = halter_in(place.root(), &arguments);
    assert!(text(&again.stderr).contains("--resume"), "{}", text(&again.stderr));
    let other = [SAMPLE, &["--output", "killed", "--resume", "--top-k", "3"]].concat();
    assert!(text(&halter_in(place.root(), &other).stderr).contains("began with"));
    done(&halter_in(place.root(), &[&arguments[..], &["--resume", "--min-score", "-1"]].concat()));
    assert_eq!(results(&place.root().join("killed")), whole);
    // Another selection needs no new completions.
    let best = [&arguments[..], &["--resume", "--no-pairs", "--min-score", "3"]].concat();
    done(&halter_in(place.root(), &best));
    let [completions, kept, pairs] = results(&place.root().join("killed"));
    assert_eq!((completions, kept.as_str(), pairs.as_str()), (whole[0].clone(), "", ""));
}

#[test]
fn killed_again_and_again_it_ends_with_the_same_results() {
    let place = place(40);
    let options = [SAMPLE, &["--min-score", "-1"]].concat();
    let began = Instant::now();
    done(&halter_in(place.root(), &[&options[..], &["--output", "whole"]].concat()));
    let taken = began.elapsed();
    let (mut seed, mut kills) = (29, 0);
    for round in 0.. {
        let name = format!("{round}");
        let goes_on = |stderr: Stdio| {
            let begun = place.path(&name).join("completions.jsonl.settings.json").exists();
            let resume: &[&str] = if begun { &["--resume"] } else { &[] };
            let arguments = [&options[..], &["--output", &name], resume].concat();
            command(place.root(), &arguments).stderr(stderr).spawn().unwrap()
        };
        kills += killed_until_done(&place, &mut seed, taken, goes_on, || {});
        assert_same(&place, &name);
        if kills >= 10 {
            break;
        }
        assert!(round < 20, "only {kills} kills in {round} runs");
    }
}

/// The same results, figures and files as in `whole`.
#[track_caller]
fn assert_same(place: &Place, run: &str) {
    assert_eq!(results(&place.path(run)), results(&place.path("whole")));
    let figures = |run: &str| {
        let summary = place.text(&format!("{run}/summary.json"));
        serde_json::from_str::<Value>(&summary).unwrap()["figures"].clone()
    };
    assert_eq!(figures(run), figures("whole"));
    let names = |run: &str| {
        let entries = fs::read_dir(place.path(run)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(run), names("whole"));
}

#[test]
fn a_full_disk_costs_no_row_and_is_resumed_from() {
    let place = place(12);
    let Some(disk) = SmallDisk::mount(&place, "4k") else {
        println!("skipped: may not mount a small disk");
        return;
    };
    let options = [SAMPLE, &["--min-score", "-1"]].concat();
    done(&halter_in(place.root(), &[&options[..], &["--output", "whole"]].concat()));
    let whole = place.text("whole/completions.jsonl");
    let mut reached = Vec::new();
    for size in (1..).map(|i| format!("{}k", 4 * i)) {
        disk.grow(&size);
        let begun = place.path("disk/run/completions.jsonl.settings.json").exists();
        let resume: &[&str] = if begun { &["--resume"] } else { &[] };
        let output =
            halter_in(place.root(), &[&options[..], &["--output", "disk/run"], resume].concat());
        if output.status.success() {
            break;
        }
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("No space left on device"), "{stderr}");
        let text = fs::read_to_string(place.path("disk/run/completions.jsonl")).unwrap_or_default();
        assert!(whole.starts_with(&text) && (text.is_empty() || text.ends_with('\n')), "{text}");
        assert!(text.is_empty() || stderr.contains("`--resume` goes on"), "{stderr}");
        reached.push(rows(&text).len());
        assert!(reached.len() < 50, "{stderr}");
    }
    println!("rows that were there when the disk was full: {reached:?}");
    assert!(reached.is_sorted() && reached.len() >= 3, "{reached:?}");
    assert!(reached.contains(&12), "never full after the completions: {reached:?}");
    assert_same(&place, "disk/run");
}

/// Answers requests on this machine as a judge that fails: by the number in the question it keeps
/// silent, fails, talks nonsense, or rates.
fn failing_judge() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    url
}

fn answer(mut stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let asked = String::from_utf8(body).unwrap();
    let rated = json!({ "choices": [{ "message": { "content": "Rating: 10" } }] }).to_string();
    let (status, said) = match asked {
        asked if asked.contains("What is 0 +") => {
            std::thread::sleep(Duration::from_secs(60));
            return;
        }
        asked if asked.contains("What is 1 +") => ("500 Internal Server Error", "down"),
        asked if asked.contains("What is 2 +") => ("200 OK", "<html>"),
        _ => ("200 OK", rated.as_str()),
    };
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    let _ = write!(stream, "{head}Content-Length: {}\r\n\r\n{said}", said.len());
}

#[test]
fn a_judge_that_fails_costs_its_rows_and_they_are_counted() {
    let place = place(5);
    let url = failing_judge();
    let judge = format!(
        "url = '{url}'\nmodel = 'judge'\ntimeout_seconds = 0.5\nretries = 1\nbackoff_seconds = 0\n"
    );
    place.write("judge.toml", judge);
    let options = ["--model", "bundled", "--data", "rows.jsonl", "--num-completions", "2"];
    let more = ["--max-new-tokens", "8", "--scorer", "judge:judge.toml", "--output", "out"];
    let run = |resume: &[&str]| {
        let output = halter_in(place.root(), &[&["sample"], &options[..], &more, resume].concat());
        assert_eq!(output.status.code(), Some(1));
        let stderr = text(&output.stderr);
        assert!(stderr.contains("0 prompts could not be completed, 6 completions not be scored"));
    };
    run(&[]);
    let all = rows(&place.text("out/completions.jsonl"));
    for (line, why) in all.iter().zip(["within 0.5 s", "500", "<html>"]) {
        for completion in line["completions"].as_array().unwrap() {
            assert!(completion["error"].as_str().unwrap().contains(why), "{completion}");
            assert!(completion["score"].is_null());
        }
    }
    for line in &all[3..] {
        assert_eq!(
            (&line["completions"][0]["score"], &all[3]["error"]),
            (&json!(1.0), &json!(null))
        );
    }
    // They are counted again where there is nothing left to do.
    run(&["--resume"]);
}

#[test]
fn ctrl_c_does_not_wait_for_a_silent_judge() {
    let place = place(40);
    // Every question is about 0, which the judge never answers.
    let row = json!({ "messages": [{ "role": "user", "content": "What is 0 + 2?" }] });
    place.write("rows.jsonl", lines((0..40).map(|_| row.clone())));
    let url = failing_judge();
    let limits = "timeout_seconds = 2\nretries = 0\nconcurrency = 16";
    place.write("judge.toml", format!("url = '{url}'\nmodel = 'judge'\n{limits}\n"));
    let options = ["--model", "bundled", "--data", "rows.jsonl", "--num-completions", "2"];
    let more = ["--max-new-tokens", "8", "--scorer", "judge:judge.toml", "--output", "out"];
    let mut child = command(place.root(), &[&["sample"], &options[..], &more].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let path = place.path("out/completions.jsonl");
    let began = Instant::now();
    while fs::read_to_string(&path).map_or(0, |text| text.lines().count()) < 1 {
        assert!(began.elapsed() < Duration::from_secs(120), "nothing is written");
        std::thread::sleep(Duration::from_millis(2));
    }
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{stderr}");
    assert!(stderr.contains("hint: `--resume` goes on"), "{stderr}");
    // The rows that wait would take 80 seconds.
    let scored = rows(&fs::read_to_string(&path).unwrap()).len();
    assert!(scored < 10, "{scored} rows were scored all the same");
}

#[test]
#[cfg(target_os = "linux")]
fn code_that_hangs_or_dies_costs_its_row_only() {
    let place = place(0);
    // What the model writes comes after `#`, so that the tests decide what happens.
    let row =
        |test: &str| json!({ "prompt": "def f(): return 1 #", "entry_point": "f", "test": test });
    let tests = [
        "def check(f): assert f() == 1",
        "def check(f):\n  while True: pass",
        "import os\ndef check(f): os._exit(0)",
        "def check(f): bytearray(1 << 42)",
        "def check(f):\n  while True: print('x' * 4096)",
        "def check(f): assert f() == 1",
    ];
    let mut all: Vec<Value> = tests.iter().map(|test| row(test)).collect();
    all.push(json!({ "prompt": "def f(): return 1 #", "entry_point": "f" }));
    place.write("rows.jsonl", lines(all.into_iter()));
    let options = ["--model", "bundled", "--data", "rows.jsonl", "--num-completions", "1"];
    let more = ["--stop", "\n", "--scorer", "code:seconds=1", "--output", "out"];
    let output = halter_in(place.root(), &[&["sample"], &options[..], &more].concat());
    let stderr = text(&output.stderr);
    if stderr.contains("cannot run `python3`") || stderr.contains("cannot be contained here") {
        println!("skipped: {stderr}");
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("0 prompts could not be completed, 1 completion not be scored"));
    let all = rows(&place.text("out/completions.jsonl"));
    let scores: Vec<_> = all.iter().map(|line| line["completions"][0]["score"].as_f64()).collect();
    let [one, none] = [Some(1.0), Some(0.0)];
    assert_eq!(scores, [one, none, none, none, none, one, None], "{all:?}");
    let details = ["code 1", "out of time", "ended the program", "MemoryError", "too much"];
    for (line, detail) in all.iter().zip(details) {
        let told = line["completions"][0]["detail"].as_str().unwrap();
        assert!(told.contains(detail), "{told}, not {detail}");
    }
}

#[test]
fn a_scorer_that_fails_costs_its_row_only() {
    let place = place(3);
    let path = place.root().join("rows.jsonl");
    let mut text_of = fs::read_to_string(&path).unwrap();
    text_of += "{\"prompt\":\"no answer here\"}\n";
    fs::write(
        &path,
        text_of
            .replace("{\"messages\":[", "{\"prompt\":[")
            .replace(",{\"role\":\"assistant\",\"content\":\"#### 3\"}]", "],\"answer\":\"3\"")
            .replace(",{\"role\":\"assistant\",\"content\":\"#### 2\"}]", "],\"answer\":\"2\"")
            .replace(",{\"role\":\"assistant\",\"content\":\"#### 4\"}]", "],\"answer\":null"),
    )
    .unwrap();
    let output = halter_in(place.root(), &[SAMPLE, &["--output", "out"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let all = rows(&fs::read_to_string(place.root().join("out/completions.jsonl")).unwrap());
    let scored: Vec<bool> =
        all.iter().map(|line| line["completions"][0]["score"].is_number()).collect();
    assert_eq!(scored, [true, true, false, false]);
    assert!(all[3]["completions"][0]["error"].as_str().unwrap().contains("right answer"));
    assert!(
        text(&output.stderr).contains("8 completions not be scored"),
        "{}",
        text(&output.stderr)
    );
}

/// Runs `halter sample` on `rows.jsonl` with a judge, and tells its exit code and what it said.
fn judged(place: &Place, more: &[&str]) -> (Option<i32>, String) {
    let options =
        ["sample", "--model", "bundled", "--data", "rows.jsonl", "--num-completions", "2"];
    let scorer = ["--max-new-tokens", "8", "--scorer", "judge:judge.toml", "--output", "out"];
    let output = halter_in(place.root(), &[&options[..], &scorer, more].concat());
    (output.status.code(), text(&output.stderr))
}

#[test]
fn what_a_judge_failed_on_is_scored_by_a_resumed_run() {
    let place = place(6);
    let judge = |url: &str, more: &str| {
        let text = format!("url = '{url}'\nmodel = 'judge'\nretries = 0\n{more}\n");
        place.write("judge.toml", text);
    };
    // The judge of rows 3 to 5 answers; nobody listens where the first run asks.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    judge(&format!("http://{closed}/v1"), "");
    let (code, told) = judged(&place, &[]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("12 completions not be scored"), "{told}");
    let before = rows(&place.text("out/completions.jsonl"));
    judge(&failing_judge(), "timeout_seconds = 0.5");
    let (code, told) = judged(&place, &["--resume"]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("6 completions not be scored"), "{told}");
    let after = rows(&place.text("out/completions.jsonl"));
    for (at, (before, after)) in before.iter().zip(&after).enumerate() {
        assert_eq!((&after["row"], &after["prompt"]), (&before["row"], &before["prompt"]));
        for (before, after) in [0, 1].map(|i| (&before["completions"][i], &after["completions"][i]))
        {
            assert_eq!((&after["text"], &after["logps"]), (&before["text"], &before["logps"]));
            assert_eq!(after["score"].is_null(), at < 3, "{after}");
            assert_eq!(after["error"].is_null(), at >= 3, "{after}");
        }
    }
    // A judge that is asked otherwise is another scorer.
    judge("http://127.0.0.1:1/v1", "template = 'Rate {completion}.'");
    let (code, told) = judged(&place, &["--resume"]);
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("`scorer_fingerprints` is"), "{told}");
}

#[test]
fn a_schema_that_was_changed_is_another_scorer() {
    let place = place(2);
    place.write("schema.json", "true");
    let options =
        ["sample", "--model", "bundled", "--data", "rows.jsonl", "--num-completions", "2"];
    let more = ["--max-new-tokens", "8", "--scorer", "json-schema:schema.json", "--output", "out"];
    done(&halter_in(place.root(), &[&options[..], &more].concat()));
    done(&halter_in(place.root(), &[&options[..], &more, &["--resume"]].concat()));
    place.write("schema.json", "false");
    let output = halter_in(place.root(), &[&options[..], &more, &["--resume"]].concat());
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("`scorer_fingerprints` is"), "{}", text(&output.stderr));
}

#[test]
fn a_reward_model_is_told_the_time_of_the_run_and_named_by_its_weights() {
    let place = place(3);
    let pair = |chosen: &str, rejected: &str| {
        let message = |text: &str| json!([{ "role": "assistant", "content": text }]);
        let prompt = json!([{ "role": "user", "content": "2 + 2?" }]);
        json!({ "prompt": prompt, "chosen": message(chosen), "rejected": message(rejected) })
    };
    place.write("pairs.jsonl", lines([pair("It is 4.", "fish"), pair("4", "no")].into_iter()));
    let train = |steps: &str| {
        let _ = fs::remove_dir_all(place.path("rm"));
        let model = ["reward", "--model", "bundled", "--data", "pairs.jsonl", "--output", "rm"];
        let steps = ["--max-steps", steps, "--batch-size", "2", "--learning-rate", "1e-3"];
        done(&halter_in(place.root(), &[&model[..], &steps].concat()));
        let template = place.text("rm/chat_template.jinja");
        let timed = format!("{{{{ strftime_now('%S') }}}}{template}");
        place.write("rm/chat_template.jinja", timed);
    };
    train("1");
    let options =
        ["sample", "--model", "bundled", "--data", "rows.jsonl", "--num-completions", "2"];
    let more = ["--max-new-tokens", "8", "--scorer", "reward:rm", "--output", "out"];
    done(&halter_in(place.root(), &[&options[..], &more].concat()));
    let whole = place.text("out/completions.jsonl");
    place.write("out/completions.jsonl", whole.lines().next().unwrap().to_string() + "\n");
    std::thread::sleep(Duration::from_millis(1100));
    let resume = || halter_in(place.root(), &[&options[..], &more, &["--resume"]].concat());
    done(&resume());
    assert_eq!(place.text("out/completions.jsonl"), whole);
    let kept = rows(&place.text("out/sft.jsonl"));
    assert!(!kept.is_empty());
    for row in &kept {
        let said = row["provenance"]["scorer_fingerprints"][0].as_str().unwrap();
        assert_eq!(said.len(), 32, "{said}");
    }
    train("2");
    let stderr = text(&resume().stderr);
    assert!(stderr.contains("`scorer_fingerprints` is"), "{stderr}");
}

#[test]
fn completions_are_drawn_with_each_system_prompt_and_without() {
    let place = place(3);
    let long = "Be brief. ".repeat(2000);
    let options =
        ["sample", "--model", "bundled", "--data", "rows.jsonl", "--num-completions", "4"];
    let more = ["--max-new-tokens", "8", "--scorer", "numeric", "--min-score", "0"];
    let run = |output: &str, systems: [&str; 2]| {
        let [first, second] = systems;
        let systems = ["--system", first, "--system", second, "--output", output, "--json"];
        let output = halter_in(place.root(), &[&options[..], &more, &systems].concat());
        done(&output);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        (text(&output.stderr), told["figures"].clone())
    };
    let (_, figures) = run("both", ["Be brief.", ""]);
    assert_eq!((&figures["completions"], &figures["partial_prompts"]), (&json!(12), &json!(0)));
    for line in rows(&place.text("both/completions.jsonl")) {
        let systems: Vec<_> = (0..4).map(|i| line["completions"][i]["system"].clone()).collect();
        assert_eq!(systems, [json!("Be brief."), json!("Be brief."), json!(null), json!(null)]);
        assert_eq!(line["prompt"].as_array().unwrap().len(), 1, "it is no part of the prompt");
    }
    // What one way cannot do is told.
    let (told, figures) = run("partial", [&long, ""]);
    assert_eq!((&figures["completions"], &figures["partial_prompts"]), (&json!(6), &json!(3)));
    assert!(told.contains("3 prompts completed in some ways only"), "{told}");
    let line = &rows(&place.text("partial/completions.jsonl"))[0];
    assert!(line["error"].is_string() && line["completions"].as_array().unwrap().len() == 2);
}

#[test]
fn the_least_score_is_that_of_one_verifier_or_asked_for() {
    let place = place(1);
    let run = |more: &[&str]| {
        let _ = fs::remove_dir_all(place.path("out"));
        let options = ["sample", "--model", "bundled", "--data", "rows.jsonl", "--output", "out"];
        let few = ["--num-completions", "1", "--max-new-tokens", "1"];
        let output = halter_in(place.root(), &[&options[..], &few, more].concat());
        let stderr = text(&output.stderr);
        match output.status.success() {
            true => Ok(stderr.split_once("least score ").unwrap().1.lines().next().unwrap().into()),
            false => Err(stderr),
        }
    };
    for (more, least) in [
        (&["--scorer", "numeric"][..], "0.5"),
        (&["--scorer", "0.3*numeric", "--scorer", "0.1*repetition"], "0.15"),
        (&["--scorer", "format:think", "--select", "above=0.25"], "0.25"),
        (&["--scorer", "numeric", "--select", "above=0.9", "--min-score", "0.1"], "0.1"),
        (&["--scorer", "numeric", "--scorer", "format:think", "--min-score", "2"], "2"),
    ] {
        assert_eq!(run(more), Ok(least.to_string()), "{more:?}");
    }
    for more in [
        &["--scorer", "numeric", "--scorer", "format:think"][..],
        &["--scorer", "numeric", "--scorer", "0.5*length:10"],
        &["--scorer", "length:10"],
        &["--scorer=-1*numeric"],
    ] {
        let told = run(more).unwrap_err();
        assert!(
            told.contains("which score is good enough?") && told.contains("--min-score"),
            "{told}"
        );
    }
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_written() {
    let place = place(2);
    for (arguments, told) in [
        (&["--scorer", "numbers"][..], "scorer: expected a name"),
        (&["--scorer", "numeric", "--select", "worst"], "`select` is `worst`"),
        (&["--scorer", "numeric", "--temperatures", "1,2,3", "--num-completions", "2"], "`3` ways"),
        (&["--scorer", "numeric", "--temperatures", "-1"], "temperature"),
        (&["--scorer", "numeric", "--min-score", "nan"], "`min-score` is not a number"),
        (&["--scorer", "reward:nowhere"], "nowhere"),
        (&[], "no scorer"),
    ] {
        let all = [&["sample", "--model", "bundled", "--data", "rows.jsonl"], arguments].concat();
        let output = halter_in(place.root(), &all);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(text(&output.stderr).contains(told), "{arguments:?}: {}", text(&output.stderr));
        assert!(!place.root().join("runs/sample/completions.jsonl").exists(), "{arguments:?}");
    }
}
