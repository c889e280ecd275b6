use crate::curate::testing::{chat, prompts, refused, removed, run, with};

#[test]
fn each_rule_has_its_reason_and_good_rows_stay() {
    let code = "Use this:\n```py\nassert a != b, 'no!!!!!!!'\n```\n";
    let rows = vec![
        chat("good", "Paris."),
        chat("code", code),
        chat("refused", "I'm sorry, but I can't help with that."),
        chat("nothing", "  "),
        chat("open", "See:\n```py\nx = 1"),
        chat("loud", "Wow! Yes! Go! Now! Do! It!"),
        chat("faces", "Hi 😀😀😀😀"),
        chat("What is the capital of France?", "What is the capital of France?"),
        with(chat("cut", "It goes on"), "finish", "length"),
    ];
    let outcome = run("clean", "", rows);
    assert_eq!(prompts(&outcome.rows), ["good", "code"]);
    let reasons: Vec<_> = removed(&outcome).into_iter().map(|(_, reason, _)| reason).collect();
    assert_eq!(
        reasons,
        [
            "refusal",
            "empty",
            "broken code fence",
            "exclamation marks",
            "emojis",
            "repeats the prompt",
            "truncated"
        ]
    );
    assert_eq!(removed(&outcome)[3].2, "6 exclamation marks in 6 words");
}

#[test]
fn rules_can_be_turned_off_one_by_one() {
    let rows = || {
        vec![
            chat("refused", "I'm sorry, but I can't help with that."),
            chat("nothing", ""),
            chat("open", "```py\nx = 1"),
            chat("loud", "Wow! Yes! Go! Now! Do! It!"),
        ]
    };
    let off = "refusals = false\nempty = false\nbroken_fences = false\nmax_phrase_share = 1.0\n\
        [exclamation_marks]\nmost = 10\nper_100_words = 0";
    assert_eq!(run("clean", off, rows()).rows, rows());
}

#[test]
fn phrases_are_limited_after_the_other_rules_and_counted() {
    let mut rows: Vec<_> = (0..19).map(|at| chat(&format!("{at}"), "Yes.")).collect();
    rows.push(chat("once", "I apologize for the delay. Yes."));
    rows.push(chat("twice", "I apologize for it. No."));
    let outcome = run("clean", "", rows);
    assert_eq!(outcome.rows.len(), 20);
    assert_eq!(removed(&outcome)[0].1, "overused phrase");
    assert_eq!(outcome.figures["phrases"]["I apologize"]["kept"], 1);
    assert_eq!(outcome.figures["phrases"]["I apologize"]["rows"], 2);
}

#[test]
fn own_patterns_of_refusals_are_added_to_the_known_ones() {
    let options = "refusal_patterns = ['^computer says no']";
    let rows = vec![chat("a", "Computer says no."), chat("b", "I cannot help you.")];
    assert!(run("clean", options, rows).rows.is_empty());
}

#[test]
fn rows_of_no_format_are_removed_with_their_columns_named() {
    let row = crate::Row(serde_json::from_str(r#"{"x": 1}"#).unwrap());
    let outcome = run("clean", "", vec![row]);
    assert_eq!(outcome.removed[0].reason, "unreadable");
    assert!(outcome.removed[0].detail.contains("`x`"), "{}", outcome.removed[0].detail);
}

#[test]
fn values_without_a_meaning_are_refused() {
    for (options, told) in [
        ("max_phrase_share = 0", "clean: `max_phrase_share`: expected a share above 0"),
        ("phrases = ['']", "clean: `phrases`: expected phrases with words"),
        ("refusal_patterns = ['(']", "clean: `refusal_patterns`: expected regular expressions"),
        ("emojis = { most = 1, per_100_words = -1 }", "clean: `emojis.per_100_words`"),
    ] {
        let error = refused("clean", options);
        assert!(error.starts_with(told), "{error}");
    }
}
