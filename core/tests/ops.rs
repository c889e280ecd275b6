//! Every operation, fused and composed: forward and backward against candle's autograd in f64 and
//! against finite differences.
#![allow(clippy::unwrap_used)]

use candle_core::{D, DType, Device, Result, Tensor};
use halter_core::data::batch::{Span, Target};
use halter_core::model::param::{Param, Value};
use halter_core::model::weights::StoredTensor;
use halter_core::ops::linear::{self, Decode, Into};
use halter_core::ops::logps::Gradients;
use halter_core::ops::rope::Angles;
use halter_core::ops::{Context, attention, dropout, embedding, logps, rms_norm, swiglu};
use halter_testkit::gradients::{Ran, check, numbers};

/// Checks `ours` with a context that takes fused forms where they exist, and one that never does.
#[track_caller]
fn check_forms(
    what: &str,
    inputs: &[Tensor],
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
    ours: impl Fn(&Context, &[Tensor], &Tensor) -> Ran,
) {
    let forms =
        [("fused", Context::new(&Device::Cpu)), ("composed", Context::composed(&Device::Cpu))];
    for (form, ctx) in forms {
        check(&format!("{what}, {form}"), inputs, &reference, |x, dy| ours(&ctx, x, dy));
    }
}

fn zeros_like(x: &Tensor) -> Tensor {
    x.zeros_like().unwrap()
}

#[test]
fn linear() {
    for (tokens, input, output) in [(1, 3, 2), (7, 5, 6), (60, 50, 49)] {
        let inputs =
            [numbers(&[tokens, input], 1), numbers(&[output, input], 2), numbers(&[output], 3)];
        let reference = |x: &[Tensor]| x[0].matmul(&x[1].t()?)?.broadcast_add(&x[2]);
        check_forms("linear", &inputs, reference, |ctx, inputs, dy| {
            let [x, weight, bias] = inputs else { unreachable!() };
            let output = zeros_like(dy);
            linear::forward(ctx, x, weight, Into::Overwrite, &output).unwrap();
            linear::add_bias(ctx, &output, bias).unwrap();
            let gradients = inputs.iter().map(zeros_like).collect::<Vec<_>>();
            linear::backward_input(ctx, dy, weight, Into::Overwrite, &gradients[0]).unwrap();
            linear::backward_weight(ctx, dy, x, &gradients[1]).unwrap();
            linear::backward_bias(ctx, dy, &gradients[2]).unwrap();
            Ran { output, gradients }
        });
    }
}

#[test]
fn gradients_are_added_to_what_is_there() {
    let ctx = Context::new(&Device::Cpu);
    for dtype in [DType::F32, DType::F64] {
        let cast = |x: Tensor| x.to_dtype(dtype).unwrap();
        let (x, dy) = (cast(numbers(&[7, 5], 1)), cast(numbers(&[7, 6], 2)));
        let weight = cast(numbers(&[6, 5], 3));
        let (once, twice) = (zeros_like(&weight), zeros_like(&weight));
        linear::backward_weight(&ctx, &dy, &x, &once).unwrap();
        linear::backward_weight(&ctx, &dy, &x, &twice).unwrap();
        linear::backward_weight(&ctx, &dy, &x, &twice).unwrap();
        halter_testkit::assert_relative("dweight", &twice, &(once * 2.0).unwrap(), 1e-6);
        let (once, twice) = (zeros_like(&x), zeros_like(&x));
        linear::backward_input(&ctx, &dy, &weight, Into::Overwrite, &once).unwrap();
        linear::backward_input(&ctx, &dy, &weight, Into::Overwrite, &twice).unwrap();
        linear::backward_input(&ctx, &dy, &weight, Into::Accumulate, &twice).unwrap();
        halter_testkit::assert_relative("dx", &twice, &(once * 2.0).unwrap(), 1e-6);
    }
}

#[test]
fn rms_norms() {
    for (rows, hidden) in [(1, 4), (5, 17), (70, 3)] {
        let inputs = [numbers(&[rows, hidden], 1), numbers(&[hidden], 2)];
        let eps = 1e-5;
        let reference = |x: &[Tensor]| {
            let rstd = (x[0].sqr()?.mean_keepdim(1)? + eps)?.sqrt()?.recip()?;
            x[0].broadcast_mul(&rstd)?.broadcast_mul(&x[1])
        };
        check_forms("rms norm", &inputs, reference, |ctx, inputs, dy| {
            let (y, rstd) = rms_norm::forward(ctx, &inputs[0], &inputs[1], eps).unwrap();
            let again = rms_norm::apply(ctx, &inputs[0], &rstd, &inputs[1]).unwrap();
            assert_eq!(halter_testkit::max_abs_diff(&y, &again), 0.0);
            let gradients: Vec<Tensor> = inputs.iter().map(zeros_like).collect();
            let (dx, dw) = (&gradients[0], Some(&gradients[1]));
            rms_norm::backward(ctx, &inputs[0], &rstd, &inputs[1], dy, dx, dw).unwrap();
            Ran { output: y.copy().unwrap(), gradients }
        });
    }
}

#[test]
fn rotary_embedding() {
    let (tokens, heads, half) = (5, 3, 4);
    let frequencies = [1.0f32, 0.3, 0.05, 0.001];
    let positions = [0u32, 1, 7, 2, 100];
    let turn = |f: fn(f64) -> f64| {
        let angle = |p: u32, w: f32| f(f64::from(w * p as f32)) as f32;
        let all: Vec<f64> = positions
            .iter()
            .flat_map(|&p| frequencies.iter().map(move |&w| f64::from(angle(p, w))))
            .collect();
        Tensor::from_vec(all, (tokens, 1, half), &Device::Cpu).unwrap()
    };
    let (cos, sin) = (turn(f64::cos), turn(f64::sin));
    let reference = |x: &[Tensor]| {
        let x = x[0].reshape((tokens, heads, 2 * half))?;
        let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Tensor::cat(&[first, second], 2)?.reshape((tokens, heads * 2 * half))
    };
    let inputs = [numbers(&[tokens, heads * 2 * half], 1)];
    check_forms("rope", &inputs, reference, |ctx, inputs, dy| {
        let angles = Angles::new(&frequencies, &positions, dy.dtype(), &Device::Cpu).unwrap();
        let (y, dx) = (inputs[0].copy().unwrap(), dy.copy().unwrap());
        angles.rotate(ctx, &y).unwrap();
        angles.rotate_back(ctx, &dx).unwrap();
        Ran { output: y, gradients: vec![dx] }
    });
}

/// A packed sequence, and a tree of a prompt with two branches, one of them with a branch.
const SPANS: [Span; 5] = [
    Span { parent: None, start: 0, len: 4, position: 0 },
    Span { parent: None, start: 4, len: 3, position: 0 },
    Span { parent: Some(1), start: 7, len: 2, position: 3 },
    Span { parent: Some(1), start: 9, len: 3, position: 3 },
    Span { parent: Some(3), start: 12, len: 2, position: 6 },
];

/// Whether the token at row `query` sees that at row `key`, by walking up the tree.
fn sees(query: usize, key: usize, window: Option<usize>) -> bool {
    let span_of = |row: usize| SPANS.iter().position(|s| s.range().contains(&row)).unwrap();
    let position = |row: usize| SPANS[span_of(row)].position + row - SPANS[span_of(row)].start;
    let mut at = Some(span_of(query));
    while let Some(span) = at {
        if span == span_of(key) {
            let back = position(query).checked_sub(position(key));
            return back.is_some_and(|back| window.is_none_or(|window| back < window));
        }
        at = SPANS[span].parent;
    }
    false
}

#[test]
fn attention_over_trees() {
    for (heads, kv_heads, window) in [(2, 2, None), (4, 2, None), (3, 1, Some(2))] {
        let (tokens, dim) = (14, 4);
        let shape = attention::Shape { heads, kv_heads, head_dim: dim, window };
        let inputs = [
            numbers(&[tokens, heads * dim], 1),
            numbers(&[tokens, kv_heads * dim], 2),
            numbers(&[tokens, kv_heads * dim], 3),
        ];
        let hidden: Vec<f64> = (0..tokens * tokens)
            .map(|i| if sees(i / tokens, i % tokens, window) { 0.0 } else { -1e30 })
            .collect();
        let hidden = Tensor::from_vec(hidden, (tokens, tokens), &Device::Cpu).unwrap();
        let reference = |x: &[Tensor]| {
            let mut outputs = Vec::new();
            for head in 0..heads {
                let kv_head = head * kv_heads / heads;
                let q = x[0].narrow(1, head * dim, dim)?;
                let (k, v) =
                    (x[1].narrow(1, kv_head * dim, dim)?, x[2].narrow(1, kv_head * dim, dim)?);
                let scores = ((q.matmul(&k.t()?)? / (dim as f64).sqrt())? + &hidden)?;
                let weights = scores.exp()?;
                let probs = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
                outputs.push(probs.matmul(&v)?);
            }
            Tensor::cat(&outputs, 1)
        };
        check_forms("attention", &inputs, reference, |ctx, inputs, dy| {
            let [q, k, v] = inputs else { unreachable!() };
            let (output, lse) = attention::forward(ctx, shape, &SPANS, q, k, v).unwrap();
            let saved = attention::Saved { q, k, v, output: &output, lse: &lse };
            let (dq, dk, dv) = attention::backward(ctx, shape, &SPANS, saved, dy).unwrap();
            let gradients = [dq, dk, dv].iter().map(|x| x.copy().unwrap()).collect();
            Ran { output: output.copy().unwrap(), gradients }
        });
    }
}

#[test]
fn swiglus() {
    let inputs = [numbers(&[7, 5], 1), numbers(&[7, 5], 2)];
    let reference = |x: &[Tensor]| {
        let sigmoid = (x[0].neg()?.exp()? + 1.0)?.recip()?;
        &x[0] * sigmoid * &x[1]
    };
    check_forms("swiglu", &inputs, reference, |ctx, inputs, dy| {
        let output = swiglu::forward(ctx, &inputs[0], &inputs[1]).unwrap().copy().unwrap();
        let gradients: Vec<Tensor> = inputs.iter().map(|x| x.copy().unwrap()).collect();
        swiglu::backward_in_place(ctx, &gradients[0], &gradients[1], dy).unwrap();
        Ran { output, gradients }
    });
}

#[test]
fn embeddings() {
    let tokens = [3u32, 0, 3, 5];
    let one_hot: Vec<f64> =
        tokens.iter().flat_map(|&t| (0..6).map(move |i| f64::from(u8::from(i == t)))).collect();
    let one_hot = Tensor::from_vec(one_hot, (4, 6), &Device::Cpu).unwrap();
    let inputs = [numbers(&[6, 3], 1)];
    check_forms(
        "embedding",
        &inputs,
        |x| one_hot.matmul(&x[0]),
        |ctx, inputs, dy| {
            let output = embedding::forward(ctx, &inputs[0], &tokens).unwrap().copy().unwrap();
            let dweight = zeros_like(&inputs[0]);
            embedding::backward(ctx, &tokens, None, dy, &dweight).unwrap();
            Ran { output, gradients: vec![dweight] }
        },
    );
}

#[test]
fn per_token_log_probs() {
    let (rows, hidden, vocabulary) = (5, 4, 7);
    // Two targets on one row, none on another: branches of a tree, and a prompt's token.
    let entries = [(0, 6), (1, 0), (1, 3), (3, 3), (4, 2)];
    let targets: Vec<Target> = entries.map(|(row, token)| Target { row, token }).to_vec();
    let picked: Vec<u32> = entries.map(|(row, token)| row * vocabulary as u32 + token).to_vec();
    let picked = Tensor::from_vec(picked, entries.len(), &Device::Cpu).unwrap();
    let inputs = [numbers(&[rows, hidden], 1), numbers(&[vocabulary, hidden], 2)];
    let reference = |x: &[Tensor]| {
        let logits = x[0].matmul(&x[1].t()?)?;
        let lse = logits.exp()?.sum_keepdim(1)?.log()?;
        logits.broadcast_sub(&lse)?.flatten_all()?.index_select(&picked, 0)
    };
    for dlogps_known in [false, true] {
        check_forms("log-probs", &inputs, reference, |ctx, inputs, dy| {
            let gradients: Vec<Tensor> = inputs.iter().map(zeros_like).collect();
            let dlogps = halter_testkit::values(dy);
            let into = Gradients { dhidden: &gradients[0], dweight: Some(&gradients[1]) };
            let [x, w] = inputs else { unreachable!() };
            let output = if dlogps_known {
                logps::forward_and_backward(ctx, x, w, &targets, &dlogps, into).unwrap().logps
            } else {
                let saved = logps::forward(ctx, x, w, &targets).unwrap();
                let output = saved.logps.clone();
                logps::backward(ctx, x, w, &targets, saved, &dlogps, into).unwrap();
                output
            };
            Ran { output, gradients }
        });
    }
}

#[test]
fn chunks_of_the_head_give_what_one_chunk_gives() {
    let ctx = Context::new(&Device::Cpu);
    let (rows, part) = (2400, 600);
    assert!(rows > 2 * logps::chunk_rows(5) && part <= logps::chunk_rows(5));
    let cast = |x: Tensor| x.to_dtype(DType::F32).unwrap();
    let (hidden, weight) = (cast(numbers(&[rows, 3], 1)), cast(numbers(&[5, 3], 2)));
    let dlogps = halter_testkit::values(&numbers(&[rows], 3));
    let run = |start: usize, len: usize, dweight: &Tensor| {
        let hidden = hidden.narrow(0, start, len).unwrap();
        let targets: Vec<Target> =
            (0..len as u32).map(|row| Target { row, token: (start as u32 + row) % 5 }).collect();
        let saved = logps::forward(&ctx, &hidden, &weight, &targets).unwrap();
        let (output, dhidden) = (saved.logps.clone(), Tensor::zeros_like(&hidden).unwrap());
        let dlogps = &dlogps[start..start + len];
        let gradients = Gradients { dhidden: &dhidden, dweight: Some(dweight) };
        logps::backward(&ctx, &hidden, &weight, &targets, saved, dlogps, gradients).unwrap();
        (output, dhidden)
    };
    let (whole, apart) = (zeros_like(&weight), zeros_like(&weight));
    let (logps, dhidden) = run(0, rows, &whole);
    for start in (0..rows).step_by(part) {
        let (one_logps, one_dhidden) = run(start, part, &apart);
        let same = |a: &Tensor, b: &Tensor| {
            let a = a.narrow(0, start, part).unwrap();
            halter_testkit::assert_close("chunk", &a, b, 1e-6);
        };
        same(&logps, &one_logps);
        same(&dhidden, &one_dhidden);
    }
    halter_testkit::assert_relative("dweight", &whole, &apart, 1e-5);
}

#[test]
fn dropouts() {
    let inputs = [numbers(&[9, 11], 1)];
    let ctx = Context::new(&Device::Cpu);
    let ones = Tensor::ones((9, 11), DType::F32, &Device::Cpu).unwrap();
    let mask = dropout::apply(&ctx, &ones, 0.25, 5).unwrap().to_dtype(DType::F64).unwrap();
    check_forms(
        "dropout",
        &inputs,
        |x| &x[0] * &mask,
        |ctx, inputs, dy| {
            let output = dropout::apply(ctx, &inputs[0], 0.25, 5).unwrap().copy().unwrap();
            let dx = dropout::apply(ctx, dy, 0.25, 5).unwrap().copy().unwrap();
            Ran { output, gradients: vec![dx] }
        },
    );
}

#[test]
fn attention_in_whole_tiles() {
    // Longer than the tiles of queries and keys, with ends that fill none.
    let span = |parent, start, len, position| Span { parent, start, len, position };
    let spans = [
        span(None, 0, 150, 0),
        span(Some(0), 150, 61, 150),
        span(Some(0), 211, 200, 150),
        span(None, 411, 89, 0),
    ];
    for (dim, window) in [(64, None), (32, Some(45)), (20, None)] {
        let shape = attention::Shape { heads: 4, kv_heads: 2, head_dim: dim, window };
        let inputs = [(1, 4), (2, 2), (3, 2), (4, 4)].map(|(s, h)| numbers(&[500, h * dim], s));
        let run = |dtype| -> Vec<Tensor> {
            let [q, k, v, dy] = inputs.each_ref().map(|x| x.to_dtype(dtype).unwrap());
            let ctx = Context::new(&Device::Cpu);
            let (output, lse) = attention::forward(&ctx, shape, &spans, &q, &k, &v).unwrap();
            let saved = attention::Saved { q: &q, k: &k, v: &v, output: &output, lse: &lse };
            let (dq, dk, dv) = attention::backward(&ctx, shape, &spans, saved, &dy).unwrap();
            [output, lse, dq, dk, dv].iter().map(|x| x.copy().unwrap()).collect()
        };
        // f32 takes the fused form, f64 the composed one.
        for (i, (fused, composed)) in run(DType::F32).iter().zip(run(DType::F64)).enumerate() {
            let what = format!("head_dim {dim}, window {window:?}, output {i}");
            halter_testkit::assert_relative(&what, fused, &composed, 1e-5);
        }
    }
}

#[test]
fn decoding_equals_the_product_however_the_weights_are_held() {
    let (tokens, input, output) = (5, 64, 9);
    let (x, dense) = (numbers(&[tokens, input], 1), numbers(&[output, input], 2));
    let mut cases = 0;
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let narrow = dense.to_dtype(dtype).unwrap();
        let stored = StoredTensor::from_tensor("w", &narrow).unwrap();
        let stored = Param::new("w", Value::Stored(stored));
        let wide = narrow.to_dtype(DType::F32).unwrap();
        let held = Param::new("w", Value::Dense(wide.clone()));
        let want = x.to_dtype(DType::F32).unwrap().matmul(&wide.t().unwrap()).unwrap();
        for ctx in [Context::new(&Device::Cpu), Context::composed(&Device::Cpu)] {
            let x = x.to_dtype(DType::F32).unwrap();
            let (a, b) = (zeros_like(&want), want.copy().unwrap());
            let all = [
                Decode { weight: &stored, into: Into::Overwrite, y: &a },
                Decode { weight: &held, into: Into::Accumulate, y: &b },
            ];
            linear::decode(&ctx, &x, &all).unwrap();
            halter_testkit::assert_relative("stored", &a, &want, 1e-5);
            halter_testkit::assert_relative("added", &b, &(&want * 2.0).unwrap(), 1e-5);
            cases += 1;
        }
    }
    assert_eq!(cases, 6);
}
