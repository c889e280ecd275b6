//! Completion masks: against transformers and TRL (`oracle/masks.py`), and for the templates that
//! make it hard.
#![allow(clippy::unwrap_used, clippy::panic)]

mod text_support;

use halter_core::data::record::{Record, Turn};
use halter_core::text::encode::{EncodeOptions, completion_prompt};
use halter_core::text::mask::MaskPolicy;
use halter_core::text::template::RenderOptions;
use halter_core::text::tokenizer::Tokenizer;
use serde_json::{Value, json};
use text_support::*;

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|n| u32::try_from(n.as_u64().unwrap()).unwrap()).collect()
}

fn flags(value: &Value) -> Vec<bool> {
    numbers(value).into_iter().map(|flag| flag == 1).collect()
}

#[test]
fn masks_are_those_of_generation_blocks_in_transformers() {
    let golden = golden("masks.json");
    let (mut count, mut straddled) = (0, 0);
    for row in golden["masks"].as_array().unwrap() {
        let name = row["template"].as_str().unwrap();
        let tokenizer = tokenizer(row["tokenizer"].as_str().unwrap());
        let body = match golden["trl_templates"].get(name) {
            Some(body) => body.as_str().unwrap().to_string(),
            None => source(name),
        };
        // TRL marks the newline after the turn as well in its Qwen templates
        let train_on_trailing = name.starts_with("qwen");
        let options = EncodeOptions { train_on_trailing, ..EncodeOptions::default() };
        let template = template(&body, &tokenizer);
        let encoded = encode(&chat(&row["messages"], None), &tokenizer, &template, &options);
        assert_eq!(encoded.input_ids, numbers(&row["input_ids"]), "{name} {}", row["messages"]);
        // a token that begins in the prompt and ends in the answer: transformers trains it, halter
        // does not, since generation would never be asked for it, and says so
        let mut expected = flags(&row["mask"]);
        if name == "qwen2_5_training" {
            // TRL marks the line break of the turn's header too, which the generation prompt holds
            for at in (1..expected.len()).rev() {
                expected[at] &= expected[at - 1];
            }
        }
        let differ = (0..expected.len()).filter(|i| encoded.completion_mask[*i] != expected[*i]);
        let straddling: Vec<usize> = differ.collect();
        assert!(straddling.iter().all(|at| expected[*at] && !expected[at - 1]), "{name} {row}");
        if name != "qwen2_5_training" {
            assert_eq!(straddling.is_empty(), encoded.prompt_is_prefix, "{name} {row}");
        }
        straddled += straddling.len();
        count += 1;
    }
    assert_eq!(straddled, 1, "a line break after ChatML's header, in one conversation");
    assert!(count >= 40, "only {count} masks were compared");
}

#[test]
fn a_template_without_generation_blocks_gives_the_same_mask() {
    let golden = golden("masks.json");
    let tokenizer = tokenizer("tiny_llama3");
    let template = template(&source("llama3"), &tokenizer);
    assert!(!template.has_generation_blocks());
    let mut count = 0;
    for row in golden["masks"].as_array().unwrap() {
        if row["template"] == "llama3_marked" {
            let record = chat(&row["messages"], None);
            let encoded = encode(&record, &tokenizer, &template, &EncodeOptions::default());
            assert_eq!(encoded.input_ids, numbers(&row["input_ids"]));
            assert_eq!(encoded.completion_mask, flags(&row["mask"]));
            assert!(encoded.prompt_is_prefix);
            count += 1;
        }
    }
    assert_eq!(count, 8);
}

#[test]
fn plain_rows_are_those_of_trl() {
    let golden = golden("masks.json");
    for row in golden["plain"].as_array().unwrap() {
        let tokenizer = tokenizer(row["tokenizer"].as_str().unwrap());
        let text = |key: &str| Turn::Text(row[key].as_str().unwrap().to_string());
        let record = Record::PromptCompletion {
            prompt: text("prompt"),
            completion: text("completion"),
            tools: None,
        };
        let template = template(&source("llama3"), &tokenizer);
        let encoded = encode(&record, &tokenizer, &template, &EncodeOptions::default());
        assert_eq!(encoded.input_ids, numbers(&row["input_ids"]), "{row}");
        assert_eq!(encoded.completion_mask, flags(&row["mask"]), "{row}");
        let options = EncodeOptions { completion_only_loss: false, ..EncodeOptions::default() };
        let all = encode(&record, &tokenizer, &template, &options);
        assert!(all.completion_mask.iter().all(|trained| *trained));
    }
    for row in golden["texts"].as_array().unwrap() {
        let tokenizer = tokenizer(row["tokenizer"].as_str().unwrap());
        let record = Record::Text { text: row["text"].as_str().unwrap().to_string() };
        let template = template(&source("llama3"), &tokenizer);
        let encoded = encode(&record, &tokenizer, &template, &EncodeOptions::default());
        assert_eq!(encoded.input_ids, numbers(&row["input_ids"]), "{row}");
        assert!(encoded.completion_mask.iter().all(|trained| *trained));
    }
}

/// The trained text of a conversation, and whether each prompt is what generation would see.
fn parts(name: &str, tokenizer: &Tokenizer, record: &Record, args: Value) -> (Vec<String>, bool) {
    let template = with_args(template(&source(name), tokenizer), args);
    let encoded = encode(record, tokenizer, &template, &EncodeOptions::default());
    (trained(tokenizer, &encoded), encoded.prompt_is_prefix)
}

fn two_turns() -> Record {
    chat(
        &json!([
            {"role": "user", "content": "Q1"},
            {"role": "assistant", "content": " A1\n"},
            {"role": "user", "content": "Q2"},
            {"role": "assistant", "content": "A2"},
        ]),
        None,
    )
}

#[test]
fn each_family_trains_content_and_end_of_turn() {
    let (chatml, llama3, s) = (tokenizer("tiny_chatml"), tokenizer("tiny_llama3"), tokenizer_s());
    let cases: [(&str, &Tokenizer, [&str; 2]); 8] = [
        ("smollm2", &chatml, [" A1\n<|im_end|>", "A2<|im_end|>"]),
        ("qwen2_5", &chatml, [" A1\n<|im_end|>", "A2<|im_end|>"]),
        ("qwen3", &chatml, [" A1\n<|im_end|>", "<think>\n\n</think>\n\nA2<|im_end|>"]),
        ("llama3", &llama3, ["A1<|eot_id|>", "A2<|eot_id|>"]),
        ("llama3_1", &llama3, ["A1<|eot_id|>", "A2<|eot_id|>"]),
        ("llama2", &s, [" A1 </s>", " A2 </s>"]),
        ("mistral_v1", &s, [" A1\n</s>", "A2</s>"]),
        ("mistral_nemo", &s, [" A1\n</s>", "A2</s>"]),
    ];
    for (name, tokenizer, expected) in cases {
        let (texts, prompt_is_prefix) = parts(name, tokenizer, &two_turns(), json!({}));
        assert_eq!(texts, expected, "{name}");
        assert!(prompt_is_prefix, "{name}");
    }
}

#[test]
fn qwen3_thoughts_are_trained_where_they_are_rendered() {
    let tokenizer = tokenizer("tiny_chatml");
    let record = chat(
        &json!([
            {"role": "user", "content": "Q1"},
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA1"},
            {"role": "user", "content": "Q2"},
            {"role": "assistant", "content": "<think>\nso\n</think>\n\nA2"},
        ]),
        None,
    );
    let (texts, _) = parts("qwen3", &tokenizer, &record, json!({}));
    assert_eq!(texts, ["A1<|im_end|>", "<think>\nso\n</think>\n\nA2<|im_end|>"]);
    // without thinking, the empty thought belongs to the generation prompt
    let (texts, prompt_is_prefix) =
        parts("qwen3", &tokenizer, &two_turns(), json!({"enable_thinking": false}));
    assert_eq!(texts, [" A1\n<|im_end|>", "A2<|im_end|>"]);
    assert!(!prompt_is_prefix, "the first turn has no empty thought in its history");
}

#[test]
fn tool_calls_are_trained_and_tool_results_are_not() {
    let call = json!({"id": "abcdefg12", "type": "function",
        "function": {"name": "weather", "arguments": {"city": "Bern"}}});
    let record = |content: Option<&str>| {
        let mut assistant = json!({"role": "assistant", "tool_calls": [call]});
        if let Some(content) = content {
            assistant["content"] = content.into();
        }
        chat(
            &json!([
                {"role": "user", "content": "Weather?"},
                assistant,
                {"role": "tool", "content": "rain", "tool_call_id": "abcdefg12"},
                {"role": "assistant", "content": "It rains."},
            ]),
            Some(&json!([{"type": "function", "function": {"name": "weather", "parameters": {}}}])),
        )
    };
    let (chatml, llama3, s) = (tokenizer("tiny_chatml"), tokenizer("tiny_llama3"), tokenizer_s());
    let json_call = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call><|im_end|>";
    let cases: [(&str, &Tokenizer, Option<&str>, [String; 2]); 5] = [
        ("qwen2_5", &chatml, Some("So."), [format!("So.\n{json_call}"), "It rains.<|im_end|>".into()]),
        ("qwen2_5", &chatml, Some(""), [json_call.to_string(), "It rains.<|im_end|>".into()]),
        (
            "qwen3",
            &chatml,
            Some(""),
            [json_call.to_string(), "<think>\n\n</think>\n\nIt rains.<|im_end|>".into()],
        ),
        (
            "llama3_1",
            &llama3,
            None,
            [
                "{\"name\": \"weather\", \"parameters\": {\"city\": \"Bern\"}}<|eot_id|>".into(),
                "It rains.<|eot_id|>".into(),
            ],
        ),
        (
            "mistral_nemo",
            &s,
            None,
            [
                "[TOOL_CALLS][{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}, \"id\": \"abcdefg12\"}]</s>".into(),
                "It rains.</s>".into(),
            ],
        ),
    ];
    for (name, tokenizer, content, expected) in cases {
        let (texts, _) = parts(name, tokenizer, &record(content), json!({}));
        assert_eq!(texts, expected, "{name}");
    }
}

#[test]
fn mistral_tools_before_the_last_question_do_not_hide_the_first_answer() {
    let tokenizer = tokenizer_s();
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let Record::Chat { messages, .. } = two_turns() else { unreachable!() };
    let record = Record::Chat { messages, tools: tools.as_array().cloned() };
    let (texts, prompt_is_prefix) = parts("mistral_nemo", &tokenizer, &record, json!({}));
    assert_eq!(texts, [" A1\n</s>", "A2</s>"]);
    assert!(!prompt_is_prefix, "the first answer was generated with the tools in sight");
}

#[test]
fn only_the_last_turn_is_trained_when_asked() {
    let tokenizer = tokenizer("tiny_chatml");
    let template = template(&source("smollm2"), &tokenizer);
    let options = EncodeOptions { mask: MaskPolicy::Last, ..EncodeOptions::default() };
    let encoded = encode(&two_turns(), &tokenizer, &template, &options);
    assert_eq!(trained(&tokenizer, &encoded), ["A2<|im_end|>"]);
    let options = EncodeOptions { train_on_trailing: true, ..EncodeOptions::default() };
    let encoded = encode(&two_turns(), &tokenizer, &template, &options);
    assert_eq!(trained(&tokenizer, &encoded), [" A1\n<|im_end|>\n", "A2<|im_end|>\n"]);
}

#[test]
fn a_turn_of_weight_0_is_context() {
    let tokenizer = tokenizer("tiny_chatml");
    let template = template(&source("smollm2"), &tokenizer);
    let with = |key: &str, weights: [Value; 2]| {
        let Record::Chat { mut messages, .. } = two_turns() else { unreachable!() };
        for (index, weight) in [1, 3].into_iter().zip(weights) {
            messages[index].0.insert(key.into(), weight);
        }
        encode(
            &Record::Chat { messages, tools: None },
            &tokenizer,
            &template,
            &EncodeOptions::default(),
        )
    };
    let plain = encode(&two_turns(), &tokenizer, &template, &EncodeOptions::default());
    for (key, weights, expected) in [
        ("weight", [json!(0), json!(1)], &["A2<|im_end|>"][..]),
        ("weight", [json!(1.0), json!(0.0)], &[" A1\n<|im_end|>"]),
        ("train", [json!(false), Value::Null], &["A2<|im_end|>"]),
        ("train", [json!(true), json!(1)], &[" A1\n<|im_end|>", "A2<|im_end|>"]),
    ] {
        let encoded = with(key, weights);
        assert_eq!(trained(&tokenizer, &encoded), expected, "{key}");
        assert_eq!(encoded.input_ids, plain.input_ids);
    }
}

#[test]
fn a_completion_of_messages_trains_nothing_of_its_prompt() {
    let tokenizer = tokenizer("tiny_chatml");
    let template = template(&source("smollm2"), &tokenizer);
    let Record::Chat { messages, .. } = two_turns() else { unreachable!() };
    let record = Record::PromptCompletion {
        prompt: Turn::Messages(messages[..3].to_vec()),
        completion: Turn::Messages(messages[3..].to_vec()),
        tools: None,
    };
    let encoded = encode(&record, &tokenizer, &template, &EncodeOptions::default());
    assert_eq!(trained(&tokenizer, &encoded), ["A2<|im_end|>"]);
}

#[test]
fn the_prompt_of_a_record_is_what_precedes_its_trained_tokens() {
    let tokenizer = tokenizer("tiny_llama3");
    let template = template(&source("llama3"), &tokenizer);
    let options = EncodeOptions { mask: MaskPolicy::Last, ..EncodeOptions::default() };
    let encoded = encode(&two_turns(), &tokenizer, &template, &options);
    let prompt = |record: &Record| completion_prompt(record, &tokenizer, Some(&template)).unwrap();
    let answer = chat(&json!([{"role": "assistant", "content": "A"}]), None);
    for without in [Record::Text { text: "x".into() }, answer] {
        assert_eq!(prompt(&without), None, "{without:?}");
    }
    let prompt = prompt(&two_turns()).unwrap();
    assert_eq!(prompt.reference.as_deref(), Some("A2"));
    let count = encoded.completion_mask.iter().take_while(|trained| !**trained).count();
    assert_eq!(prompt.input_ids, encoded.input_ids[..count]);
    assert!(prompt.text.ends_with("<|start_header_id|>assistant<|end_header_id|>\n\n"));
}

#[test]
fn generation_blocks_agree_with_the_spans() {
    let tokenizer = tokenizer("tiny_chatml");
    let template = template(&source("chatml_marked"), &tokenizer);
    let Record::Chat { messages, .. } = two_turns() else { unreachable!() };
    let (text, spans) =
        template.render_with_generation_spans(&messages, &RenderOptions::default()).unwrap();
    let marked: Vec<&str> = spans.into_iter().map(|span| &text[span]).collect();
    assert_eq!(marked, [" A1\n<|im_end|>", "A2<|im_end|>"]);
}

#[test]
fn bos_comes_once() {
    let tokenizer = tokenizer("tiny_llama3");
    assert!(tokenizer.adds_bos() && !tokenizer.adds_eos());
    let template = template(&source("llama3"), &tokenizer);
    let encoded = encode(&two_turns(), &tokenizer, &template, &EncodeOptions::default());
    let bos = tokenizer.bos_id().unwrap();
    assert_eq!(encoded.input_ids.iter().filter(|id| **id == bos).count(), 1);
    assert_eq!(encoded.input_ids[0], bos);
}

#[test]
fn offsets_are_bytes_of_the_text_and_pieces_join_to_it() {
    for name in ["tiny_chatml", "tiny_llama3"] {
        let tokenizer = tokenizer(name);
        let text = "  日本語 🦙\n\n<|im_start|>user\n Grüße  ";
        let tokens = tokenizer.encode(text, false).unwrap();
        let mut end = 0;
        for (&id, &(from, to)) in tokens.ids.iter().zip(&tokens.offsets) {
            assert!(from <= end && to >= end && to <= text.len(), "{id} {from}..{to} after {end}");
            end = to;
        }
        assert_eq!(end, text.len());
        assert_eq!(tokenizer.pieces(&tokens.ids).unwrap().concat(), text);
        assert_eq!(tokenizer.decode(&tokens.ids, false).unwrap(), text);
        assert!(!tokenizer.decode(&tokens.ids, true).unwrap().contains("<|im_start|>"));
        assert_eq!(
            tokenizer.encode(text, true).unwrap().ids.len(),
            tokens.ids.len() + usize::from(tokenizer.adds_bos())
        );
    }
}
