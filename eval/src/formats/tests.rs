use halter_core::Result;
use halter_core::data::record::{Message, Turn};
use serde_json::{Value, json};

use super::{choice, open};
use crate::format::{FORMATS, Read, named};
use crate::question::{Choice, Open, Row};

fn row(value: Value) -> Row {
    value.as_object().cloned().unwrap_or_default()
}

fn ask(read: fn(&Row) -> Result<Choice>, value: Value) -> Choice {
    read(&row(value)).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(read: fn(&Row) -> Result<Choice>, value: Value) -> String {
    read(&row(value)).unwrap_err().message().to_string()
}

fn parts(choice: &Choice) -> (&str, Vec<&str>, usize) {
    (&choice.context, choice.choices.iter().map(String::as_str).collect(), choice.gold)
}

#[test]
fn every_format_has_a_name_of_its_own_and_a_scorer_that_can_be_read() {
    for format in FORMATS {
        assert!(std::ptr::eq(named(format.name).unwrap(), format), "{}", format.name);
        if let Read::Open(completed) = &format.read {
            completed
                .scorer
                .parse::<halter_rejection_sampling::scorer::ScorerSpec>()
                .unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

#[test]
fn boolq_takes_labels_booleans_and_words() {
    let plain = json!({ "passage": "Llamas hum.", "question": "do llamas hum" });
    let with = |column: &str, value: Value| {
        let mut row = plain.clone();
        row[column] = value;
        row
    };
    for (column, value, gold) in [
        ("label", json!(1), 1),
        ("label", json!(0), 0),
        ("answer", json!(true), 1),
        ("answer", json!("False"), 0),
        ("answer", json!("true"), 1),
    ] {
        let choice = ask(choice::boolq, with(column, value));
        let context = "Llamas hum.\nQuestion: do llamas hum?\nAnswer:";
        assert_eq!(parts(&choice), (context, vec!["no", "yes"], gold));
    }
    let message = refused(choice::boolq, with("label", json!(2)));
    assert_eq!(message, "expected `label` to be a number from 0 to 1, got `2`");
    let message = refused(choice::boolq, with("answer", json!("perhaps")));
    assert!(message.contains("got the string `perhaps`"), "{message}");
}

#[test]
fn labelled_choices_are_those_of_arc_openbookqa_and_commonsenseqa() {
    let choices = json!({ "text": ["cold", "hot"], "label": ["A", "B"] });
    let arc = json!({ "question": "Fire is", "choices": choices, "answerKey": "B" });
    let choice = ask(choice::arc, arc.clone());
    assert_eq!(parts(&choice), ("Question: Fire is\nAnswer:", vec!["cold", "hot"], 1));
    let choice = ask(choice::commonsense_qa, arc);
    let context = "Question: Fire is\nA. cold\nB. hot\nAnswer:";
    assert_eq!(parts(&choice), (context, vec!["A", "B"], 1));
    let openbookqa = json!({ "question_stem": "Fire is", "choices": choices, "answerKey": " A" });
    assert_eq!(parts(&ask(choice::openbookqa, openbookqa)), ("Fire is", vec!["cold", "hot"], 0));
    let wrong = json!({ "question": "Fire is", "choices": choices, "answerKey": "C" });
    let message = refused(choice::arc, wrong);
    assert_eq!(message, "`answerKey` is `C`: expected one of `A`, `B`");
    let wrong = json!({ "question": "Fire is", "choices": ["cold", "hot"], "answerKey": "A" });
    let message = refused(choice::arc, wrong);
    assert_eq!(message, "expected `choices` to be an object with `text` and `label`, got an array");
}

#[test]
fn piqa_is_read_from_the_hub_and_from_lists_of_options() {
    let hub = json!({ "goal": "sleep", "sol1": "lie down ", "sol2": "run", "label": 0 });
    let listed = json!({
        "question": "sleep", "options": "A. lie down \nB. run", "answer": "A. lie down ",
    });
    assert_eq!(ask(choice::piqa, hub.clone()), ask(choice::piqa, listed));
    let choice = ask(choice::piqa, hub);
    assert_eq!(parts(&choice), ("Question: sleep\nAnswer:", vec!["lie down ", "run"], 0));
    let unlabelled = json!({ "goal": "sleep", "sol1": "a", "sol2": "b", "label": -1 });
    assert!(refused(choice::piqa, unlabelled).contains("got `-1`"));
}

#[test]
fn options_end_where_the_next_letter_begins() {
    let row = |options: &str, answer: &str| json!({ "question": " Which? ", "options": options, "answer": answer });
    let choice = ask(choice::openbookqa, row("\nA. one\ntwo\nB. C. x\nC. three", "C. three"));
    assert_eq!(parts(&choice), (" Which? ", vec!["one\ntwo", "C. x", "three"], 2));
    for (options, answer, wrong) in [
        ("one\ntwo", "A. one", "expected `options` as"),
        ("A. one\nB. two", "C. three", "`answer` is `C. three`"),
        ("A. one\nB. two", "Bees", "`answer` is `Bees`"),
    ] {
        let message = refused(choice::openbookqa, row(options, answer));
        assert!(message.starts_with(wrong), "{message}");
    }
}

#[test]
fn mmlu_names_its_subject_before_everything() {
    let row = json!({
        "question": " Ribs? ", "choices": ["1", "2", "3", "4"], "answer": 3,
        "subject": "human_anatomy",
    });
    let choice = ask(choice::mmlu, row);
    let context = "Ribs?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:";
    assert_eq!(parts(&choice), (context, vec!["A", "B", "C", "D"], 3));
    assert!(choice.description.ends_with("about human anatomy.\n\n"));
    assert_eq!(choice.shown(), format!("{context} D"));
}

#[test]
fn hellaswag_loses_its_marks() {
    let row = json!({
        "activity_label": "Washing", "ctx_a": "A man [header] stands.", "ctx_b": "he [x] THEN",
        "endings": [" walks [title] Off ", "a  b [not closed", "c[d]"], "label": "2",
    });
    let choice = ask(choice::hellaswag, row);
    let context = "Washing: A man stands. He then";
    assert_eq!(parts(&choice), (context, vec!["walks. Off", "a b [not closed", "c"], 2));
}

#[test]
fn choices_of_ones_own_are_answered_by_number_or_text() {
    for (answer, gold) in [(json!(1), 1), (json!("b"), 1), (json!("0"), 0)] {
        let row = json!({ "context": "x", "choices": ["a", "b"], "answer": answer });
        assert_eq!(parts(&ask(choice::choices, row)), ("x", vec!["a", "b"], gold));
    }
    let row = json!({ "prompt": "x", "choices": ["1", "0"], "answer": "0" });
    assert_eq!(ask(choice::choices, row).gold, 1);
    for (row, wrong) in [
        (json!({ "prompt": "x", "choices": ["a", ""], "answer": 0 }), "choice `1` is empty"),
        (json!({ "prompt": "x", "choices": [], "answer": 0 }), "expected `choices` to be"),
        (json!({ "prompt": "x", "choices": ["a"], "answer": "z" }), "expected `answer` to be"),
        (json!({ "choices": ["a"], "answer": 0 }), "expected a column `prompt`"),
    ] {
        let message = refused(choice::choices, row);
        assert!(message.starts_with(wrong), "{message}");
    }
}

#[test]
fn prompts_of_completions_are_those_of_the_data_sets() {
    let read = |read: fn(&Row) -> Result<Open>, value: Value| {
        read(&row(value)).unwrap_or_else(|error| panic!("{error}"))
    };
    let text = |text: &str| Turn::Text(text.into());
    let gsm8k = read(open::gsm8k, json!({ "question": "1 + 1?", "answer": "2\n#### 2" }));
    assert_eq!(gsm8k.prompt, text("Question: 1 + 1?\nAnswer:"));
    assert_eq!(gsm8k.shown().as_deref(), Some("Question: 1 + 1?\nAnswer: 2\n#### 2"));
    let asdiv = json!({ "passage": "One and one.", "question": "All?", "answer": "2 (apples)" });
    let asdiv = read(open::asdiv, asdiv);
    assert_eq!(asdiv.prompt, text("One and one.\nQuestion:All?\nAnswer:"));
    assert_eq!(asdiv.target.as_deref(), Some("2"));
    let humaneval = json!({ "prompt": "def f():\n", "entry_point": "f", "test": "…" });
    let humaneval = read(open::humaneval, humaneval);
    assert_eq!(humaneval.prompt, text("def f():\n"));
    assert!(humaneval.instruction.is_some() && humaneval.shown().is_none());
    let message = |role: &str, content: &str| Message::new(role, content);
    let chat = json!({ "messages": [
        { "role": "user", "content": "1 + 1?" }, { "role": "assistant", "content": "#### 2" },
    ] });
    let chat = read(open::open, chat);
    assert_eq!(chat.prompt, Turn::Messages(vec![message("user", "1 + 1?")]));
    assert_eq!(chat.target.as_deref(), Some("#### 2"));
    let prompt = read(open::open, json!({ "prompt": "1 + 1 =", "answer": 2 }));
    assert_eq!((prompt.prompt, prompt.target.as_deref()), (text("1 + 1 ="), Some("2")));
}
