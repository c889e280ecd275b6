use serde_json::json;

use super::*;
use crate::scorer::NO_PROMPT;

/// Paragraphs of some length, because short texts can be of several languages.
const ENGLISH: &str = "The weather was cold and the streets were empty when we walked home. Nobody \
    had thought of bringing an umbrella, and of course it began to rain before we got there.";
const GERMAN: &str = "Das Wetter war kalt und die Straßen waren leer, als wir nach Hause gingen. \
    Niemand hatte daran gedacht, einen Schirm mitzunehmen, und natürlich begann es zu regnen.";
const FRENCH: &str = "Il faisait froid et les rues étaient vides quand nous sommes rentrés à la \
    maison. Personne n'avait pensé à prendre un parapluie, et bien sûr il a commencé à pleuvoir.";
const HINDI: &str =
    "जब हम घर गए तब मौसम ठंडा था और सड़कें खाली थीं। किसी ने छाता लाने के बारे में नहीं सोचा था।";
const URDU: &str = "جب ہم گھر گئے تو موسم ٹھنڈا تھا اور سڑکیں خالی تھیں۔ کسی نے چھتری لانے کے بارے میں نہیں سوچا تھا۔";
const JAPANESE: &str = "家に帰る時、天気は寒くて、道には誰もいませんでした。誰も傘を持ってくることを考えていませんでした。";

fn follows(id: &str, arguments: Value, completion: &str) -> bool {
    let instruction = Instruction::read(id, arguments.as_object().unwrap()).unwrap();
    InstructionFollowing::default().is_followed(&instruction, completion)
}

/// Completions that follow an instruction, and some that do not.
fn check(id: &str, arguments: Value, right: &[&str], wrong: &[&str]) {
    for completion in right {
        assert!(follows(id, arguments.clone(), completion), "{id} {arguments} {completion:?}");
    }
    for completion in wrong.iter().chain(&["", " \n "]) {
        assert!(!follows(id, arguments.clone(), completion), "not {id} {arguments} {completion:?}");
    }
}

#[test]
fn keywords_are_found_in_any_case() {
    check(
        "keywords:existence",
        json!({"keywords": ["river", "Old bridge"]}),
        &["The RIVER under the old bridge", "riverside, old bridges"],
        &["the river", "old  bridge over the river"],
    );
    check(
        "keywords:frequency",
        json!({"keyword": " tea ", "frequency": 2, "relation": "at least"}),
        &["Tea and tea", "teatea", "steam, tea"],
        &["tea", "coffee"],
    );
    check(
        "keywords:frequency",
        json!({"keyword": "tea", "frequency": 2.0, "relation": "less than"}),
        &["tea", "coffee"],
        &["tea tea", "tea tea tea"],
    );
    check(
        "keywords:forbidden_words",
        json!({"forbidden_words": ["can", "ride"]}),
        &["candid", "a bride's ca n", "can_"],
        &["I can", "CAN.", "can't", "a (ride)"],
    );
    check(
        "keywords:letter_frequency",
        json!({"letter": "A", "let_frequency": 3, "let_relation": "at least"}),
        &["banana", "AaA"],
        &["bana", "none"],
    );
    check(
        "keywords:letter_frequency",
        json!({"letter": "!", "let_frequency": 1, "let_relation": "less than"}),
        &["calm"],
        &["loud!"],
    );
}

#[test]
fn languages_are_told_apart() {
    let texts = [
        ("en", ENGLISH),
        ("de", GERMAN),
        ("fr", FRENCH),
        ("hi", HINDI),
        ("ur", URDU),
        ("ja", JAPANESE),
    ];
    for (asked, _) in texts {
        for (language, text) in texts {
            let got = follows("language:response_language", json!({"language": asked}), text);
            assert_eq!(got, asked == language, "{asked} of {language}");
        }
    }
    assert!(follows("language:response_language", json!({"language": "en"}), "1 + 1 = 2"));
}

#[test]
fn letters_in_one_case_are_english() {
    let (upper, lower) = (ENGLISH.to_uppercase(), ENGLISH.to_lowercase());
    check(
        "change_case:english_capital",
        json!({}),
        &[&upper],
        &[ENGLISH, &lower, &GERMAN.to_uppercase()],
    );
    check(
        "change_case:english_lowercase",
        json!({}),
        &[&lower],
        &[ENGLISH, &upper, &FRENCH.to_lowercase()],
    );
    check("change_case:english_lowercase", json!({}), &[], &["123", "!"]);
    let at_least = json!({"capital_frequency": 2, "capital_relation": "at least"});
    check(
        "change_case:capital_word_frequency",
        at_least,
        &["HELLO WORLD", "I said NO", "WELL-KNOWN, NASA's", "DON'T", "**BOLD** A1"],
        &["Hello World", "NO", "WELL-KNOWN", "1 2 3"],
    );
    let less = json!({"capital_frequency": 2, "capital_relation": "less than"});
    check("change_case:capital_word_frequency", less, &["Hello", "NO way"], &["NO WAY", "I, I"]);
}

#[test]
fn lengths_are_counted() {
    let words = |count, relation: &str| json!({"num_words": count, "relation": relation});
    check(
        "length_constraints:number_words",
        words(3, "at least"),
        &["one two three", "it's one", "a_b c-d"],
        &["one two", "... , !"],
    );
    check("length_constraints:number_words", words(3, "less than"), &["one two"], &["a b c"]);
    let sentences = |count, relation: &str| json!({"num_sentences": count, "relation": relation});
    check(
        "length_constraints:number_sentences",
        sentences(3, "at least"),
        &["One. Two! Three?", "One.\nTwo.\nThree", "1. One. Two."],
        &["One. Two.", "Mr. Smith met Dr. No. Bye.", "One... two. Three", "3.5 and 4.5. Yes."],
    );
    check(
        "length_constraints:number_sentences",
        sentences(2, "less than"),
        &["One"],
        &["A cat. B"],
    );
    check(
        "length_constraints:number_paragraphs",
        json!({"num_paragraphs": 2}),
        &["a\n***\nb", "a *** b", "***\na\n***\nb\n***"],
        &["a", "a\n***\n***\nb", "a***b***c", "a\n\nb", "***"],
    );
    check(
        "length_constraints:nth_paragraph_first_word",
        json!({"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Hello"}),
        &["a\n\nhello b", "a\n\n\"Hello\" b", "a\n\nHello, b\n\n"],
        &[
            "hello\n\na",
            "a\n\nhellos",
            "a\n\nb\n\nhello",
            "a\nhello",
            "a\n\n**hello** b",
            "a\n\n\n\nhello",
        ],
    );
    let first = json!({"num_paragraphs": 1, "nth_paragraph": 0, "first_word": "a"});
    check("length_constraints:nth_paragraph_first_word", first, &[], &["a"]);
}

#[test]
fn content_is_detected() {
    check(
        "detectable_content:number_placeholders",
        json!({"num_placeholders": 2}),
        &["[name] and [address]", "[a][]", "[[a]]]] [b]"],
        &["[name]", "[a\nb] [c]"],
    );
    let marker = |marker: &str| json!({"postscript_marker": marker});
    check(
        "detectable_content:postscript",
        marker("P.S."),
        &["Bye.\nP.S. more", "bye p. s. more", "P.S."],
        &["PS more", "P.S more"],
    );
    check("detectable_content:postscript", marker("P.P.S"), &["p.p. s more", "P.P.S"], &["P.S."]);
    check("detectable_content:postscript", marker("Note:"), &["note: more"], &["notes"]);
}

#[test]
fn formats_are_detected() {
    check(
        "detectable_format:number_bullet_lists",
        json!({"num_bullets": 2}),
        &["* a\n* b", "- a\n\n  * b", "text\n-a\n-b\nmore"],
        &["* a", "* a\n* b\n* c", "a * b * c", "** a\n** b"],
    );
    check(
        "detectable_format:constrained_response",
        json!({}),
        &["My answer is yes.", "So: My answer is maybe. Bye"],
        &["my answer is yes.", "My answer is yes", "yes"],
    );
    check(
        "detectable_format:number_highlighted_sections",
        json!({"num_highlights": 2}),
        &["*a* and *b*", "*a b* **c d**"],
        &["*a*", "** **", "*a\nb* c", "* *a* *b*"],
    );
    check(
        "detectable_format:multiple_sections",
        json!({"section_spliter": "SECTION", "num_sections": 2}),
        &["SECTION 1\na\nSECTION 2\nb", "SECTION1 SECTION2"],
        &["SECTION 1", "Section 1 Section 2", "SECTION A SECTION B", "SECTION  1 SECTION  2"],
    );
    check(
        "detectable_format:json_format",
        json!({}),
        &[r#"{"a": [1, null]}"#, "```json\n{}\n```", "```JSON []```", "5", "\"a\""],
        &["{a: 1}", "{'a': 1}", "Here: {}", "```python\n{}\n```", "{} {}"],
    );
    check(
        "detectable_format:title",
        json!({}),
        &["<<poem of joy>>\nroses", "a <<b>> c"],
        &["<poem>", "<< >>", "<<>>", "<<a\nb>>"],
    );
}

#[test]
fn combinations_starts_and_ends_are_detected() {
    check(
        "combination:two_responses",
        json!({}),
        &["a\n******\nb", "******a******b******"],
        &["a", "a******a ", "a******b******c", "a************b", "a***b"],
    );
    check(
        "combination:repeat_prompt",
        json!({"prompt_to_repeat": "Write a poem. "}),
        &["write a poem.\nRoses", " Write a poem. Roses"],
        &["Sure! Write a poem.", "Roses"],
    );
    check(
        "startend:end_checker",
        json!({"end_phrase": " Any other questions? "}),
        &["Yes. any other questions?", "\"Yes. Any other questions?\"\n"],
        &["Any other questions? No.", "Any other questions"],
    );
    check("startend:quotation", json!({}), &["\"a\"", " \"a\" b\" "], &["a", "\"", "\"a", "“a”"]);
    check("punctuation:no_comma", json!({}), &["a b", "a; b"], &["a, b", ","]);
}

#[test]
fn a_loose_check_forgives_an_introduction_and_asterisks() {
    let row = json!({
        "instruction_id_list": ["startend:quotation", "punctuation:no_comma"],
        "kwargs": [{}, {"num_words": null}],
    });
    let row = row.as_object().unwrap();
    let score = |loose, all, completion| {
        let item = Item { prompt: &NO_PROMPT, completion, num_tokens: 1, ended: true, row };
        InstructionFollowing { loose, all }.score(&item).unwrap().value
    };
    for (completion, strict, loose) in [
        ("\"a b\"", 1.0, 1.0),
        ("Sure, here:\n\"a b\"", 0.0, 1.0),
        ("\"a b\"\nBye, now", 0.0, 1.0),
        ("Sure, here:\n**\"a b\"**\nBye, now", 0.0, 1.0),
        ("*\"a b\"*", 0.5, 1.0),
        ("\"a, b\"", 0.5, 0.5),
        ("a, b", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("\n", 0.0, 0.0),
    ] {
        assert_eq!(score(false, false, completion), strict, "strict {completion:?}");
        assert_eq!(score(true, false, completion), loose, "loose {completion:?}");
        assert_eq!(score(false, true, completion), f64::from(u8::from(strict == 1.0)), "all");
    }
}

#[test]
fn the_report_names_what_was_not_followed() {
    let row = json!({
        "instruction_id_list": ["startend:quotation", "punctuation:no_comma"],
        "kwargs": [null, {}],
    });
    let row = row.as_object().unwrap();
    let item = Item { prompt: &NO_PROMPT, completion: "a b", num_tokens: 1, ended: true, row };
    let score = InstructionFollowing::default().score(&item).unwrap();
    assert_eq!(score, Score::because(0.5, "not followed: startend:quotation"));
}

#[test]
fn instructions_that_cannot_be_read_cost_their_row() {
    let mut errors = Vec::new();
    for (ids, arguments) in [
        (json!(["keywords:exist"]), json!([{}])),
        (json!(["keywords:existence"]), json!([{"keywords": null}])),
        (json!(["keywords:existence"]), json!([{"keywords": []}])),
        (json!(["keywords:existence"]), json!([{"keywords": "a"}])),
        (
            json!(["keywords:frequency"]),
            json!([{"keyword": "a", "frequency": 1, "relation": "more"}]),
        ),
        (json!(["keywords:letter_frequency"]), json!([{"letter": "ab"}])),
        (json!(["language:response_language"]), json!([{"language": "sw"}])),
        (json!(["length_constraints:number_words"]), json!([{"num_words": -1}])),
        (json!(["length_constraints:number_words"]), json!([{"num_words": 1.5}])),
        (json!(["punctuation:no_comma"]), json!([])),
        (json!(["punctuation:no_comma"]), json!([5])),
        (json!([5]), json!([{}])),
        (json!([]), json!([])),
        (json!("punctuation:no_comma"), json!({})),
    ] {
        let row = json!({"instruction_id_list": ids, "kwargs": arguments});
        let row = row.as_object().unwrap();
        let item = Item { prompt: &NO_PROMPT, completion: "a", num_tokens: 1, ended: true, row };
        let error = InstructionFollowing::default().score(&item).unwrap_err();
        let hint = error.remedy().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
        errors.push(format!("{ids} {arguments}\n  {error}{hint}"));
    }
    insta::assert_snapshot!(errors.join("\n"));
}
