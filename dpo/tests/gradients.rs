//! The gradient of every loss with respect to both log-probs, against finite differences.

#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Result, Tensor, Var};
use halter_dpo::loss::unpaired::{KtoConfig, kto};
use halter_dpo::loss::{LossConfig, PairLogps, PairLoss, ReferenceLogps, Sums};
use halter_testkit::gradients::{Ran, check};
use halter_testkit::values;

/// A loss of chosen and rejected log-probs.
type Loss<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

fn vector(values: &[f64]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

fn pair_loss(kind: PairLoss, inputs: &[Tensor], reference: [&[f64]; 2]) -> Result<Tensor> {
    let [reference_chosen, reference_rejected] =
        reference.map(|x| vector(x).to_dtype(inputs[0].dtype()).unwrap());
    let tokens = |base: usize| (0..inputs[0].elem_count()).map(|i| base + 3 * i).collect();
    let logps = PairLogps {
        chosen: Sums { logps: inputs[0].clone(), tokens: tokens(4) },
        rejected: Sums { logps: inputs[1].clone(), tokens: tokens(7) },
        reference: Some(ReferenceLogps { chosen: reference_chosen, rejected: reference_rejected }),
        nll: None,
        tokens_per_pair: None,
    };
    // AOT is smoothed as well, so that both of its terms are looked at.
    let config = LossConfig { beta: 0.3, label_smoothing: 0.1, ..LossConfig::default() };
    kind.loss(&logps, &config, 0.2).map_err(candle_core::Error::wrap)
}

fn run(loss: Loss, inputs: &[Tensor], dy: &Tensor) -> Ran {
    let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let leaves: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let output = loss(&leaves).unwrap();
    let store = (&output * dy).unwrap().sum_all().unwrap().backward().unwrap();
    let gradient = |var: &Var| {
        store.get(var).cloned().unwrap_or_else(|| var.as_tensor().zeros_like().unwrap())
    };
    Ran { gradients: vars.iter().map(gradient).collect(), output: output.detach() }
}

const REFERENCE: [&[f64]; 2] =
    [&[-4.5, -9.0, -8.0, -21.0, -7.0], &[-6.0, -7.5, -10.0, -14.0, -3.0]];

#[test]
fn gradients_agree_with_finite_differences_and_f32_with_f64() {
    // The second pair equals its reference, as all do at the first step. No two log-ratios are
    // equal, where AOT has a kink.
    let inputs =
        [vector(&[-3.0, -9.0, -12.5, -16.0, -8.25]), vector(&[-5.0, -7.5, -6.0, -18.5, -3.5])];
    for kind in PairLoss::ALL {
        let loss = |inputs: &[Tensor]| pair_loss(kind, inputs, REFERENCE);
        // `sft` has no gradient for the rejected: a path of zeros keeps the comparison.
        let with_path = |inputs: &[Tensor]| loss(inputs)? + (&inputs[1] - &inputs[1])?;
        check(kind.name(), &inputs, with_path, |inputs, dy| run(&loss, inputs, dy));
    }
}

#[test]
fn gradients_of_kto_agree_with_finite_differences() {
    let desirable = [true, false, false, true, false];
    let config = KtoConfig { beta: 0.3, desirable_weight: 1.2, undesirable_weight: 0.7 };
    let loss = |inputs: &[Tensor]| {
        let reference = vector(REFERENCE[0]).to_dtype(inputs[0].dtype())?;
        kto(&inputs[0], &reference, &desirable, 0.4, &config).map_err(candle_core::Error::wrap)
    };
    let inputs = [vector(&[-3.0, -9.0, -12.5, -16.0, -8.25])];
    check("kto", &inputs, loss, |inputs, dy| run(&loss, inputs, dy));
    for (dtype, logp) in [(DType::F64, 1e4), (DType::F32, 1e4), (DType::F32, -1e4)] {
        let far = Tensor::full(logp, 5, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let ran = run(&loss, std::slice::from_ref(&far), &far.ones_like().unwrap());
        assert!(
            values(&ran.output).iter().chain(&values(&ran.gradients[0])).all(|x| x.is_finite())
        );
    }
}

#[test]
fn extreme_log_probs_give_finite_losses_and_gradients() {
    const FAR: [f64; 7] = [-1e4, -9e3, -1e2, -1e-8, 0.0, 1e2, 1e4];
    let mut checked = 0;
    for kind in PairLoss::ALL {
        for dtype in [DType::F64, DType::F32] {
            for rejected in FAR {
                let cast = |x: Tensor| x.to_dtype(dtype).unwrap();
                let inputs = [cast(vector(&FAR)), cast(vector(&[rejected; 7]))];
                let loss = |inputs: &[Tensor]| pair_loss(kind, inputs, [&[0.0; 7], &[-1.0; 7]]);
                let ran = run(&loss, &inputs, &inputs[0].ones_like().unwrap());
                for x in [&ran.output, &ran.gradients[0], &ran.gradients[1]] {
                    let finite = values(x).iter().all(|x| x.is_finite());
                    assert!(finite, "{kind}, {dtype:?}, rejected at {rejected}: {:?}", values(x));
                    checked += 1;
                }
            }
        }
    }
    assert_eq!(checked, 19 * 2 * 7 * 3);
}

#[test]
fn gradients_far_out_agree_with_finite_differences() {
    const STEP: f64 = 1e-4;
    let inputs = [vec![-1e4, -8e3, -20.0, -10.0], vec![-11.0, -21.0, -7e3, -9e3]];
    let reference: [&[f64]; 2] = [&[-10.0, -11.0, -12.0, -13.0], &[-14.0, -15.0, -16.0, -17.0]];
    for kind in PairLoss::ALL {
        let loss = |inputs: &[Tensor]| pair_loss(kind, inputs, reference);
        let losses = |inputs: &[Vec<f64>; 2]| {
            values(&loss(&[vector(&inputs[0]), vector(&inputs[1])]).unwrap())
        };
        let ones = vector(&[1.0; 4]);
        let ran = run(&loss, &[vector(&inputs[0]), vector(&inputs[1])], &ones);
        for side in 0..2 {
            for (i, got) in values(&ran.gradients[side]).into_iter().enumerate() {
                let at = |step: f64| {
                    let mut moved = inputs.clone();
                    moved[side][i] += step;
                    losses(&moved)
                };
                let (up, down) = (at(STEP), at(-STEP));
                let rise: f64 = up.iter().zip(&down).map(|(up, down)| up - down).sum();
                let slope = rise / (2.0 * STEP);
                let rounding = f64::EPSILON * up.iter().fold(1.0, |a: f64, b| a.max(*b)) / STEP;
                let close = (got - slope).abs() <= 1e-6 * slope.abs() + rounding;
                assert!(close, "{kind}, input {side}, pair {i}: got {got}, slope {slope}");
            }
        }
    }
}
