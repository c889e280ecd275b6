//! Questions to a teacher, with progress.

use halter_core::data::record::{Message, Turn};
use halter_core::endpoint::{Answer, Question, Teacher};
use halter_core::generate::sampling::Sampling;
use halter_core::train::progress::Unit;
use halter_core::{Error, Result};

use crate::step::Run;

/// The teacher of a name; of an empty name, the only one there is.
fn teacher<'a>(run: &Run<'a>, name: &str) -> Result<&'a dyn Teacher> {
    let names = || run.teachers.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>();
    let found = match name.is_empty() {
        false => run.teachers.get(name),
        true if run.teachers.len() == 1 => run.teachers.values().next(),
        true => {
            return Err(Error::config(format!(
                "`teacher`: expected the name of a teacher, as there are {}",
                run.teachers.len()
            ))
            .hint(format!("the pipeline has {}", names().join(", "))));
        }
    };
    found.map(AsRef::as_ref).ok_or_else(|| {
        Error::config(format!("`teacher`: the pipeline has no teacher `{name}`"))
            .hint(format!("it has {}", names().join(", ")))
    })
}

/// Asks each question; `what` is what the progress says of it.
pub(super) fn ask(
    run: &mut Run,
    name: &str,
    what: &str,
    questions: &[Question],
) -> Result<Vec<Result<Answer>>> {
    let teacher = teacher(run, name)?;
    run.interrupt.check()?;
    run.progress.begin(what, questions.len() as u64, Unit::Rows);
    let (progress, interrupt) = (&mut *run.progress, run.interrupt);
    let answers = teacher.answer(questions, &mut |done| {
        progress.advance(done as u64, "");
        interrupt.check()
    });
    run.progress.finish();
    let answers = answers?;
    match answers.len() == questions.len() {
        true => Ok(answers),
        false => Err(Error::data(format!(
            "the teacher `{}` gave {} answers to {} questions",
            teacher.name(),
            answers.len(),
            questions.len()
        ))),
    }
}

/// A question that has one right answer: the likeliest tokens are wanted.
pub(super) fn question(text: &str, max_new_tokens: usize) -> Question {
    let prompt = Turn::Messages(vec![Message::new("user", text)]);
    Question { sampling: Sampling::GREEDY, ..Question::new(prompt, max_new_tokens) }
}

/// The template with its places filled in. What is filled in is not searched for places.
pub(super) fn fill(template: &str, places: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        filled.push_str(&rest[..at]);
        rest = &rest[at..];
        let place = places.iter().find(|(place, _)| rest.starts_with(place));
        let (place, text) = place.copied().unwrap_or(("{", "{"));
        filled.push_str(text);
        rest = &rest[place.len()..];
    }
    filled + rest
}

/// What a model said after its thinking.
pub(super) fn after_thinking(said: &str) -> &str {
    said.rsplit_once("</think>").map_or(said, |(_, answer)| answer).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_in_is_not_searched_for_places() {
        let filled = fill("{a} and {b}, {c} {", &[("{a}", "{b}"), ("{b}", "two")]);
        assert_eq!(filled, "{b} and two, {c} {");
    }

    #[test]
    fn thinking_is_not_part_of_the_answer() {
        assert_eq!(after_thinking("<think>no: 0</think>\n yes "), "yes");
        assert_eq!(after_thinking("yes"), "yes");
    }
}
