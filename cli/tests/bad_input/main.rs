//! Wrong inputs to `halter sft`: each is refused with a text that says what to do, never with a
//! panic, and nothing is left behind.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod data;
mod models;
mod options;
mod runs;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use support::{Place, TINY, text};

/// A short run's export and an adapter on it, made once and copied.
struct Models {
    place: Place,
}

impl Models {
    fn new() -> Self {
        let place = Place::new();
        let short = ["--max-steps", "1", "--batch-size", "2"];
        place.done(&[TINY, &short, &["--output", "base"]].concat());
        let lora = ["--model", "base", "--data", "m.jsonl", "--lora-rank", "2"];
        place.done(&[&lora, &short[..], &["--output", "adapter"]].concat());
        Self { place }
    }

    /// Copies the files of `name` that a model or an adapter needs.
    fn copy_to(&self, place: &Place, name: &str) {
        fs::create_dir(place.path(name)).unwrap();
        for entry in fs::read_dir(self.place.path(name)).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_str().unwrap();
            if file.ends_with(".safetensors") || file.ends_with(".json") || file.ends_with(".jinja")
            {
                fs::copy(&path, place.path(name).join(file)).unwrap();
            }
        }
    }
}

fn everything_below(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        found.insert(path.display().to_string());
        if path.is_dir() {
            everything_below(&path, found);
        }
    }
}

struct Table {
    models: Models,
    text: String,
    cases: usize,
}

const MODEL: &[&str] = &["--model", "base", "--data", "m.jsonl"];

impl Table {
    fn new() -> Self {
        Self { models: Models::new(), text: String::new(), cases: 0 }
    }

    /// Runs `halter sft` with `start` and `more` in a place that `prepare` has spoilt.
    fn case(&mut self, name: &str, start: &[&str], more: &[&str], prepare: impl FnOnce(&Place)) {
        let place = Place::new();
        self.models.copy_to(&place, "base");
        self.models.copy_to(&place, "adapter");
        prepare(&place);
        let mut arguments = [start, more].concat();
        if !arguments.contains(&"--output") {
            arguments.extend(["--output", "run"]);
        }
        let (mut before, mut after) = (BTreeSet::new(), BTreeSet::new());
        everything_below(place.root(), &mut before);
        let output = place.sft(&arguments).output().unwrap();
        everything_below(place.root(), &mut after);
        let stderr = text(&output.stderr);
        assert!(!stderr.contains("panicked"), "{name}: {stderr}");
        let code = output.status.code();
        assert!(matches!(code, Some(1 | 2)), "{name}: exit {code:?}\n{stderr}");
        assert_eq!(before, after, "{name} left something behind\n{stderr}");
        assert_eq!(output.stdout, b"", "{name}");
        let stderr: String = stderr
            .replace(place.root().to_str().unwrap(), "DIR")
            .lines()
            // What the plan says depends on the machine.
            .map(|line| if line.starts_with("plan: ") { "plan: …" } else { line })
            .map(|line| format!("    {line}\n"))
            .collect();
        self.text += &format!("{name} (exit {})\n{stderr}\n", code.unwrap());
        self.cases += 1;
    }

    /// A wrong file of the model in `base`.
    fn model(&mut self, name: &str, prepare: impl FnOnce(&Place)) {
        self.case(name, MODEL, &[], prepare);
    }

    /// `m.jsonl` with these lines.
    fn data(&mut self, name: &str, more: &[&str], contents: impl AsRef<[u8]>) {
        self.case(name, TINY, more, |place| place.write("m.jsonl", contents));
    }

    fn options(&mut self, name: &str, more: &[&str]) {
        self.case(name, TINY, more, |_| {});
    }

    fn recipe(&mut self, name: &str, toml: &str) {
        self.case(name, TINY, &["--config", "recipe.toml"], |place| {
            place.write("recipe.toml", toml);
        });
    }

    fn template(&mut self, name: &str, jinja: &str) {
        self.case(name, TINY, &[], |place| place.write("tok/chat_template.jinja", jinja));
    }
}

fn change_config(place: &Place, file: &str, key: &str, value: Value) {
    let mut config: Value = serde_json::from_slice(&place.read(file)).unwrap();
    config[key] = value;
    place.write(file, config.to_string());
}
