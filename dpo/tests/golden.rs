//! Losses, rewards and gradients against TRL's, in f64 (`oracle/make_dpo_losses.py`).

#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor, Var};
use halter_dpo::loss::length::ld_weights;
use halter_dpo::loss::unpaired::{KtoConfig, kto, kto_kl};
use halter_dpo::loss::{LossConfig, PairLogps, PairLoss, ReferenceLogps, Sums};
use halter_testkit::{golden, values};
use serde_json::Value;

fn read() -> Value {
    let text = std::fs::read_to_string(golden("dpo/losses.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn vector(value: &Value) -> Tensor {
    Tensor::new(numbers(value), &Device::Cpu).unwrap()
}

fn counts(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect()
}

#[track_caller]
fn assert_agree(what: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let close = (got - want).abs() <= 1e-6 * want.abs() + 1e-15;
        assert!(close, "{what}, completion {i}: got {got:e}, expected {want:e}");
    }
}

#[test]
fn every_loss_agrees_with_trl_in_value_gradient_and_rewards() {
    let golden = read();
    let reference = ReferenceLogps {
        chosen: vector(&golden["reference_chosen"]),
        rejected: vector(&golden["reference_rejected"]),
    };
    let cases = golden["pairs"].as_array().unwrap();
    assert!(cases.len() >= 28);
    for kind in PairLoss::ALL {
        assert!(cases.iter().any(|case| case["loss"] == kind.name()), "no case of {kind}");
    }
    for case in cases {
        let kind: PairLoss = case["loss"].as_str().unwrap().parse().unwrap();
        let config = LossConfig {
            beta: number(&case["beta"]),
            label_smoothing: number(&case["label_smoothing"]),
            simpo_gamma: number(&case["simpo_gamma"]),
            cpo_alpha: number(&case["cpo_alpha"]),
            discopop_tau: number(&case["discopop_tau"]),
        };
        let chosen = Var::from_tensor(&vector(&golden["chosen"])).unwrap();
        let rejected = Var::from_tensor(&vector(&golden["rejected"])).unwrap();
        let pairs = PairLogps {
            chosen: Sums {
                logps: chosen.as_tensor().clone(),
                tokens: counts(&golden["chosen_tokens"]),
            },
            rejected: Sums {
                logps: rejected.as_tensor().clone(),
                tokens: counts(&golden["rejected_tokens"]),
            },
            reference: kind.needs_reference().then(|| reference.clone()),
            nll: None,
            tokens_per_pair: None,
        };
        let what = format!("{kind} {config:?}");
        let reward_mean = case.get("reward_mean").map_or(0.0, number);
        let loss = kind.loss(&pairs, &config, reward_mean).unwrap();
        match case.get("mean") {
            Some(mean) => {
                let got = loss.mean_all().unwrap().to_scalar::<f64>().unwrap();
                assert_agree(&what, &[got], &[number(mean)]);
            }
            None => assert_agree(&what, &values(&loss), &numbers(&case["losses"])),
        }
        let store = loss.sum_all().unwrap().backward().unwrap();
        for (which, leaf, logps) in
            [("d_chosen", &chosen, &pairs.chosen), ("d_rejected", &rejected, &pairs.rejected)]
        {
            // A loss of the chosen completions alone leaves the others out of its graph.
            let got = store.get(leaf).map_or_else(|| vec![0.0; logps.tokens.len()], values);
            assert_agree(&format!("{what}, {which}"), &got, &numbers(&case[which]));
        }
        let with_reference = PairLogps { reference: Some(reference.clone()), ..pairs };
        let rewards = kind.rewards(&with_reference, config.beta).unwrap();
        assert_agree(&what, &values(&rewards.0), &numbers(&case["rewards_chosen"]));
        assert_agree(&what, &values(&rewards.1), &numbers(&case["rewards_rejected"]));
    }
}

#[test]
fn kto_agrees_with_trl() {
    let golden = read();
    let desirable: Vec<bool> =
        golden["labels"].as_array().unwrap().iter().map(|x| x.as_bool().unwrap()).collect();
    let cases = golden["kto"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for case in cases {
        let config = KtoConfig {
            beta: number(&case["beta"]),
            desirable_weight: number(&case["desirable_weight"]),
            undesirable_weight: number(&case["undesirable_weight"]),
        };
        let kl = kto_kl(&vector(&case["kl_logps"]), &vector(&case["kl_reference"])).unwrap();
        assert_agree("kl", &[kl], &[number(&case["kl"])]);
        let logps = Var::from_tensor(&vector(&golden["chosen"])).unwrap();
        let reference = vector(&golden["reference_chosen"]);
        let loss = kto(logps.as_tensor(), &reference, &desirable, kl, &config).unwrap();
        assert_agree("loss of kto", &values(&loss), &numbers(&case["losses"]));
        let store = loss.sum_all().unwrap().backward().unwrap();
        let gradient = values(store.get(&logps).unwrap());
        assert_agree("gradient of kto", &gradient, &numbers(&case["d_logps"]));
    }
}

#[test]
fn weights_beyond_the_common_length_are_those_of_trl() {
    let golden = read();
    let case = &golden["ld"];
    let [chosen, rejected] = ["chosen", "rejected"].map(|which| numbers(&case[which]));
    let (ours_chosen, ours_rejected) =
        ld_weights(chosen.len(), rejected.len(), number(&case["alpha"]));
    assert_agree("chosen", &ours_chosen, &chosen);
    assert_agree("rejected", &ours_rejected, &rejected);
}
