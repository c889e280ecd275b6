use serde_json::{Value, json};

use super::*;
use crate::data::record::{Message, Turn};

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// Detects the format of a row and reads it.
fn read(value: Value) -> (Format, Record) {
    let row = object(value);
    let format = Format::detect(&row).unwrap();
    (format, parse(format, row).unwrap())
}

fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, content)| Message::new(role, content)).collect()
}

fn chat(turns: &[(&str, &str)]) -> Record {
    Record::Chat { messages: messages(turns), tools: None }
}

fn text(text: &str) -> Turn {
    Turn::Text(text.into())
}

#[test]
fn openai_messages_are_read_as_they_are() {
    let (format, record) = read(json!({"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi", "name": "ann"},
        {"role": "assistant", "content": "Hello", "tool_calls": null, "weight": 0},
    ], "tools": null}));
    let mut expected = messages(&[("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")]);
    expected[1].0.insert("name".into(), json!("ann"));
    expected[2].0.insert("weight".into(), json!(0));
    assert_eq!(
        (format, record),
        (Format::Messages, Record::Chat { messages: expected, tools: None })
    );
}

#[test]
fn tool_calls_get_their_arguments_as_an_object_and_content_that_is_not_null() {
    let (_, record) = read(json!({"messages": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "a1", "type": "function",
             "function": {"name": "weather", "arguments": "{\"city\": \"Oslo\"}"}}]},
        {"role": "tool", "tool_call_id": "a1", "content": "rain"},
    ], "tools": "[{\"type\": \"function\", \"function\": {\"name\": \"weather\"}}]"}));
    let Record::Chat { messages, tools } = record else { panic!("{record:?}") };
    assert_eq!(messages[1].content(), Some(""));
    assert_eq!(
        messages[1].0["tool_calls"],
        json!([{"id": "a1", "type": "function",
                "function": {"name": "weather", "arguments": {"city": "Oslo"}}}])
    );
    assert_eq!(messages[2].0["tool_call_id"], json!("a1"));
    assert_eq!(tools.unwrap(), [json!({"type": "function", "function": {"name": "weather"}})]);
}

#[test]
fn content_in_parts_is_joined_and_reasoning_kept_apart() {
    let (_, record) = read(json!({"messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [
            {"type": "reasoning", "value": "hm"}, {"type": "text", "value": "c"},
            {"type": "tool_call", "value": "{\"name\": \"f\", \"arguments\": {}}"}]},
    ]}));
    let Record::Chat { messages, .. } = record else { panic!("{record:?}") };
    assert_eq!(messages[0].content(), Some("ab"));
    assert_eq!(messages[1].content(), Some("c"));
    assert_eq!(messages[1].0["reasoning_content"], json!("hm"));
    assert_eq!(messages[1].0["tool_calls"][0]["function"]["name"], json!("f"));
}

#[test]
fn sharegpt_speakers_become_roles_and_function_calls_tool_calls() {
    let (format, record) = read(json!({"conversations": [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
        {"from": "observation", "value": "r"},
        {"from": "gpt", "value": "a"},
    ], "system": "s", "tools": "[{\"name\": \"f\"}]"}));
    assert_eq!(format, Format::ShareGpt);
    let Record::Chat { messages: got, tools } = record else { panic!("{record:?}") };
    let mut expected = messages(&[
        ("system", "s"),
        ("user", "q"),
        ("assistant", ""),
        ("tool", "r"),
        ("assistant", "a"),
    ]);
    let call = json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]);
    expected[2].0.insert("tool_calls".into(), call);
    assert_eq!(got, expected);
    assert_eq!(tools.unwrap(), [json!({"type": "function", "function": {"name": "f"}})]);
    // Role and content under ShareGPT's column.
    let turns = json!({"conversations": [{"role": "user", "content": "q"}]});
    assert_eq!(read(turns), (Format::ShareGpt, chat(&[("user", "q")])));
}

#[test]
fn alpaca_joins_instruction_and_input_and_reads_history_and_system() {
    let row = json!({"instruction": "Add.", "input": "1 1", "output": "2", "system": "s",
        "history": [["q", "a"]]});
    let turns = [
        ("system", "s"),
        ("user", "q"),
        ("assistant", "a"),
        ("user", "Add.\n1 1"),
        ("assistant", "2"),
    ];
    assert_eq!(read(row), (Format::Alpaca, chat(&turns)));
    let row = json!({"instruction": "Hi", "input": "", "output": "Hello"});
    assert_eq!(read(row), (Format::Alpaca, chat(&[("user", "Hi"), ("assistant", "Hello")])));
}

#[test]
fn prompt_and_completion_are_text_or_messages() {
    let record = |prompt, completion| Record::PromptCompletion { prompt, completion, tools: None };
    let read = |value| read(value).1;
    let asked = || Turn::Messages(messages(&[("user", "q")]));
    let answered = || Turn::Messages(messages(&[("assistant", "a")]));
    assert_eq!(read(json!({"prompt": "q", "completion": "a"})), record(text("q"), text("a")));
    let both = json!({"prompt": [{"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "a"}]});
    assert_eq!(read(both), record(asked(), answered()));
    let half = json!({"prompt": [{"role": "user", "content": "q"}], "completion": "a"});
    assert_eq!(read(half), record(asked(), answered()));
    let system = json!({"prompt": "q", "completion": "a", "system": "s"});
    let prompt = Turn::Messages(messages(&[("system", "s"), ("user", "q")]));
    assert_eq!(read(system), record(prompt, answered()));
}

#[test]
fn preferences_are_read_in_every_layout() {
    let pair =
        |prompt: Option<Turn>, chosen, rejected| Record::Preference { prompt, chosen, rejected };
    let turns = |turns: &[(&str, &str)]| Turn::Messages(messages(turns));
    let asked = || Some(turns(&[("user", "q")]));
    let (good, bad) = (|| turns(&[("assistant", "g")]), || turns(&[("assistant", "b")]));
    let read = |value| {
        let (format, record) = read(value);
        assert_eq!(format, Format::Preference);
        record
    };
    let plain = json!({"prompt": "q", "chosen": "g", "rejected": "b"});
    assert_eq!(read(plain), pair(Some(text("q")), text("g"), text("b")));
    let implicit = json!({"chosen": "q g", "rejected": "q b"});
    assert_eq!(read(implicit), pair(None, text("q g"), text("q b")));
    let factory = json!({"conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "g"}, "rejected": {"from": "gpt", "value": "b"}});
    assert_eq!(read(factory), pair(asked(), good(), bad()));
    let alpaca = json!({"instruction": "q", "chosen": "g", "rejected": "b"});
    assert_eq!(read(alpaca), pair(asked(), good(), bad()));
    let whole = |answer: &str| json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]);
    let shared = |answer: &str| turns(&[("user", "q"), ("assistant", answer)]);
    // UltraFeedback repeats the prompt in both completions.
    let repeated = json!({"prompt": "q", "chosen": whole("g"), "rejected": whole("b")});
    assert_eq!(read(repeated), pair(None, shared("g"), shared("b")));
    let listed = json!({"chosen_messages": whole("g"), "rejected_messages": whole("b")});
    assert_eq!(read(listed), pair(None, shared("g"), shared("b")));
}

#[test]
fn prompts_alone_are_read_but_not_halves_of_a_pair() {
    let alone = Record::Prompt { prompt: text("q"), tools: None };
    assert_eq!(read(json!({"prompt": "q", "answer": "a"})), (Format::Prompt, alone));
    let asked = Record::Prompt { prompt: Turn::Messages(messages(&[("user", "q")])), tools: None };
    let row = json!({"prompt": [{"role": "user", "content": "q"}]});
    assert_eq!(read(row), (Format::Prompt, asked));
    let row = object(json!({"prompt": "q", "completion": null}));
    assert_eq!(Format::of_row(&row), None);
    let row = object(json!({"prompt": "q", "chosen": "a"}));
    assert_eq!(Format::of_row(&row), None);
}

#[test]
fn ranked_lists_and_judged_completions_are_read() {
    let ranked = Record::Ranked { prompt: text("q"), completions: vec![text("a"), text("b")] };
    let row = json!({"prompt": "q", "completions": ["a", "b"]});
    assert_eq!(read(row), (Format::Ranked, ranked));
    let judged = Record::Unpaired { prompt: text("q"), completion: text("a"), label: true };
    let row = json!({"prompt": "q", "completion": "a", "label": 1});
    assert_eq!(read(row), (Format::Unpaired, judged));
    let judged = Record::Unpaired {
        prompt: Turn::Messages(messages(&[("user", "q")])),
        completion: Turn::Messages(messages(&[("assistant", "a")])),
        label: false,
    };
    let turns = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    assert_eq!(
        read(json!({"messages": turns, "kto_tag": false})),
        (Format::Unpaired, judged.clone())
    );
    let row = json!({"instruction": "q", "output": "a", "kto_tag": false});
    assert_eq!(read(row), (Format::Unpaired, judged));
}

#[test]
fn a_label_that_is_no_verdict_leaves_a_conversation_a_conversation() {
    let turns = json!([{"role": "user", "content": "q"}]);
    let row = object(json!({"messages": turns, "label": "sports"}));
    assert_eq!(Format::of_row(&row), Some(Format::Messages));
}

#[test]
fn tokenized_rows_take_their_mask_from_any_of_its_spellings() {
    let row = |mask: [bool; 3]| {
        let completion_mask = mask.to_vec();
        (Format::Tokenized, Record::Tokenized { input_ids: vec![5, 6, 7], completion_mask })
    };
    let ids = json!([5, 6, 7]);
    assert_eq!(read(json!({"input_ids": ids})), row([true; 3]));
    let masked = row([false, true, true]);
    assert_eq!(read(json!({"input_ids": ids, "completion_mask": [0, 1, 1]})), masked);
    assert_eq!(read(json!({"input_ids": ids, "assistant_masks": [false, true, true]})), masked);
    let labels = json!({"input_ids": ids, "labels": [-100, 6, 7], "attention_mask": [1, 1, 1]});
    assert_eq!(read(labels), masked);
    let pair = Record::TokenizedPreference {
        prompt_ids: vec![1],
        chosen_ids: vec![2, 3],
        rejected_ids: vec![4],
    };
    let row = json!({"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4]});
    assert_eq!(read(row), (Format::TokenizedPreference, pair));
}

#[test]
fn every_format_is_named_and_read_by_its_name() {
    for format in Format::ALL {
        assert_eq!(format.to_string().parse::<Format>().unwrap(), format);
    }
    assert_eq!("prompt_completion".parse::<Format>().unwrap(), Format::PromptCompletion);
}

mod random {
    use super::*;
    use proptest::prelude::*;

    /// Rows made of the words that the formats look for, so that chance reaches their branches.
    fn value() -> impl Strategy<Value = Value> {
        let word = prop::sample::select(vec![
            "role",
            "content",
            "from",
            "value",
            "user",
            "gpt",
            "function_call",
            "text",
            "type",
            "{\"name\": \"f\", \"arguments\": {}}",
            "[]",
            "",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            prop::sample::select(vec![-100i64, -1, 0, 1, 7, i64::MAX]).prop_map(Value::from),
            word.clone().prop_map(Value::from),
        ];
        let key = prop::sample::select(vec![
            "messages",
            "conversations",
            "role",
            "content",
            "from",
            "value",
            "prompt",
            "completion",
            "completions",
            "chosen",
            "rejected",
            "label",
            "kto_tag",
            "text",
            "instruction",
            "input",
            "output",
            "history",
            "system",
            "tools",
            "tool_calls",
            "function",
            "name",
            "arguments",
            "input_ids",
            "completion_mask",
            "labels",
            "type",
            "prompt_ids",
            "chosen_ids",
            "rejected_ids",
            "attention_mask",
        ]);
        leaf.prop_recursive(5, 64, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key.clone(), inner), 0..6).prop_map(|pairs| {
                    Value::Object(pairs.into_iter().map(|(k, v)| (k.to_string(), v)).collect())
                }),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_row_of_any_format_panics(value in value()) {
            if let Value::Object(row) = value {
                for format in Format::ALL {
                    if let Ok(Record::Tokenized { input_ids, completion_mask }) =
                        parse(format, row.clone())
                    {
                        prop_assert_eq!(input_ids.len(), completion_mask.len());
                    }
                }
            }
        }
    }
}
