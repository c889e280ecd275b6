//! Log-likelihoods of choices on the bundled model.
#![allow(clippy::unwrap_used, clippy::panic)]

use halter_core::generate::Generator;
use halter_core::generate::output::ResultFile;
use halter_core::train::interrupt::Interrupt;
use halter_core::train::progress::Silent;
use halter_core::train::source::SourceSpec;
use halter_core::{bundled, device};
use halter_eval::choice::{self, log_likelihoods};
use halter_eval::encode::Encoded;
use halter_eval::question::Choice;
use serde_json::Map;

fn generator() -> Generator {
    let spec = SourceSpec { model: Some(bundled::MODEL.into()), ..SourceSpec::default() };
    Generator::open(&spec, &device::open("cpu").unwrap()).unwrap()
}

fn question(context: &str, choices: &[&str]) -> Choice {
    Choice {
        description: String::new(),
        context: context.into(),
        choices: choices.iter().map(|text| text.to_string()).collect(),
        gold: 0,
    }
}

fn questions() -> Vec<Choice> {
    vec![
        question("Tom buys 2 eggs for 7 dollars each. The eggs cost", &["14 dollars.", "9.", "2"]),
        question("24 shells are packed in 6 boxes, so there are ", &["4 in each", "24", "6 boxes"]),
        question("", &["Tom buys", "boxes"]),
        question("  ", &["eggs", "4"]),
    ]
}

#[test]
fn choices_are_scored_as_whole_sequences_are_however_they_are_packed() {
    let generator = generator();
    let questions = questions();
    let encoded: Vec<Encoded> =
        questions.iter().map(|question| Encoded::new(&generator, question).unwrap()).collect();
    let together = log_likelihoods(&generator.model, &encoded.iter().collect::<Vec<_>>()).unwrap();
    for (row, together) in encoded.iter().zip(&together) {
        let alone = log_likelihoods(&generator.model, &[row]).unwrap().remove(0);
        assert_eq!(alone.len(), row.question.choices.len());
        for (at, (context, continuation)) in row.pairs.iter().enumerate() {
            // The engine's scores of the whole sequence, computed by other code.
            let whole = [&context[..], continuation].concat();
            let scores = generator.score(&whole, 0).unwrap();
            let tail = &scores[context.len() - 1..];
            assert_eq!(tail.len(), continuation.len());
            let want: f64 = tail.iter().map(|score| f64::from(score.logprob)).sum();
            for got in [alone[at], together[at]] {
                assert!((got - want).abs() < 1e-4 * want.abs().max(1.0), "{got}, {want}");
            }
        }
    }
}

#[test]
fn a_context_is_computed_once_and_its_last_spaces_belong_to_the_choices() {
    let generator = generator();
    let questions = questions();
    let encode = |at: usize| Encoded::new(&generator, &questions[at]).unwrap();
    for at in 0..questions.len() {
        let row = encode(at);
        let continuations: usize = row.pairs.iter().map(|(_, choice)| choice.len()).sum();
        assert_eq!(row.tokens(), row.pairs[0].0.len() + continuations);
        assert!(!row.was_cut);
    }
    let row = encode(1);
    let text = |ids: &[u32]| generator.tokenizer.decode(ids, false).unwrap();
    assert!(text(&row.pairs[0].0).ends_with("there are"));
    assert_eq!(text(&row.pairs[0].1), "  4 in each");
    // Nothing is before the first token: the beginning of a sequence predicts it.
    assert_eq!(encode(2).pairs[0].0.len(), 1);
}

#[test]
fn a_context_that_is_too_long_loses_its_beginning() {
    let generator = generator();
    let limit = generator.context_len();
    let long = question(&"4 eggs and ".repeat(limit), &["4", "24 shells are packed"]);
    let row = Encoded::new(&generator, &long).unwrap();
    assert!(row.was_cut);
    for (context, choice) in &row.pairs {
        assert_eq!(context.len() + choice.len(), limit + 1);
    }
    let whole = generator.text_prompt(long.context.trim_end()).unwrap();
    assert!(whole.ends_with(&row.pairs[0].0));
    let long = "4 eggs and ".repeat(limit);
    let question = question("4", &[&long]);
    let error = Encoded::new(&generator, &question).unwrap_err();
    assert!(error.message().ends_with(&format!("expected from 1 to `{limit}`")), "{error}");
}

#[test]
fn a_run_that_goes_on_writes_the_same_bits() {
    let generator = generator();
    let questions: Vec<Choice> = (0..12).flat_map(|_| questions()).collect();
    let encoded: Vec<Encoded> =
        questions.iter().map(|question| Encoded::new(&generator, question).unwrap()).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("samples.jsonl");
    let run = |file: &mut ResultFile| {
        choice::run(&generator, &encoded, file, &mut Silent, &Interrupt::new()).unwrap();
    };
    run(&mut ResultFile::create(&path, &Map::new()).unwrap());
    let whole = std::fs::read(&path).unwrap();
    for kept in [0, 1, 17, 47, 48] {
        let lines = whole.split_inclusive(|&byte| byte == b'\n').take(kept);
        std::fs::write(&path, lines.collect::<Vec<_>>().concat()).unwrap();
        let mut file = ResultFile::resume(&path, &Map::new()).unwrap();
        run(&mut file);
        assert_eq!(std::fs::read(&path).unwrap(), whole, "{kept} lines were there");
    }
    let interrupt = Interrupt::new();
    interrupt.set();
    let path = dir.path().join("interrupted.jsonl");
    let mut file = ResultFile::create(&path, &Map::new()).unwrap();
    let outcome = choice::run(&generator, &encoded, &mut file, &mut Silent, &interrupt);
    assert_eq!(outcome.unwrap_err().kind(), halter_core::ErrorKind::Interrupted);
}
