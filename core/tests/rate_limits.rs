//! Servers that have no room for long, no credit, or no end to their thinking: no question is lost, and
//! none is paid for in vain.
#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::time::{Duration, Instant};

use halter_core::endpoint::{Answer, Question, Teacher, TeacherConfig};
use halter_core::{Error, ErrorKind, Result};
use halter_testkit::faults::{FaultServer, Reply, answer_to};

fn config(server: &FaultServer, more: &str) -> TeacherConfig {
    toml::from_str(&format!("model = 'big'\n[[endpoints]]\nurl = '{}'\n{more}\n", server.url))
        .unwrap()
}

fn questions(count: usize) -> Vec<Question> {
    (0..count).map(|n| Question::of_user(&format!("question {n}"), 16)).collect()
}

fn ask(teacher: &dyn Teacher, questions: &[Question]) -> Result<Vec<Result<Answer>>> {
    teacher.answer(questions, &mut |_| Ok(()))
}

#[track_caller]
fn assert_all_answered(answers: &[Result<Answer>]) {
    for (at, answer) in answers.iter().enumerate() {
        assert_eq!(answer.as_ref().unwrap().text(), answer_to(&format!("question {at}")));
    }
}

#[test]
fn a_rate_limit_costs_time_and_no_question() {
    for busy in [Reply::status("429 Too Many Requests"), Reply::busy("0")] {
        // Eight requests in every tenth of a second.
        let window = Mutex::new((Instant::now(), 0));
        let server = FaultServer::start(move |_| {
            let mut window = window.lock().unwrap();
            if window.0.elapsed() > Duration::from_millis(100) {
                *window = (Instant::now(), 0);
            }
            window.1 += 1;
            if window.1 > 8 { busy.clone() } else { Reply::Answer }
        });
        let dir = tempfile::tempdir().unwrap();
        let more = "retries = 0\nbackoff_seconds = 0.05";
        let teacher = config(&server, more).open("big", dir.path()).unwrap();
        assert_all_answered(&ask(teacher.as_ref(), &questions(80)).unwrap());
        assert!(server.requests() < 200, "{} requests for 80 answers", server.requests());
    }
}

#[test]
fn a_server_without_room_is_asked_ever_more_rarely_and_ends_the_work_at_last() {
    let date = "Thu, 01 Jan 1970 00:00:00 GMT";
    for busy in [Reply::status("503 Service Unavailable"), Reply::busy("0"), Reply::busy(date)] {
        let server = FaultServer::start(move |_| busy.clone());
        let dir = tempfile::tempdir().unwrap();
        let more = "retries = 1\nbackoff_seconds = 0.001";
        let teacher = config(&server, more).open("big", dir.path()).unwrap();
        let began = Instant::now();
        let error = ask(teacher.as_ref(), &questions(50)).unwrap_err();
        assert!(error.to_string().contains("no server has room"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Network);
        assert!(error.remedy().unwrap().contains("what was answered is kept"));
        assert!(began.elapsed() >= Duration::from_millis(850), "{:?}", began.elapsed());
        assert!(server.requests() < 40, "{} requests", server.requests());
    }
}

#[test]
fn a_question_that_never_fits_costs_itself_alone() {
    let server = FaultServer::start(|asked| match asked.question.as_str() {
        "question 3" => Reply::Status("429 Too Many Requests", vec![], "too large".into()),
        _ => Reply::Answer,
    });
    let dir = tempfile::tempdir().unwrap();
    let teacher = config(&server, "backoff_seconds = 0.001").open("big", dir.path()).unwrap();
    let mut answers = ask(teacher.as_ref(), &questions(20)).unwrap();
    let error = answers.pop().map(|_| answers.swap_remove(3).unwrap_err()).unwrap();
    assert!(error.to_string().contains("too large"), "{error}");
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 18);
}

#[test]
fn thinking_without_an_end_is_an_answer_that_was_cut_off_and_is_asked_for_once() {
    let usage = r#""usage": {"prompt_tokens": 10, "completion_tokens": 5}"#;
    let cut = r#"{"finish_reason": "length", "message": {"content": null}}"#;
    let thought = r#"{"message": {"content": null, "reasoning_content": "Hm."}}"#;
    for (choice, is_whole) in [(cut, false), (thought, true)] {
        let body = format!("{{\"choices\": [{choice}], {usage}}}");
        let server = FaultServer::start(move |_| Reply::Body(body.clone()));
        let dir = tempfile::tempdir().unwrap();
        let teacher = config(&server, "").open("big", dir.path()).unwrap();
        let answer = ask(teacher.as_ref(), &questions(1)).unwrap().remove(0).unwrap();
        assert_eq!((answer.text(), answer.is_whole()), ("", is_whole));
        assert_eq!((server.requests(), teacher.spent().tokens), (1, 15));
    }
    // What cannot be used is paid for as well, and a budget holds.
    let body = format!("{{\"choices\": [], {usage}}}");
    let server = FaultServer::start(move |_| Reply::Body(body.clone()));
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&server, "backoff_seconds = 0.001\nconcurrency = 1");
    config.budget.tokens = Some(40);
    let teacher = config.open("big", dir.path()).unwrap();
    let error = ask(teacher.as_ref(), &questions(9)).unwrap_err();
    assert!(error.to_string().contains("`budget.tokens` is spent: `45` of `40`"), "{error}");
    assert_eq!(server.requests(), 3);
}

#[test]
fn without_credit_the_work_ends_and_what_was_answered_is_kept() {
    let server = FaultServer::start(|asked| match asked.number > 10 {
        true => Reply::status("402 Payment Required"),
        false => Reply::Answer,
    });
    let dir = tempfile::tempdir().unwrap();
    let poor = config(&server, "concurrency = 2");
    let error = ask(poor.open("big", dir.path()).unwrap().as_ref(), &questions(60)).unwrap_err();
    assert!(error.to_string().contains("402"), "{error}");
    assert!(server.requests() <= 12, "{} requests", server.requests());
    let rich = FaultServer::start(|_| Reply::Answer);
    let teacher = config(&rich, "").open("big", dir.path()).unwrap();
    assert_all_answered(&ask(teacher.as_ref(), &questions(60)).unwrap());
    assert_eq!(rich.requests(), 50);
}

#[test]
fn an_interruption_is_heard_when_a_budget_has_ended_the_work() {
    let server =
        FaultServer::start(|_| Reply::After(Duration::from_millis(600), Box::new(Reply::Answer)));
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&server, "concurrency = 4");
    config.budget.requests = Some(3);
    let teacher = config.open("big", dir.path()).unwrap();
    let began = Instant::now();
    let outcome = teacher.answer(&questions(9), &mut |_| match began.elapsed().as_millis() > 200 {
        true => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
        false => Ok(()),
    });
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Interrupted);
}
