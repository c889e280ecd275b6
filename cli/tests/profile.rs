//! The binary as a user runs it: `halter data profile`.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod support;

use std::fs;
use std::path::Path;

use serde_json::Value;
use support::{failures, halter_in, text, told, write_model};

const CHATS: &str = r#"{"messages": [{"role": "user", "content": "Which river runs through the old town?"}, {"role": "assistant", "content": "The Danube. Write to jane@mail.dev for a map."}], "score": 0.5}
{"messages": [{"role": "user", "content": "which river runs through the old town"}, {"role": "assistant", "content": "the danube! write to jane@mail.dev for a map"}], "score": 0.9}
{"messages": [{"role": "user", "content": "How many sheep are left with the farmer when nine of them run away?"}, {"role": "assistant", "content": "Eight."}], "score": 0.1}
{"messages": []}
"#;
const EVAL: &str =
    r#"{"question": "How many sheep are left with the farmer when nine of them run away?"}"#;

fn prepared() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    for (name, content) in [
        ("chats.jsonl", CHATS),
        ("eval.jsonl", EVAL),
        ("texts.jsonl", "{\"text\": \"Bread needs flour, water, salt and time.\"}\n"),
        ("unasked.jsonl", "{\"answer\": 7}\n"),
    ] {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

fn figures(dir: &Path, command: &str) -> Value {
    let arguments: Vec<&str> = command.split(' ').collect();
    let output = halter_in(dir, &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_profile_is_a_page_that_needs_nothing_and_holds_no_secret() {
    let dir = prepared();
    let arguments = ["data", "profile", "--data", "chats.jsonl", "--output", "page.html"];
    let shown = told(&arguments, &halter_in(dir.path(), &arguments));
    insta::assert_snapshot!("profile", shown);
    let page = fs::read_to_string(dir.path().join("page.html")).unwrap();
    assert!(page.contains("chats.jsonl") && page.contains("Duplicates"));
    assert!(page.contains("[e-mail address, 13 characters]") && !page.contains("jane@"));
    for elsewhere in ["<script", "src=", "http://", "https://", "@import"] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }
}

#[test]
fn the_figures_are_there_for_programs() {
    let dir = prepared();
    let command = "data profile --data chats.jsonl --model model --eval-data eval.jsonl --json";
    let told = figures(dir.path(), command);
    let profile = &told["profiles"][0];
    assert_eq!(told["output"], "profile.html");
    assert_eq!((&profile["rows"], &profile["refused"]), (&4.into(), &1.into()));
    assert_eq!(profile["duplicates"]["exact"], 1);
    assert_eq!(profile["findings"][0]["kind"], "email");
    assert_eq!(profile["numbers"]["score"]["max"], 0.9);
    assert_eq!(profile["contamination"]["rows"], 1);
    assert_eq!(profile["contamination"]["examples"][0][0], "chats.jsonl:3");
    assert!(profile["lengths"]["tokens"]["max"].as_f64().unwrap() > 8.0);
    let tokenizer = figures(
        dir.path(),
        "data profile --data chats.jsonl --tokenizer model --json --output other.html",
    );
    assert_eq!(tokenizer["profiles"][0]["lengths"], profile["lengths"]);
}

#[test]
fn two_data_sets_stand_side_by_side_and_the_bundled_one_is_shown_without_any() {
    let dir = prepared();
    let told = figures(dir.path(), "data profile --data chats.jsonl --against texts.jsonl --json");
    assert_eq!(told["profiles"].as_array().unwrap().len(), 2);
    assert_eq!(told["comparison"]["shared"], 0);
    let page = fs::read_to_string(dir.path().join("profile.html")).unwrap();
    assert!(page.contains("What sets them apart"));
    let bundled = figures(dir.path(), "data profile --json");
    assert_eq!(bundled["profiles"][0]["rows"], 2600);
}

#[test]
fn what_cannot_be_profiled_is_told() {
    let dir = prepared();
    insta::assert_snapshot!(
        "profile_failures",
        failures(
            dir.path(),
            &[
                "data profile --data none.jsonl",
                "data profile --data chats.jsonl --eval-data unasked.jsonl",
                "data profile --data chats.jsonl --eval-data eval.jsonl --eval-column asked",
                "data profile --data chats.jsonl --overlap 0",
                "data profile --data chats.jsonl --output none/page.html",
                "data profile --against chats.jsonl",
            ]
        )
    );
}
