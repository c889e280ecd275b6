//! `halter align`: a recipe is done once, whatever stops it, and told what is wrong with it.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use serde_json::Value;
use support::{Place, command, failures, halter_in, killed_until_done, root, text};

/// Everything on a few rows.
const SMALL: &str = r#"model = "bundled"
output = "run"

[eval]
task = ["rows.jsonl"]
scorer = ["numeric"]
max_new_tokens = 12

[[stage]]
name = "sft"
model = "{base}"
data = ["rows.jsonl"]
max_steps = 6
batch_size = 2
save_every = 2

[[stage]]
name = "reward"
model = "{base}"
data = ["bundled/preferences-eval"]
eval_data = ["rewards.jsonl"]
max_similarity = 1.0
max_steps = 2
batch_size = 2
save_every = 1

[[stage]]
name = "sample"
model = "{sft}"
data = ["rows.jsonl"]
num_completions = 4
max_new_tokens = 16
scorer = ["numeric", "0.1*reward:{reward}"]
min_score = -9.0

[[stage]]
name = "dpo"
model = "{sft}"
data = ["{sample}/preferences.jsonl"]
max_steps = 4
batch_size = 2
save_every = 2

[[stage]]
name = "average"
kind = "merge"
model = ["{sft}", "{dpo}"]
average = true
"#;

fn place() -> Place {
    let place = Place::new();
    let row = |i: usize| {
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"What is {i} + 2?\"}},\
             {{\"role\":\"assistant\",\"content\":\"#### {}\"}}]}}\n",
            i + 2
        )
    };
    place.write("rows.jsonl", (0..8).map(row).collect::<String>());
    let pairs = fs::read_to_string(root().join("examples/bundled/preferences-eval.jsonl")).unwrap();
    place.write(
        "rewards.jsonl",
        pairs.lines().take(4).map(|line| format!("{line}\n")).collect::<String>(),
    );
    place.write("small.toml", SMALL);
    place
}

/// What a run must leave the same each time: weights, rows, completions and figures. Left out are
/// logs, reports, cards and summaries, which tell times, and settings, which tell when sampling began.
fn outputs(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.join("run/stages")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let is_data = name.ends_with(".jsonl") && name != "metrics.jsonl";
            if path.is_dir() && name != "tensorboard" {
                folders.push(path);
            } else if is_data || name.ends_with(".safetensors") || name == "drift.json" {
                found.insert(path.strip_prefix(root).unwrap().into(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn ran(place: &Place, more: &[&str]) -> Value {
    let output = halter_in(place.root(), &[&["align", "small.toml", "--json"], more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_recipe_is_done_once_and_damage_is_mended() {
    let place = place();
    let planned = ran(&place, &["--dry-run"]);
    assert_eq!(planned["left"], 12);
    assert!(planned["stages"][1]["peak_bytes"].as_u64().unwrap() > 1 << 20, "{planned}");
    assert!(!place.path("run").exists(), "a plan writes nothing");
    let first = ran(&place, &[]);
    assert_eq!((&first["ran"], &first["cached"]), (&12.into(), &0.into()));
    let before = outputs(place.root());
    assert!(before.len() > 12, "{:?}", before.keys());
    let again = ran(&place, &[]);
    assert_eq!((&again["ran"], &again["cached"]), (&0.into(), &12.into()));
    let page = place.text("run/report.html");
    for part in ["<h2>Accuracy</h2>", "<h2>Lineage</h2>", "<h2>Sampling</h2>", "<h2>Reward models"]
    {
        assert!(page.contains(part), "{part}");
    }
    let (victim, _) = before.iter().find(|(path, _)| path.ends_with("preferences.jsonl")).unwrap();
    fs::write(place.root().join(victim), "damage").unwrap();
    let mended = ran(&place, &[]);
    assert_eq!((&mended["ran"], &mended["cached"]), (&1.into(), &11.into()));
    assert_eq!(outputs(place.root()), before);

    // Another program may come to another result.
    let mut other = fs::read(env!("CARGO_BIN_EXE_halter")).unwrap();
    other.push(0);
    place.write("halter", other);
    let path = place.path("halter");
    fs::set_permissions(&path, fs::metadata(env!("CARGO_BIN_EXE_halter")).unwrap().permissions())
        .unwrap();
    let planned = std::process::Command::new(path)
        .current_dir(place.root())
        .args(["align", "small.toml", "--dry-run", "--json"])
        .output()
        .unwrap();
    let planned: Value = serde_json::from_slice(&planned.stdout).unwrap();
    assert_eq!(planned["left"], 12);
}

/// A teacher's rows, a student cut out of it, and what the teacher says of the rows.
const TAUGHT: &str = r#"model = "bundled"
output = "run"
rounds = 2

[[stage]]
name = "synth"
pipeline = "pipeline.toml"

[[stage]]
name = "student"
kind = "distill init"
teacher = "{base}"
drop_every = 2

[[stage]]
name = "capture"
kind = "distill capture"
model = "{base}"
data = ["{synth}/rows.jsonl"]
top_k = 8

[[stage]]
name = "distill"
model = "{student}"
teacher_logps = "{capture}"
data = ["{synth}/rows.jsonl"]
max_steps = 2
batch_size = 2

[[stage]]
name = "told"
kind = "synth"
pipeline = "pipeline.toml"
set = ["teachers.bundled.local={distill}", "rows.input={synth}/rows.jsonl", "rows.limit=2"]
"#;

const PIPELINE: &str = r#"[teachers.bundled]
local = "bundled"
budget = { requests = 1000 }

[[step]]
kind = "rows"
input = "rows.jsonl"
limit = 3

[[step]]
kind = "answer"
temperature = 1.0
max_new_tokens = 24
"#;

#[test]
fn teachers_and_students_are_stages_and_nothing_is_asked_twice() {
    let place = place();
    place.write("taught.toml", TAUGHT);
    place.write("pipeline.toml", PIPELINE);
    let align = |more: &[&str]| {
        let arguments = [&["align", "taught.toml", "--json"], more].concat();
        let output = halter_in(place.root(), &arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let done = align(&[]);
    // The student is the same in both rounds.
    assert_eq!((&done["ran"], &done["cached"]), (&9.into(), &1.into()));
    let stages = done["stages"].as_array().unwrap();
    let directory = |at: usize| place.root().join(stages[at]["directory"].as_str().unwrap());
    assert_eq!((&stages[0]["kind"], &stages[5]["kind"]), (&"synth".into(), &"synth".into()));
    let rows = |at: usize| fs::read_to_string(directory(at).join("rows.jsonl")).unwrap();
    assert_ne!(rows(0), rows(5), "every round draws anew");
    assert!(directory(2).join("teacher.logps").exists());
    assert!(directory(8).join("model.safetensors").exists());
    let told = rows(4);
    let student = directory(3).file_name().unwrap().to_string_lossy().into_owned();
    assert!(told.lines().count() <= 2 && told.contains(&student), "{told}");
    let answers = place.read("run/teachers/bundled/answers.jsonl");

    // Another budget buys nothing again, and neither does a stage that is lost.
    place.write("pipeline.toml", PIPELINE.replace("1000", "2000"));
    assert_eq!(align(&[])["ran"], 0);
    let first = rows(0);
    fs::remove_dir_all(directory(0)).unwrap();
    fs::remove_dir_all(directory(2)).unwrap();
    fs::remove_dir_all(directory(1)).unwrap();
    assert_eq!(align(&[])["ran"], 3);
    assert_eq!(rows(0), first);
    assert!(place.read("run/teachers/bundled/answers.jsonl") == answers);

    fs::remove_dir_all(directory(2)).unwrap();
    fs::remove_dir_all(directory(1)).unwrap();
    let planned = align(&["--dry-run"]);
    for at in [1, 2] {
        let stage = &planned["stages"][at];
        assert!(stage["peak_bytes"].as_u64().unwrap() > 1 << 20, "{stage}");
        assert!(stage["seconds"].as_f64().unwrap() > 0.0, "{stage}");
        assert!(stage["disk_bytes"].as_u64().unwrap() > 100, "{stage}");
    }
}

#[test]
fn a_base_without_a_chat_template_is_compared_on_the_tokens_of_the_trained() {
    let place = place();
    fs::create_dir(place.path("plain")).unwrap();
    for entry in fs::read_dir(root().join("examples/bundled")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name != "chat_template.jinja" && !name.ends_with(".jsonl") {
            fs::copy(&path, place.path("plain").join(name)).unwrap();
        }
    }
    let template = fs::read(root().join("examples/bundled/chat_template.jinja")).unwrap();
    place.write("mine.jinja", template);
    let problem =
        |i: usize| format!("{{\"prompt\":\"What is {i} + 2?\",\"answer\":\"{}\"}}\n", i + 2);
    place.write("problems.jsonl", (0..8).map(problem).collect::<String>());
    place.write(
        "plain.toml",
        r#"model = "plain"
output = "run"

[eval]
task = ["problems.jsonl"]
scorer = ["numeric"]
num_completions = 2
max_new_tokens = 12

[[stage]]
name = "sft"
model = "{base}"
chat_template = "mine.jinja"
data = ["rows.jsonl"]
max_steps = 2
batch_size = 2
"#,
    );
    let output = halter_in(place.root(), &["align", "plain.toml", "--seed", "7", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    let stages = done["stages"].as_array().unwrap();
    assert_eq!(stages[3]["kind"], "drift");
    let drift = stages[3]["directory"].as_str().unwrap();
    let drift: Value = serde_json::from_str(&place.text(&format!("{drift}/drift.json"))).unwrap();
    assert!(drift["per_completion"].is_number(), "{drift}");
    assert_eq!((&drift["completions"], &drift["prompts"]), (&16.into(), &8.into()));
    assert!(place.text("run/recipe.toml").contains("seed = 7"));
}

#[test]
fn killed_at_random_it_comes_to_the_same_bits() {
    let whole = place();
    let began = Instant::now();
    ran(&whole, &[]);
    let took = began.elapsed();
    let killed = place();
    let mut seed = u64::from(std::process::id());
    let start = |stderr: Stdio| {
        let arguments = ["align", "small.toml"];
        command(killed.root(), &arguments).stderr(stderr).stdout(Stdio::null()).spawn().unwrap()
    };
    let kills = killed_until_done(&killed, &mut seed, took, start, || ());
    assert!(kills > 0);
    let (want, found) = (outputs(whole.root()), outputs(killed.root()));
    assert_eq!(want.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (path, bytes) in &want {
        assert!(found[path] == *bytes, "{} differs after {kills} kills", path.display());
    }
}

#[test]
fn wrong_recipes_are_refused_with_their_line() {
    let place = place();
    let stage = |text: &str| format!("model = \"bundled\"\n[[stage]]\n{text}\n");
    for (name, recipe) in [
        ("key", stage("name = \"sft\"\nmodel = \"{base}\"\nepoch = 2.0")),
        ("type", stage("name = \"sft\"\nmodel = \"{base}\"\n\nepochs = \"two\"")),
        ("flag", stage("name = \"sample\"\nmodel = \"{base}\"\nscorers = [\"numeric\"]")),
        ("value", stage("name = \"sample\"\ndata = [\"rows.jsonl\"]\nnum_completions = 0")),
        ("data", stage("name = \"sft\"\nmodel = \"{base}\"")),
        ("missing", stage("name = \"sft\"\nmodel = \"{base}\"\ndata = [\"none.jsonl\"]")),
        (
            "cycle",
            stage(
                "name = \"sft\"\nmodel = \"{dpo}\"\n[[stage]]\nname = \"dpo\"\nmodel = \"{sft}\"",
            ),
        ),
        ("name", stage("name = \"sft\"\nmodel = \"{bse}\"")),
    ] {
        place.write(&format!("{name}.toml"), recipe);
    }
    insta::assert_snapshot!(failures(
        place.root(),
        &[
            "align none.toml",
            "align key.toml",
            "align type.toml",
            "align flag.toml",
            "align value.toml",
            "align data.toml",
            "align missing.toml --output out",
            "align cycle.toml",
            "align name.toml",
        ],
    ));
}

#[test]
fn a_stage_that_fails_is_named_and_what_was_done_is_kept() {
    let place = place();
    // Read by nobody before the stage runs.
    place.write("small.toml", SMALL.replace("max_steps = 4", "max_steps = 4\nmax_seq_len = 3"));
    let output = halter_in(place.root(), &["align", "small.toml"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let told = text(&output.stderr);
    assert!(told.contains("error: small.toml:36: round 1, dpo failed"), "{told}");
    assert!(told.contains("caused by: "), "{told}");
    place.write("small.toml", SMALL);
    assert_eq!(ran(&place, &[])["cached"], 6);
}

#[test]
fn the_plan_of_a_recipe_is_a_table() {
    let place = place();
    let output = halter_in(place.root(), &["align", "small.toml", "--dry-run"]);
    let told = text(&output.stdout);
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].starts_with("round  stage"), "{told}");
    assert!(lines[2].starts_with("1      sft") && lines[2].contains(" MB, "), "{told}");
    assert!(told.contains("12 stages, 12 to do"), "{told}");
    assert!(told.contains("known once sample has run"), "{told}");
}

#[test]
fn every_recipe_of_the_repository_can_be_planned_without_its_models() {
    let place = place();
    let mut planned = 0;
    for entry in fs::read_dir(root().join("examples/recipes")).unwrap() {
        let path = entry.unwrap().path();
        let recipe = fs::read_to_string(&path).unwrap();
        if !recipe.contains("[[stage]]") {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        place.write(name, &recipe);
        let output = halter_in(place.root(), &["align", name, "--dry-run", "--json"]);
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        let stages = plan["stages"].as_array().unwrap();
        let missing = stages.iter().any(|stage| stage["missing"] != Value::Array(Vec::new()));
        assert_eq!(missing, name != "bundled.toml", "{name}");
        let kinds: Vec<&str> = stages.iter().filter_map(|stage| stage["kind"].as_str()).collect();
        if name == "llama-3.1-405b-teacher.toml" {
            for kind in ["synth", "distill capture", "distill", "sft", "dpo"] {
                assert!(kinds.contains(&kind), "{kind}: {kinds:?}");
            }
        }
        planned += 1;
    }
    assert_eq!(planned, 4);
}

#[test]
fn help() {
    let output = halter_in(Path::new("."), &["align", "--help"]);
    insta::assert_snapshot!(text(&output.stdout));
}

#[cfg(unix)]
#[test]
fn an_interruption_stops_the_stage_and_the_same_command_goes_on() {
    use std::io::{BufRead, BufReader};
    let place = place();
    let slow = SMALL.replace("max_steps = 6", "max_steps = 100000");
    place.write("slow.toml", slow);
    let mut child = command(place.root(), &["align", "slow.toml"])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let is_training = |line: &String| line.starts_with("training: ");
    assert!(lines.by_ref().map_while(Result::ok).any(|line| is_training(&line)));
    let id = child.id().to_string();
    let asked = std::process::Command::new("kill").args(["-INT", &id]).status().unwrap();
    assert!(asked.success());
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    let told = rest.join("\n");
    assert!(told.contains("interrupted in round 1, sft; what is done is kept"), "{told}");
    assert!(told.contains("checkpoint"), "{told}");
}
