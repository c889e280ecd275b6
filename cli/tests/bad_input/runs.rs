//! Outputs and runs to resume.

use std::fs;

use super::models::WEIGHTS;
use super::support::{Place, TINY};
use super::{MODEL, Table};

#[test]
fn outputs_and_runs_that_cannot_be_used_are_refused() {
    let mut t = Table::new();
    t.case("output: a file", TINY, &[], |p| p.write("run", "mine"));
    t.case("output: below a file", TINY, &["--output", "m.jsonl/run"], |_| {});
    t.case("output: not empty", TINY, &[], |p| {
        fs::create_dir(p.path("run")).unwrap();
        p.write("run/mine.txt", "mine");
    });
    let begin = |p: &Place| {
        p.done(&[TINY, &["--output", "run", "--max-steps", "2", "--save-every", "1"]].concat());
    };
    t.case("output: holds a run", TINY, &[], begin);
    if cfg!(target_os = "linux") {
        t.case("output: where nobody may write", TINY, &["--output", "/proc/halter/run"], |_| {});
    }
    t.case("resume: no such run", TINY, &["--resume"], |_| {});
    t.case("resume: a directory without a run", TINY, &["--resume", "--output", "tok"], |_| {});
    t.case("resume: another seed", TINY, &["--resume", "--seed", "3"], begin);
    t.case("resume: another recipe", TINY, &["--resume", "--config", "r.toml"], |p| {
        begin(p);
        p.write("r.toml", "max_steps = 3\n");
    });
    t.case("resume: a configuration that was spoilt", &["--resume"], &[], |p| {
        begin(p);
        p.write("run/config.toml", "seed = \n");
    });
    t.case("resume: the data has other rows", &["--resume"], &[], |p| {
        begin(p);
        let more = p.text("m.jsonl").repeat(2);
        p.write("m.jsonl", more);
    });
    t.case("resume: a row of the data changed", &["--resume"], &[], |p| {
        begin(p);
        p.write("m.jsonl", p.text("m.jsonl").replace("It is 3.", "It is 4."));
    });
    t.case("resume: a held-out row changed", &["--resume"], &[], |p| {
        p.write("held.jsonl", p.text("m.jsonl"));
        p.done(&[TINY, &["--output", "run", "--eval-data", "held.jsonl"]].concat());
        p.write("held.jsonl", p.text("held.jsonl").replace("It is 3.", "It is 4."));
    });
    t.case("resume: the base of an adapter changed", &["--resume"], &[], |p| {
        p.done(&[MODEL, &["--lora-rank", "2", "--output", "run"]].concat());
        // The lowest bit of the first number.
        let mut bytes = p.read(WEIGHTS);
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[8 + header] ^= 1;
        p.write(WEIGHTS, bytes);
    });
    t.case("resume: every checkpoint is damaged", &["--resume"], &[], |p| {
        begin(p);
        for step in [1, 2] {
            let file = format!("run/checkpoints/step-{step}/weights.safetensors");
            let mut bytes = p.read(&file);
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            p.write(&file, bytes);
        }
    });
    t.case("resume: metrics that were spoilt", &["--resume"], &[], |p| {
        begin(p);
        p.write("run/metrics.jsonl", "not metrics\n{\"step\":2}\n");
    });
    t.case("resume: a ledger that was lost", &["--resume"], &[], |p| {
        p.done(
            &[
                TINY,
                &[
                    "--output",
                    "run",
                    "--data",
                    "t.jsonl",
                    "--overlong",
                    "split",
                    "--max-seq-len",
                    "40",
                ],
            ]
            .concat(),
        );
        p.write("run/ledger.jsonl", "");
    });
    println!("{} wrong outputs and runs", t.cases);
    insta::assert_snapshot!("runs", t.text);
}
