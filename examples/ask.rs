//! Asks a teacher: a model here, or servers. Its answers are kept, so that none is asked for twice.
//!
//! `cargo run --release --example ask`
//!
//! `cargo run --release --features endpoint --example ask -- teacher.toml`, where the file has what
//! would stand under `[teachers.NAME]`: `model = "…"` and `endpoints = [{ url = "…/v1" }]`.

#![allow(clippy::print_stdout)]

use std::path::Path;

use halter::core::endpoint::{Question, TeacherConfig};
use halter::core::generate::sampling::Sampling;

fn main() -> anyhow::Result<()> {
    let config = match std::env::args().nth(1) {
        Some(file) => toml::from_str(&std::fs::read_to_string(file)?)?,
        None => TeacherConfig { local: Some("bundled".into()), ..TeacherConfig::default() },
    };
    let teacher = config.open("teacher", Path::new("runs/ask"))?;
    let problem = "Tom has 3 apples and buys 4 more. How many has he?";
    let likeliest = Question { sampling: Sampling::GREEDY, ..Question::of_user(problem, 60) };
    let drawn = (0..3).map(|draw| Question { draw, ..Question::of_user(problem, 60) });
    let questions: Vec<Question> = std::iter::once(likeliest).chain(drawn).collect();
    for answer in teacher.answer(&questions, &mut |_| Ok(()))? {
        match answer {
            Ok(answer) => println!("{} ({})", answer.text().replace('\n', " "), answer.finish),
            Err(error) => println!("no answer: {error}"),
        }
    }
    let spent = teacher.spent();
    println!("{}: {} requests, {} tokens", teacher.name(), spent.requests, spent.tokens);
    teacher.take_notes().iter().for_each(|note| println!("{note}"));
    Ok(())
}
