use halter_core::data::dataset::{DataOptions, Dataset};
use halter_core::data::reader::DataFile;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::Silent;
use serde_json::json;

use super::*;
use crate::curate::decontaminate::index::Index;

fn set(name: &str, rows: &[serde_json::Value]) -> Dataset {
    let lines: Vec<String> = rows.iter().map(|row| row.to_string()).collect();
    let file = DataFile::from_jsonl(format!("{name}.jsonl"), lines.join("\n")).unwrap();
    Dataset::from_files(name, vec![file], &DataOptions::default()).unwrap()
}

fn row(prompt: &str, answer: &str, score: f64, topic: &str) -> serde_json::Value {
    json!({
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
        "score": score, "topic": topic,
    })
}

fn mixed() -> Vec<serde_json::Value> {
    let mut rows = Vec::new();
    for at in 0..20 {
        let cat = format!("Why does the brown cat number {at} sleep on the sofa all day?");
        rows.push(row(&cat, "Cats sleep through most of the day.", at as f64, "cats"));
        let sum = format!("Solve the equation {at} x plus seven for its unknown value");
        rows.push(row(
            &sum,
            "The equation has one solution, as both sides are linear.",
            1.0,
            "maths",
        ));
    }
    rows.push(row("Mail jane@mail.dev", "Her key is AKIAIOSFODNN7ABCDEFG.", 0.5, "maths"));
    rows.push(row("mail JANE@mail.dev!", "her key is AKIAIOSFODNN7ABCDEFG", 0.5, "maths"));
    rows.push(json!({"messages": 1}));
    rows
}

fn profiled(sets: &[Dataset], lenses: Lenses) -> (Vec<Profile>, Option<Comparison>) {
    profile(sets, lenses, &mut Silent, &Interrupt::new()).unwrap()
}

#[test]
fn everything_is_counted() {
    let (profiles, comparison) = profiled(&[set("mixed", &mixed())], Lenses::default());
    let profile = &profiles[0];
    assert_eq!((profile.rows, profile.refused, profile.format), (43, 1, "messages"));
    assert!(profile.errors[0].starts_with("mixed.jsonl:43: "), "{:?}", profile.errors);
    assert_eq!(profile.roles["user"], 42);
    assert_eq!(profile.languages[0].0, "en");
    assert_eq!(profile.duplicates.exact, 1);
    assert_eq!(profile.duplicates.examples[0], ("mixed.jsonl:42".into(), "mixed.jsonl:41".into()));
    let (of, score) = &profile.numbers[0];
    assert_eq!((of.as_str(), score.rows, score.max), ("score", 42, 19.0));
    assert_eq!(
        profile.classes,
        [("topic".into(), vec![("maths".into(), 22), ("cats".into(), 20)])]
    );
    assert_eq!(profile.extremes[1].of, "score");
    assert_eq!(profile.extremes[1].high[0].place, "mixed.jsonl:39");
    assert!(profile.topics.iter().any(|topic| topic.name.contains("cat")), "{:?}", profile.topics);
    assert!(profile.topics.iter().any(|topic| topic.name.contains("equation")));
    let runs = &profile.vocabulary.runs;
    assert!(runs.contains(&("sleep on the sofa".into(), 20)), "{runs:?}");
    assert_eq!(profile.vocabulary.prompt_starts[0], ("solve the".into(), 20));
    assert!(comparison.is_none());
    let lengths: Vec<_> = profile.lengths.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        lengths,
        ["characters", "words", "words of the prompt", "words of the answer", "turns"]
    );
}

#[test]
fn secrets_are_told_by_their_place_and_shown_nowhere() {
    let (profiles, _) = profiled(&[set("mixed", &mixed())], Lenses::default());
    let kinds: Vec<_> =
        profiles[0].findings.iter().map(|found| (found.kind, found.times)).collect();
    assert_eq!(kinds, [(Kind::ApiKey, 2), (Kind::Email, 2)]);
    assert_eq!(profiles[0].findings[0].places[0].0, "mixed.jsonl:41");
    let page = render(&profiles, None).unwrap();
    let figures = serde_json::to_string(&profiles).unwrap();
    for told in [page, figures] {
        assert!(!told.contains("AKIAIOSFODNN7") && !told.contains("jane@mail"));
        assert!(told.contains("[API key, 20 characters]"));
    }
}

#[test]
fn two_sets_share_their_bars_and_what_sets_them_apart_is_told() {
    let rows = mixed();
    let cats: Vec<_> = rows.iter().filter(|row| row["topic"] == "cats").cloned().collect();
    let maths: Vec<_> = rows.iter().filter(|row| row["topic"] == "maths").cloned().collect();
    let both = [cats, [maths, vec![rows[0].clone()]].concat()];
    let sets = [set("cats", &both[0]), set("maths", &both[1])];
    let (profiles, comparison) = profiled(&sets, Lenses::default());
    let comparison = comparison.unwrap();
    assert_eq!(comparison.shared, 1);
    assert_eq!(comparison.shares.0, 1.0 / 20.0);
    let words = |words: &[(String, f64)]| words.iter().map(|(w, _)| w.clone()).collect::<Vec<_>>();
    assert!(words(&comparison.first_words).contains(&"sleep".into()), "{comparison:?}");
    assert!(words(&comparison.other_words).contains(&"equation".into()));
    let bars = |at: usize| &profiles[at].lengths[0].1.histogram;
    assert_eq!((bars(0).from, bars(0).width), (bars(1).from, bars(1).width));
    let page = render(&profiles, Some(&comparison)).unwrap();
    assert!(page.contains("What sets them apart"));
}

#[test]
fn rows_of_evaluations_are_found_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("eval.jsonl");
    let asked = "Why does the brown cat number 7 sleep on the sofa all day?";
    std::fs::write(&path, json!({"question": asked}).to_string()).unwrap();
    let index = Index::open(std::slice::from_ref(&path), &[], 8, 5).unwrap();
    let lenses = Lenses { evaluation: Some((&index, 0.9)), ..Lenses::default() };
    let (profiles, _) = profiled(&[set("mixed", &mixed())], lenses);
    let found = profiles[0].contamination.as_ref().unwrap();
    assert_eq!((found.rows, found.files[0].2), (1, 1));
    assert_eq!(found.examples[0].0, "mixed.jsonl:15");
    assert!(found.examples[0].1.ends_with("eval.jsonl:1"));
}

#[test]
fn what_came_from_data_is_escaped() {
    let rows = [row("<script>alert(1)</script> what is it", "<b>no</b> it is not", 1.0, "<i>")];
    let (profiles, _) = profiled(&[set("<name>", &rows)], Lenses::default());
    let page = render(&profiles, None).unwrap();
    assert!(!page.contains("<script") && !page.contains("<i>") && !page.contains("<name>"));
    assert!(page.contains("&lt;script&gt;"));
}

#[test]
fn rows_of_tokens_and_of_preferences_are_profiled_as_well() {
    let tokens = [json!({"input_ids": [1, 2, 3]}), json!({"input_ids": [4]})];
    let pairs = [json!({"prompt": "a b", "chosen": "c d", "rejected": "e"})];
    for (rows, words) in [(&tokens[..], 0), (&pairs[..], 4)] {
        let (profiles, _) = profiled(&[set("s", rows)], Lenses::default());
        assert_eq!(profiles[0].vocabulary.words, words);
        render(&profiles, None).unwrap();
    }
}

#[test]
fn secrets_are_found_wherever_they_stand_and_no_figure_shows_them() {
    let (mail, key) = ("jane@mail.dev", "AKIAIOSFODNN7ABCDEFG");
    let arguments = json!({"to": mail}).to_string();
    let rows = [
        json!({"prompt": "Which of these?", "chosen": "This one.", "rejected": format!("No: {key}")}),
        json!({"prompt": mail, "chosen": mail, "rejected": "No.", "author": mail}),
        json!({"prompt": mail, "chosen": format!("{mail} and so on"), "rejected": "-", "author": mail}),
    ];
    let call = json!([{"role": "user", "content": "Write."}, {"role": "assistant", "content": null,
        "tool_calls": [{"function": {"name": "mail", "arguments": arguments}}]}]);
    let calls = [json!({"messages": call}), json!({"messages": 1, "note": mail})];
    let sets = [set("pairs", &rows), set("calls", &calls)];
    let (profiles, comparison) = profiled(&sets, Lenses::default());
    let times =
        |at: usize| profiles[at].findings.iter().map(|f| (f.kind, f.rows)).collect::<Vec<_>>();
    assert_eq!(times(0), [(Kind::ApiKey, 1), (Kind::Email, 2)]);
    assert_eq!(times(1), [(Kind::Email, 1)]);
    assert_eq!(profiles[0].classes[0].1, [("[e-mail address, 13 characters]".into(), 2)]);
    let page = render(&profiles, comparison.as_ref()).unwrap();
    let figures = serde_json::to_string(&(&profiles, &comparison)).unwrap();
    for told in [page.to_lowercase(), figures.to_lowercase()] {
        assert!(!told.contains("jane") && !told.contains("mail.dev") && !told.contains("akia"));
    }
}

#[test]
fn numbers_within_objects_are_columns_and_known_ones_show_their_ends_first() {
    let row = |at: f64| {
        let mut row = row("Why is it so?", "Because.", at, "t");
        row["judge"] = json!({"points": at, "of": 3, "more": {"deep": at}});
        ["a", "b", "c", "d"].iter().for_each(|name| row[*name] = json!(1));
        row
    };
    let (profiles, _) = profiled(&[set("s", &[row(1.0), row(2.0)])], Lenses::default());
    let names: Vec<_> = profiles[0].numbers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "judge.more.deep", "judge.of", "judge.points", "score"]);
    let ends: Vec<_> = profiles[0].extremes.iter().map(|extreme| extreme.of.as_str()).collect();
    assert_eq!(ends, ["words", "score", "judge.points", "a", "b"]);
}
