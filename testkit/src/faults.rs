//! A server with OpenAI's API that fails as a script says, and counts what it is asked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// What a server does with a request.
#[derive(Debug, Clone)]
pub enum Reply {
    /// The answer to the question: see [`answer_to`].
    Answer,
    /// A text as the answer.
    Say(String),
    /// A status with further lines of the head and a body.
    Status(&'static str, Vec<String>, String),
    /// A body with status 200.
    Body(String),
    /// The first half of an answer, then the connection closes.
    HalfJson,
    /// A head that breaks off.
    HalfHead,
    /// The connection closes at once.
    Close,
    /// Nothing, until the client has gone or a minute has passed.
    Hang,
    /// A body without end.
    Endless,
    /// Something after a while.
    After(Duration, Box<Reply>),
}

impl Reply {
    /// Whether it is what was asked for, now or later.
    fn is_answer(&self) -> bool {
        match self {
            Self::Answer => true,
            Self::After(_, then) => then.is_answer(),
            _ => false,
        }
    }

    /// A status alone.
    pub fn status(status: &'static str) -> Self {
        Self::Status(status, Vec::new(), r#"{"error":{"message":"as the script says"}}"#.into())
    }

    /// Status 429 with `Retry-After`.
    pub fn busy(retry_after: &str) -> Self {
        Self::Status(
            "429 Too Many Requests",
            vec![format!("Retry-After: {retry_after}")],
            String::new(),
        )
    }
}

/// A request as a script sees it.
#[derive(Debug)]
pub struct Asked {
    /// What is asked: the last message's content, or the prompt.
    pub question: String,
    /// The body.
    pub body: Value,
    /// Path and headers.
    pub head: String,
    /// So many times this question was asked, this one included.
    pub times: usize,
    /// Requests that the server has, this one included.
    pub at_once: usize,
    /// Number of this request, from one.
    pub number: usize,
}

/// A server on this machine. It goes on until the process ends.
pub struct FaultServer {
    /// Its address, with `/v1`.
    pub url: String,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    requests: AtomicUsize,
    times: Mutex<BTreeMap<String, usize>>,
    heads: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a server answers to a question where nothing goes wrong.
pub fn answer_to(question: &str) -> String {
    format!("the answer to: {question}")
}

/// How often each question was answered.
pub type Answered = Arc<Mutex<BTreeMap<String, usize>>>;

impl FaultServer {
    /// Starts a server that does what `script` says of each request.
    ///
    /// # Panics
    /// No port is free.
    #[allow(clippy::expect_used, reason = "a test without its server has failed")]
    pub fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/v1", listener.local_addr().expect("its address"));
        let log = Arc::new(Log::default());
        let (shared, script) = (Arc::clone(&log), Arc::new(script));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, script) = (Arc::clone(&shared), Arc::clone(&script));
                thread::spawn(move || serve(stream, &log, &*script));
            }
        });
        Self { url, log }
    }

    /// Starts a server that counts the questions which `script` lets it answer; `say` has the last word on each
    /// reply.
    ///
    /// # Panics
    /// No port is free.
    pub fn counting(
        script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
        say: impl Fn(Reply, &Asked) -> Reply + Send + Sync + 'static,
    ) -> (Self, Answered) {
        let answered = Answered::default();
        let counted = Arc::clone(&answered);
        let server = Self::start(move |asked| {
            let reply = script(asked);
            if reply.is_answer() {
                *lock(&counted).entry(asked.question.clone()).or_default() += 1;
            }
            say(reply, asked)
        });
        (server, answered)
    }

    /// How often each question was asked.
    pub fn times(&self) -> BTreeMap<String, usize> {
        lock(&self.log.times).clone()
    }

    /// Requests.
    pub fn requests(&self) -> usize {
        self.log.requests.load(Ordering::SeqCst)
    }

    /// Most requests that it had at once since the last call.
    pub fn take_most_at_once(&self) -> usize {
        self.log.most_at_once.swap(0, Ordering::SeqCst)
    }

    /// Path and headers of each request.
    pub fn heads(&self) -> Vec<String> {
        lock(&self.log.heads).clone()
    }
}

fn serve(mut stream: TcpStream, log: &Log, script: &dyn Fn(&Asked) -> Reply) {
    let Ok(reading) = stream.try_clone() else { return };
    let mut reader = BufReader::new(reading);
    // One connection may bring several requests.
    while let Some((head, body)) = read_request(&mut reader) {
        let at_once = log.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        log.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        let number = log.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let question = question(&body);
        let times = {
            let mut all = lock(&log.times);
            let times = all.entry(question.clone()).or_default();
            *times += 1;
            *times
        };
        lock(&log.heads).push(head.clone());
        let asked = Asked { question, body, head, times, at_once, number };
        let mut reply = script(&asked);
        while let Reply::After(pause, then) = reply {
            thread::sleep(pause);
            reply = *then;
        }
        // Before the client can know that there is room again.
        log.at_once.fetch_sub(1, Ordering::SeqCst);
        let goes_on = send(&mut stream, &reply, &asked);
        if !goes_on {
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<(String, Value)> {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, serde_json::from_slice(&body).ok()?))
}

fn question(body: &Value) -> String {
    let last = body["messages"].as_array().and_then(|messages| messages.last());
    let content = last.map_or(&body["prompt"], |message| &message["content"]);
    content.as_str().map_or_else(|| content.to_string(), str::to_string)
}

/// Does what `reply` says; whether the connection goes on.
fn send(stream: &mut TcpStream, reply: &Reply, asked: &Asked) -> bool {
    let whole = |text: &str| answer(text, asked);
    match reply {
        Reply::Answer => write(stream, "200 OK", &[], &whole(&answer_to(&asked.question))),
        Reply::Say(text) => write(stream, "200 OK", &[], &whole(text)),
        Reply::Status(status, lines, body) => write(stream, status, lines, body),
        Reply::Body(body) => write(stream, "200 OK", &[], body),
        Reply::HalfJson => {
            let body = whole(&answer_to(&asked.question));
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(&body.as_bytes()[..body.len() / 2]);
            false
        }
        Reply::HalfHead => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le");
            false
        }
        Reply::Close | Reply::After(..) => false,
        Reply::Hang => {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
            let _ = stream.read(&mut [0]);
            false
        }
        Reply::Endless => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            let part = vec![b'x'; 1 << 20];
            // Ends when the client has gone.
            while stream.write_all(&part).is_ok() {}
            false
        }
    }
}

fn write(stream: &mut TcpStream, status: &str, lines: &[String], body: &str) -> bool {
    let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
    lines.iter().for_each(|line| head += &format!("{line}\r\n"));
    let whole = format!("{head}\r\n{body}");
    stream.write_all(whole.as_bytes()).is_ok()
}

/// The answer as OpenAI's API has it.
fn answer(text: &str, asked: &Asked) -> String {
    let (prompt, completion) = (asked.question.len(), text.len());
    let mut choice = json!({"index": 0, "finish_reason": "stop", "logprobs": null});
    match asked.head.contains("/chat/completions ") {
        true => choice["message"] = json!({"role": "assistant", "content": text}),
        false => choice["text"] = text.into(),
    }
    json!({
        "object": "completion", "model": asked.body["model"], "choices": [choice],
        "usage": {
            "prompt_tokens": prompt, "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    })
    .to_string()
}

/// What goes wrong with the question asked for the so-manieth time: the same for a seed whatever else
/// is asked. About `share` of all requests go wrong.
pub fn drawn(seed: u64, share: f64, asked: &Asked) -> Reply {
    let mut hash = mixed(seed ^ asked.times as u64);
    asked.question.bytes().for_each(|byte| hash = mixed(hash ^ u64::from(byte)));
    let pause = Duration::from_millis(hash >> 8 & 15);
    if (hash >> 11) as f64 / (1u64 << 53) as f64 >= share {
        return Reply::After(pause, Box::new(Reply::Answer));
    }
    let http_date = "Thu, 01 Jan 1970 00:00:00 GMT";
    match mixed(hash) % 12 {
        0 => Reply::busy("0"),
        1 => Reply::busy(http_date),
        2 => Reply::status("429 Too Many Requests"),
        3 => Reply::status("500 Internal Server Error"),
        4 => Reply::status("503 Service Unavailable"),
        5 => Reply::HalfJson,
        6 => Reply::HalfHead,
        7 => Reply::Close,
        8 => Reply::Body("{\"choices\": [{\"message\": {}}]}".into()),
        9 => Reply::Body("<html>gateway</html>".into()),
        10 => Reply::After(4 * pause, Box::new(Reply::Answer)),
        _ => Reply::Body("{\"choices\": [{\"mess".into()),
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
fn mixed(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
