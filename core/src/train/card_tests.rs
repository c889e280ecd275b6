use super::*;

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_string(), value.to_string())
}

fn card() -> Card {
    Card {
        name: "smollm2-problems".into(),
        base_model: Some(Named::Hub("HuggingFaceTB/SmolLM2-135M-Instruct".into())),
        datasets: vec![
            Named::Hub("openai/gsm8k".into()),
            Named::Local("/home/ada/data/problems.jsonl".into()),
        ],
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
    let base_model = Some(Named::Local("/home/ada/models/tiny/".into()));
    let card = Card { base_model, ..card() };
    let text = card.render();
    assert!(!text.contains("ada"), "{text}");
    assert!(!text.contains("base_model"), "a path is not an id");
    assert!(text.contains("made from `tiny`") && text.contains("- `problems.jsonl`"));
}

#[test]
fn a_folder_that_is_called_like_a_hub_id_is_not_listed_as_one() {
    let local = |path: &str| Named::Local(path.into());
    let datasets = vec![local("bundled/train"), local("data/mine")];
    let text = Card { base_model: Some(local("runs/sft")), datasets, ..card() }.render();
    let (front, rest) = text[4..].split_once("\n---\n").unwrap();
    assert!(!front.contains("datasets:") && !front.contains("base_model"), "{front}");
    assert!(!rest.contains("huggingface.co") && rest.contains("- `mine`"), "{rest}");
}

#[test]
fn odd_names_break_neither_the_front_matter_nor_the_tables() {
    let odd = "a\": [\n---\n| `x` <b>".to_string();
    let card = Card {
        tags: vec![odd.clone()],
        license: odd.clone(),
        figures: vec![(odd.clone(), odd.clone())],
        datasets: vec![Named::Local(odd.clone())],
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
