//! An operation's forward and backward against candle's autograd and against finite differences.

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::{assert_close, assert_relative};

/// What an operation gives: its output, and the gradient of Σ output·dy for each input.
pub struct Ran {
    /// Output.
    pub output: Tensor,
    /// One per input.
    pub gradients: Vec<Tensor>,
}

/// Numbers that look random, in (−1, 1), the same on every machine.
pub fn numbers(shape: &[usize], seed: usize) -> Tensor {
    let n: usize = shape.iter().product();
    let value = |i: usize| {
        let mut z = (i + 1).wrapping_mul(0x9e37_79b9).wrapping_add(seed.wrapping_mul(0x85eb_ca6b));
        z = (z ^ (z >> 15)).wrapping_mul(0x2c1b_3c6d);
        z = (z ^ (z >> 12)).wrapping_mul(0x297a_2d39);
        ((z ^ (z >> 15)) % 100_003) as f64 / 50_001.5 - 1.0
    };
    let values: Vec<f64> = (0..n).map(value).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs `ours` on `inputs` in f64 and f32 and compares output and gradients with those of
/// `reference`, which candle differentiates in f64; and the f64 gradients with finite differences.
///
/// `ours` is told the type it gets, and `dy` as the gradient of its output.
#[track_caller]
pub fn check(
    what: &str,
    inputs: &[Tensor],
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
    ours: impl Fn(&[Tensor], &Tensor) -> Ran,
) {
    let vars: Vec<Var> =
        inputs.iter().map(|x| Var::from_tensor(x).unwrap_or_else(|e| panic!("{e}"))).collect();
    let leaves: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let (want, dy, store) = (|| -> Result<_> {
        let want = reference(&leaves)?;
        let dy = numbers(want.dims(), 99);
        let store = (&want * &dy)?.sum_all()?.backward()?;
        Ok((want, dy, store))
    })()
    .unwrap_or_else(|error| panic!("{what}: reference: {error}"));
    let gradient = |var: &Var| store.get(var).cloned().unwrap_or_else(|| panic!("{what}: no path"));
    let expected: Vec<Tensor> = vars.iter().map(gradient).collect();

    for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 1e-5)] {
        let cast = |x: &Tensor| x.to_dtype(dtype).unwrap_or_else(|error| panic!("{error}"));
        let ran = ours(&inputs.iter().map(cast).collect::<Vec<_>>(), &cast(&dy));
        assert_relative(&format!("{what}, {dtype:?}, output"), &ran.output, &want, tolerance);
        assert_eq!(ran.gradients.len(), expected.len());
        for (i, (got, want)) in ran.gradients.iter().zip(&expected).enumerate() {
            let what = format!("{what}, {dtype:?}, gradient of input {i}");
            assert_relative(&what, got, want, tolerance);
        }
    }
    let value = |inputs: &[Tensor]| -> f64 {
        let ran = ours(inputs, &dy);
        (ran.output * &dy)
            .and_then(|x| x.sum_all()?.to_scalar())
            .unwrap_or_else(|error| panic!("{what}: {error}"))
    };
    for (i, expected) in expected.iter().enumerate() {
        let slope = finite_differences(inputs, i, value);
        assert_close(&format!("{what}, finite differences of input {i}"), &slope, expected, 1e-6);
    }
}

/// Central differences of `value` with respect to every element of input `i`.
fn finite_differences(inputs: &[Tensor], i: usize, value: impl Fn(&[Tensor]) -> f64) -> Tensor {
    const STEP: f64 = 1e-5;
    let flat = crate::values(&inputs[i]);
    let at = |element: usize, step: f64| {
        let mut moved = flat.clone();
        moved[element] += step;
        let mut inputs = inputs.to_vec();
        inputs[i] = Tensor::from_vec(moved, inputs[i].dims(), &Device::Cpu)
            .unwrap_or_else(|error| panic!("{error}"));
        value(&inputs)
    };
    let slopes: Vec<f64> = (0..flat.len())
        .map(|element| (at(element, STEP) - at(element, -STEP)) / (2.0 * STEP))
        .collect();
    Tensor::from_vec(slopes, inputs[i].dims(), &Device::Cpu)
        .unwrap_or_else(|error| panic!("{error}"))
}
