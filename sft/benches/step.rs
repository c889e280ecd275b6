//! A whole step of fine-tuning, with its share of the machine's fused multiply-adds (MFU): four
//! blocks and the head of SmolLM2-135M with fresh weights, four rows of 512 tokens.
//!
//!     cargo bench -p halter-sft --bench step
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use candle_core::Device;
use criterion::{Throughput, criterion_group, criterion_main};
use halter_core::data::record::{Origin, Row};
use halter_core::model::Decoder;
use halter_core::model::config::ModelConfig;
use halter_core::model::lora::is_lora;
use halter_core::model::param::Param;
use halter_core::model::weights::adapter::AdapterConfig;
use halter_core::ops::Context;
use halter_core::train::method::StepOptions;
use halter_core::train::optimizer::{AdamW, AdamWConfig};
use halter_sft::step::accumulate;
use halter_testkit::peak::{ShareOfPeak, criterion};
use halter_testkit::smollm2_config;

type Criterion = criterion::Criterion<ShareOfPeak>;

const ROWS: usize = 4;
const LENGTH: usize = 512;

fn model() -> Decoder {
    let config = ModelConfig::from_json(&smollm2_config(4), "config.json").unwrap();
    Decoder::fresh(config, 1, Context::new(&Device::Cpu)).unwrap()
}

fn rows() -> Vec<Row> {
    let row = |row: u32| Row {
        input_ids: (0..LENGTH as u32).map(|i| (i * 7919 + row * 31) % 49152).collect(),
        completion_mask: vec![true; LENGTH],
        prompt_is_prefix: true,
        origin: Origin { path: Arc::default(), line: 1 },
    };
    (0..ROWS as u32).map(row).collect()
}

/// Floating-point operations that a step needs: 6 per token and element of a matrix, 4 where it is
/// frozen (the adapter is not counted), and causal attention. What is recomputed does not count.
fn operations(model: &Decoder) -> usize {
    let params = model.params();
    let is_base = |param: &&Param| param.dims().len() == 2 && !is_lora(param.name());
    let each = |param: &Param| if param.is_trained() { 6 } else { 4 } * param.elem_count();
    let matrices: usize = params.into_iter().filter(is_base).map(each).sum();
    let attention = 6 * model.config.num_hidden_layers * model.config.hidden_size * LENGTH;
    ROWS * LENGTH * (matrices + attention)
}

fn bench(c: &mut Criterion, name: &str, model: &Decoder, keep_blocks: usize) {
    let mut grads = model.grads().unwrap();
    let mut optimizer = AdamW::new(AdamWConfig::default(), model.trained()).unwrap();
    let rows = rows();
    let options = StepOptions { microbatch_tokens: 512, keep_blocks, seed: 0, learning_rate: 0.0 };
    let mut group = c.benchmark_group("step");
    group.throughput(Throughput::Elements(operations(model) as u64)).sample_size(10);
    group.bench_function(name, |b| {
        b.iter(|| {
            grads.clear().unwrap();
            accumulate(model, &rows, options, &grads).unwrap();
            let norm = grads.norm().unwrap();
            optimizer.update(&model.trained(), &grads, 1e-5, 1.0 / norm.max(1.0)).unwrap();
        });
    });
    group.finish();
}

fn steps(c: &mut Criterion) {
    let mut full = model();
    full.train_where(|_| true).unwrap();
    bench(c, "full, activations kept", &full, 4);
    bench(c, "full, recomputed", &full, 0);
    let mut lora = model();
    lora.add_lora(&AdapterConfig::default(), 1).unwrap();
    bench(c, "lora, activations kept", &lora, 4);
}

criterion_group! {
    name = benches;
    config = criterion();
    targets = steps
}
criterion_main!(benches);
