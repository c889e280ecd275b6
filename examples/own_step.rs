//! A step of one's own between those of halter: rows with a shout go, then those that are alike.
//!
//! `cargo run --release --example own_step`

#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::Path;

use halter::Result;
use halter::core::data::record::Message;
use halter::core::train::interrupt::Interrupt;
use halter::core::train::progress::Silent;
use halter::synth::pipeline::Options;
use halter::synth::{Outcome, Removed, Row, Run, Step, curate};

/// Removes rows in which somebody shouts.
struct Quiet;

impl Step for Quiet {
    fn run(&self, rows: Vec<Row>, _: &mut Run) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        for row in rows {
            let turns = row.messages().unwrap_or_default();
            match turns.iter().filter_map(Message::content).find(|text| text.ends_with("!!!")) {
                None => outcome.rows.push(row),
                Some(text) => {
                    let detail = text.to_string();
                    outcome.removed.push(Removed { row, reason: "shout", detail });
                }
            }
        }
        Ok(outcome)
    }
}

fn main() -> anyhow::Result<()> {
    let said = [
        ("What is the capital of France?", "Paris."),
        ("what is the capital of france", "paris"),
        ("Name a river.", "The Rhine!!!"),
    ];
    let chat = |&(asked, answer): &(&str, &str)| {
        Row::chat(&[Message::new("user", asked), Message::new("assistant", answer)])
    };
    let mut rows: Vec<Row> = said.iter().map(chat).collect();
    let mut options =
        Options::new(Path::new("own_step"), 1, BTreeMap::new(), toml::from_str("threshold = 0.8")?);
    let unlike = curate::step("near-duplicates", &mut options, &[]);
    let unlike = unlike.ok_or_else(|| anyhow::anyhow!("no such step"))??;
    let (teachers, interrupt) = (BTreeMap::new(), Interrupt::new());
    for step in [&Quiet as &dyn Step, &*unlike.step] {
        let mut run =
            Run { teachers: &teachers, seed: 0, progress: &mut Silent, interrupt: &interrupt };
        let outcome = step.run(rows, &mut run)?;
        for Removed { row, reason, detail } in &outcome.removed {
            println!("{reason} ({detail}): row {}", row.id());
        }
        rows = outcome.rows;
    }
    println!("{} left", rows.len());
    Ok(())
}
