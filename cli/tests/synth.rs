//! `halter synth`: the same rows whatever stopped the run, and nothing made or asked twice.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test whose preparation fails has failed")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use halter_testkit::faults::{Asked, FaultServer, Reply, answer_to, drawn};
use serde_json::{Value, json};
use support::{Place, Served, TINY, asks_once_through_kills, command, failures, halter_in};
use support::{killed_until_done, lines, root, text, told};

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
    for told in ["right=1", "solution.samples=1", "solutions.samples=0", "teachers.big.local=x"] {
        commands.push(format!("synth pipeline.toml --set {told}"));
    }
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    insta::assert_snapshot!("synth_failures", failures(place.root(), &commands));
}

/// Rows of a file.
fn values(place: &Place, name: &str) -> Vec<Value> {
    place.text(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
fn done(place: &Place, arguments: &[&str]) -> String {
    let output = halter_in(place.root(), arguments);
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    stderr
}

#[test]
fn a_server_answers_as_its_model_does_in_this_process() {
    let place = Place::new();
    place.done(
        &[TINY, &["--output", "base", "--max-steps", "30", "--learning-rate", "1e-2"]].concat(),
    );
    let served = Served::start(&place, "base", &[]);
    let server =
        format!("model = 'base'\nendpoints = [{{ url = 'http://{}/v1' }}]", served.address);
    let said = |name: &str, teacher: &str| {
        let steps = "[[step]]\nkind = 'rows'\ninput = 'm.jsonl'\n[[step]]\nkind = 'answer'\n\
                     temperature = 0.0\nmax_new_tokens = 12\nstop = ['.']";
        place.write(&format!("{name}.toml"), format!("[teachers.big]\n{teacher}\n{steps}"));
        done(&place, &["synth", &format!("{name}.toml"), "--output", name]);
        let rows = values(&place, &format!("{name}/rows.jsonl")).into_iter();
        let removed = values(&place, &format!("{name}/02-answer.removed.jsonl")).into_iter();
        let rows: Vec<Value> = rows.map(|row| row["messages"].clone()).collect();
        (rows, removed.map(|row| json!([row["reason"], row["detail"]])).collect::<Vec<_>>())
    };
    let (rows, removed) = said("over-http", &server);
    assert_eq!(rows.len() + removed.len(), 12, "{removed:?}");
    assert!(removed.iter().all(|row| row[0] != "no answer"), "{removed:?}");
    assert_eq!((rows, removed), said("here", "local = 'base'"));
}

/// A pipeline that asks a server about `count` questions, and twice in as many dialogues: what would be
/// a user's next question repeats the prompt, and with it what ends the dialogue.
fn asking(place: &Place, server: &FaultServer, count: usize) {
    let question = |n| json!({"question": format!("question {n}"), "answer": n});
    place.write("questions.jsonl", lines((0..count).map(question)));
    place.write("hellos.jsonl", lines((0..count).map(|n| json!({"prompt": format!("hello {n}")}))));
    let pipeline = format!(
        "[teachers.big]\nmodel = 'big'\n[[teachers.big.endpoints]]\nurl = '{}'\nconcurrency = 4\n\
         backoff_seconds = 0.001\nretries = 10\n[[step]]\nkind = 'answer'\ninput = 'questions.jsonl'\n\
         [[step]]\nkind = 'dialogue'\ninput = 'hellos.jsonl'\nturns = 2\n",
        server.url
    );
    place.write("pipeline.toml", pipeline);
}

#[test]
fn every_question_to_a_failing_server_is_answered_once_or_listed_and_asked_again() {
    let place = Place::new();
    let is_mended = Arc::new(AtomicBool::new(false));
    let mended = Arc::clone(&is_mended);
    let script = move |asked: &Asked| match asked.question.as_str() {
        "question 3" => Reply::Status("400 Bad Request", vec![], "not this one".into()),
        "question 5" if !mended.load(Ordering::SeqCst) => {
            Reply::status("500 Internal Server Error")
        }
        _ => drawn(1, 0.4, asked),
    };
    let (server, answered) = FaultServer::counting(script, |reply, _| reply);
    asking(&place, &server, 20);
    let run = ["synth", "pipeline.toml", "--output", "out", "--json"];
    let output = halter_in(place.root(), &run);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("answer: 1 question without an answer"), "{said}");
    assert!(said.contains("hint: the same command asks them again"), "{said}");
    let removed = values(&place, "out/01-answer.removed.jsonl");
    let told: Vec<String> = removed.iter().map(|row| row["detail"].to_string()).collect();
    assert!(
        told.len() == 2 && told[0].contains("not this one") && told[1].contains("500"),
        "{told:?}"
    );
    assert_eq!(values(&place, "out/01-answer.jsonl").len(), 18);
    for row in values(&place, "out/01-answer.jsonl") {
        let asked = row["messages"][0]["content"].as_str().unwrap();
        assert_eq!(row["messages"][1]["content"], answer_to(asked));
    }
    is_mended.store(true, Ordering::SeqCst);
    let before = answered.lock().unwrap().clone();
    assert!(before.len() == 18 + 40 && before.values().all(|&times| times == 1), "{before:?}");
    assert!(!done(&place, &run).contains("without an answer"));
    let after = answered.lock().unwrap().clone();
    assert!(after.len() == 19 + 40 && after.values().all(|&times| times == 1), "{after:?}");
    assert_eq!(values(&place, "out/01-answer.jsonl").len(), 19);
    // Now nothing is left to ask.
    let requests = server.requests();
    done(&place, &run);
    assert_eq!(server.requests(), requests);
}

#[test]
fn a_run_against_a_server_that_is_killed_asks_nothing_twice() {
    let place = Place::new();
    let pause = Duration::from_millis(8);
    let (server, answered) = FaultServer::counting(
        move |_| Reply::After(pause, Box::new(Reply::Answer)),
        |reply, _| reply,
    );
    asking(&place, &server, 40);
    let run = |output: &str| command(place.root(), &["synth", "pipeline.toml", "--output", output]);
    asks_once_through_kills(&place, 17, 6, 120, &answered, run, |output| {
        assert_eq!(rows(&place.path(output)), rows(&place.path("whole")));
    });
}

#[test]
fn rows_of_any_columns_are_read_and_groups_may_have_any_name() {
    let place = Place::new();
    let row = |n: usize| json!({"question": n.to_string(), "answer": n, "topic": "questions"});
    place.write("questions.jsonl", lines((0..3).map(row)));
    place.write("personas.jsonl", "{\"persona\": \"a nurse\"}\n{\"tools\": []}\n");
    let input = "[[step]]\nkind = 'rows'\ninput = ['questions.jsonl', 'personas.jsonl']\n";
    place.write("pipeline.toml", format!("{input}[[step]]\nkind = 'balance'\n"));
    done(&place, &["synth", "pipeline.toml", "--output", "out"]);
    let rows = values(&place, "out/rows.jsonl");
    assert_eq!(rows.len(), 4, "two without a topic, and as many with one");
    assert!(place.text("out/report.html").contains("<dt>groups</dt>"));
}

#[test]
fn a_reward_model_scores_the_rows_of_a_pipeline() {
    let place = Place::new();
    let pair =
        |n: usize| json!({"prompt": "1+1?", "chosen": format!("{n} is 2"), "rejected": "a fish"});
    place.write("pairs.jsonl", lines((0..4).map(pair)));
    let train = ["reward", "--model", "bundled", "--data", "pairs.jsonl", "--output", "judge"];
    done(&place, &[&train[..], &["--max-steps", "1", "--batch-size", "4"]].concat());
    let pipeline = "[[step]]\nkind = 'rows'\ninput = 'bundled/train'\nlimit = 5\n\
                    [[step]]\nkind = 'score'\nscorer = 'reward:judge'\n\
                    [[step]]\nkind = 'quartile'\nshare = 0.4\n";
    place.write("pipeline.toml", pipeline);
    done(&place, &["synth", "pipeline.toml", "--output", "out"]);
    let scores = |name: &str| -> Vec<f64> {
        values(&place, name).iter().map(|row| row["score"].as_f64().unwrap()).collect()
    };
    let (all, best) = (scores("out/02-score.jsonl"), scores("out/rows.jsonl"));
    assert_eq!((all.len(), best.len()), (5, 2));
    let least = best.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(all.iter().filter(|&&score| score >= least).count(), 2, "{all:?}");
}
