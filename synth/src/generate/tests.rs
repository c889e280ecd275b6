//! Every step with a teacher that says what a script says, well-formed or not.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod code;
mod documents;
mod origin;
mod tools;

use std::collections::BTreeMap;
use std::path::Path;

use halter_core::data::record::{Message, Turn};
use halter_core::endpoint::{Answer, Question, Teacher, Usage};
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::Silent;
use halter_core::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use crate::pipeline::Options;
use crate::row::Row;
use crate::step::{Outcome, Run};

/// Answers by a function of the question's last text; no text is no answer, a text that ends with
/// `…` was cut off, and what follows `calls:` are native calls.
struct Scripted(fn(&str) -> Option<String>);

impl Teacher for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn answer(
        &self,
        questions: &[Question],
        done: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Result<Answer>>> {
        done(questions.len())?;
        let answer = |question: &Question| {
            let asked = match &question.prompt {
                Turn::Text(text) => text.clone(),
                Turn::Messages(turns) => turns.last().unwrap().content().unwrap().to_string(),
            };
            let said = (self.0)(&asked).ok_or_else(|| Error::data("the server is down"))?;
            let mut message = Message::new("assistant", &said);
            if let Some(calls) = said.strip_prefix("calls:") {
                message.0.insert("content".into(), Value::Null);
                message.0.insert("tool_calls".into(), serde_json::from_str(calls).unwrap());
            }
            Ok(Answer {
                message,
                finish: if said.ends_with('…') { "length" } else { "stop" }.into(),
                logprobs: None,
                usage: Usage { prompt_tokens: 10, completion_tokens: 5 },
                model: "scripted".into(),
            })
        };
        Ok(questions.iter().map(answer).collect())
    }
}

type Script = fn(&str) -> Option<String>;

fn run_all(kind: &str, options: &str, rows: Vec<Value>, scripts: &[(&str, Script)]) -> Outcome {
    let teacher = |(name, script): &(&str, Script)| {
        (name.to_string(), Box::new(Scripted(*script)) as Box<dyn Teacher>)
    };
    run_by(kind, options, rows, scripts.iter().map(teacher).collect())
}

fn run_by(
    kind: &str,
    options: &str,
    rows: Vec<Value>,
    teachers: BTreeMap<String, Box<dyn Teacher>>,
) -> Outcome {
    let names: Vec<&str> = teachers.keys().map(String::as_str).collect();
    let table = options.parse().unwrap();
    let mut options = Options::new(Path::new("p.toml"), 1, BTreeMap::new(), table);
    let made = super::step(kind, &mut options, &names).unwrap().unwrap();
    options.finish().unwrap();
    let mut silent = Silent;
    let interrupt = Interrupt::new();
    let mut run =
        Run { teachers: &teachers, seed: 7, progress: &mut silent, interrupt: &interrupt };
    let rows: Vec<Row> =
        rows.into_iter().map(|row| Row(row.as_object().unwrap().clone())).collect();
    let outcome = made.step.run(rows.clone(), &mut run).unwrap();
    assert_eq!(made.step.run(rows, &mut run).unwrap(), outcome, "a second time");
    outcome
}

fn run(kind: &str, options: &str, rows: Vec<Value>, script: Script) -> Outcome {
    run_all(kind, options, rows, &[("one", script)])
}

fn reasons(outcome: &Outcome) -> Vec<&str> {
    outcome.removed.iter().map(|removed| removed.reason).collect()
}

fn prompts(outcome: &Outcome) -> Vec<String> {
    outcome.rows.iter().filter_map(super::reply::instruction).collect()
}

#[test]
fn answers_become_conversations_and_failures_have_their_reasons() {
    let rows = ["good", "down", "cut", "empty"].map(|p| json!({"prompt": p, "answer": "4"}));
    let mut rows = rows.to_vec();
    rows.push(json!({"prompt": 3}));
    let outcome = run("answer", "samples = 2", rows, |asked| match asked {
        "down" => None,
        "cut" => Some("and so…".into()),
        "empty" => Some(" \n".into()),
        other => Some(format!("an answer to {other}")),
    });
    assert_eq!(outcome.rows.len(), 2);
    let row = &outcome.rows[0];
    assert_eq!(row.messages().unwrap()[1].content(), Some("an answer to good"));
    assert_eq!(row.text("answer"), Some("4"));
    let origin = row.0["provenance"].as_array().unwrap().last().unwrap();
    assert_eq!((&origin["teacher"], &origin["model"]), (&json!("one"), &json!("scripted")));
    assert_eq!(origin["sampling"]["temperature"], json!(0.7));
    let expected = ["no prompt", "no answer", "no answer", "cut off", "cut off"];
    assert_eq!(reasons(&outcome), [&expected[..], &["empty answer"; 2]].concat());
    assert_eq!(outcome.figures["questions"], 8);
    assert_eq!(outcome.figures["no_answer"], 2);
}

#[test]
fn self_instruct_takes_new_instructions_only() {
    let rows = vec![json!({"instruction": "Write a poem about the sea and its many ships"})];
    let options = "rounds = 2\nrequests_per_round = 1";
    let outcome = run("self-instruct", options, rows, |_| {
        Some(
            "2. Write a poem about the sea and its many boats\n3. Draw a picture of a red house\n\
             4. List four rivers that cross Germany\n5. Short"
                .into(),
        )
    });
    assert_eq!(prompts(&outcome), ["List four rivers that cross Germany"]);
    let once = ["similar", "blocked word", "length"];
    assert_eq!(reasons(&outcome)[..3], once);
    let outcome = run("self-instruct", options, vec![json!({"prompt": "Why?"})], |_| {
        Some("I would rather not.".into())
    });
    assert_eq!((outcome.rows.len(), reasons(&outcome)), (0, vec!["no list"; 2]));
}

#[test]
fn evolutions_go_on_from_the_last_one_that_succeeded() {
    let rows = vec![json!({"prompt": "Add two numbers"})];
    let options = "rounds = 2\nways = [\"deepen\"]";
    let outcome = run("evol-instruct", options, rows.clone(), |asked| {
        Some(match asked.contains("three") {
            true => "Add four numbers in your head".into(),
            false => "Add three numbers in your head".into(),
        })
    });
    let expected =
        ["Add two numbers", "Add three numbers in your head", "Add four numbers in your head"];
    assert_eq!(prompts(&outcome), expected);
    for (said, reason) in [
        ("add two numbers!", "nothing gained"),
        ("#Rewritten prompt#: add three", "speaks of the request"),
        ("Sum", "too short"),
        ("Sorry, that is beyond me", "refusal"),
    ] {
        let script: Script = match reason {
            "nothing gained" => |_| Some("add two numbers!".into()),
            "speaks of the request" => |_| Some("#Rewritten prompt#: add three".into()),
            "too short" => |_| Some("Sum".into()),
            _ => |_| Some("Sorry, that is beyond me".into()),
        };
        let outcome = run("evol-instruct", options, rows.clone(), script);
        assert_eq!(reasons(&outcome), [reason; 2], "{said}");
    }
}

#[test]
fn magpie_asks_with_the_bare_template_and_takes_what_is_whole() {
    let outcome = run("magpie", "count = 3\nsystem = \"Be brief.\"", vec![], |asked| {
        assert_eq!(asked, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n");
        Some("How do bees fly?".into())
    });
    assert_eq!(prompts(&outcome), ["How do bees fly?"]);
    assert_eq!(reasons(&outcome), ["repeated"; 2]);
    let outcome = run("magpie", "count = 1", vec![], |_| Some("Hello there <|im_start|>".into()));
    assert_eq!(reasons(&outcome), ["template token"]);
}

#[test]
fn every_persona_meets_every_task() {
    let options = "personas = [\"a nurse\"]\ntasks = [\"a poem\", \"a riddle\"]";
    let rows = vec![json!({"persona": "a smith"}), json!({"text": "nobody"})];
    let outcome = run("personas", options, rows, |asked| {
        Some(format!("\"{}\"", asked.lines().last().unwrap()))
    });
    let told = ["The person: a nurse", "The person: a nurse", "The person: a smith"];
    assert_eq!(prompts(&outcome)[..3], told);
    assert_eq!((outcome.rows.len(), reasons(&outcome)), (4, vec!["no persona"]));
}

#[test]
fn backtranslation_keeps_what_scores_well() {
    let rows = ["fine", "poor", "odd"].map(|text| json!({"text": text})).to_vec();
    let outcome = run("backtranslate", "", rows, |asked| {
        Some(match (asked.contains("Score: N"), asked.lines().last().unwrap()) {
            (true, "fine") => "To the point.\nScore: 5".into(),
            (true, "poor") => "Score: 2".into(),
            (true, _) => "Score: 11".into(),
            (false, text) => format!("What is {text}?"),
        })
    });
    assert_eq!(prompts(&outcome), ["What is fine?"]);
    assert_eq!(reasons(&outcome), ["low score", "no score"]);
}

#[test]
fn a_dialogue_ends_with_an_answer() {
    let rows = vec![json!({"prompt": "Hello"})];
    let outcome = run("dialogue", "turns = 5", rows, |asked| {
        Some(match asked {
            "Hello" => "Hi!".into(),
            "Why?" => "Because.".into(),
            other if other.contains("Because.") => "[END]".into(),
            _ => "Why?".into(),
        })
    });
    let turns = outcome.rows[0].messages().unwrap();
    let said: Vec<_> = turns.iter().map(|turn| turn.content().unwrap()).collect();
    assert_eq!(said, ["Hello", "Hi!", "Why?", "Because."]);
    let outcome = run("dialogue", "", vec![json!({"prompt": "Hello"})], |_| None);
    assert_eq!((outcome.rows.len(), reasons(&outcome)), (0, vec!["no answer"]));
}

#[test]
fn solutions_are_right_by_reference_or_by_agreement() {
    let solved = |problem: &str, said: &str, answer: Option<&str>| {
        let turns = json!([{"role": "user", "content": problem},
                           {"role": "assistant", "content": said}]);
        json!({"messages": turns, "answer": answer})
    };
    let rows = vec![
        solved("1+1", "#### 2", Some("2")),
        solved("1+1", "#### 3", Some("2")),
        solved("2+2", "#### 4", None),
        solved("2+2", r"\boxed{4}", None),
        solved("2+2", "#### 5", None),
        solved("3+3", "#### 6", None),
        solved("1+1", "who knows", Some("2")),
    ];
    let outcome = run("maths", "", rows.clone(), |_| None);
    assert_eq!(prompts(&outcome), ["1+1", "2+2", "2+2"]);
    let expected = ["wrong answer", "wrong answer", "no agreement", "no final answer"];
    assert_eq!(reasons(&outcome), expected);
    let outcome = run("maths", "corrections = 1", rows, |_| Some("It is 2.\n#### 2".into()));
    let correction = outcome.rows.last().unwrap().messages().unwrap();
    assert_eq!(correction.len(), 4);
    assert_eq!(correction[1].is_trained(), Some(false));
    assert_eq!(correction[3].content(), Some("It is 2.\n#### 2"));
    assert_eq!(reasons(&outcome).last(), Some(&"wrong correction"));
}

#[test]
fn a_judge_that_prefers_a_place_decides_nothing() {
    let rows = vec![json!({"prompt": "Why?"})];
    let options = "teachers = [\"one\", \"two\"]\njudge = \"judge\"";
    let judged = |judge: Script| {
        let one: Script = |_| Some("good".into());
        let two: Script = |_| Some("bad".into());
        run_all(
            "preferences",
            options,
            rows.clone(),
            &[("judge", judge), ("one", one), ("two", two)],
        )
    };
    let outcome = judged(|asked| {
        let first = asked.contains("[First answer]\ngood");
        Some(format!("Verdict: {}", if first { 3 } else { -1 }))
    });
    let row = &outcome.rows[0];
    assert_eq!(row.0["chosen"][0]["content"], "good");
    assert_eq!(
        (&row.0["rejected"][0]["content"], row.text("strength")),
        (&json!("bad"), Some("better"))
    );
    assert_eq!(reasons(&judged(|_| Some("Verdict: 2".into()))), ["order decides"]);
    assert_eq!(reasons(&judged(|_| Some("Verdict: 0".into()))), ["order decides"]);
    assert_eq!(reasons(&judged(|_| Some("the first".into()))), ["no verdict"; 2]);
    assert_eq!(reasons(&judged(|_| Some("Verdict: 9".into()))), ["no verdict"; 2]);
}
