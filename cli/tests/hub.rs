//! The binary against a hub: a server on this machine that answers as Hugging Face's does. Models
//! and data sets are fetched once, `HF_TOKEN` is sent, and offline the cache is enough.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_of_the_test";

/// Repositories by their paths on the server, and what was asked.
struct Hub {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

type Files = HashMap<String, Vec<u8>>;

impl Hub {
    /// Serves `models/org/tiny`, `datasets/org/rows` and `datasets/org/several` until the test's process ends.
    fn start() -> Self {
        let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/bundled");
        let file = |path: PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(path).unwrap())
        };
        let entries = std::fs::read_dir(&bundled).unwrap();
        let model: Files = entries.map(|entry| file(entry.unwrap().path())).collect();
        let rows = std::fs::read_to_string(bundled.join("train.jsonl")).unwrap();
        let rows: String = rows.lines().take(20).map(|line| format!("{line}\n")).collect();
        let data = Files::from([
            ("data/train-00000-of-00001.jsonl".to_string(), rows.into_bytes()),
            ("README.md".to_string(), b"rows".to_vec()),
        ]);
        let problem = b"{\"prompt\": \"What is 1 + 2?\", \"answer\": \"3\"}\n".to_vec();
        let places = ["main/test-0", "main/train-0", "other/test-0", "other/train-0"];
        let several: Files =
            places.map(|place| (format!("{place}.jsonl"), problem.clone())).into_iter().collect();
        let repositories = HashMap::from([
            ("models/org/tiny", model),
            ("datasets/org/rows", data),
            ("datasets/org/several", several),
        ]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &repositories, &log);
            }
        });
        Self { address, asked }
    }

    fn requests(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn answer(mut stream: TcpStream, repositories: &HashMap<&str, Files>, asked: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let authorized = headers.iter().any(|line| {
        line.to_ascii_lowercase().starts_with("authorization:") && line.ends_with(TOKEN)
    });
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = target.split('?').next().unwrap_or("");
    asked.lock().unwrap().push(format!("{method} {path}"));
    let found = if authorized { find(path, repositories) } else { Err("401 Unauthorized") };
    let (status, body) = match &found {
        Ok(body) => ("200 OK", body.as_slice()),
        Err(status) => (*status, &b""[..]),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\n\
         Content-Type: application/json\r\nConnection: close\r\n\r\n",
        body.len(),
        blake(path)
    );
    let _ = stream.write_all(head.as_bytes());
    if method != "HEAD" {
        let _ = stream.write_all(body);
    }
}

/// A name for the content of a path that is the same in every answer.
fn blake(path: &str) -> String {
    path.rsplit('/').next().unwrap_or("").bytes().map(|b| format!("{b:02x}")).collect()
}

fn find(path: &str, repositories: &HashMap<&str, Files>) -> Result<Vec<u8>, &'static str> {
    for (&name, files) in repositories {
        let (kind, id) = name.split_once('/').unwrap_or(("", name));
        let prefix = if kind == "models" { format!("/{id}") } else { format!("/{name}") };
        if let Some(rest) = path.strip_prefix(&format!("{prefix}/resolve/")) {
            let file = rest.split_once('/').map_or("", |(_, file)| file);
            return files.get(file).cloned().ok_or("404 Not Found");
        }
        if let Some(rest) = path.strip_prefix(&format!("/api/{name}")) {
            let entry = |(path, bytes): (&String, &Vec<u8>)| {
                serde_json::json!({
                    "type": "file", "path": path, "rfilename": path, "size": bytes.len(),
                    "oid": blake(path),
                })
            };
            let entries: Vec<serde_json::Value> = files.iter().map(entry).collect();
            let body = match rest.starts_with("/tree/") {
                true => serde_json::Value::Array(entries),
                false => serde_json::json!({ "id": id, "sha": COMMIT, "siblings": entries }),
            };
            return Ok(body.to_string().into_bytes());
        }
    }
    Err("404 Not Found")
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn models_and_data_sets_come_from_a_hub_once() {
    let hub = Hub::start();
    let dir = tempfile::tempdir().unwrap();
    let run = |output: &str, model: &str, settings: &[(&str, &str)]| {
        Command::new(env!("CARGO_BIN_EXE_halter"))
            .current_dir(dir.path())
            .args(["sft", "--model", model, "--data", "org/rows", "--output", output])
            .args(["--max-steps", "2", "--batch-size", "2"])
            .env("HF_HOME", dir.path().join("hf"))
            .env("HF_ENDPOINT", &hub.address)
            .env("NO_PROXY", "*")
            .env("XDG_CACHE_HOME", dir.path().join("cache"))
            .env_remove("HF_HUB_OFFLINE")
            .env_remove("HF_TOKEN")
            .envs(settings.iter().copied())
            .output()
            .unwrap()
    };
    let fetched = run("first", "org/tiny", &[("HF_TOKEN", TOKEN)]);
    assert!(fetched.status.success(), "{}", said(&fetched));
    assert!(hub.requests() > 0);
    assert!(dir.path().join("first/model.safetensors").exists());

    let before = hub.requests();
    let offline = run("second", "org/tiny", &[("HF_HUB_OFFLINE", "1")]);
    assert!(offline.status.success(), "{}", said(&offline));
    assert_eq!(hub.requests(), before, "{:?}", hub.asked.lock().unwrap());
    let losses = |run: &str| std::fs::read_to_string(dir.path().join(run).join("metrics.jsonl"));
    let first = losses("first").unwrap();
    let loss =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].clone();
    assert!(first.lines().map(loss).eq(losses("second").unwrap().lines().map(loss)));

    // Without the token, and a name that is not there: an error, and no run directory.
    for (model, settings) in
        [("org/tiny", vec![("HF_HOME", "elsewhere")]), ("org/none", vec![("HF_TOKEN", TOKEN)])]
    {
        let refused = run("third", model, &settings);
        assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
        let said = said(&refused);
        assert!(said.contains("hint:") && said.contains(model), "{said}");
        assert!(!dir.path().join("third").exists());
    }
}

#[test]
fn configurations_of_a_data_set_are_named_and_models_measured_on_its_test_split() {
    let hub = Hub::start();
    let dir = tempfile::tempdir().unwrap();
    let eval = |data: &str, output: &str| {
        Command::new(env!("CARGO_BIN_EXE_halter"))
            .current_dir(dir.path())
            .args(["eval", "--model", "bundled", "--task", data, "--output", output])
            .args(["--max-new-tokens", "4"])
            .env("HF_HOME", dir.path().join("hf"))
            .env("HF_ENDPOINT", &hub.address)
            .env("NO_PROXY", "*")
            .env("HF_TOKEN", TOKEN)
            .env_remove("HF_HUB_OFFLINE")
            .output()
            .unwrap()
    };
    let refused = eval("org/several", "none");
    let told = said(&refused);
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(told.contains("`org/several` has the split in several configurations"), "{told}");
    assert!(told.contains("there are `main`, `other`"), "{told}");
    let measured = eval("org/several/main", "out");
    assert!(measured.status.success(), "{}", said(&measured));
    let asked = hub.asked.lock().unwrap().join("\n");
    assert!(asked.contains("main/test-0.jsonl"), "{asked}");
    assert!(!asked.contains("train-0.jsonl") && !asked.contains("other/test-0.jsonl"), "{asked}");
}
