//! The binary as a user runs it: `halter report`, and how failures are told.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn halter(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_halter"))
        .args(arguments)
        .env_remove("HALTER_LOG")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn run_directory(path: &Path) {
    fs::create_dir(path).unwrap();
    fs::write(path.join("config.toml"), "seed = 7\n").unwrap();
    let lines =
        "{\"step\":1,\"epoch\":0.5,\"loss\":2.0}\n{\"step\":2,\"epoch\":1.0,\"loss\":1.5}\n";
    fs::write(path.join("metrics.jsonl"), lines).unwrap();
}

#[test]
fn a_report_is_written_again_from_a_run_directory() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    run_directory(&run);
    let output = halter(&["report", run.to_str().unwrap(), "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let report = run.join("report.html");
    assert_eq!(json["report"], report.to_str().unwrap());
    assert!(fs::read_to_string(&report).unwrap().contains("[[1,2.0],[2,1.5]]"));
    assert!(text(&output.stderr).starts_with("report: "));

    let elsewhere = dir.path().join("elsewhere.html");
    let arguments = ["report", run.to_str().unwrap(), "--output", elsewhere.to_str().unwrap()];
    let output = halter(&arguments);
    assert!(output.status.success() && elsewhere.is_file());
    assert_eq!(output.stdout, b"", "stdout is for data");
}

#[test]
fn a_directory_without_a_run_is_a_usage_error_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let output = halter(&["report", path]);
    assert_eq!(output.status.code(), Some(2));
    let expected = format!(
        "error: {path}: not a run directory: it has no `config.toml`\n\
         hint: give the `--output` directory of a halter run\n"
    );
    assert_eq!(text(&output.stderr), expected);
    assert_eq!(output.stdout, b"");
}

#[test]
fn a_damaged_line_is_a_failure_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    run_directory(&run);
    fs::write(run.join("metrics.jsonl"), "{\"step\":1}\n{\"step\":\n").unwrap();
    let output = halter(&["report", run.to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("metrics.jsonl:2: "), "{}", text(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["error"]["kind"], "data");
    assert_eq!(json["exit_code"], 1);
    assert!(!run.join("report.html").exists());
}

#[test]
fn arguments_that_nobody_knows_are_usage_errors() {
    for arguments in [&["report"][..], &["repport", "x"], &["report", "x", "--fast"]] {
        let output = halter(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).starts_with("error: "), "{arguments:?}");
    }
    assert_eq!(halter(&["--version"]).status.code(), Some(0));
}

#[test]
fn a_log_filter_that_cannot_be_read_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_halter"))
        .args(["report", "x"])
        .env("HALTER_LOG", "core=very")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("error: `HALTER_LOG=core=very` is not a log filter"));
}
