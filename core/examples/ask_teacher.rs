//! By hand: asks a teacher of a TOML file N questions with top log-probs.
#![allow(clippy::unwrap_used, clippy::print_stdout)]
use halter_core::data::record::Turn;
use halter_core::endpoint::{Question, TeacherConfig};
use std::collections::BTreeMap;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let text = std::fs::read_to_string(&args[1]).unwrap();
    let tables: BTreeMap<String, TeacherConfig> = toml::from_str(&text).unwrap();
    let n: usize = args[3].parse().unwrap();
    for (name, config) in tables {
        let teacher = match config.open(&name, std::path::Path::new(&args[2])) {
            Ok(teacher) => teacher,
            Err(error) => {
                println!("{name}: {error}\n  hint: {:?}", error.remedy());
                continue;
            }
        };
        let mut questions: Vec<Question> = (0..n)
            .map(|i| Question {
                top_logprobs: (i % 2 == 0).then_some(3),
                draw: (i / 2) as u64,
                ..Question::of_user(
                    &format!("Tom has {} apples and buys 3 more. How many has he?", i / 4),
                    24,
                )
            })
            .collect();
        questions.push(Question {
            top_logprobs: Some(2),
            ..Question::new(Turn::Text("The capital of France is".into()), 6)
        });
        let began = std::time::Instant::now();
        match teacher.answer(&questions, &mut |_| Ok(())) {
            Err(error) => println!("{name}: {error}\n  hint: {:?}", error.remedy()),
            Ok(answers) => {
                let bad: Vec<_> = answers.iter().filter_map(|a| a.as_ref().err()).collect();
                println!(
                    "{name}: {} answered, {} refused, {:.2} s, {:?}",
                    answers.len() - bad.len(),
                    bad.len(),
                    began.elapsed().as_secs_f64(),
                    teacher.spent()
                );
                if let Some(error) = bad.first() {
                    println!("  first refusal: {error}");
                }
                for at in [0, 1, answers.len() - 1] {
                    if let Ok(a) = &answers[at] {
                        let told = a
                            .logprobs
                            .as_ref()
                            .map(|l| l.to_string().chars().take(330).collect::<String>());
                        println!(
                            "  {:?} {} {:?} {} {told:?}",
                            a.text(),
                            a.finish,
                            a.usage,
                            a.model
                        );
                    }
                }
            }
        }
        for note in teacher.take_notes() {
            println!("  note: {note}");
        }
    }
}
