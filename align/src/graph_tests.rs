use super::*;

/// Stages as `NAME KIND: KEY = VALUE`, each on a line after three others.
fn graph(rounds: usize, stages: &[&str]) -> Result<Graph> {
    let mut text = format!("model = \"start\"\nrounds = {rounds}\nseed = 7\n");
    for stage in stages {
        let (head, options) = stage.split_once(':').unwrap();
        let (name, kind) = head.split_once(' ').unwrap();
        text += &format!("[[stage]]\nname = \"{name}\"\nkind = \"{kind}\"\n{}\n", options.trim());
    }
    Graph::new(&Recipe::parse(&text, Path::new("r.toml"))?)
}

/// What an option of a stage is, with `name@round` in place of other stages.
fn option(graph: &Graph, name: &str, round: usize, key: &str) -> String {
    let node = graph.nodes.iter().find(|n| (n.name.as_str(), n.round) == (name, round)).unwrap();
    let place = |at: usize| format!("{}@{}", graph.nodes[at].name, graph.nodes[at].round);
    node.options(&place).get(key).map_or("nothing".into(), |value| value.to_string())
}

#[test]
fn references_are_followed_over_rounds() {
    let graph = graph(
        3,
        &[
            "reward reward: data = [\"human.jsonl\", \"{all.compare}/preferences.jsonl\"]",
            "sample sample: model = \"{previous.dpo}\"\ndata = [\"prompts-{round}.jsonl\"]\nscorer = [\"reward:{reward}\"]",
            "sft sft: model = \"{base}\"\ndata = [\"{sample}/sft.jsonl:2\"]",
            "compare sample: model = \"{sft}\"",
            "dpo dpo: model = \"{sft}\"\ndata = [\"{previous.compare}/p.jsonl\", \"{compare}/p.jsonl\"]",
        ],
    )
    .unwrap();
    assert_eq!(graph.nodes.len(), 15);
    for (name, round, key, want) in [
        ("reward", 1, "data", r#"["human.jsonl"]"#),
        ("reward", 2, "data", r#"["human.jsonl", "compare@1/preferences.jsonl"]"#),
        (
            "reward",
            3,
            "data",
            r#"["human.jsonl", "compare@1/preferences.jsonl", "compare@2/preferences.jsonl"]"#,
        ),
        ("sample", 1, "model", r#""start""#),
        ("sample", 3, "model", r#""dpo@2""#),
        ("sample", 3, "data", r#"["prompts-3.jsonl"]"#),
        ("sample", 2, "scorer", r#"["reward:reward@2"]"#),
        ("sample", 2, "seed", "8"),
        ("sft", 3, "model", r#""start""#),
        ("sft", 2, "data", r#"["sample@2/sft.jsonl:2"]"#),
        ("dpo", 1, "data", r#"["compare@1/p.jsonl"]"#),
        ("dpo", 2, "data", r#"["compare@1/p.jsonl", "compare@2/p.jsonl"]"#),
    ] {
        assert_eq!(option(&graph, name, round, key), want, "{name} {round} {key}");
    }
    for (at, node) in graph.nodes.iter().enumerate() {
        assert!(node.inputs.iter().all(|&input| input < at), "{node:?}");
    }
}

#[test]
fn a_stage_of_some_rounds_is_used_in_later_ones() {
    let stages = ["reward reward: rounds = 1", "sample sample: scorer = [\"reward:{reward}\"]"];
    let graph = graph(2, &stages).unwrap();
    assert_eq!(option(&graph, "sample", 2, "scorer"), r#"["reward:reward@1"]"#);
}

#[test]
fn wrong_references_are_refused_with_their_line() {
    let cases: [(&[&str], &str); 7] = [
        (
            &["sft sft: model = \"{sft}\""],
            "r.toml:7: `{sft}` in the stage `sft`: it would need itself",
        ),
        (
            &["sample sample: model = \"{dpo}\"", "dpo dpo: data = [\"{sample}/p.jsonl\"]"],
            "r.toml:7: `{dpo}` stands below `sample`, which uses it",
        ),
        (&["sft sft: model = \"{stf}\""], "r.toml:7: no stage is called `stf`"),
        (&["sft sft: model = \"{last.sft}\""], "r.toml:7: no word before a dot is called `last`"),
        (&["sft sft: model = \"{all.sft}\""], "r.toml:7: `{all.sft}` may be several, in no list"),
        (&["sft sft: teacher = \"{previous.sft}/x\""], "r.toml:7: `{previous.sft}/x` is nothing"),
        (
            &["reward reward: rounds = 2", "sample sample: scorer = [\"reward:{reward}\"]"],
            "r.toml:11: `{reward}` takes no part in the rounds up to 1",
        ),
    ];
    for (stages, told) in cases {
        let error = graph(2, stages).unwrap_err();
        let told = told.replace("`{previous.sft}/x`", "`{previous.sft}`");
        assert!(error.to_string().starts_with(&told), "{error}");
        assert!(error.remedy().is_some(), "{error}");
    }
}

#[test]
fn braces_that_hold_no_name_stay() {
    let graph = graph(
        1,
        &["sample sample: system = [\"Say {\\\"a\\\": 1}\", \"{{base}}\"]\nscorer = [\"regex:\\\\d{2,3}\"]"],
    )
    .unwrap();
    let system = option(&graph, "sample", 1, "system");
    assert_eq!(system, r#"['Say {"a": 1}', "{base}"]"#);
    assert!(option(&graph, "sample", 1, "scorer").contains("d{2,3}"));
}

#[test]
fn every_model_is_measured_after_it_is_made() {
    let text = "model = \"start\"\n[eval]\ntask = [\"t.jsonl\"]\n[[stage]]\nname = \"reward\"\n\
                [[stage]]\nname = \"sft\"\n[[stage]]\nname = \"dpo\"\nmeasured = false\n";
    let graph = Graph::new(&Recipe::parse(text, Path::new("r.toml")).unwrap()).unwrap();
    let names: Vec<&str> = graph.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["eval-base", "reward", "sft", "eval-sft", "drift-sft", "dpo"]);
    assert_eq!(option(&graph, "eval-base", 0, "model"), "\"start\"");
    assert_eq!(option(&graph, "eval-sft", 1, "model"), "\"sft@1\"");
    assert_eq!(option(&graph, "drift-sft", 1, "samples"), "\"eval-sft@1\"");
    assert_eq!(graph.result(), Some(5));
}

#[test]
fn the_drift_reads_prompts_as_the_evaluation_does() {
    let text = "model = \"start\"\n[eval]\ntask = [\"t.jsonl\"]\nchat_template = \"c.jinja\"\n\
                revision = \"v2\"\n[[stage]]\nname = \"sft\"\n";
    let graph = Graph::new(&Recipe::parse(text, Path::new("r.toml")).unwrap()).unwrap();
    for (key, want) in
        [("chat_template", "\"c.jinja\""), ("revision", "\"v2\""), ("task", "nothing")]
    {
        assert_eq!(option(&graph, "drift-sft", 1, key), want);
    }
}
