//! A model in this process as a teacher: the same answers whatever else is asked.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;

use halter_core::Result;
use halter_core::data::record::{Message, Turn};
use halter_core::endpoint::{Answer, Question, Teacher, TeacherConfig};
use halter_testkit::root;
use serde_json::json;

fn config(more: &str) -> TeacherConfig {
    let model = root().join("examples/bundled");
    toml::from_str(&format!("local = '{}'\n{more}", model.display())).unwrap()
}

fn ask(teacher: &dyn Teacher, questions: &[Question]) -> Result<Vec<Result<Answer>>> {
    teacher.answer(questions, &mut |_| Ok(()))
}

fn answers(teacher: &dyn Teacher, questions: &[Question]) -> Vec<Answer> {
    ask(teacher, questions).unwrap().into_iter().map(Result::unwrap).collect()
}

fn some_questions() -> Vec<Question> {
    let sums = |n: u64| format!("Tom has {n} apples and buys {} more. How many has he?", n + 2);
    let mut all: Vec<Question> = (0..4)
        .flat_map(|n| (0..3).map(move |draw| (n, draw)))
        .map(|(n, draw)| Question { draw, ..Question::of_user(&sums(n), 24) })
        .collect();
    all[1].top_logprobs = Some(2);
    all[5].sampling.temperature = 0.5;
    all[7].stop = vec![" ".into()];
    let text = Turn::Text("Tom has".into());
    all.push(Question { top_logprobs: Some(1), ..Question::new(text, 8) });
    all
}

#[test]
fn an_answer_does_not_depend_on_what_else_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let all = some_questions();
    let teacher = config("").open("together", dir.path()).unwrap();
    let together = answers(teacher.as_ref(), &all);
    let teacher = config("batch_size = 2\ncache_tokens = 1024").open("few", dir.path()).unwrap();
    let mut backwards: Vec<Question> = all.clone();
    backwards.reverse();
    let mut few = answers(teacher.as_ref(), &backwards);
    few.reverse();
    assert_eq!(few, together);
    let teacher = config("").open("alone", dir.path()).unwrap();
    for (question, answer) in all.iter().zip(&together) {
        assert_eq!(answers(teacher.as_ref(), std::slice::from_ref(question))[0], *answer);
    }
    assert!((0..3).any(|n| together[n].text() != together[n + 1].text()), "draws differ");
    let stopped = &together[7];
    assert!(!stopped.text().contains(' ') && stopped.is_whole(), "{stopped:?}");
    for (at, top) in [(1, 2), (12, 1)] {
        let Answer { logprobs: Some(told), usage, .. } = &together[at] else { panic!("{at}") };
        let (tokens, tops) = match at {
            1 => (&told["content"], &told["content"][0]["top_logprobs"]),
            _ => (&told["tokens"], &told["top_logprobs"][0]),
        };
        assert_eq!(tokens.as_array().unwrap().len() as u64, usage.completion_tokens);
        let tops = tops.as_array().map_or_else(|| tops.as_object().unwrap().len(), Vec::len);
        assert!(tops == top || at == 12 && tops == top + 1, "{told:#}");
    }
    assert!(together[0].logprobs.is_none() && together[0].usage.prompt_tokens > 10);
}

#[test]
fn what_is_kept_is_not_generated_again() {
    let dir = tempfile::tempdir().unwrap();
    let all = some_questions();
    let place = dir.path().join("t/answers.jsonl");
    let first = answers(config("").open("t", dir.path()).unwrap().as_ref(), &all[..6]);
    let kept = fs::read(&place).unwrap();
    let teacher = config("budget = { requests = 6 }").open("t", dir.path()).unwrap();
    assert_eq!(answers(teacher.as_ref(), &all[..6]), first);
    assert_eq!(fs::read(&place).unwrap(), kept);
    let spent = ask(teacher.as_ref(), &all).unwrap_err();
    assert!(spent.message().contains("`budget.requests` is spent: `6` of `6`"), "{spent}");
    drop(teacher);
    let teacher = config("budget = { requests = 9 }").open("t", dir.path()).unwrap();
    assert!(ask(teacher.as_ref(), &all).is_err());
    let lines = |path: &Path| fs::read_to_string(path).unwrap().lines().count();
    assert_eq!(lines(&place), 10, "a head, and what the budget allowed");
    assert_eq!(teacher.spent().requests, 9);
}

#[test]
fn a_question_that_cannot_be_asked_costs_itself_alone() {
    let dir = tempfile::tempdir().unwrap();
    let teacher = config("").open("t", dir.path()).unwrap();
    let plain = Question::of_user("1 + 1?", 4);
    let chat =
        |messages: Vec<Message>| Question { prompt: Turn::Messages(messages), ..plain.clone() };
    let text = |text: &str| Question::new(Turn::Text(text.into()), 4);
    let mut cold = plain.clone();
    cold.sampling.temperature = -1.0;
    let tool = Some(vec![json!({"type": "function"})]);
    let all = [
        plain.clone(),
        Question { response_format: Some(json!({"type": "json_object"})), ..plain.clone() },
        Question { max_new_tokens: 0, ..plain.clone() },
        Question { tools: tool, ..text("x") },
        Question { stop: vec![String::new()], ..plain.clone() },
        cold,
        chat(vec![]),
        text(""),
        Question::of_user(&"long ".repeat(5000), 4),
        text("one more"),
    ];
    let told = ask(teacher.as_ref(), &all).unwrap();
    let told: Vec<String> = told
        .iter()
        .map(|answer| match answer {
            Ok(_) => "an answer".to_string(),
            Err(error) => error.to_string(),
        })
        .collect();
    insta::assert_snapshot!(told.join("\n"));
}
