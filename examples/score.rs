//! Scores the pairs of a data set with a reward model, and writes tokens and scores as JSON on
//! stdout, for other programs to compare with (`oracle/check_reward.py`).
//!
//! ```sh
//! cargo run --release --example score -- runs/reward bundled/preferences-eval > scores.json
//! ```
#![allow(clippy::print_stdout)]

use anyhow::{Context, Result};
use halter::core::data::dataset::{DataOptions, Dataset};
use halter::rejection_sampling::RewardModel;
use serde_json::json;

const ROWS: usize = 32;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().context("expected a reward model")?;
    let data = arguments.next().context("expected a data set of pairs")?;
    let model = RewardModel::load(&model, "cpu")?;
    let set = Dataset::open(&data, &DataOptions::default())?;
    let mut lines = Vec::new();
    for at in 0..set.len().min(ROWS) {
        let row = model.encode_record(&set.record(at)?, &set.origin(at))?;
        let scores = model.score_rows(std::slice::from_ref(&row))?;
        for (branch, score) in row.branches.iter().zip(scores) {
            let input_ids = [row.prompt.as_slice(), &branch.tokens].concat();
            lines.push(json!({"input_ids": input_ids, "score": score}));
        }
    }
    println!("{}", serde_json::Value::Array(lines));
    Ok(())
}
