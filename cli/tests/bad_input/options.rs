//! Recipes, options and adapters.

use serde_json::json;

use super::support::{TINY, config};
use super::{MODEL, Table, change_config};

#[test]
fn wrong_options_are_refused() {
    let mut t = Table::new();
    t.recipe("recipe: a key that nobody knows", "seed = 1\nlearning_rte = 1e-4\n");
    t.recipe("recipe: a value of the wrong type", "batch_size = \"eight\"\n");
    t.recipe("recipe: a negative count", "\nbatch_size = -8\n");
    t.recipe("recipe: a choice that is none", "schedule = \"staircase\"\n");
    t.recipe("recipe: a key like no other", "frobnicate = 1\n");
    t.recipe("recipe: not TOML", "seed = 1\nbatch_size 8\n");
    t.recipe("recipe: a table for a value", "[lora]\nrank = 8\n");
    t.recipe("recipe: epochs beside steps", "epochs = 2.0\nmax_steps = 3\n");
    t.options("recipe: not there", &["--config", "none.toml"]);
    for (option, value) in [
        ("--learning-rate", "0"),
        ("--learning-rate", "nan"),
        ("--batch-size", "0"),
        ("--batch-size", "-1"),
        ("--epochs", "-1"),
        ("--max-steps", "0"),
        ("--max-seq-len", "0"),
        ("--warmup-ratio", "1.5"),
        ("--weight-decay", "-0.1"),
        ("--max-grad-norm", "inf"),
        ("--adam-beta2", "1"),
        ("--schedule", "staircase"),
        ("--export-dtype", "f64"),
        ("--device", "gpu"),
        ("--device", "cuda"),
        ("--lora-target", "q_proj"),
        ("--lora-alpha", "8"),
        ("--max-new-tokens", "8"),
        ("--revision", "v1"),
        ("--eval-data", "m.jsonl:2"),
        ("--eval-every", "2"),
        ("--eval-generate", "2"),
        ("--frobnicate", "2"),
        ("--optim", "sgd"),
    ] {
        t.case(&format!("{option} {value}"), TINY, &[&format!("{option}={value}")], |_| {});
    }
    t.case("no model", &["--data", "m.jsonl"], &[], |_| {});
    t.case("no data", &["--model", "base"], &[], |_| {});
    t.options("both a model and fresh weights", &["--model", "base"]);
    t.options("an adapter on fresh weights", &["--lora-rank", "4"]);
    t.options("both epochs and steps", &["--epochs", "2", "--max-steps", "3"]);
    let inside = "--optimizer-in-backward";
    t.options("a norm of gradients that are updated with at once", &[inside]);
    let no_norm = [inside, "--max-grad-norm", "0", "--microbatch-tokens", "64"];
    t.options("microbatches of a step that is one", &no_norm);
    t.case("a revision of a model on disk", MODEL, &["--revision", "v1"], |_| {});
    let lora = |t: &mut Table, name: &str, more: &[&str]| {
        t.case(name, MODEL, &[&["--lora-rank", "4"], more].concat(), |_| {});
    };
    lora(&mut t, "lora: a target that is not in the model", &["--lora-target", "q_proj,x_proj"]);
    lora(&mut t, "lora: dropout of everything", &["--lora-dropout", "1"]);
    lora(&mut t, "lora: an alpha of zero", &["--lora-alpha", "0"]);
    lora(&mut t, "lora: a type of the export", &["--export-dtype", "bf16"]);
    lora(&mut t, "lora: a rank beside an adapter", &["--adapter", "adapter"]);
    let adapter = ["--model", "base", "--data", "m.jsonl", "--adapter", "adapter"];
    t.case("adapter: an alpha beside it", &adapter, &["--lora-alpha", "8"], |_| {});
    t.case("adapter: not there", MODEL, &["--adapter", "none"], |_| {});
    t.case("adapter: a model", MODEL, &["--adapter", "base"], |_| {});
    t.case("adapter: of another rank", &adapter, &[], |p| {
        change_config(p, "adapter/adapter_config.json", "r", json!(3));
    });
    t.case("adapter: of another method", &adapter, &[], |p| {
        change_config(p, "adapter/adapter_config.json", "peft_type", json!("IA3"));
    });
    t.case("adapter: cut", &adapter, &[], |p| {
        let file = "adapter/adapter_model.safetensors";
        p.write(file, &p.read(file)[..200]);
    });
    t.case("adapter: of another model", TINY_ADAPTER, &[], |p| {
        let mut wide = config();
        wide["hidden_size"] = json!(64);
        p.write("config.json", wide.to_string());
        p.done(&[
            "--init-from",
            "config.json",
            "--tokenizer",
            "tok",
            "--data",
            "m.jsonl",
            "--max-steps",
            "1",
            "--output",
            "wide",
        ]);
    });
    println!("{} wrong options", t.cases);
    insta::assert_snapshot!("options", t.text);
}

const TINY_ADAPTER: &[&str] = &["--model", "wide", "--data", "m.jsonl", "--adapter", "adapter"];
