use super::*;
use crate::data::record::Row;
use std::path::PathBuf;
use std::sync::Arc;

fn origin(line: usize) -> Origin {
    Origin { path: Arc::new(PathBuf::from("rows.jsonl")), line }
}

fn chat(question: &str, answer: &str) -> Record {
    let messages = vec![Message::new("user", question), Message::new("assistant", answer)];
    Record::Chat { messages, tools: None }
}

#[test]
fn an_inspection_counts_what_is_there() {
    let mut inspector = Inspector::new("rows.jsonl", Some(40));
    let records = [
        chat("What is 2 + 2?", "4"),
        chat("Кто там?", "Это я"),
        chat("What is 2 + 2?", "4"),
        chat("你好", "你好，有什么可以帮你"),
        Record::Text { text: "x".repeat(95) },
    ];
    for (index, record) in records.iter().enumerate() {
        let len = 10 * (index + 1);
        let row = Row {
            origin: origin(index + 1),
            input_ids: vec![1; len],
            completion_mask: (0..len).map(|t| index != 1 && t >= len / 2).collect(),
            prompt_is_prefix: true,
        };
        inspector.add(&row.origin.clone(), record, Some(&row));
    }
    inspector.refuse(&Error::data("`messages` is empty").at("rows.jsonl", 6));
    let inspection = inspector.finish();
    assert_eq!((inspection.rows, inspection.refused, inspection.total), (6, 1, 150));
    assert_eq!((inspection.trained, inspection.untrained_rows), (Some(65), Some(1)));
    assert_eq!((inspection.over_long, inspection.over_long_excess), (1, 10));
    assert_eq!((inspection.duplicates, inspection.roles["user"]), (1, 4));
    insta::assert_snapshot!(inspection);
    insta::assert_snapshot!(serde_json::to_string_pretty(&inspection).unwrap());
}

#[test]
fn rows_that_differ_anywhere_are_no_duplicates() {
    let mut inspector = Inspector::new("x", None);
    let turn = |text: &str| Turn::Text(text.into());
    let pair = |prompt: &str, completion: &str| Record::PromptCompletion {
        prompt: turn(prompt),
        completion: turn(completion),
        tools: None,
    };
    let judged = |label| Record::Unpaired { prompt: turn("a"), completion: turn("b"), label };
    let records = [
        pair("a", "bc"),
        pair("ab", "c"),
        judged(true),
        judged(false),
        Record::Tokenized { input_ids: vec![1, 2], completion_mask: vec![true, true] },
        Record::Tokenized { input_ids: vec![1, 2], completion_mask: vec![false, true] },
        Record::Chat { messages: vec![Message::new("user", "a")], tools: None },
        Record::Chat { messages: vec![Message::new("system", "a")], tools: None },
    ];
    for (index, record) in records.iter().enumerate() {
        inspector.add(&origin(index + 1), record, None);
    }
    let inspection = inspector.finish();
    assert_eq!(inspection.duplicates, 0);
    assert_eq!((inspection.unit, inspection.trained), ("characters", None));
}

#[test]
fn a_data_set_of_nothing_is_shown_too() {
    let inspection = Inspector::new("empty", Some(8)).finish();
    assert_eq!(inspection.histogram, []);
    assert!(inspection.to_string().starts_with("empty\n"));
}

#[test]
fn one_very_long_row_leaves_the_histogram_of_the_others_as_it_was() {
    let usual: Vec<usize> = (0..60).map(|row| 40 + 7 * row).collect();
    let without = histogram(&usual);
    let mut with = histogram(&[usual, vec![131_072]].concat());
    let last = with.pop().unwrap();
    assert_eq!((last.rows, last.to), (1, 131_073));
    assert_eq!(with, without);
    assert!(with.len() > 6, "{with:?}");
    // Of equal lengths, every other one is far away.
    let same = histogram(&[8, 8, 8, 8, 500]);
    assert_eq!(same.iter().map(|bucket| bucket.rows).collect::<Vec<_>>(), [4, 1]);
}

#[test]
fn a_histogram_has_few_buckets_of_a_round_width_and_holds_every_row() {
    for high in [0usize, 1, 7, 11, 12, 13, 100, 999, 4096, 131_072, usize::MAX / 2] {
        for low in [0, high / 3, high] {
            let lengths = [low, (low + high) / 2, high];
            let buckets = histogram(&lengths);
            assert!(buckets.len() <= 12, "{low} to {high}: {}", buckets.len());
            assert_eq!(buckets.iter().map(|bucket| bucket.rows).sum::<usize>(), 3);
            assert!(buckets[0].from <= low && buckets[buckets.len() - 1].to > high);
        }
    }
}
