//! `halter synth`: the same rows whatever stopped the run, and nothing made twice.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use support::{Place, command, failures, halter_in, killed_until_done, root, text, told};

const PIPELINE: &str = r#"seed = 3

[teachers.bundled]
local = "bundled"

[[step]]
name = "problems"
kind = "rows"
input = "bundled/problems"
limit = 12

[[step]]
name = "solutions"
kind = "answer"
samples = 4
temperature = 0.5
max_new_tokens = 60

[[step]]
name = "right"
kind = "maths"
corrections = 1
max_new_tokens = 60
"#;

fn place() -> Place {
    let place = Place::new();
    place.write("pipeline.toml", PIPELINE);
    place
}

/// Every file of rows, by its name.
fn rows(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|ending| ending == "jsonl"))
        .map(|path| (path.file_name().unwrap().display().to_string(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_pipeline_that_is_killed_makes_the_same_rows() {
    let place = place();
    let arguments =
        |output: &str| ["synth", "pipeline.toml", "--output", output].map(str::to_string).to_vec();
    let began = Instant::now();
    let whole = command(place.root(), &arguments("whole")).output().unwrap();
    assert!(whole.status.success(), "{}", text(&whole.stderr));
    let taken = began.elapsed();
    let wanted = rows(&place.path("whole"));
    assert_eq!(wanted.len(), 7, "three steps with two files each, and the rows");
    assert!(!place.read("whole/02-solutions.jsonl").is_empty());
    let (mut kills, mut seed) = (0, 11);
    for round in 0.. {
        let output = format!("killed-{round}");
        kills += killed_until_done(
            &place,
            &mut seed,
            taken,
            |stderr: Stdio| {
                command(place.root(), &arguments(&output)).stderr(stderr).spawn().unwrap()
            },
            || {},
        );
        assert_eq!(rows(&place.path(&output)), wanted);
        if kills >= 5 {
            break;
        }
        assert!(round < 20, "only {kills} kills");
    }
}

#[test]
fn a_step_is_made_again_where_something_changed_and_only_there() {
    let place = place();
    let run = |arguments: &[&str]| {
        let all = [&["synth", "pipeline.toml", "--output", "out", "--json"], arguments].concat();
        let output = halter_in(place.root(), &all);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let steps = summary["steps"].as_array().unwrap().clone();
        steps.iter().map(|step| step["kept"].as_bool().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(run(&["--until", "solutions"]), [false, false]);
    assert_eq!(run(&[]), [true, true, false]);
    assert_eq!(run(&[]), [true; 3]);
    assert_eq!(run(&["--from", "solutions"]), [true, false, false]);
    // A file that somebody changed is no longer what was made.
    place.write("out/02-solutions.jsonl", "");
    assert_eq!(run(&[]), [true, false, true]);
    place.write("pipeline.toml", PIPELINE.replace("temperature = 0.5", "temperature = 0.6"));
    assert_eq!(run(&[]), [true, false, false]);
    assert!(place.text("out/report.html").contains("<td>solutions<br>"));
}

#[test]
fn a_plan_asks_nobody() {
    let place = place();
    let arguments = ["synth", "pipeline.toml", "--output", "out", "--dry-run"];
    insta::assert_snapshot!("synth_plan", told(&arguments, &halter_in(place.root(), &arguments)));
    assert!(!place.path("out").exists());
    for entry in fs::read_dir(root().join("examples/synth")).unwrap() {
        let path = entry.unwrap().path();
        let arguments = ["synth", path.to_str().unwrap(), "--dry-run"];
        let output = halter_in(place.root(), &arguments);
        assert!(output.status.success(), "{}: {}", path.display(), text(&output.stderr));
    }
}

#[test]
fn what_cannot_be_run_is_refused_with_its_line() {
    let place = place();
    let wrong = [
        ("kind", "kind = \"maths\"", "kind = \"math\""),
        ("key", "samples", "sample"),
        ("input", "bundled/problems", "bundled/problem"),
        ("cycle", "input = \"bundled/problems\"", "input = \"right\""),
        ("value", "samples = 4", "samples = \"4\""),
        ("range", "samples = 4", "samples = 0"),
        ("teacher", "samples = 4", "teacher = \"bundle\""),
        ("config", "local = ", "lokal = "),
        ("name", "name = \"right\"", "name = \"problems\""),
        ("syntax", "seed = 3", "seed = = 3"),
    ];
    let mut commands = vec!["synth absent.toml --dry-run".to_string()];
    for (name, from, to) in wrong {
        assert!(PIPELINE.contains(from));
        place.write(&format!("{name}.toml"), PIPELINE.replace(from, to));
        commands.push(format!("synth {name}.toml --output out"));
    }
    commands.push("synth pipeline.toml --from rigth".into());
    commands.push("synth pipeline.toml --from right --until problems".into());
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    insta::assert_snapshot!("synth_failures", failures(place.root(), &commands));
}
