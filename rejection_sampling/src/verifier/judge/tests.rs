use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Map;

use super::*;
use crate::scorer::NO_PROMPT;

/// A server on this machine that answers each request, by its number, with what a function says.
struct Server {
    url: String,
    /// Head and body of every request.
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Server {
    fn start(answer: impl Fn(usize, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let Some(request) = read_request(&stream) else { return };
                    let number = {
                        let mut log = log.lock().unwrap();
                        log.push(request);
                        log.len()
                    };
                    answer(number, &mut stream);
                });
            }
        });
        Self { url, asked }
    }

    fn requests(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    fn judge(&self) -> JudgeConfig {
        JudgeConfig {
            url: self.url.clone(),
            model: "judge-1".into(),
            timeout_seconds: 5.0,
            backoff_seconds: 0.001,
            ..JudgeConfig::default()
        }
    }
}

fn read_request(stream: &TcpStream) -> Option<(String, Value)> {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, serde_json::from_slice(&body).unwrap()))
}

fn send(stream: &mut TcpStream, status: &str, body: &str) {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body.as_bytes());
}

fn say(stream: &mut TcpStream, text: &str) {
    let body = json!({"choices": [{"message": {"role": "assistant", "content": text}}]});
    send(stream, "200 OK", &body.to_string());
}

fn score_with(config: JudgeConfig, completion: &str) -> Result<Score> {
    let prompt = Turn::Messages(vec![Message::new("user", "1 + 1?")]);
    let row = Map::from_iter([("answer".to_string(), "#### 2".into())]);
    let item = Item { prompt: &prompt, completion, num_tokens: 1, ended: true, row: &row };
    Judge::new(config)?.score(&item)
}

#[test]
fn the_rating_is_brought_to_zero_to_one() {
    for (said, scale, value) in [
        ("Good. Rating: 10", [1.0, 10.0], Some(1.0)),
        ("Rating: 1", [1.0, 10.0], Some(0.0)),
        ("Rating: 4 at first, but\n**Rating:** 5.5/10", [1.0, 10.0], Some(0.5)),
        ("<think>Rating: 10</think>rating: [[1]]", [1.0, 10.0], Some(0.0)),
        ("Rating: -1", [-1.0, 1.0], Some(0.0)),
        ("Rating: 1", [5.0, 1.0], Some(1.0)),
        ("Rating: 11", [1.0, 10.0], None),
        ("Rating: 0", [1.0, 10.0], None),
        ("Rating: good", [1.0, 10.0], None),
        ("I cannot rate this, 5", [1.0, 10.0], None),
        ("", [1.0, 10.0], None),
    ] {
        let server = Server::start(move |_, stream| say(stream, said));
        let score = score_with(JudgeConfig { scale, ..server.judge() }, "2");
        assert_eq!(score.as_ref().ok().map(|score| score.value), value, "{said}: {score:?}");
        assert_eq!(server.requests(), 1, "{said}");
    }
}

#[test]
fn places_are_filled_in_once() {
    let server = Server::start(|_, stream| say(stream, "Rating: 3"));
    let config = JudgeConfig {
        template: "{x} {prompt} | {completion} | {reference} {".into(),
        request: Map::from_iter([("seed".to_string(), 7.into())]),
        ..server.judge()
    };
    score_with(config, "{reference}{prompt}").unwrap();
    let asked = server.asked.lock().unwrap();
    let (head, body) = &asked[0];
    assert!(head.starts_with("POST /v1/chat/completions "), "{head}");
    assert!(!head.to_ascii_lowercase().contains("authorization"), "{head}");
    let question = "{x} 1 + 1? | {reference}{prompt} | #### 2 {";
    let messages = json!([{"role": "user", "content": question}]);
    assert_eq!(*body, json!({"seed": 7, "model": "judge-1", "messages": messages}));
}

#[test]
fn a_conversation_is_told_with_its_roles() {
    let turns = vec![Message::new("system", "Be brief."), Message::new("user", "1 + 1?")];
    assert_eq!(conversation(&Turn::Messages(turns)), "system: Be brief.\n\nuser: 1 + 1?");
    assert_eq!(conversation(&NO_PROMPT), "");
}

#[test]
fn the_key_of_the_environment_is_sent() {
    let server = Server::start(|_, stream| say(stream, "Rating: 3"));
    // some variable that every environment has
    let config = JudgeConfig { api_key_env: Some("PATH".into()), ..server.judge() };
    let sent = score_with(config, "2");
    let path = std::env::var("PATH").unwrap();
    assert!(sent.is_ok(), "{sent:?}");
    let head = server.asked.lock().unwrap()[0].0.clone();
    assert!(head.contains(&format!("Bearer {}", path.trim())), "{head}");
    let none = JudgeConfig { api_key_env: Some("HALTER_NO_SUCH_KEY".into()), ..server.judge() };
    assert!(score_with(none, "2").unwrap_err().to_string().contains("HALTER_NO_SUCH_KEY"));
}

#[test]
fn what_passes_is_tried_again_and_what_does_not_is_not() {
    for (status, requests) in [
        ("500 Internal Server Error", 3),
        ("400 Bad Request", 1),
        ("401 Unauthorized", 1),
        ("302 Found", 1),
    ] {
        let server = Server::start(move |_, stream| send(stream, status, "why"));
        let config = JudgeConfig { retries: 2, ..server.judge() };
        let error = score_with(config, "2").unwrap_err().to_string();
        assert!(error.contains(&status[..3]) && error.contains("why"), "{error}");
        assert_eq!(server.requests(), requests, "{status}");
    }
    // Having no room is no failure: the server is waited for.
    for status in ["503 Service Unavailable", "429 Too Many Requests"] {
        let full = Server::start(move |_, stream| send(stream, status, "why"));
        let config = JudgeConfig { retries: 2, ..full.judge() };
        let error = score_with(config, "2").unwrap_err().to_string();
        assert!(error.contains("no server has room") && error.contains("why"), "{error}");
        assert!(full.requests() > 3, "{}", full.requests());
    }
    let recovers = Server::start(|number, stream| match number {
        1 => send(stream, "429 Too Many Requests\r\nRetry-After: 0", ""),
        2 => drop(stream.shutdown(std::net::Shutdown::Both)),
        _ => say(stream, "Rating: 10"),
    });
    assert_eq!(score_with(recovers.judge(), "2").unwrap().value, 1.0);
    assert_eq!(recovers.requests(), 3);
}

#[test]
fn garbage_costs_its_row() {
    for body in [
        "",
        "<html>",
        "{}",
        "5",
        r#"{"choices": []}"#,
        r#"{"choices": [{"message": {"content": null}}]}"#,
    ] {
        let server = Server::start(move |_, stream| send(stream, "200 OK", body));
        let error = score_with(server.judge(), "2").unwrap_err().to_string();
        assert!(error.contains("choices[0].message.content"), "{error}");
        assert_eq!(server.requests(), 1);
    }
}

#[test]
fn a_huge_answer_is_not_read_to_its_end() {
    let server = Server::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        let part = vec![b'x'; 1 << 20];
        // ends when the client has gone
        while stream.write_all(&part).is_ok() {}
    });
    let error = score_with(server.judge(), "2").unwrap_err().to_string();
    assert!(error.contains("more than 4 MiB"), "{error}");
    assert_eq!(server.requests(), 1);
}

#[test]
fn silence_and_a_trickle_end_at_the_time_limit() {
    let silent = Server::start(|_, _| std::thread::sleep(Duration::from_secs(60)));
    let trickling = Server::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        while stream.write_all(b" ").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    for server in [silent, trickling] {
        let start = Instant::now();
        let config = JudgeConfig { timeout_seconds: 0.3, retries: 1, ..server.judge() };
        let error = score_with(config, "2").unwrap_err().to_string();
        assert!(error.contains("within 0.3 s"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        assert_eq!(server.requests(), 2);
    }
}

#[test]
fn no_server_is_an_error_that_says_so() {
    let url = "http://127.0.0.1:1/v1".to_string();
    let config = JudgeConfig { url, model: "m".into(), backoff_seconds: 0.0, ..Default::default() };
    let error = score_with(config, "2").unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1") && error.contains("refused"), "{error}");
}

#[test]
fn many_are_asked_at_once_and_one_failure_costs_one_row() {
    let server = Server::start(|_, stream| {
        std::thread::sleep(Duration::from_millis(300));
        say(stream, "Rating: 10");
    });
    let judge = Judge::new(JudgeConfig {
        template: "{completion} {reference}".into(),
        concurrency: NonZeroUsize::new(16).unwrap(),
        ..server.judge()
    });
    let (row, none) = (Map::from_iter([("answer".to_string(), 2.into())]), Map::new());
    let item = |row| Item { prompt: &NO_PROMPT, completion: "2", num_tokens: 1, ended: true, row };
    let items: Vec<Item> = (0..16).map(|at| item(if at == 5 { &none } else { &row })).collect();
    let start = Instant::now();
    let scores = judge.unwrap().score_all(&items);
    // one after the other they would take 4.5 s
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    for (at, score) in scores.iter().enumerate() {
        assert_eq!(score.is_err(), at == 5, "{at}: {score:?}");
    }
}

#[test]
fn a_configuration_is_checked_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("judge.toml");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let told = JudgeConfig::from_file(&path).and_then(Judge::new).map(|_| ()).unwrap_err();
        let told = told.to_string().replace(&dir.path().display().to_string(), "");
        format!("{}\n  {told}", text.replace('\n', "; "))
    };
    let refusals = [
        "",
        "url = 'localhost'",
        "url = 'http://'\nmodel = 'm'",
        "url = 'http://h'",
        "url = 'http://h'\nmodel = 'm'\nmodle = 'n'",
        "url = 'http://h'\nmodel = 5",
        "url = 'http://h'\nmodel = 'm'\ntemplate = 'x'",
        "url = 'http://h'\nmodel = 'm'\nscale = [1, 1]",
        "url = 'http://h'\nmodel = 'm'\npattern = '5'",
        "url = 'http://h'\nmodel = 'm'\npattern = '(5'",
        "url = 'http://h'\nmodel = 'm'\ntimeout_seconds = 0",
        "url = 'http://h'\nmodel = 'm'\nconcurrency = 0",
        "url = 'http://h'\nmodel = 'm'\nconcurrency = 1000",
        "url = ",
    ]
    .map(read);
    insta::assert_snapshot!(refusals.join("\n"));
    let right = "url = 'http://h/v1/'\nmodel = 'm'\nscale = [0, 1]\n[request]\nmax_tokens = 5";
    std::fs::write(&path, right).unwrap();
    let config = JudgeConfig::from_file(&path).unwrap();
    assert_eq!(Value::Object(config.request.clone()), json!({"max_tokens": 5}));
    assert!(Judge::new(config).is_ok());
}

#[test]
fn a_prompt_that_is_a_text_is_what_was_asked() {
    let server = Server::start(|_, stream| say(stream, "Rating: 10"));
    let template = "[{prompt}] [{completion}]".into();
    let judge = Judge::new(JudgeConfig { template, ..server.judge() }).unwrap();
    let (prompt, row) = (Turn::Text("1 + 1 =".into()), Map::new());
    let item = Item { prompt: &prompt, completion: "2", num_tokens: 1, ended: true, row: &row };
    assert_eq!(judge.score(&item).unwrap().value, 1.0);
    let asked = server.asked.lock().unwrap();
    assert_eq!(asked[0].1["messages"][0]["content"], "[1 + 1 =] [2]");
}

#[test]
fn the_fingerprint_is_of_what_ratings_follow_from() {
    let config = |template: &str| JudgeConfig {
        url: "http://127.0.0.1:1".into(),
        model: "m".into(),
        template: format!("{template} {{completion}}"),
        ..JudgeConfig::default()
    };
    let of = |config| Judge::new(config).unwrap().fingerprint().unwrap().unwrap();
    let elsewhere = JudgeConfig { url: "http://127.0.0.1:2".into(), retries: 9, ..config("a") };
    assert_eq!(of(config("a")), of(elsewhere));
    assert_ne!(of(config("a")), of(config("b")));
    assert_ne!(of(config("a")), of(JudgeConfig { scale: [0.0, 1.0], ..config("a") }));
}
