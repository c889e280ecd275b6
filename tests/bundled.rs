//! The bundled model and data are what their generator makes, and what their README promises.
#![allow(clippy::unwrap_used)]

#[path = "../examples/make_bundled/bundle.rs"]
mod bundle;
#[path = "../examples/make_bundled/corpus.rs"]
mod corpus;
#[path = "../examples/make_bundled/problem.rs"]
mod problem;
#[path = "../examples/make_bundled/random.rs"]
mod random;
#[path = "../examples/make_bundled/templates.rs"]
mod templates;
#[path = "../examples/make_bundled/vocabulary.rs"]
mod vocabulary;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use halter::core::model::config::ModelConfig;
use halter::core::model::weights::WeightFiles;
use halter::core::verify::{Number, final_answer};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/bundled")
}

fn conversations(name: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(folder().join(name)).unwrap();
    let content = |row: &Value, index: usize, role: &str| {
        assert_eq!(row["messages"][index]["role"], role);
        row["messages"][index]["content"].as_str().unwrap().to_string()
    };
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        assert_eq!(row["messages"].as_array().unwrap().len(), 2);
        (content(&row, 0, "user"), content(&row, 1, "assistant"))
    };
    text.lines().map(row).collect()
}

/// The wording with its numbers taken out, and the numbers in order.
fn shape(problem: &str) -> (String, Vec<u32>) {
    let numbers = problem.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
    let wording = problem.chars().filter(|c| !c.is_ascii_digit()).collect();
    (wording, numbers.collect())
}

#[test]
fn the_generator_makes_the_committed_files_again_to_the_byte() {
    let made = bundle::make().unwrap();
    assert_eq!(made.files.len(), 11);
    for (name, text) in made.files {
        let committed = std::fs::read_to_string(folder().join(name)).unwrap();
        // not `assert_eq!`, which would print both files
        assert!(text == committed, "`{name}` is not what examples/make_bundled makes");
    }
    assert_eq!(made.pretrain.lines().count(), corpus::NUM_PRETRAIN);
    for (problem, _) in conversations("eval.jsonl") {
        assert!(!made.pretrain.contains(&problem), "held out and pre-trained on: {problem}");
    }
}

#[test]
fn no_held_out_problem_is_trained_on_in_any_wording() {
    let (train, eval) = (conversations("train.jsonl"), conversations("eval.jsonl"));
    assert_eq!((train.len(), eval.len()), (corpus::NUM_TRAIN, corpus::NUM_EVAL));
    let texts: HashSet<&str> = train.iter().map(|(problem, _)| problem.as_str()).collect();
    assert_eq!(texts.len(), train.len(), "a problem is there twice");
    let mut random = random::Random::new(99);
    let (mut kept, mut held_out) = (HashSet::new(), HashSet::new());
    for _ in 0..20_000 {
        let problem = problem::Problem::draw(&mut random).unwrap();
        let key = (problem.template, problem.numbers.clone());
        if problem.is_held_out() {
            held_out.insert(key)
        } else {
            kept.insert(key)
        };
    }
    assert!(kept.is_disjoint(&held_out));
    let share = held_out.len() as f64 / (kept.len() + held_out.len()) as f64;
    assert!((0.08..0.12).contains(&share), "{share} is held out");
    for (problem, _) in &eval {
        assert!(!texts.contains(problem.as_str()), "held out and trained on: {problem}");
    }
    // the same wording with the same numbers but other names would be the same problem
    let names = |text: &str| {
        let (wording, numbers) = shape(text);
        let is_word = |word: &&str| {
            let word = word.trim_matches(|c: char| !c.is_alphabetic());
            let is_name = templates::PEOPLE.iter().any(|&(name, _)| word == name);
            let is_thing = templates::THINGS.iter().any(|&(one, all)| word == one || word == all);
            !is_name && !is_thing && !["he", "she", "He", "She"].contains(&word)
        };
        let words: Vec<String> =
            wording.split_whitespace().filter(is_word).map(str::to_string).collect();
        (words, numbers)
    };
    let trained: HashSet<_> = train.iter().map(|(problem, _)| names(problem)).collect();
    let both = eval.iter().filter(|(problem, _)| trained.contains(&names(problem))).count();
    assert_eq!(both, 0, "problems that differ from a trained one in names and things only");
}

#[test]
fn every_equation_is_true_and_the_last_one_gives_the_answer() {
    let mut equations = 0;
    for name in ["train.jsonl", "eval.jsonl"] {
        for (problem, completion) in conversations(name) {
            let mut last = None;
            for (at, _) in completion.match_indices(" = ") {
                let left: Vec<&str> = completion[..at].split_whitespace().rev().take(3).collect();
                let value = completion[at + 3..].split(|c: char| !c.is_ascii_digit()).next();
                let [b, sign, a] = left[..] else { panic!("{completion}") };
                let (a, b): (i64, i64) = (a.parse().unwrap(), b.parse().unwrap());
                let value: i64 = value.unwrap().parse().unwrap();
                match sign {
                    "+" => assert_eq!(a + b, value),
                    "-" => assert_eq!(a - b, value),
                    "*" => assert_eq!(a * b, value),
                    "/" => assert_eq!(b * value, a),
                    other => panic!("`{other}` in {completion}"),
                }
                equations += 1;
                last = Number::parse(&value.to_string());
            }
            assert!(last.is_some(), "{completion}");
            assert_eq!(final_answer(&completion), last, "{completion}");
            let (_, told) = shape(&problem);
            assert!(told.iter().all(|number| (1..100).contains(number)), "{problem}");
        }
    }
    assert!(equations > 4_000, "only {equations} equations were checked");
}

#[test]
fn of_every_pair_only_the_chosen_solution_is_right() {
    let trained = conversations("train.jsonl");
    for (name, count) in [
        ("preferences.jsonl", corpus::NUM_PREFERENCES),
        ("preferences-eval.jsonl", corpus::NUM_PREFERENCES_EVAL),
    ] {
        let text = std::fs::read_to_string(folder().join(name)).unwrap();
        assert_eq!(text.lines().count(), count);
        for line in text.lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            let content = |side: &str| row[side][0]["content"].as_str().unwrap().to_string();
            let [prompt, chosen, rejected] = ["prompt", "chosen", "rejected"].map(content);
            let (right, wrong) = (final_answer(&chosen), final_answer(&rejected));
            assert!(right.is_some() && wrong.is_some() && right != wrong, "{line}");
            if name == "preferences-eval.jsonl" {
                assert!(trained.iter().all(|(problem, _)| *problem != prompt), "{prompt}");
            }
        }
    }
}

#[test]
fn problems_to_answer_are_new_and_have_the_answers_of_their_solutions() {
    let trained = conversations("train.jsonl");
    for (name, count, drawn) in [
        ("problems.jsonl", corpus::NUM_PROBLEMS, 6),
        ("problems-eval.jsonl", corpus::NUM_PROBLEMS_EVAL, 7),
    ] {
        let mut random = random::Random::new(drawn);
        let mut answers = std::collections::HashMap::new();
        for _ in 0..20_000 {
            let problem = problem::Problem::draw(&mut random).unwrap();
            answers.insert(problem.text(), final_answer(&corpus::solution(&problem)));
        }
        let text = std::fs::read_to_string(folder().join(name)).unwrap();
        assert_eq!(text.lines().count(), count);
        for line in text.lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            let prompt = row["prompt"][0]["content"].as_str().unwrap();
            assert_eq!(Number::parse(row["answer"].as_str().unwrap()), answers[prompt], "{line}");
            assert!(trained.iter().all(|(problem, _)| problem != prompt), "{prompt}");
        }
    }
}

#[test]
fn every_digit_is_a_token_and_every_text_comes_back() {
    let tokenizer = tokenizers::Tokenizer::from_file(folder().join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer.get_vocab_size(true), vocabulary::SIZE);
    for (id, token) in vocabulary::SPECIAL.iter().enumerate() {
        assert_eq!(tokenizer.token_to_id(token), Some(id as u32));
    }
    for text in ["7 * 12 = 84", "x=1234.5", "naïve – 数学 🦙\t\n  end"] {
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), text);
    }
    let pieces = tokenizer.encode("7 * 12 = 84", false).unwrap();
    let pieces: Vec<String> =
        pieces.get_ids().iter().map(|&id| tokenizer.decode(&[id], false).unwrap()).collect();
    assert_eq!(pieces, ["7", " * ", "1", "2", " = ", "8", "4"]);
}

#[test]
fn the_weights_fit_the_configuration_and_the_bundle_is_small() {
    let config = ModelConfig::from_file(folder().join("config.json")).unwrap();
    let weights = WeightFiles::open(folder()).unwrap();
    weights.check(&config).unwrap();
    let entries = std::fs::read_dir(folder()).unwrap();
    let size: u64 = entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(size <= 5 << 20, "{size} bytes");
}
