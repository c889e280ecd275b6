use std::io::Write;
use std::path::Path;

use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use proptest::prelude::*;

use super::*;

fn texts(file: &DataFile) -> Vec<String> {
    (0..file.len()).map(|row| file.row(row).unwrap()["text"].as_str().unwrap().into()).collect()
}

fn lines(file: &DataFile) -> Vec<usize> {
    (0..file.len()).map(|row| file.origin(row).line).collect()
}

#[test]
fn json_lines_may_have_a_mark_blank_lines_and_any_line_ending() {
    let text = "\u{feff}{\"text\": \"a\"}\r\n\r\n  \t\n{\"text\": \"b\"}\n{\"text\": \"ü\"}";
    let file = DataFile::from_jsonl("x", text).unwrap();
    assert_eq!(texts(&file), ["a", "b", "ü"]);
    assert_eq!(lines(&file), [1, 4, 5]);
    assert!(DataFile::from_jsonl("x", "\n\n").unwrap().is_empty());
    assert!(DataFile::from_jsonl("x", "\u{feff}").unwrap().is_empty());
}

#[test]
fn rows_longer_than_the_scanners_buffer_are_read_whole() {
    let long = "y".repeat(300_000);
    let text = format!("{{\"text\": \"a\"}}\n{{\"text\": \"{long}\"}}\n{{\"text\": \"c\"}}\n");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, &text).unwrap();
    let file = DataFile::open(&path).unwrap();
    assert_eq!(texts(&file), ["a", &long, "c"]);
    let array = format!("[{}]", text.trim_end().replace('\n', ",\n"));
    assert_eq!(texts(&DataFile::from_json("x", array).unwrap()), ["a", &long, "c"]);
}

#[test]
fn a_json_file_is_an_array_an_object_with_data_or_lines() {
    let rows = r#"[{"text": "a ] } \" [ {"}, {"text": "b", "more": [[{}], "x"]}]"#;
    let expected = ["a ] } \" [ {", "b"];
    assert_eq!(texts(&DataFile::from_json("x", rows).unwrap()), expected);
    let object = format!(r#"{{"version": 1.5, "meta": {{"data": [1]}}, "data": {rows}, "n": 2}}"#);
    assert_eq!(texts(&DataFile::from_json("x", object).unwrap()), expected);
    let lines = "{\"text\": \"a\"}\n{\"text\": \"b\"}\n";
    assert_eq!(texts(&DataFile::from_json("x", lines).unwrap()), ["a", "b"]);
    assert_eq!(texts(&DataFile::from_json("x", "{\"text\": \"a\"}").unwrap()), ["a"]);
    for empty in ["[]", " [ ] ", "", "{\"data\": []}"] {
        assert!(DataFile::from_json("x", empty).unwrap().is_empty(), "{empty}");
    }
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error_not_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, "{\"text\": \"a\"}\n{\"text\": \"b\"}\n").unwrap();
    let file = DataFile::open(&path).unwrap();
    std::fs::write(&path, "{\"text\"").unwrap();
    let error = file.row(1).unwrap_err();
    assert_eq!(error.location().unwrap().line, Some(2));
    assert_eq!(error.remedy(), Some("did the file change while it was in use?"));
}

/// Writes a Parquet file of conversations and texts, in row groups of the given sizes.
pub(crate) fn write_parquet(path: &Path, groups: &[usize]) {
    let schema = "message rows {
        required binary text (UTF8);
        optional group messages (LIST) {
            repeated group list {
                optional group element {
                    optional binary role (UTF8);
                    optional binary content (UTF8);
                    optional binary name (UTF8);
                }
            }
        }
    }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = std::fs::File::create(path).unwrap();
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    let bytes = |text: String| ByteArray::from(text.into_bytes());
    let mut first = 0;
    for &rows in groups {
        let mut group = writer.next_row_group().unwrap();
        let numbers = first..first + rows;
        // Two messages a row; `name` is null in all of them.
        let two = |what: fn(usize, usize) -> String| -> Vec<ByteArray> {
            numbers.clone().flat_map(|row| (0..2).map(move |turn| bytes(what(row, turn)))).collect()
        };
        let columns = [
            (numbers.clone().map(|row| bytes(format!("text {row}"))).collect(), None),
            (two(|_, turn| ["user", "assistant"][turn].into()), Some(4)),
            (two(|row, turn| format!("turn {turn} of {row}")), Some(4)),
            (Vec::new(), Some(3)),
        ];
        for (values, level) in columns {
            let mut column = group.next_column().unwrap().unwrap();
            let definition = level.map(|level| vec![level; rows * 2]);
            let repetition: Vec<i16> = [0, 1].repeat(rows);
            column
                .typed::<ByteArrayType>()
                .write_batch(
                    &values,
                    definition.as_deref(),
                    level.is_some().then_some(&repetition[..]),
                )
                .unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        first += rows;
    }
    writer.close().unwrap();
}

#[test]
fn a_fingerprint_tells_a_changed_file_from_the_one_that_was() {
    let folder = tempfile::tempdir().unwrap();
    let fingerprint = |path: &Path| {
        let mut hasher = blake3::Hasher::new();
        DataFile::open(path).unwrap().hash_into(&mut hasher).unwrap();
        hasher.finalize()
    };
    let path = folder.path().join("rows.jsonl");
    // One that is hashed whole, and one of which blocks are.
    for rows in [100, 100_000] {
        let text = "{\"text\": \"a\"}\n".repeat(rows);
        std::fs::write(&path, &text).unwrap();
        let before = fingerprint(&path);
        assert_eq!(before, fingerprint(&path));
        let held = DataFile::from_jsonl("memory", text.as_bytes()).unwrap();
        let mut hasher = blake3::Hasher::new();
        held.hash_into(&mut hasher).unwrap();
        assert_eq!(before, hasher.finalize(), "{rows} rows in memory");
        for row in [0, rows - 1] {
            let mut other = text.clone().into_bytes();
            other[14 * row + 10] = b'b';
            std::fs::write(&path, &other).unwrap();
            assert_ne!(before, fingerprint(&path), "row {row} of {rows}");
        }
        std::fs::write(&path, format!("{text}\n")).unwrap();
        assert_ne!(before, fingerprint(&path), "a blank line more");
    }
    let path = folder.path().join("rows.parquet");
    write_parquet(&path, &[5, 1]);
    let before = fingerprint(&path);
    write_parquet(&path, &[5, 2]);
    assert_ne!(before, fingerprint(&path));
}

#[test]
fn parquet_rows_are_read_in_any_order_by_several_threads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    write_parquet(&path, &[5, 1, 8, 40, 60, 80, 100, 120]);
    // Fresh files, so that the threads meet while row groups are being decoded.
    for _ in 0..10 {
        let file = DataFile::open(&path).unwrap();
        let rows = file.len();
        assert_eq!((rows, file.origin(13).line), (414, 14));
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let file = &file;
                scope.spawn(move || {
                    for step in 0..rows {
                        let row = (step * 5 + thread * 51) % rows;
                        let expected = serde_json::json!({"text": format!("text {row}"), "messages": [
                            {"role": "user", "content": format!("turn 0 of {row}")},
                            {"role": "assistant", "content": format!("turn 1 of {row}")}]});
                        assert_eq!(Value::Object(file.row(row).unwrap()), expected);
                    }
                });
            }
        });
    }
}

#[test]
fn a_parquet_file_of_pyarrow_holds_the_rows_that_python_reads() {
    // Written by oracle/parquet_rows.py.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/golden/data");
    let parquet = DataFile::open(folder.join("rows.parquet")).unwrap();
    let lines = DataFile::open(folder.join("rows.jsonl")).unwrap();
    assert_eq!((parquet.len(), lines.len()), (12, 12));
    for row in (0..12).rev() {
        let (got, expected) = (parquet.row(row).unwrap(), lines.row(row).unwrap());
        assert_eq!(Value::Object(got), Value::Object(expected), "row {row}");
    }
}

#[test]
fn a_spoilt_parquet_file_is_an_error_wherever_it_is_spoilt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    write_parquet(&path, &[3, 2]);
    let good = std::fs::read(&path).unwrap();
    // Panics of the parquet crate are caught, but would be shown.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut wrong = 0;
    for place in 0..good.len() {
        let mut spoilt = good.clone();
        spoilt[place] ^= 0x55;
        std::fs::File::create(&path).unwrap().write_all(&spoilt).unwrap();
        match DataFile::open(&path) {
            Ok(file) => wrong += usize::from((0..file.len()).any(|row| file.row(row).is_err())),
            Err(_) => wrong += 1,
        }
    }
    std::panic::set_hook(hook);
    assert!(wrong > good.len() / 10, "{wrong} of {} were seen", good.len());
    for length in [0, 3, 4, 12, good.len() / 2, good.len() - 1] {
        std::fs::write(&path, &good[..length]).unwrap();
        assert!(DataFile::open(&path).is_err(), "cut to {length}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for file in [DataFile::from_jsonl("x", bytes.clone()), DataFile::from_json("x", bytes)] {
            let Ok(file) = file else { continue };
            for row in 0..file.len() {
                let _ = file.row(row);
            }
        }
    }

    #[test]
    fn lines_and_array_hold_the_same_rows(texts in prop::collection::vec(".*", 0..20), pretty: bool) {
        let rows: Vec<Value> = texts.iter().map(|t| serde_json::json!({"text": t, "n": [1, {}]})).collect();
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        let array = if pretty { serde_json::to_string_pretty(&rows) } else { serde_json::to_string(&rows) };
        let lines = DataFile::from_jsonl("x", lines).unwrap();
        let array = DataFile::from_json("x", array.unwrap()).unwrap();
        prop_assert_eq!(lines.len(), rows.len());
        prop_assert_eq!(array.len(), rows.len());
        for (row, value) in rows.iter().enumerate() {
            prop_assert_eq!(&Value::Object(lines.row(row).unwrap()), value);
            prop_assert_eq!(&Value::Object(array.row(row).unwrap()), value);
        }
    }
}
