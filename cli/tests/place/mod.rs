//! A tiny model, its data, and the binary run on them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    dead_code,
    reason = "tests, each of which uses a part of this"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// The files that [`Place::new`] writes are enough for a run with these options.
pub const TINY: &[&str] =
    &["--init-from", "config.json", "--tokenizer", "tok", "--data", "m.jsonl"];

const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n\
    {{ message['content'] }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A folder in which the binary is run; paths in its messages are relative to it.
pub struct Place {
    dir: TempDir,
}

impl Place {
    /// `config.json`, `tok/`, `m.jsonl` (conversations) and `t.jsonl` (long texts).
    pub fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        let fixture =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/tests/fixtures/tiny_chatml");
        fs::create_dir(place.path("tok")).unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(fixture.join(name), place.path("tok").join(name)).unwrap();
        }
        place.write("tok/chat_template.jinja", TEMPLATE);
        place.write("config.json", config().to_string());
        let question = |i: usize| {
            serde_json::json!({ "messages": [
                { "role": "user", "content": format!("What is {i} plus {}?", i + 1) },
                { "role": "assistant", "content": format!("It is {}.", 2 * i + 1) },
            ] })
        };
        place.write("m.jsonl", lines((0..12).map(question)));
        let story = |i| serde_json::json!({ "text": format!("There were {i} llamas. ").repeat(9) });
        place.write("t.jsonl", lines((0..4).map(story)));
        place
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.path(name), contents).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        let path = self.path(name);
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }

    /// `halter sft` with these arguments, not yet started.
    pub fn sft<A: AsRef<str>>(&self, arguments: &[A]) -> Command {
        self.halter(&["sft"], arguments)
    }

    pub fn halter<A: AsRef<str>>(&self, first: &[&str], arguments: &[A]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halter"));
        command
            .args(first)
            .args(arguments.iter().map(AsRef::as_ref))
            .current_dir(self.root())
            .env_remove("HALTER_LOG")
            // Nothing of these tests may go over the network.
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_HOME", self.path("hf"))
            .stdin(Stdio::null());
        command
    }

    /// Runs `halter sft` to its end, which must be a good one.
    #[track_caller]
    pub fn done<A: AsRef<str>>(&self, arguments: &[A]) -> Output {
        let output = self.sft(arguments).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        output
    }
}

/// The configuration of the tiny model.
pub fn config() -> serde_json::Value {
    serde_json::json!({
        "model_type": "llama", "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "hidden_act": "silu", "eos_token_id": 9,
    })
}

/// A JSON value a line.
pub fn lines(values: impl Iterator<Item = serde_json::Value>) -> String {
    values.map(|value| format!("{value}\n")).collect()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
