use super::*;

/// What rows are made from, the newest entry.
fn origin(outcome: &Outcome, row: usize) -> Value {
    outcome.rows[row].0["provenance"].as_array().unwrap().last().unwrap().clone()
}

#[test]
fn thinking_is_never_data() {
    let thinks: Script = |_| Some("<think>\"no\" [END]</think>\nAdd three numbers now".into());
    let rows = vec![json!({"prompt": "Add two numbers", "persona": "a nurse"})];
    for (kind, options, wanted) in [
        ("personas", "tasks = [\"a poem\"]", "Add three numbers now"),
        ("evol-instruct", "rounds = 1\nkeep_original = false", "Add three numbers now"),
        ("magpie", "count = 1", "Add three numbers now"),
    ] {
        let outcome = run(kind, options, rows.clone(), thinks);
        assert_eq!(prompts(&outcome).last().unwrap(), wanted, "{kind}");
    }
    let listed: Script = |_| {
        Some(
            "<think>\n2. Name five trees of the north\n</think>\n2. List four rivers of Europe"
                .into(),
        )
    };
    let options = "rounds = 1\nrequests_per_round = 1";
    assert_eq!(
        prompts(&run("self-instruct", options, rows.clone(), listed)),
        ["List four rivers of Europe"]
    );
    let cut: Script = |_| Some("<think>\n2. Name five trees of the north\n3. List four…".into());
    assert_eq!(reasons(&run("self-instruct", options, rows.clone(), cut)), ["no list"]);
    let text = vec![json!({"text": "Bees dance."})];
    let outcome = run("backtranslate", "", text, |asked| {
        let score = asked.contains("Score: N");
        Some(format!(
            "<think>Score: 1</think>{}",
            if score { "Score: 5" } else { "What do bees do?" }
        ))
    });
    assert_eq!(prompts(&outcome), ["What do bees do?"]);
    let outcome = run("dialogue", "turns = 2", rows, |asked| {
        Some(match asked.contains("Assistant") || asked.contains("[assistant]") {
            true => "<think>or [END]?</think>And four?".into(),
            false => "<think>So.</think>Yes.".into(),
        })
    });
    let turns = outcome.rows[0].messages().unwrap();
    let said: Vec<_> = turns.iter().map(|turn| turn.content().unwrap()).collect();
    // What an assistant is trained on is left as it was said.
    assert_eq!(said.len(), 4, "{said:?}");
    assert!(said[1].starts_with("<think>") && !said[2].contains("think"), "{said:?}");
}

/// Answers with the question's draw; what begins with `down` has no answer.
struct Drawn;

impl Teacher for Drawn {
    fn name(&self) -> &str {
        "drawn"
    }

    fn answer(
        &self,
        questions: &[Question],
        _: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Result<Answer>>> {
        let answer = |question: &Question| {
            let Turn::Messages(turns) = &question.prompt else { panic!("{question:?}") };
            if turns[0].content() == Some("down") {
                return Err(Error::new(ErrorKind::Network, "the server is down"));
            }
            Ok(Answer {
                message: Message::new("assistant", &question.draw.to_string()),
                finish: "stop".into(),
                logprobs: None,
                usage: Usage::default(),
                model: "drawn".into(),
            })
        };
        Ok(questions.iter().map(answer).collect())
    }
}

#[test]
fn what_a_dialogue_asks_does_not_depend_on_which_others_go_on() {
    let told = |first: &str| {
        let rows = vec![json!({"prompt": first}), json!({"prompt": "hello"})];
        let outcome = run_by(
            "dialogue",
            "turns = 3",
            rows,
            BTreeMap::from([("one".into(), Box::new(Drawn) as Box<dyn Teacher>)]),
        );
        (outcome.rows.last().unwrap().messages(), outcome.figures.get("unanswered").cloned())
    };
    let (hello, unanswered) = told("down");
    assert_eq!((hello, unanswered), (told("up").0, Some(json!(1))));
    assert_eq!(told("up").1, None);
}

#[test]
fn a_row_of_several_parents_names_them_and_their_licences_alone() {
    let seed = |text: &str, licence: &str| {
        let before: Vec<Value> = (0..20).map(|n| json!({"kind": "step", "n": n})).collect();
        let last = json!({"kind": "rows", "licence": licence});
        let entries = [before, vec![last]].concat();
        json!({"prompt": text, "provenance": entries})
    };
    let rows = vec![
        seed("Write a poem about the sea", "MIT"),
        seed("Count the ships of Spain", "CC0-1.0"),
        seed("Describe a storm in the north", "MIT"),
    ];
    let options = "rounds = 1\nrequests_per_round = 1\nper_request = 2\ncount = 1";
    let outcome = run("self-instruct", options, rows, |_| {
        let list =
            ["Name five old trees", "List four rivers of Europe", "Sum up a very short play"];
        let numbered = list.iter().enumerate().map(|(at, text)| format!("{}. {text}", at + 4));
        Some(numbered.collect::<Vec<_>>().join("\n"))
    });
    assert_eq!(outcome.rows[0].0["provenance"].as_array().unwrap().len(), 1);
    let origin = origin(&outcome, 0);
    assert_eq!(origin["parents"].as_array().unwrap().len(), 3);
    let mut licences: Vec<&str> =
        origin["licence"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    licences.sort_unstable();
    assert_eq!(licences, ["CC0-1.0", "MIT"]);
    // What is not wanted is told.
    assert_eq!(reasons(&outcome), ["beyond `count`", "beyond `per_request`"]);
}

#[test]
fn everybody_who_had_a_part_in_a_row_is_told() {
    let rows = vec![json!({"prompt": "Why?"})];
    let answers: Script = |asked| Some(format!("Because of {}.", asked.len()));
    let hash = |outcome: &Outcome| origin(outcome, 0)["prompt_hash"].as_str().unwrap().to_string();
    let plain = run("answer", "", rows.clone(), answers);
    let told = run("answer", "system = \"Be brief.\"", rows.clone(), answers);
    assert_ne!(hash(&plain), hash(&told));
    assert_eq!(hash(&run("magpie", "count = 1", vec![], answers)).len(), 16);
    let judge: Script = |asked| {
        let is_first = asked.contains("[First answer]\ngood");
        Some(format!("Verdict: {}", if is_first { 3 } else { -3 }))
    };
    let options = "teachers = [\"one\", \"two\"]\njudge = \"judge\"\ntemperature = 0.5";
    let (one, two): (Script, Script) = (|_| Some("good".into()), |_| Some("bad".into()));
    let scripts = [("judge", judge), ("one", one), ("two", two)];
    let outcome = run_all("preferences", options, rows.clone(), &scripts);
    let told = origin(&outcome, 0);
    let of =
        |part: &str| (told[part]["teacher"].clone(), told[part]["sampling"]["temperature"].clone());
    assert_eq!(
        (of("chosen"), of("rejected")),
        ((json!("one"), json!(0.5)), (json!("two"), json!(0.5)))
    );
    assert_eq!(
        (&told["teacher"], &told["sampling"]["temperature"]),
        (&json!("judge"), &json!(0.0))
    );
    let scripts = [("one", answers), ("two", answers)];
    let options = "teacher = \"one\"\nuser = \"two\"";
    let outcome = run_all("dialogue", options, rows, &scripts);
    assert_eq!(origin(&outcome, 0)["user"]["teacher"], "two");
}

#[test]
fn a_solution_is_held_to_its_own_rows_answer() {
    let talk = |first: &str, answer: Option<&str>, said: &str| {
        let turn = |role: &str, text: &str| json!({"role": role, "content": text});
        let turns = [
            turn("user", first),
            turn("assistant", "Hm."),
            turn("user", "So?"),
            turn("assistant", said),
        ];
        json!({"messages": turns, "answer": answer})
    };
    let rows = vec![
        talk("1+1", Some("2"), "#### 2"),
        talk("2+2", Some("4"), "#### 4"),
        talk("3+3", None, "#### 6"),
        talk("3+3", None, "#### 6"),
        talk("2+2", None, "#### 4"),
        talk("5+5", Some("10"), "#### 2"),
    ];
    let outcome = run("maths", "", rows, |_| None);
    assert_eq!((outcome.rows.len(), reasons(&outcome)), (5, vec!["wrong answer"]));
}

#[test]
fn what_is_left_over_of_documents_and_rows_is_told() {
    let text = format!("{}\n\nThe end.", "Ants carry leaves. ".repeat(3).trim());
    let outcome = run(
        "documents",
        "min_chars = 20\nmax_chars = 60\nquestions = 1",
        vec![json!({"text": text})],
        |_| {
            let pair = json!({"question": "What?", "answer": "Leaves."});
            Some(json!([pair, pair]).to_string())
        },
    );
    assert_eq!(
        (outcome.rows.len(), reasons(&outcome)),
        (1, vec!["too short", "beyond `questions`"])
    );
    assert_eq!(outcome.removed[0].detail, "The end.");
    let named = |name: Value| json!({"prompt": "Write f.", "tests": ["assert f(1) == 2"], "entry_point": name});
    let outcome = run("code", "", vec![named(json!(5)), named(json!(["f"]))], |_| panic!("asked"));
    assert_eq!(reasons(&outcome), ["no tests"; 2]);
    assert!(outcome.removed[0].detail.contains("`entry_point`"));
}
