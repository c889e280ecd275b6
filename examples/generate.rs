//! Completions from Rust, and how fast they come: PROMPTS prompts of TOKENS tokens, each completed
//! K times with NEW tokens.
//!
//! `cargo run --release --example generate -- MODEL [PROMPTS TOKENS K NEW]`

#![allow(clippy::print_stdout)]

use std::time::Instant;

use halter::candle::Device;
use halter::core::generate::engine::{Engine, EngineOptions, Request};
use halter::core::generate::sampling::Sampling;
use halter::{Base, Source, SourceSpec};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let model = args.next().ok_or_else(|| anyhow::anyhow!("expected MODEL"))?;
    let numbers: Vec<usize> = args.map(|arg| arg.parse()).collect::<Result<_, _>>()?;
    let number = |at: usize, default: usize| numbers.get(at).copied().unwrap_or(default);
    let (prompts, tokens) = (number(0, 8), number(1, 128));
    let (completions, max_new_tokens) = (number(2, 8), number(3, 128));

    let mut source = Source::open(&SourceSpec { model: Some(model), ..SourceSpec::default() })?;
    let model = source.decoder(Base::Frozen, &Device::Cpu, 0)?;
    for round in 0..3 {
        let mut engine = Engine::new(&model, EngineOptions::default());
        for row in 0..prompts as u64 {
            engine.submit(Request {
                id: row,
                prompt: (0..tokens as u64)
                    .map(|i| (1000 + (i * 7919 + row * 31) % 40_000) as u32)
                    .collect(),
                completions,
                max_new_tokens,
                stop_tokens: Vec::new(),
                sampling: Sampling::default(),
                seed: round,
                row,
                top_logprobs: 0,
            })?;
        }
        let (start, mut new_tokens) = (Instant::now(), 0);
        let mut prefill = 0.0;
        while !engine.is_idle() {
            new_tokens += engine.step()?.len();
            if new_tokens <= prompts * completions {
                prefill = start.elapsed().as_secs_f64();
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{:.1} tokens/s ({seconds:.2} s, {prefill:.2} s until all had begun)",
            new_tokens as f64 / seconds
        );
    }
    Ok(())
}
