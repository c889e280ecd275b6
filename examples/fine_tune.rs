//! Fine-tunes the bundled model from Rust: a configuration and two calls.
//!
//! `cargo run --release --example fine_tune`

#![allow(clippy::print_stdout)]

use halter::SftConfig;
use halter::core::train::interrupt::Interrupt;
use halter::core::train::progress::Recorded;
use halter::core::train::run::{Prepared, run};
use halter::core::train::run_dir::Start;
use halter::sft::Sft;

fn main() -> anyhow::Result<()> {
    let output = std::env::temp_dir().join(format!("halter-fine-tune-{}", std::process::id()));
    let mut config = SftConfig::bundled()?;
    config.train.max_steps = Some(20);
    config.train.output = output;
    let mut progress = Recorded::default();
    let prepared = Prepared::<Sft>::new(&config, Start::Fresh, &mut progress)?;
    let outcome = run(prepared, &mut progress, &Interrupt::new())?;
    for note in progress.notes {
        println!("{note}");
    }
    println!("{} steps, {:.0} tokens/s", outcome.steps, outcome.tokens_per_second);
    Ok(())
}
