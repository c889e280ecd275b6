use halter_core::data::format::Format;
use halter_core::data::parse::parse;
use halter_core::data::record::Record;
use serde_json::{Value, json};

use super::{Script, reasons, run, run_all};

const TOOLS: &str = r#"
[[tools]]
name = "weather"
description = "The weather of a place."
parameters.type = "object"
parameters.required = ["place"]
parameters.properties.place.type = "string"
"#;

fn row(prompt: &str) -> Value {
    json!({"prompt": prompt, "level": 2})
}

fn native(arguments: Value) -> Option<String> {
    let function = json!({"name": "weather", "arguments": arguments.to_string()});
    Some(format!("calls:{}", json!([{"id": "x", "type": "function", "function": function}])))
}

/// An assistant, and the tool, which answers a prompt that asks for its result.
fn good(asked: &str) -> Option<String> {
    match asked {
        "Rain in Bonn?" => native(json!({"place": "Bonn"})),
        _ if asked.contains("stand in for a tool") => Some(r#"{ "rain": true }"#.into()),
        r#"{"rain":true}"# => Some("Yes, take an umbrella.".into()),
        _ => None,
    }
}

#[test]
fn a_call_its_result_and_the_answer_are_a_row_that_can_be_trained_on() {
    let outcome = run("tools", TOOLS, vec![row("Rain in Bonn?")], good);
    let made = &outcome.rows[0];
    let record = parse(Format::Messages, made.0.clone()).unwrap();
    let Record::Chat { messages, tools } = record else { panic!("{record:?}") };
    assert_eq!(tools.unwrap()[0]["function"]["name"], "weather");
    let roles: Vec<&str> = messages.iter().map(|turn| turn.role()).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "assistant"]);
    let call = &messages[1].0["tool_calls"][0];
    assert_eq!(call["function"], json!({"name": "weather", "arguments": {"place": "Bonn"}}));
    assert_eq!(messages[2].0["tool_call_id"], call["id"]);
    assert_eq!(messages[2].content(), Some(r#"{"rain":true}"#));
    assert_eq!(messages[3].content(), Some("Yes, take an umbrella."));
    assert_eq!(made.0["level"], 2);
    let figures = ["questions", "calls", "repairs"].map(|name| outcome.figures[name].clone());
    assert_eq!(figures, [3, 1, 0].map(Value::from));
}

#[test]
fn calls_that_do_not_fit_are_asked_for_again() {
    let script: Script = |asked| match asked {
        "Rain in Bonn?" => native(json!({"place": 53})),
        _ if asked.contains("53") && asked.contains("weather/place") => {
            native(json!({"place": "Bonn"}))
        }
        _ => good(asked),
    };
    let outcome = run("tools", TOOLS, vec![row("Rain in Bonn?")], script);
    assert_eq!(outcome.rows[0].messages().unwrap().len(), 4);
    assert_eq!(outcome.figures["repairs"], 1);
    let none = format!("repairs = 0\n{TOOLS}");
    let outcome = run("tools", &none, vec![row("Rain in Bonn?")], script);
    assert_eq!((outcome.rows.len(), reasons(&outcome)), (0, vec!["bad call"]));
    assert!(outcome.removed[0].detail.contains("weather/place"), "{:?}", outcome.removed[0]);
    let other: Script = |_| Some(r#"{"name": "rain", "arguments": {}}"#.into());
    let outcome = run("tools", TOOLS, vec![row("Rain in Bonn?")], other);
    assert_eq!(outcome.removed[0].detail, "expected one of `weather`, got `rain`");
    assert_eq!(outcome.figures["questions"], 3);
}

#[test]
fn requests_are_written_and_calls_may_be_text() {
    let user: Script = |asked| {
        assert!(asked.contains("needs weather"), "{asked}");
        Some("\"Rain in Bonn?\"".into())
    };
    let tool: Script = |_| Some("```json\n{\"rain\": true}\n```".into());
    let assistant: Script = |asked| {
        Some(match asked {
            "Rain in Bonn?" => r#"{"name": "weather", "arguments": {"place": "Bonn"}}"#.into(),
            r#"Result of weather: {"rain":true}"# => "Yes.".into(),
            other => panic!("{other}"),
        })
    };
    let options = format!(
        "teacher = \"assistant\"\nuser = \"user\"\nsimulator = \"tool\"\nstyle = \"text\"\n\
         count = 2\n{TOOLS}"
    );
    let scripts = [("assistant", assistant), ("tool", tool), ("user", user)];
    let outcome = run_all("tools", &options, vec![], &scripts);
    assert_eq!((outcome.rows.len(), reasons(&outcome).len()), (2, 0));
    let turns = outcome.rows[0].messages().unwrap();
    assert_eq!(
        turns.iter().map(|turn| turn.role()).collect::<Vec<_>>()[..2],
        ["user", "assistant"]
    );
    assert_eq!(turns[1].0["tool_calls"][0]["id"], "call00001");
    assert_eq!(outcome.figures["questions"], 8);
}

#[test]
fn what_cannot_become_a_dialogue_has_its_reason() {
    let one = |prompt: &str, tools: Value| json!({"prompt": prompt, "tools": tools});
    let weather = json!([{"name": "weather"}]);
    let rows = vec![
        one("Rain in Bonn?", json!("[")),
        one("Rain in Bonn?", json!([{"name": "f", "parameters": {"type": "nothing"}}])),
        one("Rain in Bonn?", json!([{"name": "f"}, {"name": "f"}])),
        row("no tools"),
        one("prose", weather.clone()),
        one("more", weather.clone()),
        one("down", weather.clone()),
        one("Rain in Bonn?", weather),
    ];
    let script: Script = |asked| match asked {
        "prose" => Some("It may rain.".into()),
        "more" | "0" => native(json!({"n": 1})),
        "Rain in Bonn?" => native(json!({"n": 2})),
        _ if asked.contains(r#"{"n":1}"#) => Some("0".into()),
        _ if asked.contains(r#"{"n":2}"#) => Some("It rains.".into()),
        _ => None,
    };
    let outcome = run("tools", "steps = 2", rows, script);
    let mut found = reasons(&outcome);
    found.sort_unstable();
    let expected = [
        "bad tools",
        "bad tools",
        "bad tools",
        "no answer",
        "no call",
        "no result",
        "no tools",
        "too many calls",
    ];
    assert_eq!((outcome.rows.len(), found), (0, expected.to_vec()));
}
