//! Nothing lost: a run that is killed or interrupted anywhere and resumed ends with the bits of
//! one that was not.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Place, TINY, killed_until_done, text};

/// Conversations and long texts, which `split` makes several rows of, with evaluations between.
const RUN: &[&str] = &[
    "--data",
    "t.jsonl",
    "--overlong",
    "split",
    "--max-seq-len",
    "48",
    "--batch-size",
    "3",
    "--max-steps",
    "14",
    "--save-every",
    "1",
    "--learning-rate",
    "1e-2",
    "--seed",
    "5",
    "--eval-data",
    "m.jsonl",
    "--eval-every",
    "4",
    "--eval-generate",
    "1",
    "--max-new-tokens",
    "3",
];

const LORA: &[&str] =
    &["--model", "base", "--data", "m.jsonl", "--lora-rank", "4", "--lora-dropout", "0.2"];

/// The memory modes.
const LEAN: &[&str] = &[
    "--optim",
    "adamw_8bit",
    "--optimizer-in-backward",
    "--max-grad-norm",
    "0",
    "--keep-blocks",
    "0",
];

fn arguments<'a>(start: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    let microbatches: &[&str] = if more == LEAN { &[] } else { &["--microbatch-tokens", "100"] };
    [start, RUN, microbatches, more].concat()
}

/// A place with the export of a short run in `base`, for adapters.
fn place_with_base() -> Place {
    let place = Place::new();
    place.done(&[TINY, &["--output", "base", "--max-steps", "1"]].concat());
    place
}

/// What a run leaves, less what depends on the clock.
fn remains(place: &Place, run: &str) -> Vec<(String, Vec<u8>)> {
    let file = |name: &str| (name.to_string(), place.read(&format!("{run}/{name}")));
    let mut remains = vec![file("ledger.jsonl"), file("checkpoints/step-14/weights.safetensors")];
    remains.push(file("checkpoints/step-14/optimizer.safetensors"));
    for name in ["model.safetensors", "adapter_model.safetensors"] {
        if place.path(run).join(name).exists() {
            remains.push(file(name));
        }
    }
    assert_eq!(remains.len(), 4, "an export");
    let metrics: String = place
        .text(&format!("{run}/metrics.jsonl"))
        .lines()
        .map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            for clock in ["seconds", "tokens_per_second"] {
                line.as_object_mut().unwrap().remove(clock).unwrap();
            }
            format!("{line}\n")
        })
        .collect();
    remains.push(("metrics.jsonl".into(), metrics.into_bytes()));
    let state = place.text(&format!("{run}/checkpoints/step-14/state.json"));
    let mut state: Value = serde_json::from_str(&state).unwrap();
    for clock in ["seconds", "began_at"] {
        assert!(state[clock].is_number(), "{clock}");
        state[clock] = Value::Null;
    }
    remains.push(("state.json".into(), state.to_string().into_bytes()));
    remains
}

#[track_caller]
fn assert_same(place: &Place, whole: &str, resumed: &str, how: &str) {
    for ((name, a), (_, b)) in remains(place, whole).into_iter().zip(remains(place, resumed)) {
        let shown =
            |bytes: &[u8]| String::from_utf8_lossy(bytes).chars().take(4000).collect::<String>();
        assert!(a == b, "{name} differs after {how}:\n{}\n{}", shown(&a), shown(&b));
    }
    assert_eq!(leftovers(place, resumed), Vec::<String>::new());
}

/// What a checkpoint that was being written left.
fn leftovers(place: &Place, run: &str) -> Vec<String> {
    let entries = fs::read_dir(place.path(run).join("checkpoints")).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with('.'))
        .collect()
}

/// Starts the run, or goes on with it where there is something to go on with.
fn start(place: &Place, arguments: &[&str], run: &str, stderr: Stdio) -> Child {
    let mut arguments = arguments.to_vec();
    arguments.extend(["--output", run]);
    if place.path(run).join("config.toml").exists() {
        arguments.push("--resume");
    }
    place.sft(&arguments).stdout(Stdio::null()).stderr(stderr).spawn().unwrap()
}

#[derive(Default)]
struct Kills {
    all: usize,
    /// Those that left a checkpoint half-written or half-replaced.
    in_a_checkpoint: usize,
}

#[test]
fn a_run_that_is_killed_anywhere_and_resumed_ends_with_the_same_bits() {
    let place = place_with_base();
    let mut kills = Kills::default();
    let mut seed = 17;
    for (name, begin, more) in [("full", TINY, &[][..]), ("lora", LORA, &[]), ("lean", TINY, LEAN)]
    {
        let arguments = arguments(begin, more);
        let whole = format!("{name}-whole");
        let started = Instant::now();
        place.done(&[arguments.as_slice(), &["--output", whole.as_str()]].concat());
        let taken = started.elapsed();
        let enough = kills.all + 20;
        for round in 0.. {
            let run = format!("{name}-{round}");
            let goes_on = |stderr| start(&place, &arguments, &run, stderr);
            let killed = killed_until_done(&place, &mut seed, taken, goes_on, || {
                kills.in_a_checkpoint += usize::from(!leftovers(&place, &run).is_empty());
            });
            assert_same(&place, &whole, &run, &format!("{killed} kills"));
            kills.all += killed;
            if kills.all >= enough {
                break;
            }
            assert!(round < 50, "only {} kills in {round} runs", kills.all);
        }
    }
    println!("{} kills, {} while a checkpoint was written", kills.all, kills.in_a_checkpoint);
}

fn press_ctrl_c(child: &Child) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
}

#[test]
fn a_run_that_is_interrupted_and_resumed_ends_with_the_same_bits() {
    let place = place_with_base();
    for (name, begin) in [("full", TINY), ("lora", LORA)] {
        let arguments = arguments(begin, &[]);
        let whole = format!("{name}-whole");
        place.done(&[arguments.as_slice(), &["--output", whole.as_str()]].concat());
        let (mut interruptions, mut at_once) = (0, 0);
        for round in 0.. {
            let mut child = start(&place, &arguments, name, Stdio::piped());
            let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
            // Every other time before the first step, where a checkpoint is written again; else
            // after a few steps.
            let said = if round % 2 == 1 { "data: " } else { "training: " };
            assert!(lines.by_ref().any(|line| line.unwrap().starts_with(said)));
            if round % 2 == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
            press_ctrl_c(&child);
            let rest: Vec<String> = lines.map(Result::unwrap).collect();
            let status = child.wait().unwrap();
            if status.success() {
                break;
            }
            let rest = rest.join("\n");
            assert_eq!(status.code(), Some(130), "{rest}");
            let end = "; checkpoint saved\nhint: run the same command with `--resume` to go on";
            assert!(rest.ends_with(end) && rest.contains("\ninterrupted after step "), "{rest}");
            interruptions += 1;
            at_once += round % 2;
        }
        assert_same(&place, &whole, name, &format!("{interruptions} interruptions"));
        println!("{name}: {interruptions} interruptions, {at_once} before the first step");
        assert!(interruptions >= 3, "only {interruptions} interruptions");
    }
}

/// Starts a run, presses Ctrl-C so long after it has said `line`, and gives the exit code and what
/// came after that line.
fn interrupted(
    place: &Place,
    arguments: &[&str],
    line: &str,
    pause: Duration,
) -> (Option<i32>, String) {
    let mut child = start(place, arguments, "run", Stdio::piped());
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.by_ref().any(|said| said.starts_with(line)), "{line}");
    std::thread::sleep(pause);
    press_ctrl_c(&child);
    let rest: Vec<String> = lines.collect();
    (child.wait().unwrap().code(), rest.join("\n"))
}

/// A run of which the answers take much longer than all else.
const ANSWERING: &[&str] = &[
    "--max-steps",
    "3",
    "--eval-data",
    "m.jsonl",
    "--eval-generate",
    "12",
    "--max-new-tokens",
    "2000",
];

#[test]
fn an_interruption_of_the_answers_before_training_leaves_nothing() {
    let place = Place::new();
    let arguments = [TINY, ANSWERING].concat();
    let (code, rest) = interrupted(&place, &arguments, "answering: ", Duration::ZERO);
    assert_eq!(code, Some(130), "{rest}");
    let end =
        "\ninterrupted before the first step: nothing to save\nhint: run the same command again";
    assert!(rest.ends_with(end), "{rest}");
    assert!(!place.path("run").exists());
}

#[test]
fn an_interruption_of_the_answers_after_training_costs_no_step() {
    let place = Place::new();
    let arguments = [TINY, ANSWERING].concat();
    place.done(&[&arguments[..], &["--output", "whole"]].concat());
    let (code, rest) = interrupted(&place, &arguments, "training: 3/3", Duration::ZERO);
    assert_eq!(code, Some(130), "{rest}");
    let end = "\ninterrupted after step 3; checkpoint saved\n\
        hint: run the same command with `--resume` to go on";
    assert!(rest.ends_with(end), "{rest}");
    assert!(!place.path("run/model.safetensors").exists());
    let output = place.done(&["--output", "run", "--resume"]);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("the run was complete after step 3: nothing to train"), "{stderr}");
    let samples = |run: &str| {
        let summary: Value =
            serde_json::from_str(&place.text(&format!("{run}/summary.json"))).unwrap();
        summary["samples"].clone()
    };
    assert_eq!(samples("run"), samples("whole"));
    assert_eq!(place.read("run/model.safetensors"), place.read("whole/model.safetensors"));
}

#[test]
fn a_run_that_is_interrupted_in_its_evaluations_ends_with_the_same_bits() {
    let place = Place::new();
    // Evaluations take much longer than steps.
    place.write("long.jsonl", place.text("m.jsonl").repeat(20));
    let arguments = arguments(TINY, &["--eval-data", "long.jsonl"]);
    place.done(&[&arguments[..], &["--output", "whole"]].concat());
    let mut in_an_evaluation = 0;
    for pause in (0..).step_by(10).map(Duration::from_millis) {
        let (code, rest) = interrupted(&place, &arguments, "training: ", pause);
        if code == Some(0) {
            break;
        }
        assert_eq!(code, Some(130), "{rest}");
        let steps = fs::read_dir(place.path("run/checkpoints")).unwrap().map(|entry| {
            entry.unwrap().file_name().to_str().unwrap()["step-".len()..].parse::<u64>().unwrap()
        });
        let newest = format!("run/checkpoints/step-{}/state.json", steps.max().unwrap());
        let state: Value = serde_json::from_str(&place.text(&newest)).unwrap();
        in_an_evaluation += usize::from(!state["unevaluated"].is_null());
    }
    assert_same(&place, "whole", "run", &format!("{in_an_evaluation} interrupted evaluations"));
    assert!(in_an_evaluation > 0);
}

#[test]
fn a_resumed_run_tells_templates_the_time_at_which_it_began() {
    let place = Place::new();
    let template = place.text("tok/chat_template.jinja");
    place.write("tok/chat_template.jinja", format!("{{{{ strftime_now('%s') }}}}{template}"));
    let arguments = arguments(TINY, &["--keep-checkpoints", "0"]);
    place.done(&[&arguments[..], &["--output", "whole"]].concat());
    let summary = place.text("whole/summary.json");
    let state = place.text("whole/checkpoints/step-1/state.json");
    let began_at = serde_json::from_str::<Value>(&state).unwrap()["began_at"].to_string();
    assert!(summary.contains(&format!("\"prompt\": \"{began_at}<|im_start|>")), "{summary}");

    // The same run, killed after the fifth step, a second later.
    let copied = Command::new("cp").args(["-r", "whole", "run"]).current_dir(place.root()).status();
    assert!(copied.unwrap().success());
    for step in 6..=14 {
        fs::remove_dir_all(place.path(&format!("run/checkpoints/step-{step}"))).unwrap();
    }
    std::thread::sleep(Duration::from_millis(1100));
    let output = place.done(&["--output", "run", "--resume"]);
    assert!(text(&output.stderr).contains("resuming after step 5"));
    assert_same(&place, "whole", "run", "a second");
    let samples = |text: &str| serde_json::from_str::<Value>(text).unwrap()["samples"].clone();
    assert_eq!(samples(&summary), samples(&place.text("run/summary.json")));
}

#[test]
fn a_wrong_row_costs_none_of_the_steps_before_it() {
    let place = Place::new();
    let good = place.text("m.jsonl").repeat(5);
    place.write("m.jsonl", &good);
    let arguments =
        [TINY, &["--batch-size", "4", "--no-shuffle", "--data", "t.jsonl", "--output"]].concat();
    let with = |run, more: &[&str]| {
        let arguments = [&arguments[..], &[run], more].concat();
        place.sft(&arguments).output().unwrap()
    };
    assert!(with("whole", &[]).status.success());
    // Beyond the rows that are looked at before the run begins.
    let lines: Vec<&str> = good.lines().collect();
    let mut wrong = lines.clone();
    let spoilt = lines[53].replace("\"It is 11.\"", "7");
    wrong[53] = &spoilt;
    assert_ne!(wrong, lines);
    place.write("m.jsonl", wrong.join("\n") + "\n");
    let output = with("run", &[]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("checkpoint saved after step 13: `--resume` goes on"), "{stderr}");
    assert!(stderr.contains("error: m.jsonl:54: "), "{stderr}");
    place.write("m.jsonl", &good);
    let output = with("run", &["--resume"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("resuming after step 13"));
    for file in ["model.safetensors", "ledger.jsonl"] {
        assert!(
            place.read(&format!("run/{file}")) == place.read(&format!("whole/{file}")),
            "{file}"
        );
    }
}

#[test]
fn resuming_a_run_that_was_complete_trains_nothing_and_says_so() {
    let place = Place::new();
    let arguments = arguments(TINY, &["--output", "run"]);
    place.done(&arguments);
    let before = remains(&place, "run");
    let output = place.done(&["--output", "run", "--resume"]);
    assert_eq!(remains(&place, "run"), before);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("the run was complete after step 14: nothing to train"), "{stderr}");
}
