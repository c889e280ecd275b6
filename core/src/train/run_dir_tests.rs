use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

fn text(error: &Error) -> String {
    match error.remedy() {
        Some(hint) => format!("{}\nhint: {hint}", error.message()),
        None => error.message().to_string(),
    }
}

#[test]
fn a_fresh_run_makes_the_directory_and_its_parents() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runs/first");
    let mut run = RunDir::create(&path, Start::Fresh).unwrap();
    run.write_config("seed = 1\n").unwrap();
    run.keep();
    assert_eq!(run.read_config().unwrap(), "seed = 1\n");
    drop(run);
    assert!(RunFiles::open(&path).is_ok());
}

#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDir::create(dir.path().join("runs/first"), Start::Fresh).unwrap();
    run.write_config("seed = 1\n").unwrap();
    fs::create_dir(run.checkpoints()).unwrap();
    fs::write(run.checkpoints().join("part"), b"x").unwrap();
    drop(run);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the parent made is gone as well");
}

#[test]
fn a_start_that_fails_keeps_an_empty_directory_that_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDir::create(dir.path(), Start::Fresh).unwrap();
    run.write_config("seed = 1\n").unwrap();
    drop(run);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_fresh_run_refuses_a_directory_with_something_in_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.txt"), b"years of work").unwrap();
    let error = RunDir::create(dir.path(), Start::Fresh).unwrap_err();
    insta::assert_snapshot!(text(&error), @r"
    the output directory is not empty: it holds `thesis.txt`
    hint: choose another `--output`, or an empty directory
    ");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no lock file was left");
}

#[test]
fn a_fresh_run_refuses_a_run_and_says_how_to_resume_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = RunDir::create(dir.path(), Start::Fresh).unwrap();
    run.write_config("seed = 1\n").unwrap();
    run.keep();
    drop(run);
    let error = RunDir::create(dir.path(), Start::Fresh).unwrap_err();
    insta::assert_snapshot!(text(&error), @r"
    the output directory already holds a run
    hint: `--resume` continues it; or choose another `--output`
    ");
    assert!(RunDir::create(dir.path(), Start::Resume).is_ok());
    assert!(dir.path().join("config.toml").is_file(), "a resumed run is never removed");
}

#[test]
fn what_a_killed_start_leaves_counts_as_empty() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(LOCK), b"12345\n").unwrap();
    fs::write(dir.path().join(".config.toml.tmp-12345-0"), b"seed").unwrap();
    assert!(RunDir::create(dir.path(), Start::Fresh).is_ok());
}

#[test]
fn nothing_to_resume_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = RunDir::create(dir.path(), Start::Resume).unwrap_err();
    insta::assert_snapshot!(text(&error), @r"
    not a run directory: it has no `config.toml`
    hint: leave out `--resume` to begin a run, or check `--output`
    ");
    let missing = dir.path().join("missing");
    let error = RunDir::create(&missing, Start::Resume).unwrap_err();
    assert_eq!(error.message(), "no such run directory");
    assert!(!missing.exists());
}

#[test]
fn an_output_that_is_a_file_or_below_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"x").unwrap();
    let error = RunDir::create(&file, Start::Fresh).unwrap_err();
    assert_eq!(error.message(), "the output is a file, expected a directory");
    let error = RunDir::create(file.join("a/b"), Start::Fresh).unwrap_err();
    assert!(error.message().starts_with("cannot create"), "{error}");
    assert_eq!(fs::read(&file).unwrap(), b"x");
}

#[test]
fn a_check_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    RunDir::check(&path, Start::Fresh).unwrap();
    assert!(!path.exists());
}

#[test]
fn two_holders_cannot_write_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let first = RunDir::create(dir.path(), Start::Fresh).unwrap();
    first.write_config("seed = 1\n").unwrap();
    let error = RunDir::create(dir.path(), Start::Resume).unwrap_err();
    assert_eq!(error.message(), format!("process `{}` is writing this run", std::process::id()));
    assert!(first.config().is_file(), "the loser removed nothing");
}

/// Not a test by itself: holds the run named by the environment until it is killed.
#[test]
fn helper_that_holds_a_run() {
    let Some(path) = std::env::var_os("HALTER_TEST_HOLD_RUN") else { return };
    let mut run = RunDir::create(path, Start::Fresh).unwrap();
    run.write_config("seed = 1\n").unwrap();
    run.keep();
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn the_lock_of_a_process_that_was_killed_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "train::run_dir::tests::helper_that_holds_a_run"])
        .env("HALTER_TEST_HOLD_RUN", &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while !path.join("config.toml").is_file() {
        assert!(began.elapsed() < Duration::from_secs(30), "the helper never began");
        std::thread::sleep(Duration::from_millis(5));
    }
    let error = RunDir::create(&path, Start::Resume).unwrap_err();
    assert_eq!(error.message(), format!("process `{}` is writing this run", child.id()));
    child.kill().unwrap();
    child.wait().unwrap();
    RunDir::create(&path, Start::Resume).unwrap();
}
