//! What the tests of the binary share: running it, a tiny model and its data.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    dead_code,
    missing_docs,
    reason = "tests, each of which uses a part of this"
)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use halter_core::model::config::ModelConfig;
use halter_testkit::faults::Answered;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use tempfile::TempDir;

/// The files that [`Place::new`] writes are enough for a run with these options.
pub const TINY: &[&str] =
    &["--init-from", "config.json", "--tokenizer", "tok", "--data", "m.jsonl"];

const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n\
    {{ message['content'] }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// `halter` in `dir`, not yet started: what it prints names no path of this machine, and nothing
/// goes over the network.
pub fn command<A: AsRef<str>>(dir: &Path, arguments: &[A]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halter"));
    command
        .args(arguments.iter().map(AsRef::as_ref))
        .current_dir(dir)
        .env_remove("HALTER_LOG")
        .env_remove("NO_COLOR")
        .env_remove("COLUMNS")
        .env("XDG_CACHE_HOME", dir.join("cache"))
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", dir.join("no-cache"))
        .stdin(Stdio::null());
    command
}

/// Runs `halter` in `dir` to its end.
pub fn halter_in(dir: &Path, arguments: &[&str]) -> Output {
    command(dir, arguments).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What went to stderr, without the lines of a progress bar, which tell the time.
pub fn notes(output: &Output) -> String {
    let is_progress =
        |line: &&str| !["reading", "writing"].iter().any(|what| line.starts_with(what));
    text(&output.stderr).lines().filter(is_progress).map(|line| format!("{line}\n")).collect()
}

/// Exit code, stdout and stderr, as one text.
pub fn told(arguments: &[&str], output: &Output) -> String {
    let code = output.status.code().map_or("none".to_string(), |code| code.to_string());
    let mut shown = format!("$ halter {}\nexit code {code}\n", arguments.join(" "));
    for (name, part) in [("stdout", text(&output.stdout)), ("stderr", notes(output))] {
        if !part.is_empty() {
            shown += &format!("--- {name}\n{part}");
        }
    }
    shown
}

/// Runs each command, which must fail with an error and without a panic, and tells what it said.
pub fn failures(dir: &Path, commands: &[&str]) -> String {
    let mut shown = String::new();
    for command in commands {
        let arguments: Vec<&str> = command.split(' ').collect();
        let output = halter_in(dir, &arguments);
        let stderr = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{command}: {}", output.status);
        assert!(stderr.contains("error: ") && !stderr.contains("panicked"), "{command}: {stderr}");
        shown += &told(&arguments, &output);
        shown += "\n";
    }
    shown
}

/// The configuration of the tiny model.
pub fn config() -> serde_json::Value {
    json!({
        "model_type": "llama", "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "hidden_act": "silu", "eos_token_id": 9,
    })
}

/// The tokenizer of the core's tests with a template, in a new directory.
fn write_tokenizer(dir: &Path, template: &str) {
    fs::create_dir(dir).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let fixture = root().join("core/tests/fixtures/tiny_chatml").join(name);
        fs::copy(fixture, dir.join(name)).unwrap();
    }
    fs::write(dir.join("chat_template.jinja"), template).unwrap();
}

/// The tiny model, all zeros, in `dir/model`, with SmolLM2's template.
pub fn write_model(dir: &Path) {
    let model = dir.join("model");
    let template = fs::read_to_string(root().join("core/tests/templates/smollm2.jinja")).unwrap();
    write_tokenizer(&model, &template);
    fs::write(model.join("config.json"), config().to_string()).unwrap();
    let params = ModelConfig::from_json(&config(), "config.json").unwrap().params();
    let size = |shape: &[usize]| 4 * shape.iter().product::<usize>();
    let zeros = vec![0u8; params.iter().map(|param| size(&param.shape)).max().unwrap()];
    let tensors = params.iter().map(|param| {
        let bytes = &zeros[..size(&param.shape)];
        (&param.name, TensorView::new(Dtype::F32, param.shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(tensors, None).unwrap();
    fs::write(model.join("model.safetensors"), bytes).unwrap();
}

/// A folder in which the binary is run; paths in its messages are relative to it.
pub struct Place {
    dir: TempDir,
}

impl Place {
    /// `config.json`, `tok/`, `m.jsonl` (conversations) and `t.jsonl` (long texts).
    pub fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        write_tokenizer(&place.path("tok"), TEMPLATE);
        place.write("config.json", config().to_string());
        let question = |i: usize| {
            json!({ "messages": [
                { "role": "user", "content": format!("What is {i} plus {}?", i + 1) },
                { "role": "assistant", "content": format!("It is {}.", 2 * i + 1) },
            ] })
        };
        place.write("m.jsonl", lines((0..12).map(question)));
        let story = |i| json!({ "text": format!("There were {i} llamas. ").repeat(9) });
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
        let arguments = arguments.iter().map(AsRef::as_ref);
        command(self.root(), &std::iter::once("sft").chain(arguments).collect::<Vec<_>>())
    }

    /// The run `whole` as `name`, killed after `step`.
    pub fn cut_back(&self, whole: &str, name: &str, step: usize) {
        let copied = Command::new("cp").args(["-r", whole, name]).current_dir(self.root()).status();
        assert!(copied.unwrap().success());
        let mut later = 0;
        for checkpoint in fs::read_dir(self.path(name).join("checkpoints")).unwrap() {
            let path = checkpoint.unwrap().path();
            let of = path.file_name().unwrap().to_str().unwrap().strip_prefix("step-").unwrap();
            if of.parse::<usize>().unwrap() > step {
                fs::remove_dir_all(path).unwrap();
                later += 1;
            }
        }
        assert!(later > 0, "{whole} has no later checkpoint");
    }

    /// The lines of a run's metrics, less what depends on the clock.
    pub fn metrics(&self, run: &str) -> Vec<serde_json::Value> {
        let line = |line: &str| {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            for clock in ["seconds", "tokens_per_second"] {
                line.as_object_mut().unwrap().remove(clock).unwrap();
            }
            line
        };
        self.text(&format!("{run}/metrics.jsonl")).lines().map(line).collect()
    }

    /// Runs `halter sft` to its end, which must be a good one.
    #[track_caller]
    pub fn done<A: AsRef<str>>(&self, arguments: &[A]) -> Output {
        let output = self.sft(arguments).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        output
    }
}

/// SplitMix64: the moments differ with the machine all the same, but not more than they must.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Waits for the end, but no longer than `limit`.
fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    loop {
        match child.try_wait().unwrap() {
            None if started.elapsed() < limit => std::thread::sleep(Duration::from_millis(1)),
            status => return status,
        }
    }
}

/// `halter serve` on a free port.
pub struct Served {
    pub child: Child,
    /// Host and port.
    pub address: String,
    _stderr: BufReader<ChildStderr>,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Served {
    pub fn start(place: &Place, model: &str, options: &[&str]) -> Self {
        let start = ["serve", "--model", model, "--port", "0"];
        let mut child = command(place.root(), &[&start, options].concat())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut told = String::new();
        let address = loop {
            let mut line = String::new();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended: {told}");
            told += &line;
            if let Some((_, address)) = line.trim().split_once("http://") {
                break address.strip_suffix("/v1").unwrap().to_string();
            }
        };
        Self { child, address, _stderr: stderr }
    }
}

/// Kills what `start` starts, with its stderr, at random moments until it ends by itself; returns
/// how often. `whole` is what it takes undisturbed.
pub fn killed_until_done(
    place: &Place,
    seed: &mut u64,
    whole: Duration,
    mut start: impl FnMut(Stdio) -> Child,
    mut killed: impl FnMut(),
) -> usize {
    let mut kills = 0;
    // Grows, for the sake of machines that get slower meanwhile.
    let mut most = whole.as_micros() as u64 / 2;
    loop {
        let log = fs::File::create(place.path("stderr")).unwrap();
        let mut child = start(log.into());
        let limit = Duration::from_micros(random(seed) % most);
        if let Some(status) = wait(&mut child, limit) {
            assert!(status.success(), "after {kills} kills: {}", place.text("stderr"));
            return kills;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        killed();
        kills += 1;
        most += most / 50;
    }
}

/// Kills a command that asks a server, `least` times or more, until it is done, with `command` told where to
/// write; `check` looks at what it wrote there. Each of so many `questions` is answered once, but for
/// the four that are on their way when it is killed. What an undisturbed run writes is in `whole`.
pub fn asks_once_through_kills(
    place: &Place,
    mut seed: u64,
    least: usize,
    questions: usize,
    answered: &Answered,
    command: impl Fn(&str) -> Command,
    check: impl Fn(&str),
) {
    let began = Instant::now();
    assert!(command("whole").output().unwrap().status.success());
    let taken = began.elapsed();
    answered.lock().unwrap().clear();
    let mut kills = 0;
    for round in 0.. {
        let output = format!("killed-{round}");
        let start = |stderr: Stdio| command(&output).stderr(stderr).spawn().unwrap();
        let now = killed_until_done(place, &mut seed, taken, start, || {});
        check(&output);
        let all = std::mem::take(&mut *answered.lock().unwrap());
        assert_eq!(all.len(), questions);
        let twice: usize = all.values().map(|times| times - 1).sum();
        assert!(
            twice <= 4 * now,
            "{twice} answers again, four on their way at each of {now} kills"
        );
        kills += now;
        if kills >= least {
            break;
        }
        assert!(round < 20, "only {kills} kills");
    }
}

/// A file system of a few kilobytes, where the system lets us have one.
pub struct SmallDisk<'a> {
    place: &'a Place,
}

impl<'a> SmallDisk<'a> {
    /// `disk/` in `place`.
    pub fn mount(place: &'a Place, size: &str) -> Option<Self> {
        fs::create_dir(place.path("disk")).unwrap();
        let disk = Self { place };
        disk.call("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "none"]).then_some(disk)
    }

    pub fn grow(&self, size: &str) {
        assert!(self.call("mount", &["-o", &format!("remount,size={size}")]));
    }

    fn call(&self, program: &str, arguments: &[&str]) -> bool {
        let mut command = Command::new(program);
        let command = command.args(arguments).arg(self.place.path("disk"));
        command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        self.call("umount", &[]);
    }
}

/// A JSON value a line.
pub fn lines(values: impl Iterator<Item = serde_json::Value>) -> String {
    values.map(|value| format!("{value}\n")).collect()
}
