//! Teachers behind servers that fail: nothing is lost, nothing is asked twice, nothing hangs.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use halter_core::data::record::Turn;
use halter_core::endpoint::{
    Answer, Api, Ask, EndpointConfig, Pool, PoolOptions, Question, Teacher, TeacherConfig,
};
use halter_core::{Error, ErrorKind, Result};
use halter_testkit::faults::{Asked, FaultServer, Reply, answer_to, drawn};
use serde_json::{Value, json};

/// A teacher with these servers, which fail without long pauses.
fn config(servers: &[&FaultServer], more: &str) -> TeacherConfig {
    let mut text = "model = 'big'\n".to_string();
    for server in servers {
        text += &format!(
            "[[endpoints]]\nurl = '{}'\nbackoff_seconds = 0.001\ntimeout_seconds = 20\n{more}\n",
            server.url
        );
    }
    toml::from_str(&text).unwrap()
}

fn questions(range: std::ops::Range<usize>) -> Vec<Question> {
    range.map(|n| Question::of_user(&format!("question {n}"), 16)).collect()
}

fn ask(teacher: &dyn Teacher, questions: &[Question]) -> Result<Vec<Result<Answer>>> {
    let mut before = 0;
    let outcome = teacher.answer(questions, &mut |count| {
        assert!((before..=questions.len()).contains(&count), "{before}, then {count}");
        before = count;
        Ok(())
    });
    assert!(outcome.is_err() || before == questions.len(), "told of {before} in the end");
    outcome
}

fn text_of(question: &Question) -> String {
    match &question.prompt {
        Turn::Text(text) => text.clone(),
        Turn::Messages(messages) => messages.last().unwrap().content().unwrap().to_string(),
    }
}

#[track_caller]
fn assert_answered(questions: &[Question], answers: &[Result<Answer>]) {
    assert_eq!(questions.len(), answers.len());
    for (question, answer) in questions.iter().zip(answers) {
        let answer = answer.as_ref().unwrap_or_else(|error| panic!("{question:?}: {error}"));
        assert_eq!(answer.text(), answer_to(&text_of(question)));
    }
}

#[test]
fn every_question_is_answered_or_refused_with_its_reason() {
    for seed in 0..4 {
        let script = move |asked: &Asked| match asked.question.as_str() {
            "question 7" => Reply::Status("400 Bad Request", vec![], "too long".into()),
            "question 31" => Reply::HalfJson,
            "question 47" => Reply::Body(r#"{"choices":[{"message":{"content":null}}]}"#.into()),
            _ => drawn(seed, 0.3, asked),
        };
        let servers = [FaultServer::start(script), FaultServer::start(script)];
        let dir = tempfile::tempdir().unwrap();
        let config = config(&[&servers[0], &servers[1]], "retries = 10\nconcurrency = 8");
        let teacher = config.open("big", dir.path()).unwrap();
        let questions = questions(0..80);
        let mut answers = ask(teacher.as_ref(), &questions).unwrap();
        for (at, reason) in [(47, "choices[0].message.content"), (31, "broke off"), (7, "400")] {
            let told = answers.remove(at).unwrap_err().to_string();
            assert!(told.contains(reason) && told.contains("teacher `big`: `http://"), "{told}");
        }
        let others: Vec<Question> = questions
            .iter()
            .enumerate()
            .filter(|(at, _)| ![7, 31, 47].contains(at))
            .map(|(_, question)| question.clone())
            .collect();
        assert_answered(&others, &answers);
        let asked: usize = servers.iter().map(|server| server.times()["question 31"]).sum();
        assert_eq!(asked, 11, "one try and ten more");
        let asked: usize =
            servers.iter().filter_map(|server| server.times().get("question 7").copied()).sum();
        assert_eq!(asked, 1, "refused for good");
    }
}

fn ask_of(text: &str) -> Ask {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": text}]});
    Ask { api: Api::Chat, body: body.as_object().unwrap().clone(), logprobs: false }
}

fn pool(server: &FaultServer, options: PoolOptions, change: impl Fn(&mut EndpointConfig)) -> Pool {
    let mut config = EndpointConfig {
        url: server.url.clone(),
        backoff_seconds: 0.001,
        timeout_seconds: 20.0,
        ..EndpointConfig::default()
    };
    change(&mut config);
    Pool::new("pool", &[config], options).unwrap()
}

#[test]
fn requests_at_once_fall_when_the_server_is_full_and_rise_again() {
    let room = Arc::new(AtomicUsize::new(usize::MAX));
    let allowed = Arc::clone(&room);
    let server =
        FaultServer::start(move |asked| match asked.at_once > allowed.load(Ordering::SeqCst) {
            true => Reply::status("429 Too Many Requests"),
            false => Reply::After(Duration::from_millis(20), Box::new(Reply::Answer)),
        });
    let pool = pool(&server, PoolOptions::default(), |config| {
        config.concurrency = 24.try_into().unwrap();
        config.retries = 50;
    });
    let mut asked = 0;
    let mut ask = |count: usize| {
        let asks: Vec<Ask> = (asked..asked + count).map(|n| ask_of(&n.to_string())).collect();
        asked += count;
        let answers = pool.ask(&asks);
        for (ask, answer) in asks.iter().zip(answers) {
            let question = ask.body["messages"][0]["content"].as_str().unwrap();
            assert_eq!(answer.unwrap().text(), answer_to(question));
        }
        (pool.limits()[0], server.take_most_at_once())
    };
    let (limit, most) = ask(150);
    assert!(limit == 24 && (12..=24).contains(&most), "{limit}, {most} at once");
    room.store(3, Ordering::SeqCst);
    let (limit, _) = ask(100);
    assert!(limit <= 6, "{limit}");
    room.store(usize::MAX, Ordering::SeqCst);
    let (limit, most) = ask(600);
    assert!(limit >= 20 && most <= 24, "{limit}, {most} at once");
}

#[test]
fn a_server_that_keeps_failing_rests_and_the_others_do_its_work() {
    for fault in [Reply::status("500 Internal Server Error"), Reply::Close, Reply::busy("30")] {
        let broken = FaultServer::start(move |_| fault.clone());
        let whole =
            FaultServer::start(|_| Reply::After(Duration::from_millis(2), Box::new(Reply::Answer)));
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&[&broken, &whole], "");
        config.endpoints[0].backoff_seconds = 1.0;
        config.endpoints[0].weight = 100.0;
        let teacher = config.open("big", dir.path()).unwrap();
        let questions = questions(0..100);
        assert_answered(&questions, &ask(teacher.as_ref(), &questions).unwrap());
        assert!(broken.requests() <= 12, "{} requests", broken.requests());
        let notes = teacher.take_notes();
        assert!(notes.iter().all(|note| note.contains(&broken.url)), "{notes:?}");
        assert!(teacher.take_notes().is_empty());
    }
}

#[test]
fn weights_are_the_shares_of_servers_that_have_room() {
    let servers = [(); 2].map(|()| FaultServer::start(|_| Reply::Answer));
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&[&servers[0], &servers[1]], "");
    config.endpoints[0].weight = 3.0;
    let teacher = config.open("big", dir.path()).unwrap();
    // One at a time: both have room.
    for question in questions(0..40) {
        ask(teacher.as_ref(), &[question]).unwrap();
    }
    assert_eq!(servers.each_ref().map(FaultServer::requests), [30, 10]);
}

#[test]
fn who_is_denied_is_told_at_once_what_to_do() {
    for (status, hint) in [
        ("401 Unauthorized", "api_key_env"),
        ("402 Payment Required", "pay what is due"),
        ("403 Forbidden", "api_key_env"),
        ("404 Not Found", "`model`"),
        ("307 Temporary Redirect\r\nLocation: http://elsewhere/v1", "`url`"),
    ] {
        let server =
            FaultServer::start(move |_| Reply::Status(status, vec![], "says why".to_string()));
        let dir = tempfile::tempdir().unwrap();
        let teacher = config(&[&server], "").open("big", dir.path()).unwrap();
        let error = ask(teacher.as_ref(), &questions(0..50)).unwrap_err();
        let told = error.to_string();
        assert!(told.contains(&status[..3]) && told.contains("says why"), "{told}");
        assert!(error.remedy().unwrap().contains(hint), "{:?}", error.remedy());
        assert!(server.requests() <= 4, "{} requests", server.requests());
        if status.starts_with("307") {
            assert!(told.contains("http://elsewhere/v1"), "{told}");
        }
        let whole = FaultServer::start(|_| Reply::Answer);
        let config = config(&[&server, &whole], "");
        let teacher = config.open("both", dir.path()).unwrap();
        let questions = questions(0..50);
        assert_answered(&questions, &ask(teacher.as_ref(), &questions).unwrap());
        let notes = teacher.take_notes();
        assert!(notes.len() == 1 && notes[0].contains(&server.url), "{notes:?}");
    }
}

#[test]
fn a_question_that_is_forbidden_costs_itself_alone() {
    let server = FaultServer::start(|asked| match asked.question.as_str() {
        "question 20" => Reply::Status("403 Forbidden", vec![], "moderated".into()),
        _ => Reply::Answer,
    });
    let dir = tempfile::tempdir().unwrap();
    let teacher = config(&[&server], "concurrency = 2").open("big", dir.path()).unwrap();
    let answers = ask(teacher.as_ref(), &questions(0..30)).unwrap();
    assert_eq!(answers.iter().filter(|answer| answer.is_err()).count(), 1);
    assert!(answers[20].as_ref().unwrap_err().to_string().contains("moderated"));
}

#[test]
fn no_server_ends_the_work_and_what_was_answered_is_kept() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut gone: TeacherConfig = toml::from_str("model = 'big'\n[[endpoints]]").unwrap();
    gone.endpoints[0].url = format!("http://{port}/v1");
    gone.endpoints[0].backoff_seconds = 0.001;
    let error = ask(gone.open("a", dir.path()).unwrap().as_ref(), &questions(0..500)).unwrap_err();
    let told = error.to_string();
    assert!(told.contains("no server is there") && told.contains("refused"), "{told}");
    assert_eq!(error.kind(), ErrorKind::Network);
    // A gateway whose model goes away after twenty answers, and comes back.
    let back = Arc::new(AtomicUsize::new(0));
    let is_back = Arc::clone(&back);
    let server = FaultServer::start(move |asked| {
        match asked.number > 20 && is_back.load(Ordering::SeqCst) == 0 {
            true => Reply::status("502 Bad Gateway"),
            false => Reply::Answer,
        }
    });
    let config = config(&[&server], "retries = 3");
    let teacher = config.open("b", dir.path()).unwrap();
    let all = questions(0..200);
    let told = ask(teacher.as_ref(), &all).unwrap_err().to_string();
    assert!(told.contains("502"), "{told}");
    back.store(1, Ordering::SeqCst);
    let before = server.requests();
    assert_answered(&all, &ask(teacher.as_ref(), &all).unwrap());
    assert_eq!(server.requests() - before, 180);
}

#[test]
fn silence_and_answers_without_end_cost_their_question() {
    let server = FaultServer::start(|asked| match asked.question.as_str() {
        "hang" => Reply::Hang,
        "endless" => Reply::Endless,
        _ => Reply::Answer,
    });
    let options = PoolOptions { max_bytes: 1 << 20, ..PoolOptions::default() };
    let pool = pool(&server, options, |config| {
        config.timeout_seconds = 0.3;
        config.retries = 1;
    });
    let began = Instant::now();
    let answers = pool.ask(&["hang", "a", "endless", "b"].map(ask_of));
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let reason = |at: usize| answers[at].as_ref().unwrap_err().to_string();
    assert!(reason(0).contains("no whole answer within 0.3 s"), "{}", reason(0));
    assert!(reason(2).contains("more than 1 MiB"), "{}", reason(2));
    assert!(answers[1].is_ok() && answers[3].is_ok());
    assert_eq!((server.times()["hang"], server.times()["endless"]), (2, 1));
}

#[test]
fn a_spent_budget_ends_the_work_and_more_of_it_goes_on() {
    let server = FaultServer::start(|_| Reply::Answer);
    let dir = tempfile::tempdir().unwrap();
    let prices = "price_per_million_completion_tokens = 1000000.0\nconcurrency = 1";
    // `question 10` has 11 tokens, its answer 26.
    let mut asked_before = 0;
    for (name, budget, requests) in [
        ("requests", "requests = 10", 10),
        ("tokens", "tokens = 100", 3),
        ("money", "money = 60.0", 3),
    ] {
        let mut config = config(&[&server], prices);
        config.budget = toml::from_str(budget).unwrap();
        let all = questions(10..40);
        for _ in 0..2 {
            // The second time, nothing is left at all.
            let teacher = config.open(name, dir.path()).unwrap();
            let error = ask(teacher.as_ref(), &all).unwrap_err();
            assert!(error.message().contains(&format!("`budget.{name}` is spent")), "{error}");
            assert!(error.remedy().unwrap().contains("raise it"), "{error}");
            assert_eq!(server.requests() - asked_before, requests, "{name}");
        }
        config.budget = toml::from_str("requests = 30").unwrap();
        let teacher = config.open(name, dir.path()).unwrap();
        assert_answered(&all, &ask(teacher.as_ref(), &all).unwrap());
        assert_eq!(server.requests() - asked_before, 30, "nothing twice");
        let spent = teacher.spent();
        assert_eq!((spent.requests, spent.tokens, spent.money), (30, 30 * 37, 30.0 * 26.0));
        asked_before = server.requests();
    }
}

#[test]
fn nothing_more_is_sent_before_an_outcome_has_been_looked_at() {
    let server = FaultServer::start(|_| Reply::status("401 Unauthorized"));
    let dir = tempfile::tempdir().unwrap();
    let teacher = config(&[&server], "").open("big", dir.path()).unwrap();
    // The second is still being made when the first has long been denied.
    let long = "\u{1}".repeat(1 << 20);
    let mut questions = questions(0..40);
    questions[1] = Question::of_user(&long, 16);
    ask(teacher.as_ref(), &questions).unwrap_err();
    assert!(server.requests() <= 4, "{} requests", server.requests());
}

#[test]
fn what_is_kept_is_not_asked_again_and_equal_questions_are_asked_once() {
    let server = FaultServer::start(|asked| Reply::Say(asked.body["seed"].to_string()));
    let dir = tempfile::tempdir().unwrap();
    let config = config(&[&server], "");
    let plain = Question::of_user("one", 16);
    let draw = |draw| Question { draw, ..plain.clone() };
    let all = [plain.clone(), draw(1), plain.clone(), draw(2), draw(1)];
    let open = || config.open("big", dir.path()).unwrap();
    let texts = |teacher: &dyn Teacher| {
        let answers = ask(teacher, &all).unwrap();
        answers.iter().map(|answer| answer.as_ref().unwrap().text().to_string()).collect::<Vec<_>>()
    };
    let first = texts(open().as_ref());
    assert_eq!(server.requests(), 3);
    assert_eq!((&first[0], &first[1]), (&first[2], &first[4]));
    assert!(first[0] != first[1] && first[1] != first[3], "draws have seeds of their own");
    let teacher = open();
    assert_eq!(texts(teacher.as_ref()), first);
    assert_eq!(server.requests(), 3);
    let taken = config.open("big", dir.path()).err().unwrap();
    assert!(taken.to_string().contains("another process uses these answers"), "{taken}");
    drop(teacher);
    // Whatever the answer depends on keeps it apart; where it comes from does not.
    let mut other = config.clone();
    let mut changed = plain.clone();
    changed.max_new_tokens = 17;
    let one_more = |config: &TeacherConfig, question: &Question| {
        let before = server.requests();
        let teacher = config.open("big", dir.path()).unwrap();
        ask(teacher.as_ref(), std::slice::from_ref(question)).unwrap();
        server.requests() - before
    };
    assert_eq!(one_more(&other, &changed), 1);
    other.model = Some("bigger".into());
    assert_eq!(one_more(&other, &plain), 1);
    other = config.clone();
    other.endpoints[0].request.insert("thinking".into(), true.into());
    assert_eq!(one_more(&other, &plain), 1);
    other = config.clone();
    other.endpoints[0].timeout_seconds = 5.0;
    other.endpoints[0].url = server.url.replace("127.0.0.1", "localhost");
    assert_eq!(one_more(&other, &plain), 0);
}

#[test]
fn a_request_says_what_is_wanted_and_what_the_server_needs() {
    let bodies = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&bodies);
    let server = FaultServer::start(move |asked| {
        let path = asked.head.split(' ').nth(1).unwrap().to_string();
        log.lock().unwrap().push((path, asked.body.clone()));
        Reply::Answer
    });
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&[&server], "concurrency = 1");
    config.endpoints[0].omit = vec!["seed".into()];
    config.endpoints[0].request.insert("top_p".into(), 0.5.into());
    let teacher = config.open("big", dir.path()).unwrap();
    let mut chat = Question::of_user("one", 16);
    chat.tools = Some(vec![json!({"type": "function", "function": {"name": "f"}})]);
    chat.response_format = Some(json!({"type": "json_object"}));
    chat.sampling.temperature = 0.7;
    chat.sampling.top_k = 5;
    chat.stop = vec!["END".into()];
    let text = Question { top_logprobs: Some(2), ..Question::new(Turn::Text("go on".into()), 4) };
    let tools = Question { tools: chat.tools.clone(), ..Question::new(text.prompt.clone(), 4) };
    let chat_logprobs = Question { top_logprobs: Some(3), ..Question::of_user("two", 16) };
    let asked = [chat, text, tools, chat_logprobs];
    let answers = ask(teacher.as_ref(), &asked).unwrap();
    assert_eq!(answers[0].as_ref().unwrap().text(), "the answer to: one");
    let reason = |at: usize| answers[at].as_ref().unwrap_err().to_string();
    // The server gives no log-probs.
    assert!(reason(1).contains("log-probs were asked for"), "{}", reason(1));
    assert!(reason(2).contains("tools are declared to a text"), "{}", reason(2));
    assert!(reason(3).contains("log-probs were asked for"), "{}", reason(3));
    let bodies = bodies.lock().unwrap();
    let told: Vec<String> = bodies.iter().map(|(path, body)| format!("{path} {body:#}")).collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn an_interruption_keeps_what_is_on_its_way() {
    let server =
        FaultServer::start(|_| Reply::After(Duration::from_millis(150), Box::new(Reply::Answer)));
    let dir = tempfile::tempdir().unwrap();
    let config = config(&[&server], "concurrency = 4");
    let teacher = config.open("big", dir.path()).unwrap();
    let all = questions(0..40);
    let outcome = teacher.answer(&all, &mut |count| match count >= 8 {
        true => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
        false => Ok(()),
    });
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Interrupted);
    assert!(server.requests() < 20, "{} requests", server.requests());
    assert_answered(&all, &ask(teacher.as_ref(), &all).unwrap());
    assert!(server.times().values().all(|&times| times == 1), "{:?}", server.times());
}

/// Not a test by itself: asks 60 questions, and is killed.
#[test]
fn helper_that_asks() {
    let Some(place) = std::env::var_os("HALTER_TEST_ASK") else { return };
    let place = Path::new(&place);
    let text = fs::read_to_string(place.join("teacher.toml")).unwrap();
    let config: TeacherConfig = toml::from_str(&text).unwrap();
    let teacher = config.open("big", place).unwrap();
    ask(teacher.as_ref(), &questions(0..60)).unwrap();
}

#[test]
fn killed_anywhere_it_goes_on_and_asks_only_again_what_was_on_its_way() {
    for kill_at in [1, 9, 25, 44] {
        let server = FaultServer::start(|_| {
            Reply::After(Duration::from_millis(20), Box::new(Reply::Answer))
        });
        let dir = tempfile::tempdir().unwrap();
        let config = config(&[&server], "concurrency = 6");
        let text = toml::to_string(&config).unwrap();
        fs::write(dir.path().join("teacher.toml"), text).unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "helper_that_asks", "--nocapture"])
            .env("HALTER_TEST_ASK", dir.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while server.requests() < kill_at {
            assert!(began.elapsed() < Duration::from_secs(60), "the helper does not ask");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What the dead one had sent is still being answered.
        std::thread::sleep(Duration::from_millis(100));
        let asked_before = server.times();
        let teacher = config.open("big", dir.path()).unwrap();
        let all = questions(0..60);
        assert_answered(&all, &ask(teacher.as_ref(), &all).unwrap());
        let times = server.times();
        let again = times.values().filter(|&&times| times == 2).count();
        assert!(times.len() == 60 && times.values().all(|&times| times <= 2), "{times:?}");
        assert!(again <= 6, "{again} of {} asked again", asked_before.len());
        let lines = fs::read_to_string(dir.path().join("big/answers.jsonl")).unwrap();
        assert_eq!(lines.lines().count(), 61, "a head and every answer once");
    }
}

#[test]
fn a_key_is_sent_and_stands_nowhere_else() {
    let key = "sk-halter-test-0123456789";
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, format!("{key}\n")).unwrap();
    // A server that repeats what it is sent, in refusals and in answers.
    let echo = |asked: &Asked| {
        let head = asked.head.clone();
        match asked.question.as_str() {
            "question 1" => Reply::Status("400 Bad Request", vec![], head),
            "question 2" => Reply::Body(head),
            _ => Reply::Say(head),
        }
    };
    let server = FaultServer::start(echo);
    let denies = FaultServer::start(|asked| {
        Reply::Status("401 Unauthorized", vec![], format!("no such key: {}", asked.head))
    });
    let mut config = config(&[&server], "retries = 1");
    config.endpoints[0].api_key_file = Some(secret.clone());
    let place = dir.path().join("cache");
    let teacher = config.open("big", &place).unwrap();
    let answers = ask(teacher.as_ref(), &questions(0..6)).unwrap();
    let text = answers[0].as_ref().unwrap().text().to_lowercase();
    assert!(text.contains("authorization: bearer [key]"), "{text}");
    assert!(answers[1].is_err() && answers[2].is_err());
    assert!(server.heads().iter().all(|head| head.contains(key)), "{:?}", server.heads());
    let mut shown = format!("{answers:?} {config:?} {}", toml::to_string(&config).unwrap());
    shown += &format!("{:?} {:?}", teacher.take_notes(), teacher.spent());
    config.endpoints[0].url = denies.url.clone();
    let teacher = config.open("denied", &place).unwrap();
    let error = ask(teacher.as_ref(), &questions(0..6)).unwrap_err();
    shown += &format!("{error:?} {error} {:?} {:?}", error.remedy(), teacher.take_notes());
    let pool = Pool::new("pool", &config.endpoints, PoolOptions::default()).unwrap();
    shown += &format!("{pool:?} {:?}", pool.ask(&[ask_of("x")]));
    // An address that is cut within the key.
    let away = FaultServer::start(move |_| {
        let to = format!("Location: http://elsewhere/{}{key}", "x".repeat(88));
        Reply::Status("307 Temporary Redirect", vec![to], String::new())
    });
    config.endpoints[0].url = away.url.clone();
    let pool = Pool::new("pool", &config.endpoints, PoolOptions::default()).unwrap();
    let told = format!("{:?}", pool.ask(&[ask_of("x")]));
    assert!(told.contains("http://elsewhere/x") && !told.contains("sk-"), "{told}");
    config.endpoints[0].url = "http://user:sk-halter-test-0123456789@host/v1".into();
    shown += &config.open("bad", &place).err().unwrap().to_string();
    for entry in ["big/answers.jsonl", "denied/answers.jsonl"] {
        shown += &fs::read_to_string(place.join(entry)).unwrap();
    }
    assert!(!shown.contains(key), "{shown}");
}

#[test]
fn values_that_cannot_be_used_are_refused_before_anything_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |text: &str| {
        let told = match toml::from_str::<TeacherConfig>(text) {
            Ok(config) => config.open("t", dir.path()).err().unwrap().to_string(),
            Err(error) => error.message().to_string(),
        };
        assert!(!told.contains("secret"), "{told}");
        format!("{}\n  {told}", text.replace('\n', "; "))
    };
    let endpoint = |more: &str| format!("model = 'm'\n[[endpoints]]\nurl = 'http://h/v1'\n{more}");
    let texts = [
        String::new(),
        "local = 'bundled'\nmodel = 'm'".into(),
        "local = ''".into(),
        "local = 'bundled'\n[[endpoints]]\nurl = 'http://h'".into(),
        "local = 'bundled'\nbudget = { money = 1 }".into(),
        "local = 'bundled'\nbatch_size = 0".into(),
        "model = 'm'".into(),
        "model = ''\n[[endpoints]]\nurl = 'http://h'".into(),
        "model = 'm'\ncache_tokens = 5\n[[endpoints]]\nurl = 'http://h'".into(),
        "model = 'm'\nmodle = 'n'".into(),
        "model = 'm'\n[[endpoints]]\nurl = 'h'".into(),
        "model = 'm'\n[[endpoints]]\nurl = 'https://me:secret@h/v1?key=secret'".into(),
        "model = 'm'\n[[endpoints]]\nurl = 'https://me:p@secret@h/v1'".into(),
        "model = 'm'\n[[endpoints]]\nurl = 'https://me:secret#secret/secret?@h/v1'".into(),
        "model = 'm'\n[[endpoints]]\nurl = 'me:secret@h/v1'".into(),
        "model = 'm'\n[[endpoints]]\nurl = 'http://'".into(),
        endpoint("api_key = 'secret'"),
        endpoint("api_key_env = 'A'\napi_key_file = 'B'"),
        endpoint("api_key_env = 'HALTER_NO_SUCH_KEY'"),
        endpoint("concurrency = 0"),
        endpoint("concurrency = 5000"),
        endpoint("weight = 0"),
        endpoint("timeout_seconds = 0"),
        endpoint("backoff_seconds = nan"),
        endpoint("price_per_million_prompt_tokens = -1"),
        format!("budget = {{ money = 5 }}\n{}", endpoint("")),
        format!("budget = {{ money = -5 }}\n{}", endpoint("price_per_million_prompt_tokens = 1")),
        format!("budget = {{ time = 5 }}\n{}", endpoint("")),
    ];
    insta::assert_snapshot!(texts.map(|text| refused(&text)).join("\n"));
    let config: TeacherConfig = toml::from_str("local = 'bundled'").unwrap();
    for name in ["", "../a", "a/b", ".hidden"] {
        let told = config.open(name, dir.path()).err().unwrap().to_string();
        assert!(told.contains("expected a name"), "{told}");
    }
}

#[test]
fn a_configuration_comes_back_from_its_text() {
    let text = "model = 'm'\nbudget = { money = 5.5, tokens = 7 }\n\
        [[endpoints]]\nurl = 'http://h/v1'\nrequest = { a = { b = [1] } }\n\
        price_per_million_prompt_tokens = 1\n[[endpoints]]\nurl = 'http://g/v1'\nweight = 2";
    let config: TeacherConfig = toml::from_str(text).unwrap();
    assert_eq!(config.endpoints[0].request["a"], Value::from_iter([("b", json!([1]))]));
    let again = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
    assert_eq!(config, again);
}
