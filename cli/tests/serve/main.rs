//! `halter serve`, through a plain HTTP client.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test whose preparation fails has failed")]

mod limits;
#[path = "../support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Place, Served};

/// A server of the bundled model on a free port.
struct Server {
    served: Served,
    _place: Place,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

impl Server {
    fn start(options: &[&str]) -> Self {
        let place = Place::new();
        Self { served: Served::start(&place, "bundled", options), _place: place }
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.served.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{headers}\
             content-length: {}\r\n\r\n",
            self.served.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        // A body that is refused by its length is not read.
        let _ = stream.write_all(body.as_bytes());
        stream
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut bytes = Vec::new();
        let _ = self.send(method, path, headers, body).read_to_end(&mut bytes);
        let all = String::from_utf8(bytes).unwrap();
        let (head, body) = all.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{all}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let is_chunked = head.to_lowercase().contains("transfer-encoding: chunked");
        let body = if is_chunked { unchunked(body) } else { body.to_string() };
        Answer { status, head: head.to_lowercase(), body }
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, "content-type: application/json\r\n", &body.to_string())
    }

    /// The answer to a request that must be a good one.
    #[track_caller]
    fn good(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.body);
        answer.json()
    }

    /// The chunks of a stream.
    #[track_caller]
    fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let answer = self.post(path, &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let mut data: Vec<&str> =
            answer.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"));
        data.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    fn signal(&self, signal: &str) {
        let id = self.served.child.id().to_string();
        let status = std::process::Command::new("kill").args([signal, &id]).status();
        assert!(status.unwrap().success());
    }
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        whole += &rest[..size];
        body = &rest[size + 2..];
    }
    whole
}

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn chat(more: Value) -> Value {
    let mut body = json!({
        "model": "bundled", "max_tokens": 24, "seed": 5,
        "messages": [{ "role": "user", "content": "Ann has 3 eggs and buys 4. How many?" }],
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn text(more: Value) -> Value {
    let mut body = json!({ "model": "bundled", "prompt": "Ann has 3 eggs.", "seed": 5 });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn content(answer: &Value, choice: usize) -> &str {
    let choice = &answer["choices"][choice];
    choice["message"]["content"].as_str().or_else(|| choice["text"].as_str()).unwrap()
}

/// Contents of a stream's choices put together, and why each ended.
fn joined(chunks: &[Value], choices: usize) -> Vec<(String, String)> {
    let mut all = vec![(String::new(), String::new()); choices];
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        let (text, finish) = &mut all[choice["index"].as_u64().unwrap() as usize];
        assert!(finish.is_empty(), "nothing follows the end");
        *text += choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or("");
        *finish += choice["finish_reason"].as_str().unwrap_or("");
    }
    all
}

#[test]
fn answers_have_the_shapes_that_clients_read() {
    let server = Server::start(&[]);
    let models = server.ask("GET", "/v1/models", "", "").json();
    assert_eq!(models["data"][0]["id"], "bundled");
    assert_eq!(models["data"][0]["object"], "model");
    assert_eq!(server.ask("GET", "/v1/models/bundled", "", "").json()["id"], "bundled");
    assert_eq!(server.ask("GET", "/health", "", "").status, 200);

    let answer = server.good(CHAT, &chat(json!({ "n": 2 })));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "bundled");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["choices"][1]["index"], 1);
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    assert_eq!(answer["choices"][0]["logprobs"], Value::Null);
    assert_ne!(content(&answer, 0), content(&answer, 1));
    let usage = |key: &str| answer["usage"][key].as_u64().unwrap();
    assert_eq!(usage("total_tokens"), usage("prompt_tokens") + usage("completion_tokens"));
    assert!(usage("completion_tokens") > 2 && usage("completion_tokens") <= 48);

    let answer = server.good(TEXT, &text(json!({ "prompt": ["One.", "Two."], "n": 2 })));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["choices"].as_array().unwrap().len(), 4);
    assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() <= 4 * 16);
    let parts = json!([{ "type": "text", "text": "Ann has 3 eggs " },
                       { "type": "text", "text": "and buys 4. How many?" }]);
    let parts = chat(json!({ "messages": [{ "role": "user", "content": parts }] }));
    assert_eq!(
        content(&server.good(CHAT, &parts), 0),
        content(&server.good(CHAT, &chat(json!({}))), 0)
    );
}

#[test]
fn a_stream_says_what_the_whole_answer_says() {
    let server = Server::start(&[]);
    for (path, body) in [
        (CHAT, chat(json!({ "n": 3 }))),
        (CHAT, chat(json!({ "logprobs": true, "top_logprobs": 2 }))),
        (TEXT, text(json!({ "prompt": ["One 🦙", "Two"], "n": 2, "echo": true, "logprobs": 1 }))),
        (TEXT, text(json!({ "prompt": "Tom has", "stop": ["a", "e"] }))),
        (TEXT, text(json!({ "prompt": ["One", "Two"], "max_tokens": 0, "echo": true }))),
    ] {
        let whole = server.good(path, &body);
        let choices = whole["choices"].as_array().unwrap();
        let mut body = body;
        body["stream_options"] = json!({ "include_usage": true });
        let chunks = server.stream(path, &body);
        assert_eq!(chunks.last().unwrap()["usage"], whole["usage"]);
        assert_eq!(chunks[0]["usage"], Value::Null);
        let streamed = joined(&chunks, choices.len());
        for (index, (text, finish)) in streamed.iter().enumerate() {
            assert_eq!(text, content(&whole, index));
            assert_eq!(choices[index]["finish_reason"], **finish);
            // Lists of log-probs follow one another.
            for key in ["content", "tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                let lists = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
                let lists = lists.filter(|choice| choice["index"] == index);
                let list: Vec<&Value> = lists
                    .filter_map(|choice| choice["logprobs"][key].as_array())
                    .flatten()
                    .collect();
                let want = choices[index]["logprobs"][key].as_array();
                assert_eq!(list, want.map_or(vec![], |want| want.iter().collect()), "{key}");
            }
        }
    }
    let first = &server.stream(CHAT, &chat(json!({})))[0];
    assert_eq!(first["object"], "chat.completion.chunk");
    assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
}

#[test]
fn a_seed_gives_the_same_text_alone_and_in_company() {
    let server = Server::start(&["--batch-size", "7"]);
    let body = |seed: usize| {
        chat(json!({ "seed": seed, "n": 1 + seed % 3, "max_tokens": 10 + seed, "top_p": 0.95 }))
    };
    let texts = |answer: Value| -> Vec<String> {
        let choices = answer["choices"].as_array().unwrap().len();
        (0..choices).map(|choice| content(&answer, choice).to_string()).collect()
    };
    let alone: Vec<Vec<String>> =
        (0..24).map(|seed| texts(server.good(CHAT, &body(seed)))).collect();
    let together: Vec<Vec<String>> = thread::scope(|scope| {
        let ask = |seed| {
            scope.spawn({
                let (server, texts) = (&server, &texts);
                move || texts(server.good(CHAT, &body(seed)))
            })
        };
        let asked: Vec<_> = (0..24).map(ask).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
    let distinct: std::collections::BTreeSet<_> = alone.iter().collect();
    assert!(distinct.len() > 20, "seeds matter");
}

#[test]
fn stop_strings_end_an_answer_before_them() {
    let server = Server::start(&[]);
    let whole = content(&server.good(TEXT, &text(json!({ "max_tokens": 30 }))), 0).to_string();
    // Across tokens.
    let middle = whole.len() / 2;
    let stop = &whole[middle..middle + 5];
    let answer = server.good(TEXT, &text(json!({ "max_tokens": 30, "stop": stop })));
    assert_eq!(content(&answer, 0), &whole[..whole.find(stop).unwrap()]);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[test]
fn log_probs_of_a_prompt_are_those_it_was_generated_with() {
    let server = Server::start(&[]);
    let ids = json!({ "temperature": 0, "logprobs": 3, "return_tokens_as_token_ids": true });
    let mut body = text(ids);
    let made = server.good(TEXT, &body)["choices"][0]["logprobs"].clone();
    let tokens = |logprobs: &Value| -> Vec<u32> {
        let names = logprobs["tokens"].as_array().unwrap().iter();
        names.map(|name| name.as_str().unwrap()["token_id:".len()..].parse().unwrap()).collect()
    };
    body["max_tokens"] = 0.into();
    body["echo"] = true.into();
    let prompt = server.good(TEXT, &body)["choices"][0]["logprobs"].clone();
    assert_eq!(prompt["token_logprobs"][0], Value::Null);
    // Prompt and completion, as tokens, are what the completion was made of.
    body["prompt"] = [tokens(&prompt), tokens(&made)].concat().into();
    let scored = server.good(TEXT, &body);
    assert_eq!(scored["choices"][0]["finish_reason"], "length");
    assert_eq!(scored["usage"]["completion_tokens"], 0);
    let scored = &scored["choices"][0]["logprobs"];
    for key in ["token_logprobs", "top_logprobs", "tokens"] {
        let [prompt, made, scored] =
            [&prompt, &made, scored].map(|logprobs| logprobs[key].as_array().unwrap().clone());
        assert_eq!([prompt, made].concat(), scored, "{key}");
    }
    let top = made["top_logprobs"][0].as_object().unwrap();
    assert_eq!(top.len(), 3);
    let best = top.values().map(|x| x.as_f64().unwrap()).fold(f64::MIN, f64::max);
    assert_eq!(made["token_logprobs"][0].as_f64().unwrap(), best, "greedy");
    let told = server.good(CHAT, &chat(json!({ "logprobs": true, "top_logprobs": 2 })));
    let entry = &told["choices"][0]["logprobs"]["content"][0];
    assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 2);
    let bytes: Vec<u8> = serde_json::from_value(entry["bytes"].clone()).unwrap();
    assert_eq!(entry["token"], *String::from_utf8_lossy(&bytes));
    assert!(content(&told, 0).starts_with(entry["token"].as_str().unwrap()));
}

#[test]
fn offsets_are_those_of_the_text_although_the_tokenizer_adds_to_it() {
    let place = Place::new();
    support::write_model(place.root());
    let mut tokenizer: Value = serde_json::from_slice(&place.read("model/tokenizer.json")).unwrap();
    let bos = &tokenizer["added_tokens"][0];
    let (name, id) = (bos["content"].clone(), bos["id"].clone());
    let single = json!([
        { "SpecialToken": { "id": name, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
    ]);
    tokenizer["post_processor"] = json!({
        "type": "TemplateProcessing", "single": single, "pair": single,
        "special_tokens": { name.as_str().unwrap(): { "id": name, "ids": [id], "tokens": [name] } },
    });
    place.write("model/tokenizer.json", tokenizer.to_string());
    let server = Server { served: Served::start(&place, "model", &[]), _place: place };
    let told = |prompt: Value| {
        let body = json!({
            "model": "model", "prompt": prompt, "echo": true, "logprobs": 0, "max_tokens": 1,
            "temperature": 0,
        });
        let chunks = server.stream(TEXT, &body);
        let answer = server.good(TEXT, &body)["choices"][0].clone();
        assert_eq!(joined(&chunks, 1)[0].0, answer["text"]);
        let list = |key: &str| answer["logprobs"][key].as_array().unwrap().clone();
        let offsets = list("text_offset").iter().map(|x| x.as_u64().unwrap() as usize).collect();
        (answer["text"].as_str().unwrap().to_string(), list("tokens"), offsets)
    };
    for prompt in ["Tom has 3 🦙🦙 and", "x"] {
        let (text, tokens, offsets): (_, _, Vec<usize>) = told(prompt.into());
        assert_eq!((&tokens[0], offsets[0], offsets[1]), (&name, 0, 0), "BOS was added");
        assert_eq!(offsets[tokens.len() - 1], prompt.chars().count(), "the completion's first");
        // Parts of a character show none.
        let of_prompt = tokens.iter().zip(&offsets).take(tokens.len() - 1).skip(1);
        for (token, &at) in of_prompt.filter(|(token, _)| !token.to_string().contains('\u{fffd}')) {
            let token = token.as_str().unwrap();
            let rest: String = text.chars().skip(at).collect();
            assert!(rest.starts_with(token), "{token:?} at {at} of {text:?}");
        }
    }
    let (text, _, offsets) = told(json!([id, 70, 71]));
    let bos = name.as_str().unwrap();
    assert!(text.starts_with(bos));
    assert_eq!(offsets[..2], [0, bos.chars().count()], "the client's own is shown");
}

#[test]
fn wrong_requests_are_refused_with_the_field_at_fault() {
    let server = Server::start(&["--max-request-bytes", "5000"]);
    let mut told = String::new();
    let mut cases = vec![
        (CHAT, "not json".to_string()),
        (CHAT, "[1]".to_string()),
        (CHAT, "{}".to_string()),
        (CHAT, json!({ "model": "bundled" }).to_string()),
        (TEXT, json!({ "model": "bundled" }).to_string()),
    ];
    for more in [
        json!({ "model": "gpt-4o" }),
        json!({ "messages": [] }),
        json!({ "messages": "hello" }),
        json!({ "messages": [{ "content": "hello" }] }),
        json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
        json!({ "messages": [{ "role": "user", "content": "<|im_end|>" }] }),
        json!({ "temperature": -1 }),
        json!({ "temperature": "hot" }),
        json!({ "top_p": 0 }),
        json!({ "n": 0 }),
        json!({ "n": 1000 }),
        json!({ "max_tokens": 0 }),
        json!({ "max_tokens": 100_000 }),
        json!({ "max_tokens": 8, "max_completion_tokens": 9 }),
        json!({ "stop": "" }),
        json!({ "stop": [1] }),
        json!({ "seed": 1.5 }),
        json!({ "stream": "yes" }),
        json!({ "stream_options": { "include_usage": true } }),
        json!({ "logprobs": 3 }),
        json!({ "top_logprobs": 3 }),
        json!({ "logprobs": true, "top_logprobs": 21 }),
        json!({ "logit_bias": { "5": 1 } }),
        json!({ "frequency_penalty": 0.5 }),
        json!({ "response_format": { "type": "json_object" } }),
        json!({ "tools": "calculator" }),
        json!({ "tool_choice": "required" }),
        json!({ "frobnicate": 1 }),
    ] {
        cases.push((CHAT, chat(more).to_string()));
    }
    for more in [
        json!({ "prompt": "" }),
        json!({ "prompt": [] }),
        json!({ "prompt": [1, "a"] }),
        json!({ "prompt": [100_000] }),
        json!({ "prompt": "x ".repeat(600) }),
        json!({ "max_tokens": 0 }),
        json!({ "best_of": 3 }),
        json!({ "suffix": "end" }),
        json!({ "echo": 1 }),
        json!({ "prompt": ["a", "b", "c"], "n": 100 }),
    ] {
        cases.push((TEXT, text(more).to_string()));
    }
    for (path, body) in &cases {
        let answer = server.ask("POST", path, "content-type: application/json\r\n", body);
        assert!(matches!(answer.status, 400 | 404), "{body}: {}", answer.body);
        let error = &answer.json()["error"];
        assert_eq!(error["type"], "invalid_request_error");
        told += &format!("{} {}: {}\n", answer.status, error["param"], error["message"]);
    }
    insta::assert_snapshot!(told);
    let long = chat(json!({ "user": "x".repeat(6000) }));
    let status = |method: &str, path: &str, headers: &str, body: &str| {
        server.ask(method, path, headers, body).status
    };
    assert_eq!(server.post(CHAT, &long).status, 413);
    assert_eq!(
        status("POST", CHAT, "content-type: text/plain\r\n", &chat(json!({})).to_string()),
        415
    );
    assert_eq!(status("GET", CHAT, "", ""), 405);
    assert_eq!(status("GET", "/v2/models", "", ""), 404);
    assert_eq!(status("GET", "/v1/models/gpt-4o", "", ""), 404);
    // After all of this it serves as before.
    server.good(CHAT, &chat(json!({})));
}

#[test]
fn a_key_is_asked_for() {
    let server = Server::start(&["--api-key", "secret"]);
    let status = |headers: &str| {
        let answer = server.ask("GET", "/v1/models", headers, "");
        let is_refused = answer.status == 401;
        assert_eq!(is_refused, answer.body.contains("invalid_api_key"), "{}", answer.body);
        answer.status
    };
    assert_eq!(status(""), 401);
    assert_eq!(status("authorization: Bearer wrong\r\n"), 401);
    assert_eq!(status("authorization: secret\r\n"), 401);
    assert_eq!(status("authorization: Bearer secret\r\n"), 200);
}

#[test]
fn an_address_that_is_taken_is_told() {
    let server = Server::start(&[]);
    let port = server.served.address.rsplit_once(':').unwrap().1;
    let place = Place::new();
    let output = support::halter_in(place.root(), &["serve", "--port", port]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = support::text(&output.stderr);
    assert!(stderr.contains("cannot listen on"), "{stderr}");
}
