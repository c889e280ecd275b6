//! `halter sample`: every row completed, scored and kept the same, whatever stopped the run.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Place, command, halter_in, text};

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
