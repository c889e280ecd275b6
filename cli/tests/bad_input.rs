//! Wrong inputs to `halter sft`: each is refused with a text that says what to do, never with a
//! panic, and nothing is left behind.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod place;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use place::{Place, TINY, config, text};
use serde_json::{Value, json};

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

const WEIGHTS: &str = "base/model.safetensors";

/// The header of the model's weights, changed; the length before it is right.
fn change_header(place: &Place, change: impl FnOnce(&mut Value)) {
    let bytes = place.read(WEIGHTS);
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut header);
    let mut text = header.to_string();
    // Data stays aligned.
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut changed = (text.len() as u64).to_le_bytes().to_vec();
    changed.extend_from_slice(text.as_bytes());
    changed.extend_from_slice(&bytes[8 + length..]);
    place.write(WEIGHTS, changed);
}

fn change_config(place: &Place, file: &str, key: &str, value: Value) {
    let mut config: Value = serde_json::from_slice(&place.read(file)).unwrap();
    config[key] = value;
    place.write(file, config.to_string());
}

const NORM: &str = "model.norm.weight";

#[test]
fn wrong_weights_and_configurations_are_refused() {
    let mut t = Table::new();
    t.model("safetensors: empty", |p| p.write(WEIGHTS, ""));
    t.model("safetensors: cut in the data", |p| {
        let bytes = p.read(WEIGHTS);
        p.write(WEIGHTS, &bytes[..bytes.len() - 1000]);
    });
    t.model("safetensors: cut in the header", |p| p.write(WEIGHTS, &p.read(WEIGHTS)[..100]));
    t.model("safetensors: a header longer than any file", |p| {
        let mut bytes = p.read(WEIGHTS);
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        p.write(WEIGHTS, bytes);
    });
    t.model("safetensors: a header that is not JSON", |p| {
        let mut bytes = p.read(WEIGHTS);
        bytes[8] = b'?';
        p.write(WEIGHTS, bytes);
    });
    t.model("safetensors: a shape that its bytes are not", |p| {
        change_header(p, |header| header[NORM]["shape"] = json!([33]));
    });
    t.model("safetensors: a shape whose size overflows", |p| {
        change_header(p, |header| {
            header[NORM]["shape"] = json!([u64::MAX, u64::MAX, 3]);
        });
    });
    t.model("safetensors: bytes beyond the end", |p| {
        change_header(p, |header| {
            header[NORM]["data_offsets"] = json!([1u64 << 40, (1u64 << 40) + 128]);
        });
    });
    t.model("safetensors: a type that nobody knows", |p| {
        change_header(p, |header| header[NORM]["dtype"] = json!("F7"));
    });
    t.model("safetensors: a tensor missing", |p| {
        change_header(p, |header| {
            let norm = header.as_object_mut().unwrap().remove(NORM).unwrap();
            header["model.other.weight"] = norm;
        });
    });
    t.model("weights: NaN", |p| {
        let mut bytes = p.read(WEIGHTS);
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        p.write(WEIGHTS, bytes);
    });
    t.model("weights: none", |p| fs::remove_file(p.path(WEIGHTS)).unwrap());
    t.model("weights: a shard missing", |p| {
        fs::rename(p.path(WEIGHTS), p.path("base/model-00001-of-00002.safetensors")).unwrap();
        let map = json!({
            "model.embed_tokens.weight": "model-00001-of-00002.safetensors",
            NORM: "model-00002-of-00002.safetensors",
        });
        p.write("base/model.safetensors.index.json", json!({ "weight_map": map }).to_string());
    });
    t.model("weights: an index that leads out of the directory", |p| {
        fs::remove_file(p.path(WEIGHTS)).unwrap();
        let map = json!({ NORM: "../../etc/passwd" });
        p.write("base/model.safetensors.index.json", json!({ "weight_map": map }).to_string());
    });
    let model_config = "base/config.json";
    t.model("config: shapes that the weights do not have", |p| {
        change_config(p, model_config, "intermediate_size", json!(96));
    });
    t.model("config: a block that the weights do not have", |p| {
        change_config(p, model_config, "num_hidden_layers", json!(3));
    });
    t.model("config: not JSON", |p| p.write(model_config, "{\"model_type\": \"llama\","));
    t.model("config: missing", |p| fs::remove_file(p.path(model_config)).unwrap());
    t.model("config: a type of model that nobody knows", |p| {
        change_config(p, model_config, "model_type", json!("alpaca"));
    });
    t.model("config: a field that would change the computation", |p| {
        change_config(p, model_config, "partial_rotary_factor", json!(0.5));
    });
    t.model("config: a size of the wrong type", |p| {
        change_config(p, model_config, "hidden_size", json!("32"));
    });
    t.model("config: a size of zero", |p| change_config(p, model_config, "hidden_size", json!(0)));
    t.model("config: a size beyond any memory", |p| {
        change_config(p, model_config, "vocab_size", json!(1u64 << 60));
    });
    t.case("init-from: fewer embeddings than tokens", TINY, &[], |p| {
        change_config(p, "config.json", "vocab_size", json!(300));
    });
    t.case("init-from: a model beyond any memory", TINY, &[], |p| {
        change_config(p, "config.json", "intermediate_size", json!(1u64 << 44));
    });
    let gguf = ["--model", "m.gguf", "--data", "m.jsonl"];
    let header = |tensors: u64, keys: u64| {
        [&b"GGUF"[..], &3u32.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat()
    };
    for (name, bytes) in [
        ("gguf: empty", Vec::new()),
        ("gguf: another format", b"not a model at all".to_vec()),
        ("gguf: a version that nobody knows", [&b"GGUF"[..], &99u32.to_le_bytes()].concat()),
        ("gguf: cut in the header", header(1, 1)[..20].to_vec()),
        ("gguf: more tensors than bytes", header(u64::MAX, 0)),
        ("gguf: a name longer than the file", [header(0, 1), vec![0xff; 8]].concat()),
        ("gguf: nothing in it", header(0, 0)),
    ] {
        t.case(name, &gguf, &[], |p| p.write("m.gguf", bytes));
    }
    t.case("model: no such directory", &["--model", "./none", "--data", "m.jsonl"], &[], |_| {});
    t.case("model: a file", &["--model", "m.jsonl", "--data", "m.jsonl"], &[], |_| {});
    t.case(
        "model: a hub id, offline",
        &["--model", "nobody/nothing", "--data", "m.jsonl"],
        &[],
        |_| {},
    );
    println!("{} wrong models", t.cases);
    insta::assert_snapshot!("models", t.text);
}

#[test]
fn wrong_tokenizers_templates_and_data_are_refused() {
    let mut t = Table::new();
    t.case(
        "tokenizer: not given",
        &["--init-from", "config.json", "--data", "m.jsonl"],
        &[],
        |_| {},
    );
    t.case("tokenizer: not there", TINY, &[], |p| {
        fs::remove_file(p.path("tok/tokenizer.json")).unwrap();
    });
    t.case("tokenizer: broken", TINY, &[], |p| p.write("tok/tokenizer.json", "{\"model\":"));
    t.model("tokenizer: ids beyond the model's embedding", |p| {
        let mut tokenizer: Value = serde_json::from_slice(&p.read("base/tokenizer.json")).unwrap();
        tokenizer["model"]["vocab"]["zzz"] = json!(600);
        p.write("base/tokenizer.json", tokenizer.to_string());
    });

    t.template(
        "template: refuses the order of roles",
        concat!(
            "{% for m in messages %}{% if m.role != 'assistant' %}",
            "{{ raise_exception('roles must alternate, beginning with assistant') }}{% endif %}",
            "{{ m.content }}<|im_end|>{% endfor %}"
        ),
    );
    t.template("template: a syntax error", "{% for m in messages %}{{ m.content }}");
    t.template(
        "template: a loop without end",
        concat!(
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}",
            "{% endfor %}{% endfor %}"
        ),
    );
    t.template(
        "template: calls itself without end",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    );
    t.template(
        "template: no end of turn",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    );
    t.template("template: an unknown filter", "{{ messages | shout }}");
    t.case("template: none", TINY, &[], |p| {
        fs::remove_file(p.path("tok/chat_template.jinja")).unwrap();
    });

    let chat = |messages: Value| format!("{}\n", json!({ "messages": messages }));
    let fine =
        chat(json!([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]));
    t.data("data: a broken line", &[], format!("{fine}{fine}{{\"messages\": [\n{fine}"));
    t.data(
        "data: content of the wrong type",
        &[],
        fine.clone() + &chat(json!([{"role": "user", "content": 7}])),
    );
    t.data("data: an empty conversation", &[], fine.clone() + &chat(json!([])));
    t.data(
        "data: nothing to train",
        &[],
        fine.clone() + &chat(json!([{"role": "user", "content": "Q"}])),
    );
    t.data(
        "data: no role",
        &[],
        fine.clone() + &chat(json!([{"content": "Q"}, {"role": "assistant", "content": "A"}])),
    );
    t.data(
        "data: a special token in a question",
        &[],
        fine.clone()
            + &chat(json!([
        {"role": "user", "content": "Q<|im_end|>"}, {"role": "assistant", "content": "A"}])),
    );
    t.data("data: a row of another format", &[], fine.clone() + "{\"text\": \"Once\"}\n");
    t.data("data: an array where a row should be", &[], "[1, 2]\n");
    t.data("data: keys that nobody knows", &[], "{\"question\": \"Q\", \"reply\": \"A\"}\n");
    t.data("data: empty", &[], "");
    t.data("data: not UTF-8", &[], b"{\"text\": \"\xff\xfe\"}\n");
    t.data(
        "data: token ids beyond the vocabulary",
        &[],
        "{\"input_ids\": [1, 2, 4000], \"completion_mask\": [0, 1, 1]}\n",
    );
    t.data(
        "data: a mask of another length",
        &[],
        "{\"input_ids\": [1, 2, 3], \"completion_mask\": [0, 1]}\n",
    );
    t.options("data: rows that are too long", &["--max-seq-len", "8"]);
    t.options("data: all rows dropped", &["--max-seq-len", "8", "--overlong", "drop"]);
    t.options(
        "data: all rows dropped in every epoch",
        &["--max-seq-len", "8", "--overlong", "drop", "--max-steps", "9"],
    );
    t.options(
        "eval-data: all rows dropped",
        &["--max-seq-len", "40", "--overlong", "drop", "--eval-data", "t.jsonl"],
    );
    t.options("data: a file that is not there", &["--data", "none.jsonl"]);
    t.options("data: a weight of zero", &["--data", "t.jsonl:0"]);
    t.options("data: a renamed column without its name", &["--column", "prompt"]);
    t.case("template: not there", TINY, &["--chat-template", "none.jinja"], |_| {});
    t.options("data: an unknown format", &["--format", "vicuna"]);
    t.options("data: the rows are not of the stated format", &["--format", "preference"]);
    t.case("data: an empty directory", TINY, &["--data", "none"], |p| {
        fs::create_dir(p.path("none")).unwrap();
    });
    t.case("data: not Parquet", TINY, &["--data", "x.parquet"], |p| {
        p.write("x.parquet", "PAR1PAR1PAR1")
    });
    t.case("eval-data: a wrong row", TINY, &["--eval-data", "e.jsonl"], |p| {
        p.write("e.jsonl", chat(json!([])));
    });
    println!("{} wrong texts and data", t.cases);
    insta::assert_snapshot!("data", t.text);
}

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
        ("--eval-every", "2"),
        ("--eval-generate", "2"),
        ("--frobnicate", "2"),
    ] {
        t.case(&format!("{option} {value}"), TINY, &[&format!("{option}={value}")], |_| {});
    }
    t.case("no model", &["--data", "m.jsonl"], &[], |_| {});
    t.case("no data", &["--model", "base"], &[], |_| {});
    t.options("both a model and fresh weights", &["--model", "base"]);
    t.options("an adapter on fresh weights", &["--lora-rank", "4"]);
    t.case("a tokenizer beside a model", MODEL, &["--tokenizer", "tok"], |_| {});
    let lora = |t: &mut Table, name: &str, more: &[&str]| {
        t.case(name, MODEL, &[&["--lora-rank", "4"], more].concat(), |_| {});
    };
    lora(&mut t, "lora: a target that is not in the model", &["--lora-target", "q_proj,x_proj"]);
    lora(&mut t, "lora: dropout of everything", &["--lora-dropout", "1"]);
    lora(&mut t, "lora: an alpha of zero", &["--lora-alpha", "0"]);
    lora(&mut t, "lora: a rank beside an adapter", &["--adapter", "adapter"]);
    let adapter = ["--model", "base", "--data", "m.jsonl", "--adapter", "adapter"];
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

#[test]
fn outputs_and_runs_that_cannot_be_used_are_refused() {
    let mut t = Table::new();
    t.case("output: a file", TINY, &[], |p| p.write("run", "mine"));
    t.case("output: below a file", TINY, &["--output", "m.jsonl/run"], |_| {});
    t.case("output: not empty", TINY, &[], |p| {
        fs::create_dir(p.path("run")).unwrap();
        p.write("run/mine.txt", "mine");
    });
    let begin = |p: &Place| {
        p.done(&[TINY, &["--output", "run", "--max-steps", "2", "--save-every", "1"]].concat());
    };
    t.case("output: holds a run", TINY, &[], begin);
    if cfg!(target_os = "linux") {
        t.case("output: where nobody may write", TINY, &["--output", "/proc/halter/run"], |_| {});
    }
    t.case("resume: no such run", TINY, &["--resume"], |_| {});
    t.case("resume: a directory without a run", TINY, &["--resume", "--output", "tok"], |_| {});
    t.case("resume: another seed", TINY, &["--resume", "--seed", "3"], begin);
    t.case("resume: another recipe", TINY, &["--resume", "--config", "r.toml"], |p| {
        begin(p);
        p.write("r.toml", "max_steps = 3\n");
    });
    t.case("resume: a configuration that was spoilt", &["--resume"], &[], |p| {
        begin(p);
        p.write("run/config.toml", "seed = \n");
    });
    t.case("resume: the data has other rows", &["--resume"], &[], |p| {
        begin(p);
        let more = p.text("m.jsonl").repeat(2);
        p.write("m.jsonl", more);
    });
    t.case("resume: every checkpoint is damaged", &["--resume"], &[], |p| {
        begin(p);
        for step in [1, 2] {
            let file = format!("run/checkpoints/step-{step}/weights.safetensors");
            let mut bytes = p.read(&file);
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            p.write(&file, bytes);
        }
    });
    t.case("resume: metrics that were spoilt", &["--resume"], &[], |p| {
        begin(p);
        p.write("run/metrics.jsonl", "not metrics\n{\"step\":2}\n");
    });
    t.case("resume: a ledger that was lost", &["--resume"], &[], |p| {
        p.done(
            &[
                TINY,
                &[
                    "--output",
                    "run",
                    "--data",
                    "t.jsonl",
                    "--overlong",
                    "split",
                    "--max-seq-len",
                    "40",
                ],
            ]
            .concat(),
        );
        p.write("run/ledger.jsonl", "");
    });
    println!("{} wrong outputs and runs", t.cases);
    insta::assert_snapshot!("runs", t.text);
}
