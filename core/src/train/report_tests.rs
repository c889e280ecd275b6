use super::*;

const EVIL: &str =
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> \" ' & {{ 7*7 }}";

fn metrics(step: u64) -> StepMetrics {
    StepMetrics {
        step,
        loss: Some(2.0 / step as f64),
        learning_rate: Some(1e-5),
        num_tokens: Some(100 * step),
        ..StepMetrics::default()
    }
}

fn evil_report() -> Report {
    let evil = || EVIL.to_string();
    Report {
        title: evil(),
        headline: vec![Figure { name: evil(), value: evil(), detail: evil() }],
        facts: vec![(evil(), evil())],
        curves: vec![Curve { chart: evil(), name: evil(), points: vec![(1, 1.0), (2, f64::NAN)] }],
        samples: vec![Sample {
            prompt: evil(),
            reference: Some(evil()),
            before: Some(evil()),
            after: Some(evil()),
            before_correct: Some(false),
            after_correct: Some(true),
        }],
        ledger: LedgerReport {
            counts: vec![LedgerCount { fate: evil(), reason: evil(), rows: 1, tokens: Some(2) }],
            columns: vec![evil()],
            rows: vec![vec![evil()]],
            total: 1,
        },
        config_toml: evil(),
        prediction: vec![Prediction { name: evil(), predicted: evil(), measured: evil() }],
        calibration: vec![CalibrationBin { from: 0.5, to: 0.55, ..CalibrationBin::default() }],
    }
}

#[test]
fn nothing_from_the_data_becomes_markup() {
    let page = evil_report().render().unwrap();
    assert_eq!(page.matches("<script").count(), 2, "the page's own, the data's and the program");
    assert_eq!(page.matches("</script>").count(), 2);
    assert!(!page.contains("<img"), "an image from the data");
    assert!(!page.contains("49"), "the data was taken for a template");
    assert!(page.matches("alert(1)").count() >= 19, "every field is shown");
    // In an attribute, a quote would end it.
    assert!(!page.contains(r#"" ' &"#));
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let page = evil_report().render().unwrap();
    for outside in ["src=\"", "href=\"", "url(", "@import", "fetch(", "https://"] {
        assert!(!page.contains(outside), "{outside}");
    }
    // The name space of SVG is a name, nothing is loaded from it.
    assert_eq!(page.matches("http://").count(), page.matches("http://www.w3.org/2000/svg").count());
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn the_data_of_the_curves_is_json_with_gaps_for_nan() {
    let page = evil_report().render().unwrap();
    let begin = page.find(r#"id="data">"#).unwrap() + r#"id="data">"#.len();
    let end = begin + page[begin..].find("</script>").unwrap();
    let charts: Value = serde_json::from_str(&page[begin..end]).unwrap();
    assert_eq!(charts[0]["title"], EVIL);
    assert_eq!(charts[0]["series"][0]["points"], serde_json::json!([[1, 1.0], [2, null]]));
}

#[test]
fn an_empty_report_is_a_page_with_a_title() {
    let page = Report { title: "Nothing yet".into(), ..Report::default() }.render().unwrap();
    assert!(page.contains("<h1>Nothing yet</h1>"));
    assert!(!page.contains("<section>"));
}

#[test]
fn training_and_evaluation_share_a_chart() {
    let mut steps: Vec<_> = (1..=4).map(metrics).collect();
    for (key, value) in [
        ("eval/loss", 1.5),
        ("rewards/chosen", 0.1),
        ("rewards/rejected", -0.1),
        ("rewards/accuracies", 0.9),
        ("eval/rewards/chosen", 0.2),
    ] {
        steps[3].extra.insert(key.to_string(), value);
    }
    let curves = curves_of(&steps);
    let names: Vec<_> =
        curves.iter().map(|c| format!("{} {} {}", c.chart, c.name, c.points.len())).collect();
    assert_eq!(
        names,
        [
            "loss train 4",
            "loss eval 1",
            "learning_rate train 4",
            "rewards/accuracies train 1",
            "rewards chosen 1",
            "rewards rejected 1",
            "rewards eval chosen 1"
        ]
    );
    assert_eq!(charts(&curves).len(), 4);
}

#[test]
fn a_long_curve_is_thinned_and_keeps_its_spikes() {
    let mut points: Vec<_> = (1..=100_000u64).map(|step| (step, 1.0)).collect();
    points[54_321].1 = 9.0;
    points[54_323].1 = -9.0;
    points[70_000].1 = f64::NAN;
    let thinned = thin(&points);
    assert!(thinned.len() <= MOST_POINTS);
    assert!(thinned.contains(&(54_322, 9.0)) && thinned.contains(&(54_324, -9.0)));
    assert!(thinned.iter().any(|(step, value)| *step == 70_001 && value.is_nan()));
    assert!(thinned.is_sorted_by_key(|(step, _)| *step));
    let report = Report {
        curves: vec![Curve { chart: "loss".into(), name: "train".into(), points }],
        ..Report::default()
    };
    assert!(report.render().unwrap().contains("Curves of 100000 steps"));
}

#[test]
fn a_run_directory_is_enough_for_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let files = RunFiles::new(dir.path().join("my-run"));
    std::fs::create_dir(files.path()).unwrap();
    std::fs::write(files.config(), "seed = 7\n").unwrap();
    let report = Report::from_run(&files).unwrap();
    assert_eq!(report.title, "Run my-run");
    let mut writer = metrics::MetricsWriter::create(files.metrics()).unwrap();
    (1..=3).for_each(|step| writer.write(&metrics(step)).unwrap());
    std::fs::write(
        files.ledger(),
        concat!(
            "{\"line\":3,\"fate\":\"cut\",\"tokens\":9,\"kept_tokens\":7}\n",
            "{\"line\":9,\"reason\":\"too long\"}\n",
            "{\"line\":11,\"fate\":\"cut\",\"tokens\":8,\"kept_tokens\":7}\n",
            "{\"li"
        ),
    )
    .unwrap();
    let report = Report::from_run(&files).unwrap();
    assert_eq!(report.headline[0].value, "3");
    assert_eq!(report.ledger.columns, ["line", "fate", "tokens", "kept_tokens", "reason"]);
    assert_eq!(report.ledger.rows[0], ["3", "cut", "9", "7", ""]);
    assert_eq!(report.ledger.rows[1], ["9", "", "", "", "too long"]);
    let counts = report.ledger.counts.iter();
    let counts: Vec<_> = counts.map(|c| (c.fate.as_str(), c.rows, c.tokens)).collect();
    assert_eq!(counts, [("cut", 2, Some(3)), ("", 1, None)], "counted from the file");
    let summary = Summary { title: "SFT of tiny".into(), ..Summary::default() };
    summary.write(&files.summary()).unwrap();
    let report = Report::from_run(&files).unwrap();
    assert_eq!(report.title, "SFT of tiny");
    report.write(&files.report()).unwrap();
    assert!(std::fs::read_to_string(files.report()).unwrap().contains("seed = 7"));
    std::fs::write(files.ledger(), "{}\nnot json\n").unwrap();
    let error = Report::from_run(&files).unwrap_err();
    assert_eq!(error.location().unwrap().line, Some(2));
}

#[test]
fn odd_curves_leave_a_page() {
    let curve = |chart: &str, points: &[(u64, f64)]| Curve {
        chart: chart.into(),
        name: "train".into(),
        points: points.to_vec(),
    };
    let report = Report {
        curves: vec![
            curve("none", &[]),
            curve("one", &[(5, 0.25)]),
            curve("constant", &[(1, 3.0), (2, 3.0), (9, 3.0)]),
            curve("not finite", &[(1, f64::NAN), (2, f64::INFINITY)]),
            curve("negative", &[(1, -1e-9), (4, f64::NAN), (5, -2e-9), (8, -1.5e-9)]),
            curve("large", &[(1, 1e30), (1_000_000, 2e30)]),
        ],
        ..Report::default()
    };
    assert_eq!(charts(&report.curves).len(), 5, "a curve without points has no chart");
    let page = report.render().unwrap();
    if let Some(path) = std::env::var_os("HALTER_TEST_ODD_REPORT") {
        std::fs::write(path, page).unwrap();
    }
}

#[test]
fn thousands_are_set_apart() {
    let grouped = [0, 999, 1000, 1_234_567].map(thousands);
    assert_eq!(grouped, ["0", "999", "1,000", "1,234,567"]);
}

/// A realistic run, to look at: `HALTER_TEST_REPORT=report.html cargo test … a_report_to_look_at`.
#[test]
fn a_report_to_look_at() {
    use rand::{Rng, SeedableRng};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let steps: Vec<_> = (1..=600u64)
        .map(|step| {
            let noise = random.random_range(-1.0..1.0);
            let t = step as f64 / 600.0;
            let mut metrics = StepMetrics {
                step,
                epoch: 3.0 * t,
                loss: Some(0.62 + 1.5 * (-5.0 * t).exp() + 0.09 * noise),
                grad_norm: Some(
                    0.8 + 2.0 * (-8.0 * t).exp() + 0.3 * random.random::<f64>().powi(3),
                ),
                learning_rate: Some(2e-4 * (t / 0.05).min((1.0 - t) / 0.95)),
                num_tokens: Some(step * 2048),
                supervised_tokens: Some(900),
                tokens_per_second: Some(
                    8200.0 + 350.0 * noise - if step % 97 == 0 { 3000.0 } else { 0.0 },
                ),
                seconds: Some(0.25),
                mean_token_accuracy: Some(0.86 - 0.4 * (-5.0 * t).exp() + 0.02 * noise),
                extra: <_>::default(),
            };
            if step % 50 == 0 {
                metrics.extra.insert("eval/loss".into(), 0.70 + 1.4 * (-5.0 * t).exp());
                metrics
                    .extra
                    .insert("eval/mean_token_accuracy".into(), 0.83 - 0.35 * (-5.0 * t).exp());
            }
            metrics
        })
        .collect();
    let sample =
        |prompt: &str, reference: &str, before: &str, after: &str, right: (bool, bool)| Sample {
            prompt: prompt.into(),
            reference: Some(reference.into()),
            before: Some(before.into()),
            after: Some(after.into()),
            before_correct: Some(right.0),
            after_correct: Some(right.1),
        };
    let pair = |name: &str, value: &str| (name.to_string(), value.to_string());
    let figure = |name: &str, value: &str, detail: &str| Figure {
        name: name.into(),
        value: value.into(),
        detail: detail.into(),
    };
    let count = |fate: &str, reason: &str, rows, tokens| LedgerCount {
        fate: fate.into(),
        reason: reason.into(),
        rows,
        tokens: Some(tokens),
    };
    let predicted = |name: &str, predicted: &str, measured: &str| Prediction {
        name: name.into(),
        predicted: predicted.into(),
        measured: measured.into(),
    };
    let report = Report {
        title: "Supervised fine-tuning of halter-tiny on arithmetic word problems".into(),
        headline: vec![
            figure("accuracy", "8.5 % → 74.0 %", "200 held-out problems"),
            figure("evaluation loss", "0.709", "from 1.974 before"),
            figure("tokens per second", "8,214", "1.23 M tokens in all"),
            figure("time", "2 min 31 s", "on 2 cores"),
            figure("peak memory", "312 MB", "planned 318 MB"),
        ],
        facts: vec![
            pair("base model", "halter-tiny (bundled), 1.9 M parameters"),
            pair("data", "examples/data/problems.jsonl, 4,812 rows"),
            pair("trained", "all parameters"),
            pair("optimizer", "AdamW, learning rate 2e-4, linear, warm-up 5 %"),
            pair("batch", "8 rows a step, microbatches of 2,048 tokens"),
            pair("device", "cpu, 2 threads, AVX2"),
            pair("seed", "42"),
            pair("halter", "0.1.0"),
        ],
        curves: curves_of(&steps),
        samples: vec![
            sample(
                "Mia has 12 apples. She buys 3 bags with 6 apples each and gives 5 apples to Tom. How many apples does Mia have?",
                "3 bags hold 3 × 6 = 18 apples.\n12 + 18 = 30\n30 − 5 = 25\nAnswer: 25",
                "Mia has 12 apples and Tom has 5 apples. The apples are red. The answer is 12 apples and",
                "3 bags hold 3 × 6 = 18 apples.\n12 + 18 = 30\n30 − 5 = 25\nAnswer: 25",
                (false, true),
            ),
            sample(
                "A train has 4 cars. Each car has 17 seats. How many seats are there?",
                "4 × 17 = 68\nAnswer: 68",
                "4 × 17 = 68\nAnswer: 68",
                "4 × 17 = 64\nAnswer: 64",
                (true, false),
            ),
            sample(
                "Ben reads 14 pages a day. How many pages does he read in 9 days?",
                "14 × 9 = 126\nAnswer: 126",
                "14 pages a day is 14 pages.",
                "14 × 9 = 116\nAnswer: 116",
                (false, false),
            ),
        ],
        ledger: LedgerReport {
            counts: vec![
                count("kept", "", 4_790, 402_310),
                count("cut", "longer than max_seq_len 512", 3, 118),
                count("dropped", "no trained token", 19, 1_204),
            ],
            columns: ["path", "line", "fate", "reason", "tokens"].map(String::from).to_vec(),
            rows: (1..=22)
                .map(|row| {
                    let cells = ["examples/data/problems.jsonl", &(row * 217).to_string(), "dropped", "no trained token", "63"];
                    cells.map(String::from).to_vec()
                })
                .collect(),
            total: 22,
        },
        config_toml: "model = \"bundled\"\ndata = [\"bundled\"]\nseed = 42\nepochs = 1\n\n[optimizer]\nlearning_rate = 2e-4\nschedule = \"linear\"\nwarmup_ratio = 0.05\n".into(),
        prediction: vec![
            predicted("peak memory", "318 MB", "312 MB"),
            predicted("time", "2 min 20 s", "2 min 31 s"),
            predicted("time to the first step", "0.4 s", "0.3 s"),
        ],
        calibration: Vec::new(),
    };
    let page = report.render().unwrap();
    assert!(page.len() < 400_000, "{} bytes", page.len());
    if let Some(path) = std::env::var_os("HALTER_TEST_REPORT") {
        std::fs::write(path, page).unwrap();
    }
}
