//! Scores completions by verifiers: is the answer right, is the format kept, is it short?
//!
//! `cargo run --release --example verify`

#![allow(clippy::print_stdout)]

use halter::core::data::record::{Message, Turn};
use halter::rejection_sampling::scorer::{Item, Scorer, ScorerSpec, WeightedSum};
use serde_json::{Map, json};

fn main() -> anyhow::Result<()> {
    let specs = ["numeric", "0.25*length:200"].map(|text: &str| text.parse::<ScorerSpec>());
    let specs = specs.into_iter().collect::<Result<Vec<_>, _>>()?;
    let scorer = WeightedSum::from_specs(&specs)?;
    let asked = Message::new("user", "Tom has 3 apples and buys 4 more. How many has he?");
    let prompt = Turn::Messages(vec![asked]);
    let row = Map::from_iter([("answer".to_string(), json!("7"))]);
    for completion in ["He has 3 + 4 = 7 apples.\n#### 7", "He has 3 + 4 = 8 apples.\n#### 8"] {
        let num_tokens = completion.split_whitespace().count();
        let item = Item { prompt: &prompt, completion, num_tokens, ended: true, row: &row };
        let score = scorer.score(&item)?;
        let detail = score.detail.unwrap_or_default();
        println!("{:.3}  {}  ({detail})", score.value, completion.replace('\n', " "));
    }
    Ok(())
}
