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
    let item = Item { prompt: &[], completion, num_tokens: 10, ended: true, row: &row };
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
    let item = Item { prompt: &[], completion: "6", num_tokens: 10, ended: true, row: &row };
    let score = sum.score(&item).unwrap();
    assert_eq!(score.value, -0.25);
    assert_eq!(
        score.detail.unwrap(),
        "numeric 0.000 (expected `5`, got `6`); length -0.500 (2 tokens over 8)"
    );
    assert_eq!(sum.score(&Item { completion: "5", num_tokens: 8, ..item }).unwrap().value, 1.0);
    assert!(sum.score(&Item { row: &Map::new(), ..item }).is_err());
}
