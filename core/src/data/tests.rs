//! Whole data sets: wrong ones with the whole text of their errors, and LLaMA-Factory's demos.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dataset::{DataOptions, DataSpec, Dataset};
use super::format::{Columns, Format};
use super::mixture::{Cursor, Mixture};
use super::reader::DataFile;
use super::record::{Record, Turn};
use super::stream::{RowStream, StreamOptions};
use crate::{Error, Result};

/// Opens a data set and reads every row of it.
fn read_all(dataset: &Dataset) -> Result<Vec<Record>> {
    (0..dataset.len()).map(|row| dataset.record(row)).collect()
}

fn open_and_read(path: &Path, options: &DataOptions) -> Result<()> {
    read_all(&Dataset::open(&path.to_string_lossy(), options)?).map(|_| ())
}

fn shown(error: &Error, folder: &Path) -> String {
    let mut text = format!("error: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!("\n  because: {cause}"));
        source = cause.source();
    }
    if let Some(hint) = error.remedy() {
        text.push_str(&format!("\n  hint: {hint}"));
    }
    text.replace(&*folder.to_string_lossy(), "DIR")
}

const GOOD: &str = r#"{"messages": [{"role": "user", "content": "q"}]}"#;

/// Files that are wrong: what about them, their name, their bytes.
fn wrong_files() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let row = |name, row: &str| (name, "rows.jsonl", format!("{GOOD}\n{row}\n").into_bytes());
    let first = |name, row: &str| (name, "rows.jsonl", format!("{row}\n").into_bytes());
    let file = |name, file, text: &[u8]| (name, file, text.to_vec());
    vec![
        row("a broken line", r#"{"messages": [{"role": "user", "content": "q"]}"#),
        row("a line that ends early", r#"{"messages": [{"role": "us"#),
        row("two objects on a line", &format!("{GOOD} {GOOD}")),
        row("a line that is an array", r#"[{"messages": []}]"#),
        row("a line that is a string", r#""hello""#),
        row("a number that is no number", r#"{"messages": NaN}"#),
        row("a depth without end", &"{\"a\":".repeat(500)),
        row("a row of another format", r#"{"prompt": "q", "completion": "a"}"#),
        row("no messages", r#"{"id": 7}"#),
        row("an empty object", "{}"),
        row("an empty conversation", r#"{"messages": []}"#),
        row("messages that are a string", r#"{"messages": "hello"}"#),
        row("a message that is a string", r#"{"messages": ["hello"]}"#),
        row("a message without a role", r#"{"messages": [{"content": "q"}]}"#),
        row("a role that is a number", r#"{"messages": [{"role": 3, "content": "q"}]}"#),
        row("a message without content", r#"{"messages": [{"role": "user"}]}"#),
        row("content that is a number", r#"{"messages": [{"role": "user", "content": 7}]}"#),
        row(
            "an image",
            r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "url": "x"}]}]}"#,
        ),
        row(
            "a part without text",
            r#"{"messages": [{"role": "user", "content": [{"type": "text"}]}]}"#,
        ),
        row(
            "tool calls that are an object",
            r#"{"messages": [{"role": "assistant", "tool_calls": {}}]}"#,
        ),
        row(
            "a tool call without a name",
            r#"{"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}"#,
        ),
        row(
            "tools that are not JSON",
            r#"{"messages": [{"role": "user", "content": "q"}], "tools": "[{"}"#,
        ),
        row(
            "tools that are an object",
            r#"{"messages": [{"role": "user", "content": "q"}], "tools": {}}"#,
        ),
        row(
            "two system prompts",
            r#"{"messages": [{"role": "system", "content": "a"}], "system": "b"}"#,
        ),
        first("an unknown speaker", r#"{"conversations": [{"from": "narrator", "value": "x"}]}"#),
        first("a speaker who says nothing", r#"{"conversations": [{"from": "human"}]}"#),
        first(
            "a function call in prose",
            r#"{"conversations": [{"from": "function_call", "value": "search for x"}]}"#,
        ),
        first("an output that is a list", r#"{"instruction": "i", "output": ["o"]}"#),
        first(
            "half a round of history",
            r#"{"instruction": "i", "output": "o", "history": [["q"]]}"#,
        ),
        first("a prompt that is a number", r#"{"prompt": 5, "completion": "a"}"#),
        first("an empty text", r#"{"text": ""}"#),
        first("a text that is null beside others", r#"{"text": null, "id": 1}"#),
        first("a chosen that is a number", r#"{"prompt": "q", "chosen": 1, "rejected": "b"}"#),
        first(
            "a pair of text and messages",
            r#"{"chosen": "g", "rejected": [{"role": "assistant", "content": "b"}]}"#,
        ),
        first(
            "tools beside a pair",
            r#"{"prompt": "q", "chosen": "g", "rejected": "b", "tools": [{"name": "f"}]}"#,
        ),
        first("a ranking of one", r#"{"prompt": "q", "completions": ["a"]}"#),
        first("a verdict of two", r#"{"prompt": "q", "completion": "a", "kto_tag": 2}"#),
        first(
            "a verdict on a question",
            r#"{"messages": [{"role": "user", "content": "q"}], "label": true}"#,
        ),
        first("no tokens", r#"{"input_ids": []}"#),
        first("a negative token", r#"{"input_ids": [1, -2]}"#),
        first("a token that is a fraction", r#"{"input_ids": [1.5]}"#),
        first("a mask that is too short", r#"{"input_ids": [1, 2], "completion_mask": [1]}"#),
        first("a mask of twos", r#"{"input_ids": [1, 2], "completion_mask": [0, 2]}"#),
        first("shifted labels", r#"{"input_ids": [1, 2, 3], "labels": [2, 3, -100]}"#),
        first(
            "two masks that differ",
            r#"{"input_ids": [1], "completion_mask": [1], "labels": [-100]}"#,
        ),
        first("padding", r#"{"input_ids": [1, 0], "attention_mask": [1, 0]}"#),
        first(
            "an empty completion",
            r#"{"prompt_ids": [1], "chosen_ids": [], "rejected_ids": [2]}"#,
        ),
        file(
            "a byte that is not UTF-8",
            "rows.jsonl",
            b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n",
        ),
        file("an array named as lines", "rows.jsonl", b"[\n{\"text\": \"a\"}\n]\n"),
        file("an empty file", "rows.jsonl", b""),
        file("blank lines only", "rows.jsonl", b"\n \n\n"),
        file("an empty array", "rows.json", b"[]"),
        file("an array of numbers", "rows.json", b"[1, 2]"),
        file("an array without its end", "rows.json", b"[{\"text\": \"a\"},\n{\"text\": \"b\"}\n"),
        file(
            "an array with a missing comma",
            "rows.json",
            b"[{\"text\": \"a\"}\n{\"text\": \"b\"}]",
        ),
        file("words after an array", "rows.json", b"[{\"text\": \"a\"}] more"),
        file("a broken row of an array", "rows.json", b"[{\"text\": \"a\"}, {\"text\": }]"),
        file("a number alone", "rows.json", b"42"),
        file("a document of another kind", "rows.json", b"{\n\"model\": \"x\",\n\"size\": 2\n}"),
        file("text named as Parquet", "rows.parquet", b"{\"text\": \"a\"}\n"),
        file("Parquet without a footer", "rows.parquet", b"PAR1PAR1"),
        file("a table of commas", "rows.csv", b"a,b\n1,2\n"),
        file("no ending", "rows", b"{}\n"),
    ]
}

#[test]
fn wrong_data_sets_are_refused_with_their_place_and_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let mut report = String::new();
    let mut say = |name: &str, result: Result<()>| {
        let error = result.expect_err(name);
        report.push_str(&format!("# {name}\n{}\n\n", shown(&error, folder.path())));
    };
    let plain = DataOptions::default();
    let files = wrong_files();
    assert!(files.len() >= 60, "{} wrong files", files.len());
    for (name, file, bytes) in files {
        let path = folder.path().join(file);
        std::fs::write(&path, bytes).unwrap();
        say(name, open_and_read(&path, &plain));
        std::fs::remove_file(&path).unwrap();
    }
    let path = |name: &str| folder.path().join(name);
    say("no such file", open_and_read(&path("none.jsonl"), &plain));
    std::fs::create_dir(path("empty")).unwrap();
    std::fs::write(path("empty/notes.txt"), "x").unwrap();
    say("a directory without data", open_and_read(&path("empty"), &plain));
    std::fs::create_dir(path("mixed")).unwrap();
    std::fs::write(path("mixed/a.jsonl"), GOOD).unwrap();
    std::fs::write(path("mixed/b.jsonl"), "{\"text\": \"x\"}").unwrap();
    say("a directory of two formats", open_and_read(&path("mixed"), &plain));
    let stated = DataOptions { format: Some(Format::Text), ..DataOptions::default() };
    say("a format that is stated and wrong", open_and_read(&path("mixed/a.jsonl"), &stated));
    let renamed = DataOptions { columns: Columns::parse(["prompt=q"]).unwrap(), format: None };
    say("a rename of nothing", open_and_read(&path("mixed/a.jsonl"), &renamed));
    let spec = |text: &str| text.parse::<DataSpec>().map(|_| ());
    let mixed = path("mixed").to_string_lossy().into_owned();
    for weight in ["nan", "0", "-1", "inf", "half"] {
        say(&format!("a weight of {weight}"), spec(&format!("{mixed}:{weight}")));
    }
    say("a data set without a name", spec(""));
    say("an unknown format", "csv".parse::<Format>().map(|_| ()));
    say("a rename without a name", Columns::parse(["prompt="]).map(|_| ()));
    say("a column renamed twice", Columns::parse(["a=b", "a=c"]).map(|_| ()));
    say("a mixture of nothing", Mixture::new(&[], 0, true).map(|_| ()));
    say("a mixture with an empty part", Mixture::new(&[(0, 1.0)], 0, true).map(|_| ()));
    say("a mixture without end", Mixture::new(&[(1 << 30, 1e9)], 0, true).map(|_| ()));
    #[cfg(not(feature = "hub"))]
    say("a hub data set without the hub", open_and_read(Path::new("org/name:train"), &plain));
    #[cfg(not(feature = "hub"))]
    insta::assert_snapshot!(report);
}

#[test]
fn a_specification_is_a_path_and_perhaps_a_weight() {
    let spec = |text: &str| text.parse::<DataSpec>().unwrap();
    assert_eq!(spec("a.jsonl"), DataSpec { path: "a.jsonl".into(), weight: 1.0 });
    assert_eq!(spec("a.jsonl:0.5"), DataSpec { path: "a.jsonl".into(), weight: 0.5 });
    assert_eq!(spec("org/name:test:2"), DataSpec { path: "org/name:test".into(), weight: 2.0 });
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("at 12:30");
    std::fs::write(&odd, "x").unwrap();
    let odd = odd.to_string_lossy();
    assert_eq!(spec(&odd), DataSpec { path: odd.to_string(), weight: 1.0 });
}

#[test]
fn a_directory_is_read_in_the_order_of_its_names_and_said_aloud() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("b.json", r#"[{"text": "3"}]"#);
    write("a.jsonl", "{\"text\": \"1\"}\n\n{\"text\": \"2\"}\n");
    write("README.md", "not data");
    write(".hidden.jsonl", "{\"text\": \"0\"}\n");
    let path = folder.path().to_string_lossy().into_owned();
    let dataset = Dataset::open(&path, &DataOptions::default()).unwrap();
    let texts: Vec<_> = read_all(&dataset)
        .unwrap()
        .into_iter()
        .map(|record| if let Record::Text { text } = record { text } else { panic!("{record:?}") })
        .collect();
    assert_eq!(texts, ["1", "2", "3"]);
    assert_eq!(dataset.origin(1).line, 3);
    assert_eq!(dataset.origin(2).line, 1);
    let said =
        "DIR: 3 rows in 2 files, format `text` (detected): plain `text`, every token trained";
    assert_eq!(dataset.to_string().replace(&path, "DIR"), said);
}

#[test]
fn renamed_columns_may_change_places() {
    let row = r#"{"question": "q", "answer": "a", "prompt": "old"}"#;
    let options = DataOptions {
        columns: Columns::parse(["prompt=question", "completion=answer"]).unwrap(),
        format: None,
    };
    let file = DataFile::from_jsonl("rows", row).unwrap();
    let dataset = Dataset::from_files("rows", vec![file], &options).unwrap();
    let expected = Record::PromptCompletion {
        prompt: Turn::Text("q".into()),
        completion: Turn::Text("a".into()),
        tools: None,
    };
    assert_eq!(dataset.record(0).unwrap(), expected);
    let swap = DataOptions {
        columns: Columns::parse(["a=b", "b=a"]).unwrap(),
        format: Some(Format::Text),
    };
    let file = DataFile::from_jsonl("rows", r#"{"a": 1, "b": 2}"#).unwrap();
    let dataset = Dataset::from_files("rows", vec![file], &swap).unwrap();
    assert_eq!(
        serde_json::Value::Object(dataset.row(0).unwrap()),
        serde_json::json!({"a": 2, "b": 1})
    );
}

fn demos() -> Option<PathBuf> {
    let root = std::env::var_os("HALTER_ASSETS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets"), PathBuf::from);
    let folder = root.join("llamafactory/data");
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: no demo data in {}", folder.display());
    None
}

#[test]
fn llama_factorys_demo_data_is_read_whole() {
    let Some(folder) = demos() else { return };
    let expected = [
        ("alpaca_en_demo.json", Format::Alpaca, 999),
        ("alpaca_zh_demo.json", Format::Alpaca, 1000),
        ("identity.json", Format::Alpaca, 91),
        ("dpo_en_demo.json", Format::Preference, 300),
        ("dpo_zh_demo.json", Format::Preference, 300),
        ("kto_en_demo.json", Format::Unpaired, 300),
        ("glaive_toolcall_en_demo.json", Format::ShareGpt, 300),
        ("glaive_toolcall_zh_demo.json", Format::ShareGpt, 300),
        ("c4_demo.jsonl", Format::Text, 300),
        ("v1_sft_demo.jsonl", Format::Messages, 500),
        ("v1_dpo_demo.jsonl", Format::Preference, 10),
        ("reason_tool_use_demo_50.jsonl", Format::Messages, 50),
    ];
    for (name, format, rows) in expected {
        let path = folder.join(name);
        let dataset = Dataset::open(&path.to_string_lossy(), &DataOptions::default()).unwrap();
        assert_eq!((dataset.format(), dataset.len()), (format, rows), "{name}");
        read_all(&dataset).unwrap();
    }
    let path = folder.join("dpo_en_demo.json");
    let dataset = Dataset::open(&path.to_string_lossy(), &DataOptions::default()).unwrap();
    let Record::Preference { prompt: Some(Turn::Messages(prompt)), .. } =
        dataset.record(0).unwrap()
    else {
        panic!("no prompt");
    };
    assert!(prompt[0].content().unwrap().starts_with("Hi! I'd like to create a new language game"));
}

#[test]
fn a_mixture_of_files_streams_in_its_order() {
    let rows = |name: &str, count: usize| {
        let text: String = (0..count).map(|n| format!("{{\"text\": \"{name}{n}\"}}\n")).collect();
        let file = DataFile::from_jsonl(name, text).unwrap();
        Dataset::from_files(name, vec![file], &DataOptions::default()).unwrap()
    };
    let sources = Arc::new(vec![rows("a", 20), rows("b", 4)]);
    let mixture = Mixture::new(&[(20, 0.5), (4, 2.0)], 1, true).unwrap();
    let order = || mixture.rows_from(Cursor::default(), Some(2)).unwrap();
    let expected: Vec<_> = order()
        .map(|(_, row)| format!("{}{}", ["a", "b"][row.dataset as usize], row.row))
        .collect();
    assert_eq!(expected.len(), 36);
    let encode = |_: &_, record| match record {
        Record::Text { text } => Ok(text),
        other => Err(Error::data(format!("{other:?}"))),
    };
    let stream = RowStream::start(sources, order(), encode, StreamOptions::default()).unwrap();
    let got: Vec<_> = stream.map(|item| item.unwrap().value).collect();
    assert_eq!(got, expected);
}
