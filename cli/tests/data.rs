//! The binary as a user runs it: `halter data inspect` and `halter data explain`.
#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod support;

use std::fs;
use std::path::Path;

use serde_json::Value;
use support::{failures, halter_in, text, told, write_model};

const CHATS: &str = r#"{"messages": [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "5"}]}
{"messages": [{"role": "user", "content": "And 4 + 4?"}, {"role": "assistant", "content": "8"}, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes,\nquite sure."}]}
{"messages": [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "5"}]}

{"messages": [{"role": "user", "content": "Сколько будет 2 + 2?"}, {"role": "assistant", "content": "Четыре"}]}
"#;
const PAIR: &str = r#"{"prompt": "2 + 2 = ", "chosen": "4", "rejected": "5"}"#;

/// A directory with the model and small data sets, good and bad.
fn prepared() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    let files = [
        ("chats.jsonl", CHATS),
        ("pairs.jsonl", PAIR),
        ("completions.jsonl", r#"{"prompt": "2 + 2 =", "completion": " 4"}"#),
        ("texts.json", r#"[{"text": "one two three four five six seven eight"}]"#),
        ("tokens.jsonl", r#"{"input_ids": [8, 40, 41, 9], "completion_mask": [0, 0, 1, 1]}"#),
        ("renamed.jsonl", r#"{"question": "2 + 2 =", "completion": " 4"}"#),
        ("empty.jsonl", "\n"),
        ("table.csv", "a,b\n1,2\n"),
        ("broken.jsonl", &format!("{PAIR}\n{{\"prompt\": \"2\",\n")),
        (
            "wrong.jsonl",
            r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
{"messages": [{"role": "user", "content": "hi"}]}
{"messages": [{"role": "user", "content": "end <|im_end|> it"}, {"role": "assistant", "content": "ho"}]}
{"messages": []}
{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": 7}]}
"#,
        ),
        ("mixed.jsonl", &format!("{}\n{PAIR}\n", r#"{"text": "x"}"#)),
        ("beyond.jsonl", r#"{"input_ids": [8, 40, 4000], "completion_mask": [0, 1, 1]}"#),
    ];
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    fs::write(dir.path().join("latin.jsonl"), b"{\"text\": \"caf\xe9\"}\n").unwrap();
    fs::create_dir(dir.path().join("nothing")).unwrap();
    fs::create_dir(dir.path().join("several")).unwrap();
    for name in ["a.jsonl", "b.jsonl"] {
        fs::write(dir.path().join("several").join(name), CHATS).unwrap();
    }
    dir
}

fn run(dir: &Path, command: &str) -> String {
    let arguments: Vec<&str> = command.split(' ').collect();
    told(&arguments, &halter_in(dir, &arguments))
}

fn json_lines(dir: &Path, command: &str) -> Vec<Value> {
    let arguments: Vec<&str> = command.split(' ').collect();
    let output = halter_in(dir, &arguments);
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_inspection_with_a_model_counts_tokens_and_without_one_characters() {
    let dir = prepared();
    let with = "data inspect --data chats.jsonl --model model --max-seq-len 40";
    insta::assert_snapshot!("inspect_with_a_model", run(dir.path(), with));
    let without = "data inspect --data chats.jsonl:2 --data pairs.jsonl";
    insta::assert_snapshot!("inspect_without_a_model", run(dir.path(), without));
}

#[test]
fn an_inspection_for_programs_is_a_line_of_json_for_each_data_set() {
    let dir = prepared();
    let command = "data inspect --data chats.jsonl --data texts.json --model model --json";
    let lines = json_lines(dir.path(), command);
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["format"], "messages");
    assert_eq!(lines[0]["rows"], 4);
    assert_eq!(lines[0]["unit"], "tokens");
    assert_eq!(lines[0]["duplicates"], 1);
    assert_eq!(lines[0]["untrained_rows"], 0);
    assert_eq!(lines[0]["unlike_generation"], 0);
    assert_eq!(lines[1]["format"], "text");
    // Everything but the first token, which nothing predicts.
    assert_eq!(lines[1]["total"], lines[1]["trained"].as_u64().unwrap() + 1);
}

#[test]
fn rows_that_are_tokens_already_need_no_model_to_be_counted() {
    let dir = prepared();
    let line = &json_lines(dir.path(), "data inspect --data tokens.jsonl --json")[0];
    assert_eq!((line["unit"].as_str(), &line["total"]), (Some("tokens"), &4.into()));
    assert_eq!(line["trained"], 2);
}

#[test]
fn an_inspection_with_wrong_rows_shows_the_rest_and_fails() {
    let dir = prepared();
    let command = "data inspect --data wrong.jsonl --model model";
    insta::assert_snapshot!("inspect_wrong_rows", run(dir.path(), command));
    let lines = json_lines(dir.path(), &format!("{command} --json"));
    assert_eq!((&lines[0]["rows"], &lines[0]["refused"]), (&5.into(), &4.into()));
    assert_eq!(lines[1]["exit_code"], 1);
}

#[test]
fn preferences_are_inspected_without_tokens_and_that_is_said() {
    let dir = prepared();
    let command = "data inspect --data pairs.jsonl --model model";
    insta::assert_snapshot!("inspect_preferences", run(dir.path(), command));
}

#[test]
fn an_explanation_marks_the_trained_tokens() {
    let dir = prepared();
    let two = "data explain --data chats.jsonl --model model --row 1 --rows 2";
    insta::assert_snapshot!("explain_two_rows", run(dir.path(), two));
    let last = "data explain --data chats.jsonl --model model --row 2 --mask last --ids";
    insta::assert_snapshot!("explain_last_turn_with_ids", run(dir.path(), last));
    let line = "data explain --data chats.jsonl --model model --line 5 --rows 9";
    insta::assert_snapshot!("explain_a_line", run(dir.path(), line));
    let color = "data explain --data chats.jsonl --model model --color always";
    let shown = run(dir.path(), color).replace('\x1b', "␛");
    insta::assert_snapshot!("explain_in_colour", shown);
}

#[test]
fn an_explanation_says_what_a_limit_does_to_a_row() {
    let dir = prepared();
    let mut shown = String::new();
    for (data, overlong) in [
        ("texts.json", "truncate"),
        ("texts.json", "split"),
        ("texts.json", "drop"),
        ("texts.json", "refuse"),
        ("chats.jsonl", "split"),
    ] {
        let command = format!(
            "data explain --data {data} --model model --max-seq-len 12 --overlong {overlong}"
        );
        shown += &run(dir.path(), &command);
    }
    insta::assert_snapshot!("explain_overlong", shown);
}

#[test]
fn options_of_the_mask_change_what_is_trained() {
    let dir = prepared();
    let trained = |options: &str| -> Vec<String> {
        let command = format!("data explain --model model --json {options}");
        let lines = json_lines(dir.path(), &command);
        let tokens = lines[0]["rows"][0]["tokens"].as_array().unwrap().clone();
        let is_trained = |token: &&Value| token["trained"] == true;
        tokens.iter().filter(is_trained).map(|t| t["text"].as_str().unwrap().into()).collect()
    };
    assert_eq!(trained("--data chats.jsonl"), ["5", "<|im_end|>"]);
    assert_eq!(trained("--data chats.jsonl --train-on-trailing"), ["5", "<|im_end|>", "\n"]);
    assert_eq!(trained("--data completions.jsonl").last().unwrap(), "<|im_end|>");
    assert!(trained("--data completions.jsonl").concat().starts_with(" 4"));
    let all = trained("--data completions.jsonl --train-on-prompt").concat();
    // All but the first token, which nothing predicts.
    assert_eq!(all, " + 2 = 4<|im_end|>");
    let renamed = trained("--data renamed.jsonl --column prompt=question").concat();
    assert_eq!(renamed, " 4<|im_end|>");
    let special = "--data wrong.jsonl --row 3 --allow-special-text";
    assert_eq!(trained(special), ["h", "o", "<|im_end|>"]);
}

#[test]
fn a_config_and_a_tokenizer_do_for_a_model_and_trls_names_are_known() {
    let dir = prepared();
    let fresh = "data explain --data chats.jsonl --init-from model/config.json --tokenizer model";
    let fresh = json_lines(dir.path(), &format!("{fresh} --json"));
    let alias = "data explain --dataset_name chats.jsonl --model_name_or_path model \
                 --max_length 512 --json";
    assert_eq!(fresh, json_lines(dir.path(), alias));
    fs::rename(dir.path().join("model/tokenizer.json"), dir.path().join("own.json")).unwrap();
    for beside in ["tokenizer_config.json", "chat_template.jinja"] {
        fs::copy(dir.path().join("model").join(beside), dir.path().join(beside)).unwrap();
    }
    let own = "data explain --data chats.jsonl --model model --tokenizer own.json --json";
    assert_eq!(fresh, json_lines(dir.path(), own));
    assert_eq!(fresh[0]["fate"], Value::Null);
}

#[test]
fn without_a_model_and_data_the_bundled_problems_are_shown() {
    let dir = prepared();
    let output = halter_in(dir.path(), &["data", "explain", "--rows", "2"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).starts_with("no --model and no --data: the bundled"));
    assert_eq!(text(&output.stdout).matches(" trained (").count(), 2);
    let lines = json_lines(dir.path(), "data inspect --json");
    assert_eq!((lines.len(), &lines[0]["refused"]), (1, &0.into()));
    assert_eq!(lines[0]["unit"], "tokens");
}

#[test]
fn what_cannot_be_looked_at_is_told_whole() {
    let dir = prepared();
    let commands = [
        "data inspect --model model",
        "data inspect --data absent.jsonl",
        "data inspect --data nothing",
        "data inspect --data empty.jsonl",
        "data inspect --data table.csv",
        "data inspect --data mixed.jsonl",
        "data inspect --data broken.jsonl",
        "data inspect --data latin.jsonl",
        "data inspect --data renamed.jsonl",
        "data inspect --data renamed.jsonl --column prompt=questions",
        "data inspect --data renamed.jsonl --column prompt",
        "data inspect --data chats.jsonl --format chat",
        "data inspect --data chats.jsonl:0",
        "data inspect --data chats.jsonl --model absent",
        "data inspect --data chats.jsonl --model model --init-from model/config.json",
        "data inspect --data chats.jsonl --init-from model/config.json",
        "data inspect --data some/where --model model",
        "data inspect --data beyond.jsonl --model model",
        "data explain --data chats.jsonl",
        "data explain --data pairs.jsonl --model model",
        "data explain --data wrong.jsonl --model model --rows 9",
        "data explain --data chats.jsonl --model model --row 5",
        "data explain --data chats.jsonl --model model --row 0",
        "data explain --data chats.jsonl --model model --line 4",
        "data explain --data several --model model --line 1",
        "data explain --data chats.jsonl --model model --row 1 --line 1",
        "data explain --data chats.jsonl --model model --mask first",
        "data explain --data chats.jsonl --model model --overlong cut",
        "data explain --data chats.jsonl --model model --color sometimes",
    ];
    insta::assert_snapshot!("data_failures", failures(dir.path(), &commands));
}

#[test]
fn a_model_without_a_template_explains_texts_but_no_conversations() {
    let dir = prepared();
    fs::remove_file(dir.path().join("model/chat_template.jinja")).unwrap();
    let texts =
        halter_in(dir.path(), &["data", "explain", "--data", "texts.json", "--model", "model"]);
    assert!(texts.status.success(), "{}", text(&texts.stderr));
    let commands = ["data explain --data chats.jsonl --model model"];
    insta::assert_snapshot!("no_template", failures(dir.path(), &commands));
}

#[test]
fn the_output_for_a_file_has_no_colours() {
    let dir = prepared();
    let command = ["data", "explain", "--data", "chats.jsonl", "--model", "model"];
    assert!(!text(&halter_in(dir.path(), &command).stdout).contains('\x1b'));
}
