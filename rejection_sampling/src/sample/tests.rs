use std::path::Path;

use candle_core::Device;
use halter_core::data::dataset::DataOptions;
use halter_core::data::record::Turn;
use halter_core::data::rows::Rows;
use halter_core::generate::Generator;
use halter_core::generate::output::ResultFile;
use halter_core::generate::sampling::Sampling;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::Silent;
use halter_core::train::source::SourceSpec;
use halter_core::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

use super::*;
use crate::scorer::{Item, Score, Scorer};

fn scored(text: &str, score: Option<f64>, ended: bool) -> Scored {
    Scored {
        text: text.into(),
        finish_reason: if ended { "stop" } else { "length" }.into(),
        num_tokens: text.len(),
        score,
        ..Scored::default()
    }
}

fn line(row: u64, completions: Vec<Scored>) -> Line {
    let prompt = json!([{"role": "user", "content": format!("ask {row}")}]);
    Line { row, prompt, completions, ..Line::default() }
}

fn keep(selection: &str) -> Keep {
    Keep {
        selection: selection.parse().unwrap(),
        min_score: Some(0.5),
        min_margin: Some(0.0),
        provenance: Map::from_iter([("model".to_string(), json!("m"))]),
    }
}

#[test]
fn what_was_cut_off_is_empty_or_has_no_score_is_never_kept() {
    let all = [
        scored("#### 5", Some(1.0), false),
        scored("#### 4", Some(0.0), true),
        scored("#### 6", None, true),
        scored("so #### 5", Some(0.9), true),
        scored("so #### 5 ", Some(0.9), true),
        scored(" ", Some(-1.0), true),
        scored("", Some(2.0), true),
    ];
    for (selection, want) in
        [("best", &[3][..]), ("above=0", &[3]), ("top=1", &[3]), ("majority", &[3]), ("none", &[])]
    {
        assert_eq!(keep(selection).rows(&all), want, "{selection}");
    }
    assert_eq!(keep("best").pair(&all), Some((3, 1)));
    assert_eq!(Keep { min_margin: Some(0.95), ..keep("best") }.pair(&all), None);
    assert_eq!(Keep { min_margin: None, ..keep("best") }.pair(&all), None);
    assert_eq!(Keep { min_score: Some(0.95), ..keep("best") }.rows(&all), [0; 0]);
}

#[test]
fn selections_are_read_as_they_are_written() {
    for text in ["best", "above=0.5", "top=0.25", "majority", "none"] {
        assert_eq!(text.parse::<Selection>().unwrap().to_string(), text);
    }
    for text in ["", "Best", "top=0", "top=2", "above=x", "above=nan", "worst=1"] {
        assert!(text.parse::<Selection>().is_err(), "{text}");
    }
}

fn write(path: &Path, lines: &[Line]) {
    let text: String =
        lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
    std::fs::write(path, text).unwrap();
}

fn read(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn rows_and_pairs_say_where_they_come_from() {
    let folder = tempfile::tempdir().unwrap();
    let [from, rows, pairs] = ["c", "r", "p"].map(|name| folder.path().join(name));
    let good = vec![scored("good", Some(1.0), true), scored("bad", Some(0.0), true)];
    write(&from, &[line(0, good), line(1, vec![scored("bad", Some(0.0), true)])]);
    let kept = write_kept(&keep("best"), &from, &rows, &pairs).unwrap();
    assert_eq!(kept, Kept { rows: 1, pairs: 1 });
    let [row] = &read(&rows)[..] else { unreachable!() };
    assert_eq!(row["messages"][1], json!({"role": "assistant", "content": "good"}));
    let said = &row["provenance"];
    assert_eq!((&said["model"], &said["row"]), (&json!("m"), &json!(0)));
    assert_eq!((&said["completion"], &said["rank"]), (&json!(0), &json!(1)));
    let [pair] = &read(&pairs)[..] else { unreachable!() };
    assert_eq!(pair["chosen"][0]["content"], "good");
    assert_eq!(pair["rejected"][0]["content"], "bad");
    assert_eq!(pair["provenance"]["rejected"]["rank"], 2);
}

#[test]
fn figures_are_those_of_the_estimators() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("c");
    let two =
        |a: f64, b: f64| vec![scored("#### 1", Some(a), true), scored("#### 2", Some(b), true)];
    write(&from, &[line(0, two(1.0, 0.0)), line(1, two(0.0, 0.0)), line(2, Vec::new())]);
    let figures = Figures::read(&from, Some(0.5), true).unwrap();
    assert_eq!((figures.prompts, figures.failed_prompts, figures.completions), (2, 1, 4));
    assert_eq!(figures.acceptance.unwrap().0, 0.25);
    let pass: Vec<_> = figures.pass_at.iter().map(|rate| (rate.k, rate.mean)).collect();
    assert_eq!(pass, [(1, 0.25), (2, 0.5)]);
    let majority: Vec<_> = figures.majority_at.iter().map(|rate| (rate.k, rate.mean)).collect();
    assert_eq!(majority, [(1, 0.25), (2, 0.25)]);
    let (low, high, counts) = figures.histogram.clone().unwrap();
    assert_eq!((low, high, counts.iter().sum::<usize>()), (0.0, 1.0, 4));
    let page = render("<run>", &[("model".into(), "m".into())], &figures).unwrap();
    assert!(page.contains("&lt;run&gt;") && page.contains("pass@k") && page.contains("#### 1"));
    // Answers of other scorers have no vote.
    assert!(Figures::read(&from, Some(0.5), false).unwrap().majority_at.is_empty());
    // Without a least score nothing is accepted or refused.
    assert_eq!(Figures::read(&from, None, true).unwrap().acceptance, None);
}

#[test]
fn a_prompt_without_an_answer_is_a_wrong_majority() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("c");
    let two = |text: &str, score| vec![scored(text, Some(score), true); 2];
    let partial = Line { error: Some("no room".into()), ..line(1, two("no number", 0.0)) };
    write(&from, &[line(0, two("#### 1", 1.0)), partial]);
    let figures = Figures::read(&from, Some(0.5), true).unwrap();
    let majority: Vec<_> = figures.majority_at.iter().map(|rate| (rate.k, rate.mean)).collect();
    assert_eq!(majority, [(1, 0.5), (2, 0.5)]);
    assert_eq!((figures.failed_prompts, figures.partial_prompts), (0, 1));
}

/// Fails in another way on each of the first rows, and stops the run after the fifth where it may.
struct Failing(Option<Interrupt>);

impl Scorer for Failing {
    fn name(&self) -> &str {
        "failing"
    }

    fn score(&self, item: &Item) -> Result<Score> {
        if let (Some(interrupt), Some("4")) = (&self.0, item.row["id"].as_str()) {
            interrupt.set();
        }
        match item.row["id"].as_str() {
            Some("0") => unreachable!("a scorer with a defect"),
            Some("1") => Err(Error::data("no rating")),
            Some("2") => Ok(Score::new(f64::NAN)),
            Some("3") => Ok(Score::new(f64::INFINITY)),
            _ => Ok(Score::new(1.0)),
        }
    }
}

/// A sampler of 40 rows of one short completion.
fn with_sampler<T>(folder: &Path, scorer: &dyn Scorer, act: impl FnOnce(&Sampler) -> T) -> T {
    let data = folder.join("data.jsonl");
    let rows = (0..40).map(|row| json!({"prompt": "1 + 1", "id": row.to_string()}).to_string());
    std::fs::write(&data, rows.collect::<Vec<_>>().join("\n")).unwrap();
    let model = SourceSpec { model: Some("bundled".into()), ..SourceSpec::default() };
    let generator = Generator::open(&model, &Device::Cpu).unwrap();
    let rows = Rows::open(&[data.display().to_string()], &DataOptions::default()).unwrap();
    act(&Sampler {
        generator: &generator,
        rows: &rows,
        scorer,
        variants: &[Variant { sampling: Sampling::default(), system: None, completions: 1 }],
        max_new_tokens: 2,
        stop_tokens: &[],
        stop: &[],
        seed: 1,
        engine: generator.engine_options(4, None),
    })
}

/// Samples, and tells how it went.
fn sample(folder: &Path, scorer: Failing, interrupt: &Interrupt) -> (Result<Outcome>, Vec<Value>) {
    let results = folder.join("results.jsonl");
    let mut file = ResultFile::create(&results, &Map::new()).unwrap();
    let outcome =
        with_sampler(folder, &scorer, |sampler| sampler.run(0, &mut file, &mut Silent, interrupt));
    (outcome, read(&results))
}

#[test]
fn a_scorer_that_crashes_costs_its_row_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let (outcome, lines) = sample(folder.path(), Failing(None), &Interrupt::new());
    outcome.unwrap();
    assert_eq!(lines.len(), 40);
    let whys = ["has crashed", "no rating", "a finite score, got `NaN`", "got `inf`"];
    for (line, why) in lines.iter().zip(whys) {
        let completion = &line["completions"][0];
        assert!(completion["error"].as_str().unwrap().contains(why), "{completion}");
        assert_eq!(completion["score"], Value::Null);
    }
    assert!(lines[4..].iter().all(|line| line["completions"][0]["score"] == 1.0));
    let figures = Figures::read(&folder.path().join("results.jsonl"), None, true).unwrap();
    assert_eq!((figures.failed_prompts, figures.unscored, figures.completions), (0, 4, 40));
}

#[test]
fn rows_that_wait_for_their_scores_are_left_to_a_resumed_run() {
    let folder = tempfile::tempdir().unwrap();
    let interrupt = Interrupt::new();
    let (outcome, lines) = sample(folder.path(), Failing(Some(interrupt.clone())), &interrupt);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Interrupted);
    assert_eq!(lines.len(), 5);
}

#[test]
fn what_could_not_be_scored_is_scored_again_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let (outcome, before) = sample(folder.path(), Failing(None), &Interrupt::new());
    outcome.unwrap();
    let path = folder.path().join("results.jsonl");
    let again = |scorer: &dyn Scorer, interrupt: &Interrupt| {
        let path = path.clone();
        let again = |sampler: &Sampler| sampler.score_again(&path, &mut Silent, interrupt);
        let outcome = with_sampler(folder.path(), scorer, again);
        (outcome, read(&path))
    };
    // The same failures leave the same file, and so does an interrupt.
    let (outcome, same) = again(&Failing(None), &Interrupt::new());
    outcome.unwrap();
    assert_eq!(same, before);
    let set = Interrupt::new();
    set.set();
    let (outcome, same) = again(&Lengths, &set);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Interrupted);
    assert_eq!(same, before);
    let (outcome, after) = again(&Lengths, &Interrupt::new());
    outcome.unwrap();
    assert_eq!(after.len(), 40);
    for (at, (mut after, mut before)) in after.into_iter().zip(before).enumerate() {
        if at < 4 {
            let [new, old] = [&mut after, &mut before].map(|line| &mut line["completions"][0]);
            assert_eq!(new["score"], 2.0, "{new}");
            assert!(new.get("error").is_none(), "{new}");
            for key in ["score", "detail", "error"] {
                new.as_object_mut().unwrap().shift_remove(key);
                old.as_object_mut().unwrap().shift_remove(key);
            }
        }
        assert_eq!(after, before);
    }
}

/// Scores what it is shown: tokens, where row and prompt are there.
struct Lengths;

impl Scorer for Lengths {
    fn name(&self) -> &str {
        "lengths"
    }

    fn score(&self, item: &Item) -> Result<Score> {
        let is_there = item.row.contains_key("id") && *item.prompt == Turn::Text("1 + 1".into());
        Ok(Score::new(if is_there { item.num_tokens as f64 } else { -1.0 }))
    }
}
