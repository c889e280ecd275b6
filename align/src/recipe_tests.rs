use super::*;

const HEAD: &str = "model = \"m\"\nrounds = 3\n";

fn refused(text: &str) -> String {
    let error = Recipe::parse(text, Path::new("r.toml")).unwrap_err();
    match error.remedy() {
        Some(hint) => format!("{error} ({hint})"),
        None => error.to_string(),
    }
}

#[test]
fn a_stage_keeps_its_options_and_their_lines() {
    let text = format!(
        "{HEAD}[[stage]]\nname = \"a\"\nkind = \"sft\"\nrounds = \"2-\"\nepochs = 2.0\n\
         data = [\n  \"x\",\n]\n\n[[stage]]\nname = \"dpo\"\nbeta = 0.1\n[eval]\nlimit = 3\n"
    );
    let recipe = Recipe::parse(&text, Path::new("r.toml")).unwrap();
    let [a, dpo] = &recipe.stages[..] else { panic!("{:?}", recipe.stages) };
    assert_eq!((a.kind.name, a.rounds, a.line), ("sft", (2, 3), 3));
    assert_eq!((a.line_of("epochs"), a.line_of("data")), (7, 8));
    assert_eq!((dpo.kind.name, dpo.rounds, dpo.line), ("dpo", (1, 3), 12));
    assert_eq!(recipe.eval.unwrap().options["limit"].as_integer(), Some(3));
    // What a command reads of it stands on the lines of the recipe.
    let alone: toml::Table = a.alone.parse().unwrap();
    assert_eq!(alone, a.options);
    assert_eq!(a.alone.lines().nth(6), Some("epochs = 2.0"));
    assert_eq!(a.alone.len(), text.len());
}

#[test]
fn wrong_recipes_are_refused_with_their_line() {
    let cases = [
        ("model = 3", "r.toml:1: `model`: expected a text, got integer"),
        ("model = \"m\"\nround = 3", "r.toml:2: no key is called `round` (did you mean `rounds`?)"),
        ("model = \"m\"\nrounds = 0", "r.toml:2: `rounds`: expected a whole number, 1 or more"),
        ("model = \"m\"\nseed = -1", "r.toml:2: `seed`: expected a whole number, 0 or more"),
        ("model = \"m\"\n[stage]\nname = \"a\"", "r.toml:2: `stage`: expected tables, `[[stage]]`"),
        ("model = \"m\"\neval = 3", "r.toml:2: `eval`: expected a table, `[eval]`"),
        ("model = \"m\"", "r.toml: no stage: expected at least one `[[stage]]`"),
        ("model = \"m\"\n=", "r.toml:2: "),
    ];
    for (text, told) in cases {
        let refused = refused(text);
        assert!(refused.starts_with(told), "{text}: {refused}");
    }
    assert!(refused("[[stage]]\nname = \"sft\"").starts_with("r.toml: no model: "));
}

#[test]
fn wrong_stages_are_refused_with_their_line() {
    let cases = [
        ("kind = \"sft\"", "r.toml:3: the stage has no `name`"),
        ("name = \"a\"", "r.toml:3: the stage `a` has no `kind`"),
        (
            "name = \"a\"\nkind = \"stf\"",
            "r.toml:5: no kind of stage is called `stf` (did you mean `sft`?)",
        ),
        ("name = \"A\"\nkind = \"sft\"", "r.toml:4: `name` is `A`: "),
        ("name = \"all\"\nkind = \"sft\"", "r.toml:4: `name` is `all`, which has a meaning"),
        ("name = \"sft\"\noutput = \"x\"", "r.toml:5: `output` cannot be set: a stage has a"),
        ("name = \"sft\"\nrounds = 4", "r.toml:5: `rounds`: expected rounds from 1 to 3"),
        ("name = \"sft\"\nrounds = \"3-2\"", "r.toml:5: `rounds`: expected rounds from 1 to 3"),
        ("name = \"sft\"\nrounds = \"0\"", "r.toml:5: `rounds`: expected rounds from 1 to 3"),
        ("name = \"sft\"\nmeasured = 1", "r.toml:5: `measured`: expected true or false"),
        ("name = \"sft\"\nepochs = nan", "r.toml:5: `epochs`: expected a finite number"),
        ("name = \"sft\"\ndata = [[1]]", "r.toml:5: `data`: expected a text, a number, true"),
        ("name = \"sft\"\ndata = { a = 1 }", "r.toml:5: `data`: expected a text, a number, true"),
        ("name = \"sft\"\nmodel = \"\\u0001\"", "r.toml:5: `model`: expected no control"),
        ("name = \"sft\"\n[[stage]]\nname = \"sft\"", "r.toml:6: two stages are called `sft`"),
        ("name = \"sft\"\n[eval]\nrounds = 1", "r.toml:6: `[eval]` has no `rounds`"),
    ];
    for (stage, told) in cases {
        let refused = refused(&format!("{HEAD}[[stage]]\n{stage}\n"));
        assert!(refused.starts_with(told), "{stage}: {refused}");
    }
}

#[test]
fn more_rounds_are_for_stages_that_went_to_the_last() {
    let text =
        format!("{HEAD}[[stage]]\nname = \"sft\"\n[[stage]]\nname = \"dpo\"\nrounds = \"1-2\"\n");
    let mut recipe = Recipe::parse(&text, Path::new("r.toml")).unwrap();
    recipe.set_rounds(5);
    let rounds: Vec<_> = recipe.stages.iter().map(|stage| stage.rounds).collect();
    assert_eq!(rounds, [(1, 5), (1, 2)]);
}

#[test]
fn the_bundled_recipe_is_one() {
    let (text, path) = BUNDLED;
    Recipe::parse(text, Path::new(path)).unwrap();
}
