//! `halter distill capture` from servers: from `halter serve`, and from ones that fail.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test whose preparation fails has failed")]

mod support;

use std::process::Output;
use std::time::Duration;

use halter_distill::store::Store;
use halter_testkit::faults::{Answered, Asked, FaultServer, Reply, drawn};
use serde_json::{Value, json};
use support::{Place, Served, TINY, asks_once_through_kills, command, lines, text};

const CAPTURE: &[&str] = &["distill", "capture", "--model", "base"];
const ROWS: &[&str] = &["--data", "m.jsonl", "--top-k", "8"];

/// A place with a model in `base`.
fn place() -> Place {
    let place = Place::new();
    let trained = ["--output", "base", "--max-steps", "3", "--learning-rate", "1e-2"];
    place.done(&[TINY, &trained].concat());
    place
}

fn capture(place: &Place, arguments: &[&[&str]]) -> Output {
    command(place.root(), &[CAPTURE, &arguments.concat()].concat()).output().unwrap()
}

#[track_caller]
fn captured(place: &Place, arguments: &[&[&str]]) -> String {
    let output = capture(place, arguments);
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    stderr
}

/// What a student makes of a file: loss, gradient norm and divergence of a few steps.
fn learned(place: &Place, file: &str) -> Vec<f64> {
    let run = format!("run-of-{file}");
    let learn = ["distill", "--model", "base", "--data", "m.jsonl", "--batch-size", "12"];
    let learn = [&learn[..], &["--max-steps", "3", "--teacher-logps", file, "--output", &run]];
    let output = command(place.root(), &learn.concat()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let keys = ["loss", "grad_norm", "divergence"];
    let metrics = place.metrics(&run);
    metrics.iter().flat_map(|line| keys.map(|key| line[key].as_f64().unwrap())).collect()
}

#[test]
fn a_server_says_what_its_model_says() {
    let place = place();
    captured(&place, &[ROWS, &["--output", "local"]]);
    let wanted = learned(&place, "local");
    let served = Served::start(&place, "base", &[]);
    let url = format!("http://{}/v1", served.address);
    let server = ["--endpoint", &url, "--endpoint-model", "base"];
    for how in ["tokens", "text"] {
        let said = captured(&place, &[ROWS, &server, &["--prompt-as", how, "--output", how]]);
        assert!(said.contains(&format!("{how}: 12 rows, 12 taken now")), "{said}");
        let mut worst = 0f64;
        for (got, wanted) in learned(&place, how).iter().zip(&wanted) {
            worst = worst.max((got - wanted).abs() / wanted.abs().max(1.0));
        }
        // Entries are rounded to 5e-5; what lies on an edge may go either way.
        assert!(worst < 2e-4, "{how}: {worst}");
    }
    let said = captured(&place, &[ROWS, &server, &["--output", "tokens"]]);
    assert!(said.contains("tokens: 12 rows, 0 taken now"), "{said}");
}

/// An answer to a row of tokens, which depends on them alone.
fn answer(asked: &Asked) -> String {
    let ids: Vec<u64> =
        asked.body["prompt"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    let name = |id: u64| format!("token_id:{}", id % 512);
    let top = |at: usize| match at {
        0 => Value::Null,
        _ => json!({ name(ids[at]): -1.0, name(ids[at] + 1): -1.5, name(7 * ids[at] + 9): -3.0 }),
    };
    let logprobs = json!({
        "tokens": ids.iter().map(|&id| name(id)).collect::<Vec<_>>(),
        "token_logprobs": (0..ids.len()).map(|at| (at > 0).then_some(-1.0)).collect::<Vec<_>>(),
        "top_logprobs": (0..ids.len()).map(top).collect::<Vec<_>>(),
    });
    let usage = json!({ "prompt_tokens": ids.len(), "completion_tokens": 0 });
    json!({
        "model": "big", "usage": usage,
        "choices": [{ "index": 0, "text": "", "finish_reason": "length", "logprobs": logprobs }],
    })
    .to_string()
}

/// `reply` with a true answer where it has one.
fn true_answer(reply: Reply, asked: &Asked) -> Reply {
    match reply {
        Reply::Answer => Reply::Body(answer(asked)),
        Reply::After(pause, then) => Reply::After(pause, Box::new(true_answer(*then, asked))),
        other => other,
    }
}

/// A server that answers as `script` has it, and the file that names it as a teacher.
fn server(
    place: &Place,
    script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
) -> (FaultServer, Answered) {
    let (server, answered) = FaultServer::counting(script, true_answer);
    let config = format!(
        "model = 'big'\n[[endpoints]]\nurl = '{}'\nbackoff_seconds = 0.001\nretries = 20\n\
         concurrency = 4\n",
        server.url
    );
    place.write("big.toml", config);
    (server, answered)
}

type Script = Box<dyn Fn(&Asked) -> Reply + Send + Sync>;

const BIG: &[&str] = &["--teacher-config", "big.toml"];

#[test]
fn every_row_is_heard_once_or_listed_with_its_reason() {
    let place = place();
    let (_, _) = server(&place, |_| Reply::Answer);
    captured(&place, &[ROWS, BIG, &["--output", "whole"]]);
    let wanted = learned(&place, "whole");
    let mut refused = 0;
    for seed in 0..3u64 {
        let name = format!("told-{seed}");
        let failed = format!("{name}.failed.jsonl");
        // About every fifth row.
        let is_refused =
            move |asked: &Asked| asked.question.bytes().map(u64::from).sum::<u64>() % 5 == seed;
        let (_, answered) = server(&place, move |asked| match is_refused(asked) {
            true => Reply::Status("400 Bad Request", vec![], "not this one".into()),
            false => drawn(seed, 0.4, asked),
        });
        let output = capture(&place, &[ROWS, BIG, &["--output", &name]]);
        let listed: Vec<Value> = match place.path(&failed).exists() {
            true => place.text(&failed).lines().map(|l| serde_json::from_str(l).unwrap()).collect(),
            false => Vec::new(),
        };
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(i32::from(!listed.is_empty())), "{stderr}");
        let answered = answered.lock().unwrap().clone();
        assert!(answered.values().all(|&times| times == 1), "{answered:?}");
        assert_eq!(answered.len() + listed.len(), 12, "{stderr}");
        assert_eq!(Store::open(&place.path(&name)).unwrap().len(), answered.len());
        for row in &listed {
            assert!(row["reason"].as_str().unwrap().contains("not this one"), "{row}");
            assert!((1..=12).contains(&row["line"].as_u64().unwrap()), "{row}");
        }
        refused += listed.len();
        // Only those that failed are asked about again.
        let (again, _) = server(&place, |_| Reply::Answer);
        captured(&place, &[ROWS, BIG, &["--output", &name]]);
        assert_eq!(again.requests(), listed.len());
        assert!(!place.path(&failed).exists());
        assert_eq!(learned(&place, &name), wanted);
    }
    assert!(refused > 0);
}

#[test]
fn a_capture_that_is_killed_loses_nothing_and_asks_nothing_twice() {
    let place = place();
    let question = |i: usize| {
        json!({ "messages": [
            { "role": "user", "content": format!("Row {i}?") },
            { "role": "assistant", "content": format!("{i}.") },
        ] })
    };
    place.write("many.jsonl", lines((0..150).map(question)));
    let pause = Duration::from_millis(10);
    let (_, answered) = server(&place, move |_| Reply::After(pause, Box::new(Reply::Answer)));
    let command = |output: &str| {
        let rows = ["--data", "many.jsonl", "--top-k", "8", "--output", output];
        command(place.root(), &[CAPTURE, BIG, &rows].concat())
    };
    asks_once_through_kills(&place, 5, 8, 150, &answered, command, |output| {
        let file = Store::open(&place.path(output)).unwrap();
        assert_eq!((file.len(), file.damaged_bytes()), (150, 0));
        assert_eq!(place.read(output).len(), place.read("whole").len(), "a row twice");
    });
}

#[test]
fn servers_that_are_of_no_use_are_told_and_nothing_stays() {
    let place = place();
    let many = |i| {
        json!({ "messages": [
        { "role": "user", "content": "?" }, { "role": "assistant", "content": format!("{i}") },
    ] })
    };
    place.write("many.jsonl", lines((0..40).map(many)));
    let rows = ["--data", "many.jsonl", "--output", "new"];
    let without = |asked: &Asked| answer(asked).replace("top_logprobs", "other");
    let other = |asked: &Asked| answer(asked).replace("token_id:", "token_id:1");
    let above = |asked: &Asked| answer(asked).replace("-1.0", "1.0");
    let cases: [(&str, Script, usize); 5] = [
        ("the server gave none", Box::new(|_| Reply::Answer), 17),
        ("`logprobs` are not those", Box::new(move |asked| Reply::Body(without(asked))), 17),
        ("the server reads other tokens", Box::new(move |asked| Reply::Body(other(asked))), 17),
        ("is no log-prob", Box::new(move |asked| Reply::Body(above(asked))), 17),
        ("status 401", Box::new(|_| Reply::status("401 Unauthorized")), 1),
    ];
    for (reason, script, requests) in cases {
        let server = FaultServer::start(script);
        let config = format!("model = 'big'\n[[endpoints]]\nurl = '{}'\nretries = 0\n", server.url);
        place.write("big.toml", config);
        let output = capture(&place, &[&rows, BIG]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(reason) && stderr.contains("hint: "), "{reason}: {stderr}");
        assert_eq!(server.requests(), requests, "{stderr}");
        assert!(!place.path("new").exists());
    }
    // Too few rows to give up early.
    let (_, _) = server(&place, |_| Reply::status("400 Bad Request"));
    let output = capture(&place, &[ROWS, BIG, &["--output", "few"]]);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("12 rows of which nothing was said"), "{stderr}");
    assert!(stderr.contains("--prompt-as text"), "{stderr}");
}
