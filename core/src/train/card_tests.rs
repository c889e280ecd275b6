use super::*;

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_string(), value.to_string())
}

fn card() -> Card {
    Card {
        name: "smollm2-problems".into(),
        base_model: "HuggingFaceTB/SmolLM2-135M-Instruct".into(),
        datasets: vec!["openai/gsm8k".into(), "/home/ada/data/problems.jsonl".into()],
        method: "sft".into(),
        description: "Supervised fine-tuning on the assistant's turns.".into(),
        tags: vec!["lora".into()],
        license: "apache-2.0".into(),
        hyper_parameters: vec![pair("learning rate", "2e-5"), pair("schedule", "linear | 5 %")],
        figures: vec![pair("accuracy", "8.5 % → 74.0 %")],
        has_chat_template: true,
        ..Card::default()
    }
}

#[test]
fn a_model_has_a_card() {
    insta::assert_snapshot!("model", card().render());
}

#[test]
fn an_adapter_has_a_card() {
    let card = Card { is_adapter: true, has_chat_template: false, ..card() };
    insta::assert_snapshot!("adapter", card.render());
}

#[test]
fn paths_of_a_disk_stay_private() {
    let card = Card { base_model: "/home/ada/models/tiny/".into(), ..card() };
    let text = card.render();
    assert!(!text.contains("ada"), "{text}");
    assert!(!text.contains("base_model"), "a path is not an id");
    assert!(text.contains("made from `tiny`") && text.contains("- `problems.jsonl`"));
}

#[test]
fn hub_ids_are_told_from_paths() {
    for id in ["a/b", "meta-llama/Llama-3.1-8B", "A1/b_c.d"] {
        assert!(is_hub_id(id), "{id}");
    }
    for path in
        ["", "tiny", "a/b/c", "/a", "./a", "../a", "a/", "a b/c", "a/b.gguf", "data/x.jsonl"]
    {
        assert!(!is_hub_id(path), "{path}");
    }
}

#[test]
fn odd_names_break_neither_the_front_matter_nor_the_tables() {
    let odd = "a\": [\n---\n| `x` <b>".to_string();
    let card = Card {
        tags: vec![odd.clone()],
        license: odd.clone(),
        figures: vec![(odd.clone(), odd.clone())],
        datasets: vec![odd.clone()],
        name: odd.clone(),
        ..Card::default()
    };
    let text = card.render();
    let rules = text.lines().filter(|line| *line == "---").count();
    assert_eq!(rules, 3, "front matter and the last line\n{text}");
    assert!(text.contains(r#"- "a\": [\n---\n| `x` <b>""#));
    assert!(text.contains(r#"| a": [ --- \| `x` &lt;b> | a": [ --- \| `x` &lt;b> |"#));
    assert!(text.contains(r#"- ``a": [ --- | `x` <b>``"#));
}

#[test]
fn a_card_of_nothing_still_says_where_it_comes_from() {
    let text = Card { name: "fresh".into(), ..Card::default() }.render();
    assert!(text.contains("A language model, trained from fresh weights."), "{text}");
}
