//! How much a server takes on, and how it ends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{CHAT, Server, TEXT, chat, text};

/// Takes long.
fn long() -> Value {
    text(json!({ "n": 128, "max_tokens": 480, "stream": true, "stop_token_ids": [] }))
}

fn begin(server: &Server) -> TcpStream {
    let body = long().to_string();
    let mut stream = server.send("POST", TEXT, "content-type: application/json\r\n", &body);
    let mut bytes = [0; 2000];
    stream.read_exact(&mut bytes).unwrap();
    assert!(String::from_utf8_lossy(&bytes).contains("data: {"), "the answer has begun");
    stream
}

#[test]
fn prompts_that_are_scored_hold_nobody_up() {
    let server = Server::start(&["--shutdown-seconds", "0"]);
    let scored = |more: Value| {
        let mut body = text(json!({ "echo": true, "logprobs": 1, "max_tokens": 0 }));
        body["prompt"] = vec!["one llama and ".repeat(40); 16].into();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (server, scored, done) = (&server, &scored, &done);
        for _ in 0..2 {
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    server.good(TEXT, &scored(json!({})));
                }
            });
        }
        let answers = (0..3).map(|_| server.post(CHAT, &chat(json!({}))).status);
        let answers: Vec<u16> = answers.collect();
        done.store(true, Ordering::SeqCst);
        assert_eq!(answers, [200; 3]);
    });
    // What is scored when the server ends is broken off.
    let more = json!({ "prompt": vec!["one llama and ".repeat(40); 128], "max_tokens": 1,
        "stream": true });
    let mut stream =
        server.send("POST", TEXT, "content-type: application/json\r\n", &scored(more).to_string());
    let mut bytes = [0; 2000];
    stream.read_exact(&mut bytes).unwrap();
    server.signal("-TERM");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("the server is shutting down"), "{}", &rest[rest.len() - 200..]);
}

#[test]
fn prompts_beyond_the_cache_are_refused_whatever_is_wanted_of_them() {
    let server = Server::start(&["--cache-tokens", "96"]);
    let body = |words: usize, tokens: usize| {
        text(json!({ "prompt": "llama ".repeat(words), "echo": true, "logprobs": 0,
            "max_tokens": tokens }))
    };
    for tokens in [0, 1] {
        let refused = server.post(TEXT, &body(120, tokens));
        assert_eq!(refused.status, 400, "{}", refused.body);
        assert!(refused.body.contains("fit the cache of keys and values"), "{}", refused.body);
        server.good(TEXT, &body(12, tokens));
    }
}

#[test]
fn many_long_answers_share_a_small_cache() {
    let body = |seed: u64| {
        let long = json!({ "seed": seed, "n": 3, "max_tokens": 100, "stop_token_ids": [] });
        chat(long)
    };
    let server = Server::start(&[]);
    let alone: Vec<Value> =
        (0..8).map(|seed| server.good(CHAT, &body(seed))["choices"].clone()).collect();
    let small = Server::start(&["--cache-tokens", "256"]);
    let together: Vec<Value> = thread::scope(|scope| {
        let ask = |seed| {
            scope.spawn({
                let small = &small;
                move || small.good(CHAT, &body(seed))["choices"].clone()
            })
        };
        let asked: Vec<_> = (0..8).map(ask).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}

#[test]
fn a_full_server_says_so_and_who_leaves_makes_room() {
    let server = Server::start(&["--max-requests", "1", "--batch-size", "128"]);
    let stream = begin(&server);
    let refused = server.post(CHAT, &chat(json!({})));
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    let left = Instant::now();
    drop(stream);
    while server.post(CHAT, &chat(json!({ "max_tokens": 1 }))).status == 429 {
        assert!(left.elapsed() < Duration::from_secs(10), "what nobody hears goes on");
        thread::sleep(Duration::from_millis(10));
    }
    // One that waits for its whole answer leaves as well.
    let mut body = long();
    body["stream"] = false.into();
    let waits = server.send("POST", TEXT, "content-type: application/json\r\n", &body.to_string());
    let began = Instant::now();
    while server.post(CHAT, &chat(json!({ "max_tokens": 1 }))).status != 429 {
        assert!(began.elapsed() < Duration::from_secs(10), "it was not begun");
    }
    drop(waits);
    let left = Instant::now();
    while server.post(CHAT, &chat(json!({ "max_tokens": 1 }))).status == 429 {
        assert!(left.elapsed() < Duration::from_secs(10), "what nobody hears goes on");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_place_is_taken_from_the_first_byte_to_the_last() {
    let server = Server::start(&["--max-requests", "1", "--batch-size", "128"]);
    let is_full = || server.post(CHAT, &chat(json!({ "max_tokens": 1 }))).status == 429;
    let wait_for_room = || {
        let began = Instant::now();
        while is_full() {
            assert!(began.elapsed() < Duration::from_secs(10), "who has left keeps a place");
            thread::sleep(Duration::from_millis(10));
        }
    };
    // A body of which half has come; where another request was earlier, it is refused.
    let head = "content-type: application/json\r\ncontent-length: 1000\r\n\r\n{";
    let began = Instant::now();
    let half = loop {
        let mut half = TcpStream::connect(&server.served.address).unwrap();
        half.write_all(format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\n{head}").as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(50));
        if is_full() {
            break half;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "bodies are read without a place");
    };
    thread::sleep(Duration::from_millis(50));
    assert!(is_full(), "it is kept while nothing comes");
    drop(half);
    wait_for_room();
    // A stream that is not read, after all of it was made.
    let body = text(json!({
        "n": 128, "max_tokens": 60, "stream": true, "stop_token_ids": [], "logprobs": 100,
    }));
    // A place is free a moment after the last byte of its answer.
    let moment = || thread::sleep(Duration::from_millis(100));
    moment();
    let began = Instant::now();
    assert_eq!(server.post(TEXT, &body).status, 200);
    let taken = began.elapsed();
    moment();
    let kind = "content-type: application/json\r\n";
    let mut unread = server.send("POST", TEXT, kind, &body.to_string());
    unread.read_exact(&mut [0; 200]).unwrap();
    let began = Instant::now();
    while began.elapsed() < 2 * taken + Duration::from_secs(1) {
        assert!(is_full(), "what is unread has no place");
        thread::sleep(Duration::from_millis(50));
    }
    drop(unread);
    wait_for_room();
}

#[test]
fn a_server_that_ends_gives_its_answers_or_says_that_it_does_not() {
    for (seconds, is_whole) in [("60", true), ("0", false)] {
        let mut server = Server::start(&["--shutdown-seconds", seconds, "--batch-size", "128"]);
        let mut stream = begin(&server);
        server.signal("-TERM");
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("data: [DONE]"), "{}", &rest[rest.len() - 200..]);
        assert_eq!(!is_whole, rest.contains("the server is shutting down"));
        assert_eq!(server.served.child.wait().unwrap().code(), Some(0));
        assert!(TcpStream::connect(&server.served.address).is_err());
    }
}
