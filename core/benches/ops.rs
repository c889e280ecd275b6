//! The hot operations at the shapes of SmolLM2-135M, 512 tokens; rates are floating-point
//! operations (products, attention, head) or elements a second.
//!
//!     cargo bench -p halter-core --bench ops
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;

use candle_core::{Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use halter_core::data::batch::{Span, Target};
use halter_core::ops::linear::{self, Into};
use halter_core::ops::{Context, attention, embedding, logps, rms_norm, swiglu};

const TOKENS: usize = 512;
const HIDDEN: usize = 576;
const FFN: usize = 1536;
const VOCABULARY: usize = 49152;

fn numbers(shape: (usize, usize)) -> Tensor {
    let n = shape.0 * shape.1;
    let values: Vec<f32> = (0..n).map(|i| ((i * 7919) % 1000) as f32 / 5000.0 - 0.1).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// As in training, where the caller is one of the worker threads.
fn bench(c: &mut Criterion, group: &str, name: &str, work: usize, mut f: impl FnMut() + Send) {
    let mut group = c.benchmark_group(group);
    group.throughput(Throughput::Elements(work as u64)).sample_size(20);
    group.bench_function(name, |b| rayon::scope(|_| b.iter(&mut f)));
    group.finish();
}

fn products(c: &mut Criterion) {
    let ctx = Context::new(&Device::Cpu);
    for (input, output) in [(HIDDEN, HIDDEN), (HIDDEN, 192), (HIDDEN, FFN), (FFN, HIDDEN)] {
        let (x, weight) = (numbers((TOKENS, input)), numbers((output, input)));
        let (y, dx) = (numbers((TOKENS, output)), numbers((TOKENS, input)));
        let dweight = numbers((output, input));
        let work = 2 * TOKENS * input * output;
        let name = format!("{input} to {output}");
        bench(c, "linear forward", &name, work, || {
            linear::forward(&ctx, &x, &weight, Into::Overwrite, &y).unwrap();
        });
        bench(c, "linear backward input", &name, work, || {
            linear::backward_input(&ctx, &y, &weight, Into::Overwrite, &dx).unwrap();
        });
        bench(c, "linear backward weight", &name, work, || {
            linear::backward_weight(&ctx, &y, &x, &dweight).unwrap();
        });
    }
}

fn attentions(c: &mut Criterion) {
    let ctx = Context::new(&Device::Cpu);
    let shape = attention::Shape { heads: 9, kv_heads: 3, head_dim: 64, window: None };
    let spans = [Span { parent: None, start: 0, len: TOKENS, position: 0 }];
    let (q, k, v) = (numbers((TOKENS, 576)), numbers((TOKENS, 192)), numbers((TOKENS, 192)));
    let (output, lse) = attention::forward(&ctx, shape, &spans, &q, &k, &v).unwrap();
    // Two products forward, five backward; half of them masked.
    let work = TOKENS * TOKENS * 576;
    bench(c, "attention", "forward", 2 * work, || {
        black_box(attention::forward(&ctx, shape, &spans, &q, &k, &v).unwrap());
    });
    let saved = attention::Saved { q: &q, k: &k, v: &v, output: &output, lse: &lse };
    bench(c, "attention", "backward", 5 * work, || {
        black_box(attention::backward(&ctx, shape, &spans, saved, &q).unwrap());
    });
}

fn elementwise(c: &mut Criterion) {
    let ctx = Context::new(&Device::Cpu);
    let (x, weight) = (numbers((TOKENS, HIDDEN)), numbers((1, HIDDEN)).squeeze(0).unwrap());
    let (dx, dweight) = (numbers((TOKENS, HIDDEN)), weight.copy().unwrap());
    let (_, rstd) = rms_norm::forward(&ctx, &x, &weight, 1e-5).unwrap();
    bench(c, "rms norm", "forward", TOKENS * HIDDEN, || {
        black_box(rms_norm::forward(&ctx, &x, &weight, 1e-5).unwrap());
    });
    bench(c, "rms norm", "backward", TOKENS * HIDDEN, || {
        rms_norm::backward(&ctx, &x, &rstd, &weight, &x, &dx, Some(&dweight)).unwrap();
    });
    let (gate, up, ds) = (numbers((TOKENS, FFN)), numbers((TOKENS, FFN)), numbers((TOKENS, FFN)));
    bench(c, "swiglu", "forward", TOKENS * FFN, || {
        black_box(swiglu::forward(&ctx, &gate, &up).unwrap());
    });
    bench(c, "swiglu", "backward", TOKENS * FFN, || {
        swiglu::backward_in_place(&ctx, &gate, &up, &ds).unwrap();
    });
    let table = numbers((VOCABULARY, HIDDEN));
    let tokens: Vec<u32> = (0..TOKENS as u32).map(|i| i * 91 % VOCABULARY as u32).collect();
    bench(c, "embedding", "forward", TOKENS * HIDDEN, || {
        black_box(embedding::forward(&ctx, &table, &tokens).unwrap());
    });
    bench(c, "embedding", "backward", TOKENS * HIDDEN, || {
        embedding::backward(&ctx, &tokens, None, &x, &table).unwrap();
    });
}

fn head(c: &mut Criterion) {
    let ctx = Context::new(&Device::Cpu);
    let (hidden, weight) = (numbers((TOKENS, HIDDEN)), numbers((VOCABULARY, HIDDEN)));
    let dweight = numbers((VOCABULARY, HIDDEN));
    let dhidden = numbers((TOKENS, HIDDEN));
    let entries: Vec<Target> =
        (0..TOKENS as u32).map(|row| Target { row, token: row * 91 % 49152 }).collect();
    let work = 2 * TOKENS * HIDDEN * VOCABULARY;
    let dlogps = vec![-1.0 / TOKENS as f64; TOKENS];
    bench(c, "head", "forward", work, || {
        black_box(logps::forward(&ctx, &hidden, &weight, &entries).unwrap());
    });
    bench(c, "head", "forward and backward", 3 * work, || {
        let saved = logps::forward(&ctx, &hidden, &weight, &entries).unwrap();
        logps::backward(&ctx, &hidden, &weight, &entries, saved, &dlogps, &dhidden, Some(&dweight))
            .unwrap();
    });
}

criterion_group!(benches, products, attentions, elementwise, head);
criterion_main!(benches);
