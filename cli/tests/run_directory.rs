//! What a run leaves, what it prints, and what happens when the disk is full.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod support;

use std::fs::{self, File};
use std::process::Stdio;

use serde_json::Value;
use support::{Place, SmallDisk, TINY, text};

#[test]
fn the_options_are_these() {
    let output = Place::new().sft(&["--help"]).env("COLUMNS", "100").output().unwrap();
    assert!(output.status.success());
    insta::assert_snapshot!("help", text(&output.stdout));
}

/// Every file of a run directory, and whether it is that of a whole model or of an adapter.
const ALWAYS: &[&str] = &[
    "config.toml",
    "metrics.jsonl",
    "ledger.jsonl",
    "checkpoints/step-4/weights.safetensors",
    "checkpoints/step-4/optimizer.safetensors",
    "checkpoints/step-4/state.json",
    "checkpoints/step-4/manifest.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
    "report.html",
];

#[test]
fn a_run_leaves_every_file_of_a_run_directory() {
    let place = Place::new();
    let options = [
        "--max-steps",
        "4",
        "--batch-size",
        "2",
        "--eval-data",
        "m.jsonl",
        "--eval-every",
        "2",
        "--eval-generate",
        "2",
        "--max-new-tokens",
        "3",
        "--json",
    ];
    let full = ["model.safetensors", "config.json", "generation_config.json"];
    let adapter = ["adapter_model.safetensors", "adapter_config.json"];
    let lora = ["--model", "full", "--data", "m.jsonl", "--lora-rank", "2"];
    for (run, start, export) in [("full", TINY, &full[..]), ("lora", &lora[..], &adapter[..])] {
        let output = place.done(&[start, &options, &["--output", run]].concat());
        for file in ALWAYS.iter().chain(export) {
            let size = fs::metadata(place.path(run).join(file)).map(|file| file.len());
            let may_be_empty = *file == "ledger.jsonl";
            assert!(size.is_ok_and(|size| size > 0 || may_be_empty), "{run}: no `{file}`");
        }
        let events = fs::read_dir(place.path(run).join("tensorboard")).unwrap().count();
        assert_eq!(events, 1, "event files");

        // stdout is data.
        let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(outcome["output"], run);
        assert_eq!(outcome["steps"], 4);
        assert!(outcome["eval_loss"][1].as_f64() < outcome["eval_loss"][0].as_f64(), "{outcome}");
        let metrics = place.text(&format!("{run}/metrics.jsonl"));
        let lines: Vec<Value> =
            metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 4);
        for key in [
            "step",
            "epoch",
            "loss",
            "grad_norm",
            "learning_rate",
            "num_tokens",
            "supervised_tokens",
            "tokens_per_second",
            "seconds",
        ] {
            assert!(lines.iter().all(|line| line[key].is_number()), "{key}: {metrics}");
        }
        let stderr = text(&output.stderr);
        for said in ["peak memory: predicted ", "export: read again and equal", "8 rows: 8 kept"] {
            assert!(stderr.contains(said), "{said}: {stderr}");
        }
    }
    // The configuration can be fed back, and the export is a model.
    let again = ["--config", "full/config.toml", "--output", "again"];
    place.done(&again);
    assert_eq!(place.read("again/model.safetensors"), place.read("full/model.safetensors"));
    let generation: Value =
        serde_json::from_slice(&place.read("full/generation_config.json")).unwrap();
    let stops = generation["eos_token_id"].as_array().unwrap();
    assert_eq!(stops[0], 9, "the end of a turn");
}

#[test]
fn a_dry_run_writes_nothing() {
    let place = Place::new();
    let output = place.done(&[TINY, &["--dry-run", "--json", "--output", "run"]].concat());
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["steps"], 2);
    assert!(!place.path("run").exists());
}

#[test]
fn a_run_that_diverges_says_what_can_be_done_about_it() {
    let place = Place::new();
    let wild = ["--learning-rate", "1e30", "--max-steps", "9", "--batch-size", "2"];
    let output = place.sft(&[TINY, &wild, &["--output", "run"]].concat()).output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let (_, error) = stderr.split_once("error: ").unwrap();
    assert!(error.contains(" is `NaN`") || error.contains(" is `inf`"), "{error}");
    let hint = "hint: begin anew in another `--output` with a lower `--learning-rate`";
    assert!(error.contains(hint) && error.contains("rows m.jsonl:"), "{error}");
}

#[test]
fn a_template_given_by_the_user_is_used_and_exported() {
    let place = Place::new();
    let own = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|eot_id|>{% endfor %}\
        {% if add_generation_prompt %}[assistant] {% endif %}";
    place.write("own.jinja", own);
    let short = ["--max-steps", "1", "--output", "run", "--chat-template", "own.jinja"];
    place.done(&[TINY, &short].concat());
    assert_eq!(place.text("run/chat_template.jinja"), own);
}

#[test]
fn the_template_beside_an_adapter_goes_before_the_bases() {
    let place = Place::new();
    let own = |turn: &str| {
        format!(
            "{{% for m in messages %}}{turn}{{{{ m.role }}}}: {{{{ m.content }}}}<|im_end|>\
             {{% endfor %}}{{% if add_generation_prompt %}}{turn}assistant: {{% endif %}}"
        )
    };
    place.write("own.jinja", own("My turn, "));
    place.write("other.jinja", own(""));
    let short = ["--max-steps", "1", "--batch-size", "12"];
    place.done(&[TINY, &short, &["--output", "base"]].concat());
    let start = [&["--model", "base", "--data", "m.jsonl"], &short[..]].concat();
    let lora = ["--lora-rank", "2", "--chat-template", "own.jinja", "--output", "lora"];
    place.done(&[&start[..], &lora].concat());
    // Which template the run says, exports and trains with.
    let goes_on = |run: &str, more: &[&str]| -> (String, String, Value) {
        let more = [&["--adapter", "lora", "--output", run], more].concat();
        let output = place.done(&[&start[..], &more].concat());
        let stderr = text(&output.stderr);
        let said = stderr.lines().find_map(|line| line.strip_prefix("chat template: "));
        let metrics = place.text(&format!("{run}/metrics.jsonl"));
        let metrics: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
        let exported = place.text(&format!("{run}/chat_template.jinja"));
        (said.unwrap().to_string(), exported, metrics["num_tokens"].clone())
    };
    let (said, exported, adapters) = goes_on("next", &[]);
    assert_eq!((&*said, exported), ("lora/chat_template.jinja", own("My turn, ")));
    let (said, exported, others) = goes_on("other", &["--chat-template", "other.jinja"]);
    assert_eq!((&*said, exported), ("other.jinja", own("")));
    let (said, exported, _) = goes_on("tokenizer", &["--tokenizer", "tok"]);
    assert_eq!(said, "tok/chat_template.jinja");
    assert_eq!(exported, place.text("tok/chat_template.jinja"));
    assert!(adapters.as_u64() > others.as_u64(), "{adapters} {others}");
    // As a tokenizer's configuration holds it, which older versions of PEFT leave.
    fs::remove_file(place.path("lora/chat_template.jinja")).unwrap();
    let inside = serde_json::json!({ "chat_template": own("My turn, ") });
    place.write("lora/tokenizer_config.json", inside.to_string());
    let (said, exported, inside) = goes_on("inside", &[]);
    assert_eq!((&*said, exported), ("lora/tokenizer_config.json", own("My turn, ")));
    assert_eq!(inside, adapters);
    // Without one, the base's.
    fs::remove_file(place.path("lora/tokenizer_config.json")).unwrap();
    let (said, exported, _) = goes_on("bases", &[]);
    assert_eq!(said, "base/chat_template.jinja");
    assert_eq!(exported, place.text("base/chat_template.jinja"));
}

#[test]
fn the_export_stops_at_the_end_of_turn_that_was_trained() {
    let place = Place::new();
    let short = ["--max-steps", "1"];
    place.done(&[TINY, &short, &["--output", "base"]].concat());
    let settings = r#"{"eos_token_id": 2, "temperature": 0.6}"#;
    place.write("base/generation_config.json", settings);
    let start = ["--model", "base", "--data", "m.jsonl"];
    let lora = [&start[..], &["--lora-rank", "2"]].concat();
    for (run, start) in [("full", &start[..]), ("lora", &lora[..])] {
        let output = place.done(&[start, &short, &["--output", run]].concat());
        let note = "generation_config.json: `<|im_end|>` ends the trained turns and was added to";
        assert!(text(&output.stderr).contains(note), "{}", text(&output.stderr));
        let written = place.text(&format!("{run}/generation_config.json"));
        let written: Value = serde_json::from_str(&written).unwrap();
        assert_eq!(written, serde_json::json!({ "eos_token_id": [2, 9], "temperature": 0.6 }));
    }
    // What stops there already is exported to the byte.
    let settings = r#"{"eos_token_id":    9}"#;
    place.write("base/generation_config.json", settings);
    let output = place.done(&[&start[..], &short, &["--output", "again"]].concat());
    assert!(!text(&output.stderr).contains("generation_config"), "{}", text(&output.stderr));
    assert_eq!(place.text("again/generation_config.json"), settings);
}

#[test]
fn a_tokenizer_given_by_the_user_is_used_and_exported() {
    let place = Place::new();
    let short = ["--max-steps", "1", "--batch-size", "2"];
    fs::rename(place.path("tok/chat_template.jinja"), place.path("template")).unwrap();
    let template = serde_json::json!({ "chat_template": place.text("template") });
    place.write("tok/chat_template.json", template.to_string());
    place.write("tok/added_tokens.json", "{}");
    place.done(&[TINY, &short, &["--output", "base"]].concat());
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        fs::remove_file(place.path("base").join(file)).unwrap();
    }
    fs::remove_file(place.path("base/chat_template.json")).unwrap();
    let start = ["--model", "base", "--data", "m.jsonl"];
    for (run, tokenizer) in [("directory", "tok"), ("file", "tok/tokenizer.json")] {
        let more = ["--tokenizer", tokenizer, "--output", run];
        place.done(&[&start[..], &short, &more].concat());
        assert_eq!(place.text(&format!("{run}/chat_template.jinja")), place.text("template"));
        assert_eq!(place.text(&format!("{run}/added_tokens.json")), "{}");
        let export = place.read(&format!("{run}/tokenizer.json"));
        assert_eq!(export, place.read("tok/tokenizer.json"));
    }
}

#[test]
fn rows_trained_on_another_context_than_generation_has_are_counted() {
    let place = Place::new();
    let own = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
        {% if loop.last and m.role == 'assistant' %}(so)\n{% endif %}{{ m.content }}<|im_end|>\n\
        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n(so)\n{% endif %}";
    place.write("own.jinja", own);
    let turn = |role: &str, content: &str| serde_json::json!({ "role": role, "content": content });
    let once = [turn("user", "Q"), turn("assistant", "A")];
    let both = [once.clone(), once.clone()].concat();
    let twice = serde_json::json!({ "messages": both });
    let once = serde_json::json!({ "messages": once });
    place.write("two.jsonl", format!("{once}\n{twice}\n{twice}\n"));
    let more = ["--data", "two.jsonl", "--chat-template", "own.jinja", "--output", "run"];
    let stderr = text(&place.done(&[TINY, &more].concat()).stderr);
    assert!(stderr.contains("\n  used 2: trained after a context that"), "{stderr}");
}

#[test]
fn a_flag_overrules_what_the_recipe_says_beside_it() {
    let place = Place::new();
    place.write("recipe.toml", "max_steps = 1\nexport_dtype = \"bf16\"\n");
    let plan = |arguments: &[&str]| -> Value {
        let output = place.done(&[arguments, &["--dry-run", "--json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let recipe = [TINY, &["--config", "recipe.toml"]].concat();
    assert_eq!(plan(&recipe)["steps"], 1);
    assert_eq!(plan(&[&recipe[..], &["--epochs", "2"]].concat())["steps"], 3);
    place.write("recipe.toml", "epochs = 2.0\n");
    assert_eq!(plan(&[&recipe[..], &["--max-steps", "5"]].concat())["steps"], 5);
    // The bundled recipe answers prompts and exports bf16.
    plan(&["--lora-rank", "2", "--eval-generate", "0"]);
}

#[test]
fn rows_that_split_leaves_over_are_told() {
    let place = Place::new();
    let start = ["--init-from", "config.json", "--tokenizer", "tok", "--data", "t.jsonl"];
    let more = ["--overlong", "split", "--max-seq-len", "20", "--batch-size", "2"];
    let output = place.done(&[&start[..], &more, &["--output", "run"]].concat());
    let stderr = text(&output.stderr);
    assert!(stderr.contains("the steps ended after 0.25 of 1 epochs"), "{stderr}");
}

#[test]
fn data_that_ends_early_leaves_a_checkpoint_and_its_own_evaluation() {
    let place = Place::new();
    // Half of the rows are dropped, so that the data ends after half of the steps.
    let more = [
        "--data",
        "t.jsonl:3",
        "--overlong",
        "drop",
        "--max-seq-len",
        "48",
        "--batch-size",
        "2",
        "--eval-data",
        "m.jsonl",
        "--eval-every",
        "4",
        "--output",
        "run",
    ];
    let output = place.done(&[TINY, &more].concat());
    let stderr = text(&output.stderr);
    assert!(stderr.contains("the data ended after step 6 of 12: rows were dropped"), "{stderr}");
    assert!(place.path("run/checkpoints/step-6").is_dir());
    let again = place.done(&["--output", "run", "--resume"]);
    let last = |text: &str| text.lines().find(|l| l.contains("after training")).map(str::to_string);
    assert_eq!(last(&stderr), last(&text(&again.stderr)), "another evaluation after resuming");
}

#[test]
fn an_outcome_that_cannot_be_printed_is_a_failure() {
    let Ok(full) = File::options().write(true).open("/dev/full") else {
        println!("skipped: there is no /dev/full");
        return;
    };
    let place = Place::new();
    let arguments = [TINY, &["--max-steps", "1", "--output", "run", "--json"]].concat();
    let output = place.sft(&arguments).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("No space left on device") && !stderr.contains("panicked"), "{stderr}");
}

#[test]
fn a_run_that_fills_the_disk_goes_on_when_there_is_room() {
    let place = Place::new();
    let Some(disk) = SmallDisk::mount(&place, "4k") else {
        println!("skipped: may not mount a small disk");
        return;
    };
    let options = ["--max-steps", "5", "--batch-size", "2", "--save-every", "1", "--seed", "2"];
    let arguments = [TINY, &options].concat();
    place.done(&[&arguments[..], &["--output", "whole"]].concat());
    let run = |more: &[&str]| {
        let output = place
            .sft(&[&arguments[..], &["--output", "disk/run"], more].concat())
            .output()
            .unwrap();
        let stderr = text(&output.stderr);
        assert!(!stderr.contains("panicked"), "{stderr}");
        (output.status.code(), stderr)
    };
    // No room for anything: nothing is left.
    let (code, stderr) = run(&[]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("No space left on device"), "{stderr}");
    assert!(!place.path("disk/run").exists(), "a run without a beginning was left");
    // More and more room: for the first checkpoint, for the next ones, for the export.
    let (mut full, mut intact) = (0, 0);
    for size in (1..).map(|i| format!("{}k", 60 * i)) {
        disk.grow(&size);
        let begun = place.path("disk/run/config.toml").exists();
        let (code, stderr) = run(if begun { &["--resume"] } else { &[] });
        if code == Some(0) {
            break;
        }
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains("No space left on device"), "{stderr}");
        full += 1;
        intact += usize::from(stderr.contains("free some space and `--resume`"));
        assert!(full < 50, "{stderr}");
    }
    println!("{full} full disks, {intact} of them after a checkpoint");
    assert!(full >= 3 && intact >= 1, "{full} {intact}");
    assert_eq!(place.read("disk/run/model.safetensors"), place.read("whole/model.safetensors"));
}
