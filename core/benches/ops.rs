//! The hot operations at the shapes of SmolLM2-135M, 512 tokens, each with its share of what the
//! machine can do: of its fused multiply-adds (products, attention, head) or of its memory (all
//! others; above 100 % where the operands stay in a cache).
//!
//!     cargo bench -p halter-core --bench ops
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use criterion::{Throughput, criterion_group, criterion_main};
use halter_core::data::batch::{Span, Target};
use halter_core::model::param::{Grads, Param, Value};
use halter_core::model::weights::{StoredKind, StoredTensor};
use halter_core::ops::linear::{self, Decode, Into};
use halter_core::ops::logps::Gradients;
use halter_core::ops::rope::Angles;
use halter_core::ops::{Context, attention, embedding, logps, rms_norm, swiglu};
use halter_core::train::optimizer::{AdamW, AdamWConfig};
use halter_testkit::peak::{ShareOfPeak, criterion};

type Criterion = criterion::Criterion<ShareOfPeak>;

const TOKENS: usize = 512;
const HIDDEN: usize = 576;
const KV: usize = 192;
const FFN: usize = 1536;
const VOCABULARY: usize = 49152;
const RANK: usize = 16;

fn numbers(shape: (usize, usize)) -> Tensor {
    let n = shape.0 * shape.1;
    let values: Vec<f32> = (0..n).map(|i| ((i * 7919) % 1000) as f32 / 5000.0 - 0.1).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Floating-point operations.
fn operations(count: usize) -> Throughput {
    Throughput::Elements(count as u64)
}

/// Numbers read and written, of four bytes each.
fn floats(count: usize) -> Throughput {
    Throughput::Bytes(4 * count as u64)
}

/// As in training, where the caller is one of the worker threads.
fn bench(c: &mut Criterion, group: &str, name: &str, work: Throughput, mut f: impl FnMut() + Send) {
    let mut group = c.benchmark_group(group);
    group.throughput(work).sample_size(10);
    group.bench_function(name, |b| rayon::scope(|_| b.iter(&mut f)));
    group.finish();
}

fn products(c: &mut Criterion) {
    let ctx = Context::new(&Device::Cpu);
    // The last two are LoRA's `A` and `B`.
    let matrices =
        [(HIDDEN, HIDDEN), (HIDDEN, KV), (HIDDEN, FFN), (FFN, HIDDEN), (HIDDEN, RANK), (RANK, FFN)];
    for (input, output) in matrices {
        let (x, weight) = (numbers((TOKENS, input)), numbers((output, input)));
        let (y, dx) = (numbers((TOKENS, output)), numbers((TOKENS, input)));
        let dweight = numbers((output, input));
        let work = || operations(2 * TOKENS * input * output);
        let name = format!("{input} to {output}");
        bench(c, "linear forward", &name, work(), || {
            linear::forward(&ctx, &x, &weight, Into::Overwrite, &y).unwrap();
        });
        if input == RANK {
            bench(c, "linear forward added", &name, work(), || {
                linear::forward(&ctx, &x, &weight, Into::Accumulate, &y).unwrap();
            });
        }
        bench(c, "linear backward input", &name, work(), || {
            linear::backward_input(&ctx, &y, &weight, Into::Overwrite, &dx).unwrap();
        });
        bench(c, "linear backward weight", &name, work(), || {
            linear::backward_weight(&ctx, &y, &x, &dweight).unwrap();
        });
    }
}

/// What [`numbers`] holds, as a file would hold it: no quantizing, any blocks will do.
fn held(kind: StoredKind, shape: (usize, usize)) -> Param {
    let elements = shape.0 * shape.1;
    let value = match kind {
        StoredKind::F32 => Value::Dense(numbers(shape)),
        kind => {
            let bytes = (0..kind.size_of(elements).unwrap()).map(|i| (i * 7919 % 60) as u8);
            let shape = [shape.0, shape.1];
            let stored = StoredTensor::from_bytes("weight", &shape, kind, bytes.collect());
            Value::Stored(stored.unwrap())
        }
    };
    Param::new("weight", value)
}

/// Products of generation: one sequence, few and many at a time.
fn decoding(c: &mut Criterion) {
    let ctx = Context::new(&Device::Cpu);
    let quantized = [GgmlDType::Q8_0, GgmlDType::Q4_1].map(StoredKind::Ggml);
    let kinds = [StoredKind::F32, StoredKind::BF16, quantized[0], quantized[1]];
    let matrices =
        [(HIDDEN, HIDDEN), (HIDDEN, FFN), (FFN, HIDDEN), (HIDDEN, VOCABULARY), (2048, 5632)];
    for (input, output) in matrices {
        for kind in kinds {
            let weight = held(kind, (output, input));
            for rows in [1, 8, 64] {
                let (x, y) = (numbers((rows, input)), numbers((rows, output)));
                let work = match rows {
                    1 => Throughput::Bytes(kind.size_of(input * output).unwrap() as u64),
                    _ => operations(2 * rows * input * output),
                };
                let name = format!("{input} to {output}, {kind}, {rows} rows");
                bench(c, "linear decode", &name, work, || {
                    let one = Decode { weight: &weight, into: Into::Overwrite, y: &y };
                    linear::decode(&ctx, &x, &[one]).unwrap();
                });
            }
        }
    }
}

fn attentions(c: &mut Criterion) {
    let ctx = Context::new(&Device::Cpu);
    let shape = attention::Shape { heads: 9, kv_heads: 3, head_dim: 64, window: None };
    for tokens in [TOKENS, 2048, 8192] {
        let spans = [Span { parent: None, start: 0, len: tokens, position: 0 }];
        let (q, k, v) = (numbers((tokens, HIDDEN)), numbers((tokens, KV)), numbers((tokens, KV)));
        let (output, lse) = attention::forward(&ctx, shape, &spans, &q, &k, &v).unwrap();
        // Two products forward, five backward; half of them masked.
        let product = tokens * tokens * HIDDEN;
        let name = format!("{tokens} tokens");
        bench(c, "attention forward", &name, operations(2 * product), || {
            black_box(attention::forward(&ctx, shape, &spans, &q, &k, &v).unwrap());
        });
        let saved = attention::Saved { q: &q, k: &k, v: &v, output: &output, lse: &lse };
        bench(c, "attention backward", &name, operations(5 * product), || {
            black_box(attention::backward(&ctx, shape, &spans, saved, &q).unwrap());
        });
    }
}

fn elementwise(c: &mut Criterion) {
    let ctx = Context::new(&Device::Cpu);
    let (x, weight) = (numbers((TOKENS, HIDDEN)), numbers((1, HIDDEN)).squeeze(0).unwrap());
    let (dx, dweight) = (numbers((TOKENS, HIDDEN)), weight.copy().unwrap());
    let (_, rstd) = rms_norm::forward(&ctx, &x, &weight, 1e-5).unwrap();
    bench(c, "rms norm", "forward", floats(2 * TOKENS * HIDDEN), || {
        black_box(rms_norm::forward(&ctx, &x, &weight, 1e-5).unwrap());
    });
    bench(c, "rms norm", "backward", floats(4 * TOKENS * HIDDEN), || {
        rms_norm::backward(&ctx, &x, &rstd, &weight, &x, &dx, Some(&dweight)).unwrap();
    });
    let (gate, up, ds) = (numbers((TOKENS, FFN)), numbers((TOKENS, FFN)), numbers((TOKENS, FFN)));
    bench(c, "swiglu", "forward", floats(3 * TOKENS * FFN), || {
        black_box(swiglu::forward(&ctx, &gate, &up).unwrap());
    });
    bench(c, "swiglu", "backward", floats(5 * TOKENS * FFN), || {
        swiglu::backward_in_place(&ctx, &gate, &up, &ds).unwrap();
    });
    let frequencies: Vec<f32> = (0..32).map(|i| 1e5f32.powf(-(i as f32) / 32.0)).collect();
    let positions: Vec<u32> = (0..TOKENS as u32).collect();
    let angles = Angles::new(&frequencies, &positions, DType::F32, &Device::Cpu).unwrap();
    let q = numbers((TOKENS, HIDDEN));
    bench(c, "rope", "rotate", floats(TOKENS * (2 * HIDDEN + 2 * 32)), || {
        angles.rotate(&ctx, &q).unwrap();
    });
    let table = numbers((VOCABULARY, HIDDEN));
    let tokens: Vec<u32> = (0..TOKENS as u32).map(|i| i * 91 % VOCABULARY as u32).collect();
    bench(c, "embedding", "forward", floats(2 * TOKENS * HIDDEN), || {
        black_box(embedding::forward(&ctx, &table, &tokens).unwrap());
    });
    bench(c, "embedding", "backward", floats(3 * TOKENS * HIDDEN), || {
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
    let product = 2 * TOKENS * HIDDEN * VOCABULARY;
    let dlogps = vec![-1.0 / TOKENS as f64; TOKENS];
    bench(c, "head", "forward", operations(product), || {
        black_box(logps::forward(&ctx, &hidden, &weight, &entries).unwrap());
    });
    for (name, products, dweight) in
        [("forward and backward", 3, Some(&dweight)), ("forward and backward, frozen", 2, None)]
    {
        let gradients = Gradients { dhidden: &dhidden, dweight };
        bench(c, "head", name, operations(products * product), || {
            logps::forward_and_backward(&ctx, &hidden, &weight, &entries, &dlogps, gradients)
                .unwrap();
        });
    }
}

/// What touches every parameter once a step, on the embedding.
fn parameters(c: &mut Criterion) {
    let ctx = Context::new(&Device::Cpu);
    let param = Param::new("embedding", Value::Dense(numbers((VOCABULARY, HIDDEN))));
    let mut grads = Grads::zeros([&param]).unwrap();
    let mut adam = AdamW::new(AdamWConfig::default(), [&param]).unwrap();
    let elements = param.elem_count();
    // Value and both moments are read and written, the gradient is read.
    bench(c, "parameters", "adamw", floats(7 * elements), || {
        adam.update(&[&param], &grads, 1e-5, 0.5).unwrap();
    });
    bench(c, "parameters", "gradient norm", floats(elements), || {
        black_box(grads.norm().unwrap());
    });
    bench(c, "parameters", "gradients cleared", floats(elements), || grads.clear().unwrap());
    let elements = FFN * HIDDEN;
    for kind in
        [StoredKind::BF16, StoredKind::Ggml(GgmlDType::Q8_0), StoredKind::Ggml(GgmlDType::Q4_1)]
    {
        let bytes = kind.size_of(elements).unwrap();
        let stored = StoredTensor::from_bytes("up_proj", &[FFN, HIDDEN], kind, vec![0; bytes]);
        let frozen = Param::new("up_proj", Value::Stored(stored.unwrap()));
        let work = Throughput::Bytes((bytes + 4 * elements) as u64);
        bench(c, "parameters", &format!("{kind} widened"), work, || {
            black_box(&*frozen.widened(&ctx).unwrap());
        });
    }
}

criterion_group! {
    name = benches;
    config = criterion();
    targets = products, decoding, attentions, elementwise, head, parameters
}
criterion_main!(benches);
