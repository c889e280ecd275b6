//! Completions, with their share of the machine's fused multiply-adds: four blocks and the head of
//! SmolLM2-135M with fresh weights, a prompt of 128 tokens, 16 new ones of each completion.
//!
//!     cargo bench -p halter-core --bench generate
#![allow(clippy::unwrap_used, missing_docs)]

use candle_core::Device;
use criterion::{Throughput, criterion_group, criterion_main};
use halter_core::generate::engine::{Engine, EngineOptions, Request};
use halter_core::generate::sampling::Sampling;
use halter_core::model::Decoder;
use halter_core::model::config::ModelConfig;
use halter_core::ops::Context;
use halter_testkit::peak::{ShareOfPeak, criterion};
use halter_testkit::smollm2_config;

const PROMPT: usize = 128;
const NEW: usize = 16;

/// Floating-point operations of a prompt and its completions: 2 per token and element of the blocks'
/// matrices, the head's for each new token, and attention.
fn operations(model: &Decoder, completions: usize) -> usize {
    let config = &model.config;
    let head = config.vocab_size * config.hidden_size;
    let matrices = model.params().into_iter().filter(|p| p.dims().len() == 2);
    let blocks = matrices.map(|p| p.elem_count()).sum::<usize>() - head;
    // The last token of a completion is not computed.
    let computed = PROMPT + completions * (NEW - 1);
    let positions = PROMPT * PROMPT / 2 + completions * (NEW - 1) * (PROMPT + NEW / 2);
    let attention = 4 * config.num_hidden_layers * config.hidden_size * positions;
    2 * computed * blocks + 2 * (1 + completions * (NEW - 1)) * head + attention
}

fn bench(c: &mut criterion::Criterion<ShareOfPeak>) {
    let config = ModelConfig::from_json(&smollm2_config(4), "config.json").unwrap();
    let model = Decoder::fresh(config, 1, Context::new(&Device::Cpu)).unwrap();
    let mut engine = Engine::new(&model, EngineOptions::default());
    let mut group = c.benchmark_group("generate");
    let mut row = 0;
    let (plain, top_p) = (Sampling::default(), Sampling { top_p: 0.9, ..Sampling::default() });
    for (completions, sampling, name) in [
        (1, plain, "1 completion"),
        (8, plain, "8 completions"),
        (64, plain, "64 completions"),
        (64, top_p, "64 completions, top-p 0.9"),
    ] {
        let work = Throughput::Elements(operations(&model, completions) as u64);
        group.throughput(work).sample_size(10);
        group.bench_function(name, |b| {
            b.iter(|| {
                // No prompt begins as one before it, whose pages are still known.
                row += 1;
                let token = |i: u64| ((i * 7919 + row * 31) % 49_152) as u32;
                let request = Request {
                    id: row,
                    prompt: (0..PROMPT as u64).map(token).collect(),
                    completions,
                    max_new_tokens: NEW,
                    stop_tokens: Vec::new(),
                    sampling,
                    seed: 1,
                    row,
                    top_logprobs: 0,
                };
                engine.submit(request).unwrap();
                while !engine.is_idle() {
                    engine.step().unwrap();
                }
            });
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = criterion(); targets = bench }
criterion_main!(benches);
