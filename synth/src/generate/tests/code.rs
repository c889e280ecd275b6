use halter_rejection_sampling::sandbox::{Sandbox, Settings};
use serde_json::{Value, json};

use super::{prompts, reasons, run};
use crate::row::Row;

const WRONG: &str = "I add one.\n```python\ndef f(x):\n    return x\n```";
const RIGHT: &str = "I add one.\n```python\ndef f(x):\n    return x + 1\n```";

/// Tests of code need what the sandbox needs.
fn is_contained() -> bool {
    let made = Sandbox::new(Settings::default());
    made.map_err(|error| eprintln!("skipped: {error}")).is_ok()
}

fn said(row: &Row) -> Vec<String> {
    let turns = row.messages().unwrap();
    turns.iter().map(|turn| turn.content().unwrap().to_string()).collect()
}

fn with_tests(problem: &str) -> Value {
    json!({"prompt": problem, "tests": ["assert f(1) == 2", "assert f(2) == 3"], "level": 1})
}

/// Wrong at first, right when the failed test is shown.
fn learns(asked: &str) -> Option<String> {
    Some(match asked.contains("assert f(1) == 2") {
        true => RIGHT.into(),
        false => WRONG.into(),
    })
}

#[test]
fn a_solution_is_repaired_until_its_tests_pass() {
    if !is_contained() {
        return;
    }
    let rows = vec![with_tests("Write f, which adds one."), json!({"prompt": "x", "tests": 3})];
    let outcome = run("code", "repairs = 1", rows.clone(), learns);
    let row = &outcome.rows[0];
    assert_eq!(said(row), ["Write f, which adds one.", RIGHT]);
    assert_eq!((&row.0["attempts"], &row.0["level"]), (&json!(2), &json!(1)));
    assert_eq!(row.0["tests"], rows[0]["tests"]);
    assert_eq!(reasons(&outcome), ["no tests"]);
    assert_eq!(outcome.figures["passed_by_attempt"], json!([0, 1]));
    assert_eq!(outcome.figures["questions"], 2);

    let outcome = run("code", "keep_dialogue = true", rows[..1].to_vec(), learns);
    let turns = outcome.rows[0].messages().unwrap();
    assert_eq!(turns.len(), 4);
    assert_eq!((turns[1].content(), turns[1].is_trained()), (Some(WRONG), Some(false)));
    assert!(turns[2].content().unwrap().contains("`assert f(1) == 2`"));
    assert_eq!((turns[3].content(), turns[3].is_trained()), (Some(RIGHT), None));

    let outcome = run("code", "repairs = 0", rows[..1].to_vec(), learns);
    assert_eq!((outcome.rows.len(), reasons(&outcome)), (0, vec!["tests fail"]));
    assert!(outcome.removed[0].detail.contains("`assert f(1) == 2`"));
}

#[test]
fn replies_without_code_and_code_that_never_ends_fail() {
    if !is_contained() {
        return;
    }
    let rows = ["prose", "loop", "down", "cut"].map(with_tests).to_vec();
    let options = "repairs = 0\nseconds = 1\nparallel = 2";
    let outcome = run("code", options, rows, |asked| match asked.split('\n').next()? {
        "prose" => Some("def f(x): return x + 1".into()),
        "loop" => Some("```python\nwhile True:\n    pass\n```".into()),
        "cut" => Some("```python\ndef f(x):…".into()),
        _ => None,
    });
    assert_eq!(reasons(&outcome), ["no answer", "cut off", "tests fail", "tests fail"]);
    assert!(outcome.removed[2].detail.contains("no fenced block"));
    assert_eq!(outcome.removed[3].detail, "test 1 of 2: ran out of time");
}

#[test]
fn tests_are_written_where_there_are_none_and_must_be_able_to_fail() {
    if !is_contained() {
        return;
    }
    let rows = ["good", "void", "prose"].map(|problem| json!({"prompt": problem})).to_vec();
    let outcome = run("code", "", rows.clone(), |asked| {
        let is_of = |problem: &str| asked.contains(&format!("[Problem]\n{problem}\n"));
        Some(match (is_of("good"), is_of("void"), is_of("prose")) {
            (true, ..) => "```python\nassert f(1) == 2\n```".into(),
            (_, true, _) => "```python\nassert True\n```".into(),
            (.., true) => "Test it with 1.".into(),
            _ => RIGHT.into(),
        })
    });
    assert_eq!(prompts(&outcome), ["good"]);
    assert_eq!(outcome.rows[0].0["tests"], json!(["assert f(1) == 2\n"]));
    assert_eq!(reasons(&outcome), ["no tests", "tests prove nothing"]);
    let outcome = run("code", "write_tests = false", rows, |_| None);
    assert_eq!(reasons(&outcome), ["no tests"; 3]);
    assert_eq!(outcome.figures.get("questions"), None);
}
