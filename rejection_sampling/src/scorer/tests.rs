use serde_json::{Map, Value, json};

use super::*;

/// The message and its hint.
fn refusal(spec: &str) -> String {
    let error = spec.parse::<ScorerSpec>().map(|_| ()).unwrap_err();
    let hint = error.remedy().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
    format!("{spec}\n  {error}{hint}")
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn score(spec: &str, row: Value, completion: &str) -> Result<Score> {
    let row = object(row);
    let item = Item { prompt: &NO_PROMPT, completion, num_tokens: 10, ended: true, row: &row };
    spec.parse::<ScorerSpec>()?.build()?.score(&item)
}

#[test]
fn every_form_is_read_and_written_as_it_was() {
    for (text, weight, name) in [
        ("numeric", 1.0, "numeric"),
        ("numeric:column=target", 1.0, "numeric"),
        ("exact", 1.0, "exact"),
        ("exact:ignore-case,column=target", 1.0, "exact"),
        ("regex:a*2", 1.0, "regex"),
        ("2*regex:(a:b)*c", 2.0, "regex"),
        ("regex-full:\\d+", 1.0, "regex-full"),
        ("format:think", 1.0, "format"),
        ("format:think-answer", 1.0, "format"),
        ("ifeval", 1.0, "ifeval"),
        ("ifeval:loose,all", 1.0, "ifeval"),
        ("json-schema", 1.0, "json-schema"),
        ("json-schema:column=form", 1.0, "json-schema"),
        ("0.5*length:1024", 0.5, "length"),
        ("-1 * length:1024,ramp=256", -1.0, "length"),
        ("repetition", 1.0, "repetition"),
        ("1e-2*repetition:3", 0.01, "repetition"),
    ] {
        let spec: ScorerSpec = text.parse().unwrap();
        assert_eq!(spec.weight(), weight, "{text}");
        assert_eq!(spec.build().unwrap().name(), name, "{text}");
        assert_eq!(spec.to_string(), text);
        let written = serde_json::to_value(&spec).unwrap();
        assert_eq!(written, json!(text));
        assert_eq!(serde_json::from_value::<ScorerSpec>(written).unwrap(), spec);
    }
}

#[test]
fn wrong_specs_are_refused_with_what_was_expected() {
    let refusals = [
        "",
        "nummeric",
        "Numeric",
        "numeric:target",
        "numeric:column=a,column=b",
        "exact:ignorecase",
        "regex",
        "regex:",
        "regex:(a",
        "regex:(?=a)",
        "regex-full:a)|(b",
        "format",
        "format:thinking",
        "ifeval:strict",
        "code:shares",
        "code:seconds=0",
        "code:seconds=1.5",
        "judge",
        "length",
        "length:many",
        "length:0",
        "length:ramp=5",
        "length:10,ramp=-5",
        "length:10,20",
        "repetition:0",
        "x*numeric",
        "*numeric",
        "inf*numeric",
        "2*",
    ]
    .map(refusal);
    insta::assert_snapshot!(refusals.join("\n"));
}

#[test]
fn a_schema_file_is_read_when_the_scorer_is_built() {
    let spec: ScorerSpec = "json-schema:no/such/file.json".parse().unwrap();
    let error = spec.build().map(|_| ()).unwrap_err();
    assert!(error.to_string().starts_with("no/such/file.json: cannot read"), "{error}");
}

#[test]
fn code_is_built_where_programs_can_be_contained() {
    for text in ["code", "code:share,seconds=5", "2*code:allow-network,allow-reads"] {
        let spec: ScorerSpec = text.parse().unwrap();
        match spec.build() {
            Ok(scorer) => assert_eq!(scorer.name(), "code"),
            Err(error) => eprintln!("skipped: {error}"),
        }
    }
}

#[cfg(not(feature = "judge"))]
#[test]
fn without_the_feature_a_judge_is_refused() {
    let spec: ScorerSpec = "judge:judge.toml".parse().unwrap();
    let error = spec.build().map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("this build cannot ask a judge"), "{error}");
}

#[cfg(feature = "judge")]
#[test]
fn a_judge_is_read_from_its_file_when_the_scorer_is_built() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("judge.toml");
    let spec: ScorerSpec = format!("0.5*judge:{}", path.display()).parse().unwrap();
    assert!(spec.build().is_err(), "no file");
    std::fs::write(&path, "url = 'http://127.0.0.1:1'\nmodel = ''").unwrap();
    let error = spec.build().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("judge.toml: judge: `model`"), "{error}");
    std::fs::write(&path, "url = 'http://127.0.0.1:1'\nmodel = 'm'").unwrap();
    assert_eq!(spec.build().unwrap().name(), "judge");
}

#[test]
fn the_reference_is_the_first_of_its_columns() {
    for (spec, row, completion, value) in [
        ("numeric", json!({"answer": "5"}), "so 5", 1.0),
        ("numeric", json!({"answer": 5}), "so 5", 1.0),
        ("numeric", json!({"answer": 0.5}), "so 1/2", 1.0),
        ("numeric", json!({"answer": "2 + 3 = <<2+3=5>>5\n#### 5"}), "5", 1.0),
        ("numeric", json!({"solution": r"so \boxed{5}"}), "5", 1.0),
        ("numeric", json!({"reference": "5"}), "5", 1.0),
        ("numeric", json!({"ground_truth": "5"}), "5", 1.0),
        ("numeric", json!({"solution": "6", "answer": "5"}), "5", 1.0),
        ("numeric", json!({"answer": null, "solution": "5"}), "5", 1.0),
        ("numeric", json!({"messages": [{"role": "assistant", "content": "#### 5"}]}), "5", 1.0),
        ("numeric", json!({"completion": "#### 5", "messages": []}), "5", 1.0),
        ("numeric:column=target", json!({"answer": "6", "target": "5"}), "5", 1.0),
        ("numeric", json!({"answer": "5"}), "6", 0.0),
        ("numeric", json!({"answer": "5"}), "", 0.0),
        ("exact", json!({"answer": "Paris"}), " Paris\n", 1.0),
        ("exact", json!({"answer": "Paris"}), "paris", 0.0),
        ("exact:ignore-case", json!({"answer": "Paris"}), "paris", 1.0),
        ("exact", json!({"answer": "Paris"}), "Paris.", 0.0),
        ("exact", json!({"answer": "why\n#### 5"}), "5", 1.0),
        ("exact", json!({"answer": true}), "true", 1.0),
    ] {
        assert_eq!(score(spec, row.clone(), completion).unwrap().value, value, "{spec} {row}");
    }
}

#[test]
fn a_row_without_reference_is_an_error_with_a_hint() {
    let mut errors = Vec::new();
    for (spec, row) in [
        ("numeric", json!({"question": "?", "target": "5"})),
        ("numeric:column=gold", json!({"answer": "5"})),
        ("exact", json!({})),
        ("exact", json!({"answer": ["5"]})),
        ("numeric", json!({"answer": " "})),
        ("numeric", json!({"answer": "why\n####"})),
    ] {
        let error = score(spec, row.clone(), "5").unwrap_err();
        let hint = error.remedy().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
        errors.push(format!("{spec} {row}\n  {error}{hint}"));
    }
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn answers_in_words_are_the_only_number_in_them() {
    for (completion, value) in [
        ("The answer is that there are 5 apples.", 1.0),
        ("The answer is 5 apples and 6 pears.", 0.0),
        ("#### 5 apples in all", 1.0),
        ("#### $5.00", 1.0),
        ("<answer>It is 5</answer>", 1.0),
        (r"\boxed{\text{the number } 5}", 0.0),
        ("#### 5 million", 0.0),
        (r"The answer is $5\pi$.", 0.0),
        ("<answer>5x</answer>", 0.0),
        ("#### 5e3", 0.0),
        ("It has 5 million", 0.0),
        ("They are 5.5e6", 0.0),
        (r"so $5\frac{1}{2}$", 0.0),
        ("答案是5", 1.0),
        ("#### 5 (apples)", 1.0),
        ("The answer is 5, because 2 + 3 = 5. Bye 7", 0.0),
        ("We get 2 + 3 = 5", 1.0),
        ("The final answer is $\\boxed{5}$. I hope it is correct.", 1.0),
    ] {
        let got = score("numeric", json!({"answer": "5"}), completion).unwrap();
        assert_eq!(got.value, value, "{completion}: {got:?}");
    }
}

#[test]
fn a_weighted_sum_adds_weight_times_score_and_tells_its_parts() {
    let specs = ["numeric", "0.5*length:8,ramp=4"].map(|spec| spec.parse().unwrap());
    let sum = WeightedSum::from_specs(&specs).unwrap();
    assert_eq!(sum.name(), "numeric + 0.5*length");
    let row = object(json!({"answer": "5"}));
    let item = Item { prompt: &NO_PROMPT, completion: "6", num_tokens: 10, ended: true, row: &row };
    let score = sum.score(&item).unwrap();
    assert_eq!(score.value, -0.25);
    assert_eq!(
        score.detail.unwrap(),
        "numeric 0.000 (expected `5`, got `6`); length -0.500 (2 tokens over 8)"
    );
    assert_eq!(sum.score(&Item { completion: "5", num_tokens: 8, ..item }).unwrap().value, 1.0);
    assert!(sum.score(&Item { row: &Map::new(), ..item }).is_err());
}

#[test]
fn a_batch_has_the_scores_of_its_items() {
    let specs = ["numeric", "0.5*length:8,ramp=4"].map(|spec| spec.parse().unwrap());
    let sum = WeightedSum::from_specs(&specs).unwrap();
    let (row, none) = (object(json!({"answer": "5"})), Map::new());
    let items: Vec<Item> = (0..100)
        .map(|at| Item {
            prompt: &NO_PROMPT,
            completion: if at % 2 == 0 { "5" } else { "6" },
            num_tokens: at % 13,
            ended: true,
            row: if at % 7 == 0 { &none } else { &row },
        })
        .collect();
    for (item, score) in items.iter().zip(sum.score_all(&items)) {
        match (sum.score(item), score) {
            (Ok(one), Ok(of_batch)) => assert_eq!(one, of_batch),
            (one, of_batch) => assert_eq!(one.is_err(), of_batch.is_err()),
        }
    }
    assert!(sum.score_all(&[]).is_empty());
}

/// Remembers how many items it was shown at once.
struct Counting(std::sync::Mutex<Vec<usize>>);

impl Scorer for &'static Counting {
    fn name(&self) -> &str {
        "counting"
    }

    fn score(&self, _: &Item) -> Result<Score> {
        Ok(Score::new(1.0))
    }

    fn score_all(&self, items: &[Item]) -> Vec<Result<Score>> {
        self.0.lock().unwrap().push(items.len());
        items.iter().map(|item| self.score(item)).collect()
    }
}

#[test]
fn a_sum_shows_each_part_a_whole_batch_without_the_failed_rows() {
    let counting: &'static Counting = Box::leak(Box::new(Counting(Vec::new().into())));
    let numeric = "numeric".parse::<ScorerSpec>().unwrap().build().unwrap();
    let sum = WeightedSum::new(vec![(1.0, numeric), (0.25, Box::new(counting))]);
    let (row, none) = (object(json!({"answer": "5"})), Map::new());
    let item = |row| Item { prompt: &NO_PROMPT, completion: "5", num_tokens: 1, ended: true, row };
    let scores = sum.score_all(&[item(&row), item(&none), item(&row)]);
    let values: Vec<_> = scores.iter().map(|score| score.as_ref().ok().map(|s| s.value)).collect();
    assert_eq!(values, [Some(1.25), None, Some(1.25)]);
    assert_eq!(*counting.0.lock().unwrap(), [2]);
}

#[test]
fn no_scorer_takes_long_over_a_hostile_completion() {
    let specs = [
        "numeric",
        "exact:ignore-case",
        "regex:(a+)+b$",
        "regex-full:(?s)(.*a){10}b",
        "format:think-answer",
        "ifeval:loose",
        "json-schema",
        "repetition",
    ];
    let row = object(json!({
        "answer": r"\frac{1}{2}",
        "schema": {
            "type": ["array", "object"], "uniqueItems": true,
            "items": {"type": ["string", "number"], "pattern": "^(a+)+$", "multipleOf": 0.01},
        },
        "instruction_id_list": [
            "keywords:forbidden_words", "language:response_language", "startend:quotation",
            "length_constraints:number_sentences", "change_case:capital_word_frequency",
            "detectable_content:number_placeholders", "detectable_content:postscript",
            "detectable_format:number_bullet_lists", "detectable_format:title",
            "detectable_format:number_highlighted_sections", "detectable_format:json_format",
            "length_constraints:nth_paragraph_first_word", "combination:two_responses",
        ],
        "kwargs": [
            {"forbidden_words": ["a", "'"]}, {"language": "en"}, {},
            {"num_sentences": 5, "relation": "at least"},
            {"capital_frequency": 5, "capital_relation": "at least"},
            {"num_placeholders": 5}, {"postscript_marker": "P.P.S"}, {"num_bullets": 5}, {},
            {"num_highlights": 5}, {}, {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "a"},
            {},
        ],
    }));
    let scorers = specs.map(|spec| spec.parse::<ScorerSpec>().unwrap().build().unwrap());
    let pieces = [
        "a",
        "9",
        "9,",
        ".",
        "\n",
        " ",
        "a b ",
        "A'",
        "A'S ",
        "*",
        "* a",
        "**a** ",
        "[",
        "[]",
        "<<",
        "<<a>>",
        "\\boxed{",
        "\\boxed{9}",
        "#### ",
        "#### 9\n",
        "answer is ",
        "answer*",
        "</think>",
        "<answer>",
        "******",
        "\\frac{9}{",
        "9/",
        "$-",
        "p. p. ",
        "{\"a\":",
        "\"a\",",
        "é",
        "\u{301}",
    ];
    for piece in pieces {
        let long = piece.repeat((1 << 18) / piece.len());
        for completion in [long.clone(), format!("[{long}0]"), format!("answer is {long}\n")] {
            let item = Item {
                prompt: &NO_PROMPT,
                completion: &completion,
                num_tokens: 1,
                ended: true,
                row: &row,
            };
            for scorer in &scorers {
                let start = std::time::Instant::now();
                scorer.score(&item).unwrap();
                let seconds = start.elapsed().as_secs_f64();
                assert!(seconds < 5.0, "{} takes {seconds} s over {piece:?}", scorer.name());
            }
        }
    }
}
